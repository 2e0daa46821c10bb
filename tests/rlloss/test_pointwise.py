"""Pointwise losses against NumPy formulas in long double, torch.nn.functional and optax, and the article's numbers."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rlloss import absolute_error, expectile, gaussian_nll, huber, log_cosh, pseudo_huber, quantile, robust, smooth_l1, squared_error

INFINITY = float("inf")


def barron(e, alpha, c):
    """The paper's formula and its limits, case by case."""
    x2 = (e / c) ** 2
    if alpha == 2:
        return x2 / 2
    if alpha == 0:
        return np.log1p(x2 / 2)
    if alpha == -INFINITY:
        return -np.expm1(-x2 / 2)
    return abs(alpha - 2) / alpha * ((x2 / abs(alpha - 2) + 1) ** (alpha / 2) - 1)


# name: (ours, the formula of the paper in NumPy, ℓ″(0) or None at a kink)
LOSSES = {
    "squared": (squared_error, lambda e: e**2, 2.0),
    "absolute": (absolute_error, abs, None),
    "huber": (lambda e: huber(e, 0.7), lambda e: np.where(abs(e) <= 0.7, e**2 / 2, 0.7 * (abs(e) - 0.35)), 1.0),
    "smooth_l1": (lambda e: smooth_l1(e, 0.7), lambda e: np.where(abs(e) <= 0.7, e**2 / 1.4, abs(e) - 0.35), 1 / 0.7),
    "pseudo_huber": (lambda e: pseudo_huber(e, 0.7), lambda e: 0.49 * (np.sqrt(1 + (e / 0.7) ** 2) - 1), 1.0),
    "log_cosh": (log_cosh, lambda e: np.logaddexp(e, -e) - np.log(np.longdouble(2)), 1.0),
    "quantile": (lambda e: quantile(e, 0.3), lambda e: np.where(e > 0, 0.7 * e, -0.3 * e), None),
    "expectile": (lambda e: expectile(e, 0.3), lambda e: np.where(e > 0, 0.7, 0.3) * e**2, None),
    **{
        f"robust {alpha}": ((lambda e, a=alpha: robust(e, a, 2.0)), (lambda e, a=alpha: barron(e, a, 2.0)), 0.25)
        for alpha in (2.0, 1.5, 1.0, 0.5, 0.0, -1.0, -2.0, -50.0, -INFINITY)
    },
}
BOTH = [pytest.param(ours, formula, id=name) for name, (ours, formula, _) in LOSSES.items()]
OURS = [pytest.param(ours, id=name) for name, (ours, _, _) in LOSSES.items()]


@pytest.mark.parametrize(("ours", "formula"), BOTH)
@given(st.floats(-300, 300))
def test_equals_the_papers_formula(ours, formula, error):
    expected = float(formula(np.longdouble(error)))
    assert ours(torch.tensor(error, dtype=torch.float64)).item() == pytest.approx(expected, rel=1e-7, abs=1e-14)


@pytest.mark.parametrize(("ours", "formula"), BOTH)
@pytest.mark.parametrize("error", [1e-4, -1e-3, 1e-2, 0.9999, 1.0001])
def test_small_errors_keep_their_digits_in_float32(ours, formula, error):
    error = torch.tensor(error)
    expected = float(formula(np.longdouble(error.item())))
    assert ours(error).item() == pytest.approx(expected, rel=3e-6)


@pytest.mark.parametrize("ours", OURS)
def test_gradients_in_float64(ours):
    error = torch.tensor([-40.0, -4.0, -0.3, 0.2, 2.0, 50.0], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(ours, error)
    assert torch.autograd.gradgradcheck(ours, error)


@pytest.mark.parametrize(("ours", "curvature"), [pytest.param(ours, c, id=name) for name, (ours, _, c) in LOSSES.items() if c])
def test_curvature_at_zero(ours, curvature):
    first = torch.func.grad(ours)
    near = torch.tensor(1e-5, dtype=torch.float64)
    assert (first(near) / near).item() == pytest.approx(curvature, rel=1e-6)
    assert first(torch.zeros(())).item() == 0


@pytest.mark.parametrize(("ours", "curvature"), [pytest.param(ours, c, id=name) for name, (ours, _, c) in LOSSES.items() if c and name != "expectile"])
def test_curvature_at_zero_itself(ours, curvature):
    assert torch.func.grad(torch.func.grad(ours))(torch.zeros((), dtype=torch.float64)).item() == pytest.approx(curvature, rel=1e-6)


@pytest.mark.parametrize("alpha", [2.0, 1.9999999, 1.9999, 1.9, 1.5, 1.0, 0.5, 1e-3, 1e-6, 0.0, -1e-6, -0.5, -2.0])
@pytest.mark.parametrize("scale", [1.0, 1e10, 1e-10])
@pytest.mark.parametrize("error", [1e-3, 0.7, 30.0, 1e5, 1e10, 1e20, 1e27, 1e30])
def test_robust_and_its_gradient_over_the_whole_range_of_float32(alpha, scale, error):
    """In 60 digits, for the same float32 numbers; where (e/c)^α overflows and α > 0 nothing can be right."""
    mpmath = pytest.importorskip("mpmath")
    if error / scale > 1e38 and alpha > 0:
        pytest.skip("e/c overflows")
    with mpmath.workdps(60):
        e, a, c = (mpmath.mpf(float(np.float32(number))) for number in (error, alpha, scale))
        square, b = (e / c) ** 2, 2 - a
        power = square / 2 if a == 2 else mpmath.log1p(square / 2) if a == 0 else b / a * ((square / b + 1) ** (a / 2) - 1)
        slope = e / c**2 * (1 if a == 2 else (square / b + 1) ** (a / 2 - 1))
        loss, gradient = (float(number) if number < 3.4e38 else INFINITY for number in (power, slope))
    found = torch.func.grad_and_value(robust)(torch.tensor(error), alpha, scale)
    assert found[1].item() == pytest.approx(loss, rel=1e-5)
    # The tails of α < 0 are rounded against the steepest slope, 1/c.
    assert found[0].item() == pytest.approx(gradient, rel=1e-5, abs=1e-6 / scale if alpha < 0 else 1e-30)


@pytest.mark.parametrize("alpha", [2.0, 1.9999, 1.5, 0.0, -2.0, -INFINITY])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_robust_in_half_precision_rounds_only_the_result(alpha, dtype):
    error = torch.tensor([-3.0, -0.5, 0.0, 0.25, 2.0], dtype=dtype)
    expected = [float(barron(np.longdouble(e), alpha, 1.0)) for e in error.tolist()]
    torch.testing.assert_close(robust(error, alpha, 1.0), torch.tensor(expected, dtype=dtype))


@pytest.mark.parametrize(("error", "delta"), [(1e19, 1e20), (1e10, 1e30), (1e30, 1e-8), (1e-10, 1e10), (3e18, 3e18), (1.0, 1.0), (1e-3, 1.0)])
def test_pseudo_huber_is_finite_wherever_its_formula_is(error, delta):
    mpmath = pytest.importorskip("mpmath")
    with mpmath.workdps(60):
        e, d = (mpmath.mpf(float(np.float32(number))) for number in (error, delta))
        expected, slope = float(d**2 * (mpmath.sqrt(1 + (e / d) ** 2) - 1)), float(e / mpmath.sqrt(1 + (e / d) ** 2))
    gradient, loss = torch.func.grad_and_value(pseudo_huber)(torch.tensor(error), delta)
    assert loss.item() == pytest.approx(expected, rel=2e-6) and gradient.item() == pytest.approx(slope, rel=2e-6)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda e: huber(e, -1.0), "delta must be greater than 0, got -1"),
        (lambda e: huber(e, INFINITY), "delta must be greater than 0 and finite, got inf"),
        (lambda e: huber(e, 1e-50), r"delta must be greater than 0, got 1e-50 \(0 in float32\)"),
        (lambda e: smooth_l1(e, 0.0), "beta must be greater than 0"),
        (lambda e: pseudo_huber(e, math.nan), "delta must be greater than 0, got nan"),
        (lambda e: quantile(e, math.nan), "tau must be greater than 0 and less than 1, got nan"),
        (lambda e: expectile(e, 1.0), "tau must be greater than 0 and less than 1, got 1"),
        (lambda e: robust(e, 3.0, 1.0), "alpha must be at most 2, got 3"),
        (lambda e: robust(e, 1.0, 0.0), "scale must be greater than 0"),
    ],
)
def test_ranges(call, message):
    with pytest.raises(ValueError, match=message):
        call(torch.zeros(3))


@pytest.mark.parametrize("ours", OURS)
@pytest.mark.parametrize("magnitude", [1e10, 1e18, 1e30])
def test_huge_errors_have_finite_gradients_and_no_nan(ours, magnitude):
    error = torch.tensor([magnitude, -magnitude, 0.0])
    gradient = torch.func.grad(lambda e: ours(e).sum())(error)
    assert gradient.isfinite().all() and not ours(error).isnan().any()


@pytest.mark.parametrize("name", ["absolute", "huber", "smooth_l1", "pseudo_huber", "log_cosh", "quantile", "robust 1.0", "robust 0.0", "robust -2.0"])
def test_losses_that_grow_linearly_or_less_are_finite_at_1e30(name):
    ours, formula, _ = LOSSES[name]
    found = ours(torch.tensor([1e30, -1e30])).tolist()
    assert found == pytest.approx([float(formula(np.longdouble(e))) for e in (1e30, -1e30)], rel=1e-5)


@given(st.floats(-1e6, 1e6), st.floats(1e-3, 1e3))
def test_huber_and_smooth_l1_equal_torchs(error, delta):
    error, zero = torch.tensor(error, dtype=torch.float64), torch.zeros((), dtype=torch.float64)
    torch.testing.assert_close(huber(error, delta), torch.nn.functional.huber_loss(error, zero, delta=delta), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(smooth_l1(error, delta), torch.nn.functional.smooth_l1_loss(error, zero, beta=delta), rtol=1e-12, atol=1e-12)


@given(st.floats(-1e6, 1e6), st.floats(1e-3, 1e3))
def test_hubers_gradient_is_the_clipped_error(error, delta):
    gradient = torch.func.grad(huber)(torch.tensor(error, dtype=torch.float64), delta)
    assert gradient.item() == pytest.approx(min(max(error, -delta), delta), rel=1e-12, abs=1e-12)


@given(st.floats(-10, 10))
def test_limits(error):
    error = torch.tensor(error, dtype=torch.float64)
    torch.testing.assert_close(huber(error, 1e9), 0.5 * squared_error(error), rtol=1e-12, atol=1e-15)
    torch.testing.assert_close(quantile(error, 0.5), 0.5 * absolute_error(error))
    torch.testing.assert_close(expectile(error, 0.5), 0.5 * squared_error(error))
    torch.testing.assert_close(robust(error, 1e-9, 1.0), robust(error, 0.0, 1.0), rtol=1e-6, atol=1e-12)
    torch.testing.assert_close(robust(error, 1.99999, 1.0), robust(error, 2.0, 1.0), rtol=1e-3, atol=1e-12)
    torch.testing.assert_close(robust(error, 1.0, 1.0), pseudo_huber(error, 1.0), rtol=1e-9, atol=1e-15)


def test_squared_error_is_the_articles():
    assert squared_error(torch.tensor(90.0 - 30.0)) == 3600


def test_optax_agrees():
    optax = pytest.importorskip("optax")
    errors = np.linspace(-5, 5, 41, dtype=np.float32)
    torch.testing.assert_close(log_cosh(torch.tensor(errors)), torch.tensor(np.array(optax.log_cosh(errors))), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(huber(torch.tensor(errors), 1.5), torch.tensor(np.array(optax.huber_loss(errors, delta=1.5))))


@given(st.floats(-1e3, 1e3), st.floats(-8, 8))
def test_gaussian_nll_is_scipys_less_a_constant(error, log_variance):
    stats = pytest.importorskip("scipy.stats")
    expected = -stats.norm.logpdf(error, scale=math.exp(0.5 * log_variance)) - 0.5 * math.log(2 * math.pi)
    found = gaussian_nll(torch.tensor(error, dtype=torch.float64), torch.tensor(log_variance, dtype=torch.float64))
    assert found.item() == pytest.approx(expected, rel=1e-9, abs=1e-9)


@pytest.mark.parametrize(("loss", "statistic"), [(lambda e: quantile(e, 0.8), 0.8), (absolute_error, 0.5)])
def test_minimising_gives_the_quantile(loss, statistic):
    targets = torch.randn(1001, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    expected = targets.sort().values[round(statistic * 1000)]
    losses = torch.stack([loss(candidate - targets).sum() for candidate in targets])
    assert targets[losses.argmin()] == expected


def test_the_expectile_balances_weighted_errors():
    targets = torch.randn(1001, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    estimate = torch.zeros((), dtype=torch.float64)
    for _ in range(2000):
        estimate = estimate - 0.3 * torch.func.grad(lambda m: expectile(m - targets, 0.9).mean())(estimate)
    above, below = (targets - estimate).clamp(min=0).sum(), (estimate - targets).clamp(min=0).sum()
    assert (0.9 * above).item() == pytest.approx((0.1 * below).item(), rel=1e-6)


def test_every_run_of_a_population_may_have_its_own_hyperparameters():
    error, numbers = torch.randn(5, 7), torch.rand(5) * 0.8 + 0.1
    for loss in (huber, smooth_l1, pseudo_huber, quantile, expectile, lambda e, a: robust(e, a, a)):
        together = torch.func.vmap(loss)(error, numbers)
        assert torch.equal(together, torch.stack([loss(e, n) for e, n in zip(error, numbers, strict=True)]))


@pytest.mark.parametrize("ours", OURS)
def test_dtypes(ours):
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        assert ours(torch.ones(3, dtype=dtype)).dtype == dtype
    with pytest.raises(TypeError, match=r"error must be floating point, got torch.int64"):
        ours(torch.ones(3, dtype=torch.int64))
