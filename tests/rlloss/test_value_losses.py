"""The value-loss interface: shapes, scale conventions, and that no gradient reaches a target."""

import math

import pytest
import torch

from rlloss import (
    C51,
    MSE,
    AbsoluteError,
    Affine,
    Expectile,
    GaussianNLL,
    HLGauss,
    Huber,
    PseudoHuber,
    Quantile,
    QuantileHuber,
    Robust,
    ScalarHead,
    SignedLog,
    SmoothL1,
    TwoHot,
    ValueLoss,
)
from tests.rlloss.every import VALUE_LOSSES, name

every = pytest.mark.parametrize("loss", VALUE_LOSSES, ids=name)
SCALAR = [loss for loss in VALUE_LOSSES if isinstance(loss, ScalarHead)]


@every
def test_interface(loss):
    assert isinstance(loss, ValueLoss)
    outputs = torch.randn(6, 3, loss.outputs)
    assert loss.value(outputs).shape == (6, 3)
    # Small enough that no bin leaves the support of a categorical head.
    reward, discount = torch.randn(6, 3).clamp(-3, 3), 0.6 * torch.rand(6, 3)
    target = loss.target(reward, discount, outputs)
    torch.testing.assert_close(loss.expected(target), reward + discount * loss.value(outputs), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(loss.expected(loss.of_return(reward)), reward, rtol=1e-4, atol=1e-5)
    assert loss(outputs, target).shape == (6, 3)


@every
def test_no_gradient_reaches_the_target(loss):
    outputs, following = torch.randn(5, loss.outputs, requires_grad=True), torch.randn(5, loss.outputs, requires_grad=True)
    reward = torch.randn(5, requires_grad=True)
    targets = [loss.target(reward, torch.ones(5), following), loss.of_return(reward)]
    for target in [*targets, targets[1] + 0 * reward.reshape(-1, *[1] * (targets[1].ndim - 1))]:
        loss(outputs, target).sum().backward()
    assert following.grad is None and reward.grad is None and outputs.grad.abs().sum() > 0


@every
def test_descending_the_loss_finds_the_target(loss):
    """The value of the outputs that minimise the loss is the target's, here for one certain return."""
    outputs = torch.zeros(4, loss.outputs, dtype=torch.float64, requires_grad=True)
    target = loss.of_return(torch.tensor([-4.0, 0.0, 1.5, 6.0], dtype=torch.float64))
    optimizer = torch.optim.Adam([outputs], 0.1)
    for step in range(1500):
        optimizer.param_groups[0]["lr"] = 0.1 * 0.997**step
        optimizer.zero_grad()
        loss(outputs, target).sum().backward()
        optimizer.step()
    blur = 0.35 if isinstance(loss, HLGauss) else 0.05  # A histogram's centre is a little off its target.
    torch.testing.assert_close(loss.value(outputs), loss.expected(target), rtol=0.01, atol=blur)


@every
def test_targets_are_linear(loss):
    """The mean of two targets stands for the mean of their values."""
    one, two = loss.of_return(torch.tensor([2.0])), loss.of_return(torch.tensor([-3.0]))
    assert loss.expected(0.25 * one + 0.75 * two).item() == pytest.approx(-1.75, abs=1e-4)


@every
def test_gradients_in_float64(loss):
    outputs = (torch.randn(4, loss.outputs, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) * 2).requires_grad_()
    target = loss.of_return(torch.tensor([-4.0, 0.1, 1.5, 6.0], dtype=torch.float64))
    assert torch.autograd.gradcheck(lambda o: loss(o, target), outputs)
    assert torch.autograd.gradcheck(loss.value, outputs)


@pytest.mark.parametrize("loss", [loss for loss in SCALAR if loss.curvature is not None and not isinstance(loss, Expectile)], ids=name)
def test_curvature_at_zero(loss):
    first = torch.func.grad(lambda output: loss(output[None], loss.transform.inverse(torch.zeros((), dtype=torch.float64))))
    near = torch.tensor(1e-6, dtype=torch.float64)
    expected = 1.0 if loss.matched_curvature else loss.curvature
    assert (first(near) / near).item() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("loss", [AbsoluteError, Quantile])
def test_a_kink_has_no_curvature_to_match(loss):
    with pytest.raises(ValueError, match="matched_curvature needs a curvature at zero"):
        loss(matched_curvature=True)


@every
def test_unequal_shapes_are_refused_and_not_broadcast(loss):
    target = loss.of_return(torch.zeros(4))
    with pytest.raises(ValueError, match="never broadcast"):
        loss(torch.zeros(4, 1, loss.outputs), target)
    with pytest.raises(ValueError, match="never broadcast"):
        loss.target(torch.zeros(4, 1), torch.zeros(4), torch.zeros(4, loss.outputs))


@every
def test_a_wrong_number_of_outputs_is_refused(loss):
    wrong = torch.zeros(4, loss.outputs + 1)
    target = loss.of_return(torch.zeros(4))
    for call in (lambda: loss.value(wrong), lambda: loss.target(torch.ones(4), torch.ones(4), wrong)):
        with pytest.raises(ValueError, match=rf"outputs must be \[..., {loss.outputs}\], got shape \(4, {loss.outputs + 1}\)"):
            call()
    with pytest.raises(ValueError, match=r"outputs must be|never broadcast"):
        loss(wrong, target)
    if target.ndim == 2:
        with pytest.raises(ValueError, match="outputs must be"):
            loss(wrong, torch.zeros(4, loss.outputs + 1))


@every
@pytest.mark.parametrize("number", [math.nan, math.inf, 3e38])
def test_the_next_outputs_at_an_end_may_be_anything(loss, number):
    following = torch.full((3, loss.outputs), number)
    reward = torch.tensor([-2.0, 0.5, 3.0])
    target = loss.target(reward, torch.zeros(3), following)
    torch.testing.assert_close(target, loss.of_return(reward), rtol=1e-5, atol=1e-6)


def test_a_scalar_head_refuses_what_it_would_reduce_or_squeeze():
    class Mean(ScalarHead):
        def pointwise(self, error):
            return error.abs().mean()

    with pytest.raises(ValueError, match=r"error \(4,\), loss \(\)"):
        Mean()(torch.zeros(4, 1), torch.zeros(4))
    with pytest.raises(ValueError, match=r"outputs must be \[..., 1\], got shape \(4,\)"):
        MSE()(torch.zeros(4), torch.zeros(4))
    with pytest.raises(ValueError, match="matched_curvature needs"):
        Mean(matched_curvature=True)


def test_hyperparameters_are_not_broadcast():
    for loss in (Huber, SmoothL1, PseudoHuber, Quantile, Expectile):
        numbers = loss()
        object.__setattr__(numbers, "delta" if "ub" in loss.__name__ else "beta" if loss is SmoothL1 else "tau", torch.full((3, 1), 0.5))
        with pytest.raises(ValueError, match="a hyperparameter must be one number"):
            numbers(torch.zeros(4, 1), torch.zeros(4))


@every
def test_integers_are_refused(loss):
    with pytest.raises(TypeError, match="must be floating point"):
        loss(torch.zeros(4, loss.outputs, dtype=torch.int64), loss.of_return(torch.zeros(4, dtype=torch.int64)))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Huber(delta=0.0), "delta must be greater than 0, got 0"),
        (lambda: Huber(delta=-1.0), "delta must be greater than 0"),
        (lambda: Huber(delta=math.nan), "delta must be greater than 0, got nan"),
        (lambda: SmoothL1(beta=0.0), "beta must be greater than 0"),
        (lambda: PseudoHuber(delta=math.inf), "delta must be"),
        (lambda: Quantile(tau=1.0), "tau must be greater than 0 and less than 1, got 1"),
        (lambda: Expectile(tau=0.0), "tau must be greater than 0"),
        (lambda: Robust(alpha=2.5), "alpha must be"),
        (lambda: Robust(alpha=math.nan), "alpha must be"),
        (lambda: Robust(scale=0.0), "scale must be greater than 0"),
        (lambda: GaussianNLL(log_variance_limit=0.0), "log_variance_limit must be"),
        (lambda: C51(bins=2.5), "bins must be a whole number, got 2.5"),
        (lambda: QuantileHuber(quantiles=2.5), "quantiles must be a whole number"),
        (lambda: TwoHot(bins=1), "bins must be at least 2, got 1"),
        (lambda: HLGauss(vmin=3.0, vmax=3.0), "vmin must be less than vmax, got vmin 3 and vmax 3"),
        (lambda: C51(vmin=0.0, vmax=-1.0), "vmin must be less than vmax"),
        (lambda: C51(vmin=math.nan), "vmin must be"),
        (lambda: HLGauss(sigma_ratio=0.0), "sigma_ratio must be greater than 0"),
        (lambda: QuantileHuber(quantiles=0), "quantiles must be at least 1"),
        (lambda: QuantileHuber(kappa=0.0), "kappa must be greater than 0"),
    ],
)
def test_ranges(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_linear_zone_is_where_the_gradient_is_clipped():
    error = torch.tensor([-2.0, -0.5, 0.0, 0.5, 0.6])
    gradient = torch.func.grad(lambda outputs: Huber(0.5)(outputs, torch.zeros(5)).sum())(error[:, None])[:, 0]
    assert torch.equal(Huber(0.5).linear_zone(error[:, None], torch.zeros(5)), gradient.abs() < error.abs())


def test_the_linear_zone_is_in_the_space_of_the_transform():
    loss = Huber(1.0, transform=Affine(scale=10.0))
    assert loss.linear_zone(torch.zeros(2, 1), torch.tensor([9.0, 11.0])).tolist() == [False, True]


def test_a_transform_acts_as_in_its_paper():
    """Pohlen et al.: (Q − h(r + γ h⁻¹(Q′)))²."""
    h, loss = SignedLog(), MSE(transform=SignedLog())
    outputs, following, reward = torch.randn(5, 1), torch.randn(5, 1), torch.randn(5)
    expected = (outputs[:, 0] - h(reward + 0.9 * h.inverse(following[:, 0]))) ** 2
    torch.testing.assert_close(loss(outputs, loss.target(reward, torch.full((5,), 0.9), following)), expected)


def test_gaussian_nll_is_torchs():
    outputs, target = torch.randn(7, 2), torch.randn(7)
    expected = torch.nn.functional.gaussian_nll_loss(outputs[:, 0], target, outputs[:, 1].exp(), reduction="none")
    torch.testing.assert_close(GaussianNLL()(outputs, target), expected)
