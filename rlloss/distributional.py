"""Value losses with many outputs per value: a histogram of returns, or their quantiles.

Categorical heads spread probability over a support of `bins` numbers from `vmin` to `vmax`, in the units
of the return and spaced evenly in the space of `transform`. Returns outside are clipped to the ends, so
the support must hold them: with rewards within ±1 and discount γ they lie within ±1/(1 − γ).

    TwoHot, HLGauss   classification of a scalar target, spread over the bins near it
    C51               a whole distribution of returns, projected after each Bellman backup
    QuantileHuber     the distribution's quantiles; needs no support
"""

import dataclasses
import math

import torch
from torch import Tensor

from rlloss.checks import floating, floats_of_one_shape, has_outputs, in_range, same_shape
from rlloss.classification import cross_entropy_with_logits
from rlloss.frozen import frozen
from rlloss.numbers import counted, leading, like, once, times, trailing, wide, with_gradient
from rlloss.transforms import Identity, RunningTransform, Transform, settled
from rlloss.value_losses import ScalarTarget


@frozen
class Categorical:
    """The base of heads that hold probabilities over a support of returns.

        V = Σᵢ pᵢ zᵢ,  p = softmax(x),  zᵢ = h⁻¹(h(v_min) + i·(h(v_max) − h(v_min))/(bins − 1))

    An affine h changes nothing: the support is spaced evenly with it and without. With a running scale v_min and
    v_max are in its units, and v_min = −v_max: the support moves with the returns, and need not be known before.

    For: losses of the cross-entropy kind.
    Source: Bellemare, Dabney and Munos, arXiv 1707.06887.
    """

    bins: int = 101
    vmin: float = -100.0
    vmax: float = 100.0
    transform: Transform | RunningTransform = dataclasses.field(default=Identity(), kw_only=True)

    in_units_of_scale = ("vmin", "vmax")

    def __post_init__(self) -> None:
        in_range("bins", self.bins, 2, whole=True)
        in_range("vmin", self.vmin, -math.inf, above=True)
        in_range("vmax", self.vmax, -math.inf, above=True)
        if isinstance(self.vmin, Tensor) or isinstance(self.vmax, Tensor):
            return
        if self.vmin >= self.vmax:
            raise ValueError(f"vmin must be less than vmax, got vmin {self.vmin:g} and vmax {self.vmax:g}")
        if isinstance(self.transform, RunningTransform) and self.vmin != -self.vmax:
            # What lies off the middle would move with the scale, and the scale with it.
            raise ValueError(f"vmin must be −vmax with a running scale, of which they are multiples, got vmin {self.vmin:g} and vmax {self.vmax:g}")
        begun = self.transform.init() if isinstance(self.transform, RunningTransform) else ()
        slope = 1 / settled(self, begun).support(torch.zeros(())).diff()
        if not ((slope > 0) & slope.isfinite()).all():
            raise ValueError(f"{self.bins} bins from vmin {self.vmin:g} to vmax {self.vmax:g} are not all different in float32")

    @property
    def outputs(self) -> int:
        """One output per bin."""
        return self.bins

    def support(self, tensor: Tensor) -> Tensor:
        """The returns [bins] that the bins stand for, with the dtype and device of a tensor."""
        share = torch.arange(self.bins, dtype=tensor.dtype, device=tensor.device) / (self.bins - 1)
        low, high = self.ends(tensor)
        return self.transform.inverse(low + share * (high - low))

    def ends(self, tensor: Tensor) -> tuple[Tensor, Tensor]:
        """h(v_min) and h(v_max), 0-dim, with the dtype and device of a tensor."""
        return self.transform(like(tensor, self.vmin)), self.transform(like(tensor, self.vmax))

    def moved(self, scale: Tensor, shift: Tensor) -> tuple[Tensor, Tensor]:
        """The scale [bins] and shift [bins] of the logits: 1 and 0, so that probabilities are kept and the bins move under them."""
        return torch.ones_like(scale).expand(self.bins), torch.zeros_like(shift).expand(self.bins)

    def value(self, outputs: Tensor) -> Tensor:
        """The expected value [...] of logits [..., bins]."""
        has_outputs(outputs, self.outputs)
        probabilities = wide(outputs).softmax(-1)
        return (probabilities * self.support(probabilities)).sum(-1).to(outputs.dtype)


@frozen
class TwoHot(Categorical, ScalarTarget):
    """Cross entropy against a scalar target shared between the two bins that enclose it.

        ℓ = −Σᵢ wᵢ(y) log softmax(x)ᵢ,  Σᵢ wᵢ(y)·zᵢ = y within the support,  ∂ℓ/∂x = softmax(x) − w(y)

    For: classification without smoothing; its target's mean is the target itself.
    Source: Schrittwieser et al., MuZero, arXiv 1911.08265; Hafner et al., arXiv 2301.04104.
    """

    def __call__(self, outputs: Tensor, target: Tensor) -> Tensor:
        """Elementwise loss [...] of logits [..., bins] against target [...]; no gradient reaches the target."""
        floating(outputs=outputs, target=target)
        has_outputs(outputs, self.outputs)
        return cross_entropy_with_logits(outputs, self.probabilities(target))

    def probabilities(self, target: Tensor) -> Tensor:
        """The weights [..., bins] of targets [...]."""
        target = wide(target)
        return two_hot(target, self.support(target))


@frozen
class HLGauss(Categorical, ScalarTarget):
    """Cross entropy against a Gaussian histogram around a scalar target.

        ℓ = −Σᵢ pᵢ(y) log softmax(x)ᵢ,  pᵢ ∝ Φ((bᵢ₊₁ − h(y))/σ) − Φ((bᵢ − h(y))/σ),  ∂ℓ/∂x = softmax(x) − p(y)

    with bins of width w = bᵢ₊₁ − bᵢ around their zᵢ and σ = `sigma_ratio`·w. The outermost bins reach w/2
    beyond the ends; at the default ratio a target nearer than about 2σ to an end is estimated up to ½σ further
    inside. The mean is taken in the space of h, V = h⁻¹(Σᵢ pᵢ h(zᵢ)), where the histogram is symmetric: with a
    nonlinear h that of a random return is h⁻¹(E[h(G)]), not E[G]. TwoHot and C51 have no such bias.

    For: regression by classification; the best value loss of its paper.
    Source: Imani and White, arXiv 1806.04613; Farebrother et al., Stop regressing, arXiv 2403.03950.
    """

    sigma_ratio: float = 0.75

    def __post_init__(self) -> None:
        super().__post_init__()
        in_range("sigma_ratio", self.sigma_ratio, 0, above=True)

    def __call__(self, outputs: Tensor, target: Tensor) -> Tensor:
        """Elementwise loss [...] of logits [..., bins] against target [...]; no gradient reaches the target."""
        floating(outputs=outputs, target=target)
        has_outputs(outputs, self.outputs)
        return cross_entropy_with_logits(outputs, self.probabilities(target))

    def value(self, outputs: Tensor) -> Tensor:
        """The value [...] of logits [..., bins]: the mean in the space of h, taken back."""
        has_outputs(outputs, self.outputs)
        probabilities = wide(outputs).softmax(-1)
        transformed = (probabilities * self.transform(self.support(probabilities))).sum(-1)
        return self.transform.inverse(transformed).to(outputs.dtype)

    def probabilities(self, target: Tensor) -> Tensor:
        """The histogram [..., bins] of targets [...], in the space of h."""
        center = self.transform(wide(target))
        low, high = self.ends(center)
        width = (high - low) / (self.bins - 1)
        edges = low + width * (counted(self.bins + 1, center) - 0.5)
        center = torch.minimum(torch.maximum(center, low), high)
        cumulative = once(torch.erf((edges - center) / (self.sigma_ratio * width * math.sqrt(2))))
        return (cumulative.diff(dim=0) / (cumulative[-1] - cumulative[0])).movedim(0, -1)


@frozen
class C51(Categorical):
    """Cross entropy between the projected Bellman backup of a return distribution and the head's own.

        ℓ = −Σᵢ mᵢ log softmax(x)ᵢ,  mᵢ = Σⱼ pⱼ(s′)·wᵢ(r + d·zⱼ),  w as in `TwoHot`,  ∂ℓ/∂x = softmax(x) − m

    A target is a distribution [..., bins].

    For: learning the distribution of returns, not only its mean.
    Source: Bellemare, Dabney and Munos, A distributional perspective, arXiv 1707.06887.
    """

    bins: int = 51

    def target(self, reward: Tensor, discount: Tensor, next_outputs: Tensor) -> Tensor:
        """The projected distribution [..., bins] of r + d·Z(s′), for r and d [...] and logits [..., bins]."""
        floating(next_outputs=next_outputs, reward=reward)
        has_outputs(next_outputs, self.outputs)
        same_shape(reward=reward, discount=discount, next_value=next_outputs[..., 0])
        # What follows an end may be anything, also NaN.
        following = torch.where(discount == 0, torch.zeros_like(reward), leading(next_outputs))
        probabilities = once(wide(following).softmax(0))
        returns = reward + discount * self.support(probabilities).reshape(-1, *[1] * discount.ndim)
        position, bins = once(self.position(returns)), counted(self.bins, probabilities)
        return trailing((probabilities * (1 - (position - bins).abs()).relu()).sum(1)).detach()

    def position(self, returns: Tensor) -> Tensor:
        """Where returns [...] lie among the bins, from 0 to bins − 1 and linear between neighbours."""
        low, high = self.ends(returns)
        left = ((self.transform(returns) - low) / (high - low) * (self.bins - 1)).floor().clamp(0, self.bins - 2)
        below, above = (self.transform.inverse(low + number / (self.bins - 1) * (high - low)) for number in (left, left + 1))
        return left + ((returns - below) / (above - below)).clamp(0, 1)

    def of_return(self, returns: Tensor) -> Tensor:
        """All probability on a return [...], projected: [..., bins]."""
        returns = wide(returns.detach())
        return two_hot(returns, self.support(returns))

    def expected(self, target: Tensor) -> Tensor:
        """The mean [...] of a distribution [..., bins]."""
        return (target * self.support(target)).sum(-1)

    def __call__(self, outputs: Tensor, target: Tensor) -> Tensor:
        """Elementwise loss [...] of logits [..., bins] against a distribution [..., bins]."""
        floating(outputs=outputs, target=target)
        has_outputs(outputs, self.outputs)
        return cross_entropy_with_logits(outputs, target)


@frozen
class QuantileHuber:
    """The quantile Huber loss of a head that holds N quantiles of the return.

        ℓ = Σᵢ 1/N Σⱼ |τᵢ − 1[uᵢⱼ < 0]|·H_κ(uᵢⱼ)/κ,  uᵢⱼ = h(yⱼ) − xᵢ,  τᵢ = (i + ½)/N;  V = 1/N Σᵢ h⁻¹(xᵢ)
        ∂ℓ/∂xᵢ = −1/N Σⱼ |τᵢ − 1[uᵢⱼ < 0]|·clip(uᵢⱼ/κ, −1, 1)

    H_κ is Huber's loss with δ = κ. A target is the quantiles yⱼ of a distribution [..., N]. Gradients are exact, second derivatives aren't there.

    For: a distribution of returns whose range isn't known.
    Source: Dabney et al., Distributional reinforcement learning with quantile regression, arXiv 1710.10044.
    """

    quantiles: int = 51
    kappa: float = 1.0
    transform: Transform | RunningTransform = dataclasses.field(default=Identity(), kw_only=True)

    def __post_init__(self) -> None:
        in_range("quantiles", self.quantiles, 1, whole=True)
        in_range("kappa", self.kappa, 0, above=True)

    @property
    def outputs(self) -> int:
        """One output per quantile."""
        return self.quantiles

    def value(self, outputs: Tensor) -> Tensor:
        """The mean [...] of the quantiles [..., N]."""
        has_outputs(outputs, self.outputs)
        return self.transform.inverse(outputs).mean(-1)

    def moved(self, scale: Tensor, shift: Tensor) -> tuple[Tensor, Tensor]:
        """The scale [N] and shift [N] of the quantiles."""
        return scale.expand(self.quantiles), shift.expand(self.quantiles)

    def target(self, reward: Tensor, discount: Tensor, next_outputs: Tensor) -> Tensor:
        """The quantiles [..., N] of r + d·Z(s′), for r and d [...] and outputs [..., N]."""
        has_outputs(next_outputs, self.outputs)
        same_shape(reward=reward, discount=discount, next_value=next_outputs[..., 0])
        return (reward[..., None] + times(discount[..., None], self.transform.inverse(next_outputs))).detach()

    def of_return(self, returns: Tensor) -> Tensor:
        """All probability on a return [...]: N equal quantiles [..., N]."""
        return returns.detach()[..., None].expand(*returns.shape, self.quantiles)

    def expected(self, target: Tensor) -> Tensor:
        """The mean [...] of quantiles [..., N]."""
        return target.mean(-1)

    def __call__(self, outputs: Tensor, target: Tensor) -> Tensor:
        """Elementwise loss [...] of outputs [..., N] against quantiles [..., N]; no gradient reaches the target."""
        floats_of_one_shape(outputs=outputs, target=target)
        has_outputs(outputs, self.outputs)
        error = leading(self.transform(target.detach())) - leading(outputs.detach())[:, None]
        tau = (counted(self.quantiles, error[0]) + 0.5) / self.quantiles
        kappa = like(outputs, self.kappa)
        clipped = error.clamp(-kappa, kappa)
        # |τ − 1[u < 0]|·c = ½(c + (2τ − 1)|c|) takes no comparison, and H(u) = c·(u − ½c), whose slope is c:
        # one pass makes both sums, that of the loss and that of its gradient.
        slope = clipped + (2 * tau - 1) * clipped.abs()
        loss, gradient = (slope * (error - 0.5 * clipped)).mean(1), -slope.mean(1)
        return with_gradient(once(loss).sum(0) / (2 * kappa), outputs, trailing(gradient) / (2 * kappa))


def two_hot(value: Tensor, support: Tensor) -> Tensor:
    """The weights of the two numbers of an increasing support that enclose a value.

        wᵢ(v) = max(0, min((v − zᵢ₋₁)/(zᵢ − zᵢ₋₁), (zᵢ₊₁ − v)/(zᵢ₊₁ − zᵢ))),  Σᵢ wᵢ zᵢ = v

    Args:
        value: v [...], clipped to the support.
        support: z [bins], increasing, at least two numbers; that it increases isn't checked.

    Returns:
        w [..., bins], at most two of which aren't zero, without gradient.

    Raises:
        ValueError: the support isn't [bins] with at least two numbers.
        TypeError: values or support aren't floating point.

    For: projecting returns on a fixed support without changing their mean.
    Source: Bellemare, Dabney and Munos, arXiv 1707.06887 (Algorithm 1).
    """
    floating(value=value, support=support)
    if support.ndim != 1 or len(support) < 2:
        raise ValueError(f"support must be [bins] with at least two numbers, got shape {tuple(support.shape)}")
    value, support = value.detach(), support.detach()
    value = once(torch.minimum(torch.maximum(value, support[0]), support[-1]))
    # The support goes on beyond both ends, by any width: no clipped value lies there.
    width = support.diff()
    slope = once(1 / torch.cat([width[:1], width, width[-1:]]))
    neighbour = once(torch.cat([support[:1] - width[:1], support, support[-1:] + width[-1:]]))
    slope, neighbour = (each.reshape(-1, *[1] * value.ndim) for each in (slope, neighbour))
    rising, falling = (value - neighbour[:-2]) * slope[:-1], (neighbour[2:] - value) * slope[1:]
    return torch.minimum(rising, falling).clamp(min=0).movedim(0, -1)
