"""The value-loss interface: shapes, scale conventions, and that no gradient reaches a target."""

import math

import pytest
import torch

from rlloss import MSE, Huber, ValueLoss, empirical_loss
from rlloss.value_losses import ScalarHead

ALL = [MSE(), MSE(matched_curvature=True), Huber(), Huber(delta=0.3)]


@pytest.mark.parametrize("loss", ALL)
def test_interface(loss):
    assert isinstance(loss, ValueLoss)
    outputs = torch.randn(6, 3, loss.outputs)
    assert loss.value(outputs).shape == (6, 3)
    reward, discount = torch.randn(6, 3), torch.rand(6, 3)
    target = loss.target(reward, discount, outputs)
    torch.testing.assert_close(loss.expected(target), reward + discount * loss.value(outputs))
    torch.testing.assert_close(loss.expected(loss.of_return(reward)), reward)
    assert loss(outputs, target).shape == (6, 3)


@pytest.mark.parametrize("loss", ALL)
def test_no_gradient_reaches_the_target(loss):
    outputs, following = torch.randn(5, loss.outputs, requires_grad=True), torch.randn(5, loss.outputs, requires_grad=True)
    reward = torch.randn(5, requires_grad=True)
    for target in (loss.target(reward, torch.ones(5), following), loss.of_return(reward), reward):
        loss(outputs, target).sum().backward()
    assert following.grad is None and reward.grad is None and outputs.grad.abs().sum() > 0


@pytest.mark.parametrize(("loss", "curvature"), [(MSE(), 2.0), (MSE(matched_curvature=True), 1.0), (Huber(), 1.0), (Huber(delta=0.3), 1.0)])
def test_curvature_at_zero(loss, curvature):
    second = torch.func.grad(torch.func.grad(lambda output: loss(output[None], torch.zeros(()))))
    assert second(torch.tensor(1e-3)).item() == pytest.approx(curvature)


def test_unequal_shapes_are_refused_and_not_broadcast():
    for loss in ALL:
        with pytest.raises(ValueError, match=r"value \(4, 1\), target \(4,\)"):
            loss(torch.zeros(4, 1, 1), torch.zeros(4))
        with pytest.raises(ValueError, match="never broadcast"):
            loss.target(torch.zeros(4, 1), torch.zeros(4), torch.zeros(4, 1))
    with pytest.raises(ValueError, match="weights"):
        empirical_loss(torch.zeros(4), torch.zeros(4, 1))


@pytest.mark.parametrize("delta", [0.0, -1.0, math.nan])
def test_deltas_out_of_range_are_refused(delta):
    with pytest.raises(ValueError, match="delta must be greater than 0"):
        Huber(delta=delta)


def test_linear_zone_is_where_the_gradient_is_clipped():
    error = torch.tensor([-2.0, -0.5, 0.0, 0.5, 0.6])
    gradient = torch.func.grad(lambda outputs: Huber(0.5)(outputs, torch.zeros(5)).sum())(error[:, None])[:, 0]
    assert torch.equal(Huber(0.5).linear_zone(error), gradient.abs() < error.abs())


def test_empirical_loss_divides_by_the_number_of_elements_and_keeps_weights():
    losses, weights = torch.tensor([1.0, 2.0, 4.0]), torch.tensor([1.0, 0.5, 0.0], requires_grad=True)
    assert empirical_loss(losses, weights).item() == pytest.approx(2 / 3)
    assert empirical_loss(losses, penalties={"l2": torch.tensor(3.0)}).item() == pytest.approx(7 / 3 + 3)
    assert not empirical_loss(losses, weights).requires_grad
    with pytest.raises(ValueError, match="penalty l2 must be 0-dim"):
        empirical_loss(losses, penalties={"l2": torch.ones(3)})


def test_a_scalar_head_discount_zero_is_the_reward():
    head = ScalarHead()
    reward = torch.randn(4)
    assert torch.equal(head.target(reward, torch.zeros(4), torch.randn(4, 1)), reward)
