"""Pointwise regression losses: functions of the error e = prediction − target, elementwise, any shape.

Scales differ between papers and are kept as the papers have them: the squared error is e², Huber's ½e²
near zero. The curvature ℓ″(0) that each formula names is what a learning rate feels; value losses can
divide by it (`matched_curvature`). Hyperparameters are numbers, or 0-dim tensors under `torch.func.vmap`.
"""

import math

import torch
from torch import Tensor

from rlloss.checks import floating, floats_of_one_shape, in_range
from rlloss.numbers import like, wide


def squared_error(error: Tensor) -> Tensor:
    """The squared error of every element.

        ℓ(e) = e²,  ℓ′(e) = 2e,  ℓ″(0) = 2

    Args:
        error: prediction − target, any shape, in the units of the target.

    Returns:
        The loss, same shape, in squared units.

    For: errors without outliers; it estimates the mean.
    Source: Legendre, Nouvelles méthodes (1805); Gauss, Theoria motus (1809).
    """
    floating(error=error)
    return error * error


def absolute_error(error: Tensor) -> Tensor:
    """The absolute error of every element.

        ℓ(e) = |e|,  ℓ′(e) = sign(e), 0 at 0;  a kink at 0, so no curvature there

    Args:
        error: prediction − target, any shape, in the units of the target.

    Returns:
        The loss, same shape, in the units of the target.

    For: outliers; it estimates the median.
    Source: Boscovich (1757); Laplace, Mémoire sur la probabilité des causes (1774).
    """
    floating(error=error)
    return error.abs()


def huber(error: Tensor, delta: float | Tensor) -> Tensor:
    """The Huber loss of every element: quadratic up to δ, linear beyond.

        ℓ(e) = ½e²            if |e| ≤ δ
               δ(|e| − ½δ)    otherwise;   ℓ′(e) = clip(e, −δ, δ),  ℓ″(0) = 1

    Args:
        error: prediction − target, any shape, in the units of the target.
        delta: δ > 0, where the quadratic zone ends, in the units of the target.

    Returns:
        The loss, same shape, in squared units.

    For: mostly small errors with some outliers, whose gradient it clips at δ.
    Source: Huber, Robust estimation of a location parameter (1964).
    """
    floating(error=error)
    in_range("delta", delta, 0, above=True)
    delta = like(error, delta)
    # Both zones in one: nothing overflows where |e| is huge, and without |e| the curvature at 0 is no convention.
    clipped = error.clamp(-delta, delta)
    return clipped * (error - 0.5 * clipped)


def smooth_l1(error: Tensor, beta: float | Tensor) -> Tensor:
    """The smooth absolute error of every element: Huber's loss divided by its δ.

        ℓ(e) = ½e²/β      if |e| ≤ β
               |e| − ½β   otherwise;   ℓ′(e) = clip(e/β, −1, 1),  ℓ″(0) = 1/β

    Args:
        error: prediction − target, any shape, in the units of the target.
        beta: β > 0, where the quadratic zone ends, in the units of the target.

    Returns:
        The loss, same shape, in the units of the target.

    For: an absolute error without its kink; gradients stay within ±1 whatever β.
    Source: Girshick, Fast R-CNN, arXiv 1504.08083.
    """
    floating(error=error)
    in_range("beta", beta, 0, above=True)
    beta = like(error, beta)
    clipped = error.clamp(-beta, beta)
    return clipped / beta * (error - 0.5 * clipped)


def pseudo_huber(error: Tensor, delta: float | Tensor) -> Tensor:
    """The pseudo-Huber loss of every element, a smooth relative of Huber's.

        ℓ(e) = δ²(√(1 + (e/δ)²) − 1),  ℓ′(e) = e/√(1 + (e/δ)²),  ℓ″(0) = 1

    Args:
        error: prediction − target, any shape, in the units of the target.
        delta: δ > 0, the largest gradient, in the units of the target.

    Returns:
        The loss, same shape, in squared units.

    For: Huber's purpose where second derivatives must be continuous.
    Source: Charbonnier et al., Deterministic edge-preserving regularization (1997).
    """
    floating(error=error)
    in_range("delta", delta, 0, above=True)
    delta = like(error, delta)
    root = torch.hypot(error, delta + torch.zeros_like(error))  # The compiler refuses dimensions that differ, as they do where runs share δ.
    # Two forms: root − δ cancels for small errors, and e² overflows for large ones.
    within = error.abs() < delta
    near = torch.where(within, error, torch.zeros_like(error))
    return torch.where(within, near * (near * (delta / (root + delta))), delta * (root - delta))


def log_cosh(error: Tensor) -> Tensor:
    """The logarithm of the hyperbolic cosine of every element.

        ℓ(e) = log cosh(e),  ℓ′(e) = tanh(e),  ℓ″(0) = 1

    Args:
        error: prediction − target, any shape, in units in which 1 is where the quadratic zone ends.

    Returns:
        The loss, same shape.

    For: a smooth Huber loss with no parameter.
    Source: Green, Bayesian reconstructions from emission tomography data (1990).
    """
    floating(error=error)
    magnitude, near = error.abs(), error.clamp(-1.0, 1.0)
    # Two forms, since each loses all digits where the other is used.
    small = 0.5 * torch.log1p(torch.sinh(near) ** 2)
    large = magnitude + torch.log1p(torch.exp(-2 * magnitude)) - math.log(2)
    return torch.where(magnitude < 1, small, large)


def quantile(error: Tensor, tau: float | Tensor) -> Tensor:
    """The quantile (pinball) loss of every element.

        ℓ(e) = (1[e > 0] − τ)·e,  ℓ′(e) = 1 − τ above 0 and −τ below;  a kink at 0, so no curvature there

    Args:
        error: prediction − target, any shape, in the units of the target.
        tau: τ in (0, 1), the quantile to estimate; at ½ the loss is half the absolute error.

    Returns:
        The loss, same shape, in the units of the target.

    For: a quantile of the targets instead of their mean.
    Source: Koenker and Bassett, Regression quantiles (1978).
    """
    floating(error=error)
    in_range("tau", tau, 0, 1, above=True, below=True)
    return error.relu() - like(error, tau) * error


def expectile(error: Tensor, tau: float | Tensor) -> Tensor:
    """The expectile loss of every element: a squared error that weighs the two signs differently.

        ℓ(e) = |1[e > 0] − τ|·e²,  ℓ′(e) = 2|1[e > 0] − τ|·e,  ℓ″(0) = 1, the mean of both sides

    Args:
        error: prediction − target, any shape, in the units of the target.
        tau: τ in (0, 1), the expectile to estimate; at ½ the loss is ½e².

    Returns:
        The loss, same shape, in squared units.

    For: values between mean and maximum, as in offline learning (implicit Q-learning).
    Source: Newey and Powell, Asymmetric least squares (1987); Kostrikov et al., arXiv 2110.06169.
    """
    floating(error=error)
    in_range("tau", tau, 0, 1, above=True, below=True)
    tau = like(error, tau)
    return torch.where(error > 0, 1 - tau, tau) * error * error


def gaussian_nll(error: Tensor, log_variance: Tensor) -> Tensor:
    """The negative log-likelihood of every element under a Gaussian of learned variance, without its constant.

        ℓ(e, s) = ½(s + e²·exp(−s)),  s = log σ²;  ∂ℓ/∂e = e/σ²,  ℓ″(0) = 1/σ²

    Args:
        error: prediction − target, any shape, in the units of the target.
        log_variance: s, same shape: the logarithm of the predicted variance.

    Returns:
        The loss, same shape, in nats.

    Raises:
        ValueError: the shapes differ.

    For: noise that differs between states: noisy targets count less.
    Source: Nix and Weigend, Estimating the mean and variance of the target probability distribution (1994).
    """
    floats_of_one_shape(error=error, log_variance=log_variance)
    scaled = error * torch.exp(-0.5 * log_variance)
    return 0.5 * (log_variance + scaled * scaled)


def robust(error: Tensor, alpha: float | Tensor, scale: float | Tensor) -> Tensor:
    """Barron's general robust loss of every element.

        ℓ(e) = |α−2|/α · ((x²/|α−2| + 1)^(α/2) − 1),  x = e/c;   ℓ″(0) = 1/c²
        ℓ′(e) = x/c·(x²/|α−2| + 1)^(α/2 − 1)

    with its limits ½x² at α = 2 (L2), log(½x² + 1) at 0 (Cauchy) and 1 − exp(−½x²) at −∞ (Welsch);
    α = 1 is Charbonnier's loss and α = −2 Geman and McClure's.

    Args:
        error: prediction − target, any shape, in the units of the target.
        alpha: α ≤ 2, the shape: the smaller, the less an outlier counts.
        scale: c > 0, where the quadratic zone ends, in the units of the target.

    Returns:
        The loss, same shape, without units.

    For: choosing, or sweeping, how much outliers count by one number.
    Source: Barron, A general and adaptive robust loss function, arXiv 1701.03077.
    """
    floating(error=error)
    in_range("alpha", alpha, -math.inf, 2)
    in_range("scale", scale, 0, above=True)
    e = wide(error)
    alpha, scale = like(e, alpha), like(e, scale)
    x, zero = e / scale, torch.zeros_like(e)
    # Formulas blow up at α = 2 and −∞; each is computed with a harmless α where it isn't used.
    square, welsch = alpha == 2, alpha < -1e4
    general = _barron(e, scale, torch.where(square | welsch, torch.ones_like(alpha), alpha))
    near = torch.where(welsch, x, zero).clamp(-20.0, 20.0)
    limit = torch.where(welsch, -torch.expm1(-0.5 * near * near), 0.5 * torch.where(square, x, zero) ** 2)
    return torch.where(square | welsch, limit, general).to(error.dtype)


def _barron(error: Tensor, scale: Tensor, a: Tensor) -> Tensor:
    """Barron's loss for −∞ < α < 2, as b/α·(exp(z) − 1) with b = 2 − α and z = ½α·log(x²/b + 1)."""
    x, b, one = error / scale, 2 - a, torch.ones_like(error)
    far = x.abs() > 1e8 * b.sqrt()
    near = torch.where(far, torch.zeros_like(x), x)
    # Where the 1 doesn't count, log|e| − log c: the quotient may overflow.
    log_square = 2 * (torch.where(far, error.abs(), one).log() - scale.log()) - b.log()
    log = torch.where(far, log_square, torch.log1p(near * near / b))
    z = 0.5 * a * log
    # A series towards α = 0; and a power where the exponential would overflow before its gradient does.
    small, steep = z.abs() < 1e-4, z > 40
    series = 0.5 * b * log * (1 + z / 2 + z * z / 6)
    safe = torch.where(small, one, a)
    power = b ** (0.5 * b) / safe * torch.where(steep, x.abs(), one) ** a
    return torch.where(small, series, torch.where(steep, power, b / safe * torch.expm1(z.clamp(max=40.0))))
