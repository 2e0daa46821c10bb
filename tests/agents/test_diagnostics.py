"""What is logged of losses: their curvature where the errors are, and how often a policy leaves its range."""

import pytest
import torch

from agents.action_values import effective_curvature, report
from agents.optimizers import Adam
from rlloss import MSE, SPO, AbsoluteError, HLGauss, Huber, LogCosh, PopArt, PPOClip, PseudoHuber, SignedLog
from tests.agents.test_actor_critic import learned, made

GENERATOR = torch.Generator().manual_seed(0)
VALUE, ERROR = 10 * torch.randn(256, generator=GENERATOR), 1.5 * torch.randn(256, generator=GENERATOR)


def by_autograd(loss, value, error):
    """The mean second derivative in the output, at the outputs themselves."""
    target, output = (value - error).double(), loss.transform(value.double()).requires_grad_()
    (slope,) = torch.autograd.grad(loss(output[:, None], target).sum(), output, create_graph=True)
    return torch.autograd.grad(slope.sum(), output)[0].mean().item()


@pytest.mark.parametrize("loss", [MSE(), MSE(matched_curvature=True), LogCosh(), PseudoHuber(0.7), PseudoHuber(0.7, transform=SignedLog())], ids=str)
def test_the_effective_curvature_of_smooth_losses_is_autograds(loss):
    assert effective_curvature(loss, VALUE, ERROR) == pytest.approx(by_autograd(loss, VALUE, ERROR), rel=5e-3)


@pytest.mark.parametrize("delta", [0.5, 1.0, 3.0])
def test_the_effective_curvature_of_hubers_loss_is_the_share_within_delta(delta):
    assert effective_curvature(Huber(delta), VALUE, ERROR) == pytest.approx((ERROR.abs() <= delta).float().mean().item(), abs=0.02)


def test_a_kink_curves_as_much_as_errors_are_dense_there():
    error = torch.linspace(-1, 1, 4001)  # Their density is ½.
    assert effective_curvature(AbsoluteError(), torch.zeros(4001), error) == pytest.approx(1, rel=0.02)


def test_curvature_is_logged_where_there_is_an_error():
    metrics = {"td_error": ERROR, "value": VALUE, "loss/total": torch.tensor(1.0)}
    assert report(metrics, MSE())["td_error/curvature"] == pytest.approx(2)
    masked = metrics | {"mask": ERROR.abs() < 0.5}
    assert report(masked, Huber(1.0))["td_error/curvature"] == pytest.approx(1)
    assert not any("td_error/curvature" in report(metrics, loss) for loss in (HLGauss(), MSE(transform=PopArt())))


@pytest.mark.parametrize("loss", [PPOClip(0.1, 0.3), PPOClip(0.1, 0.3).narrowed(torch.tensor(0.5))])
def test_ratios_are_beyond_ppos_range_where_its_gradient_may_vanish(loss):
    log_ratio = torch.linspace(-0.5, 0.5, 101, requires_grad=True)
    vanishing = torch.zeros(101, dtype=torch.bool)
    for advantage in (1.0, -1.0):
        (gradient,) = torch.autograd.grad(loss(log_ratio, torch.zeros(101), torch.full((101,), advantage)).sum(), log_ratio)
        vanishing |= gradient == 0
    assert torch.equal(loss.beyond(log_ratio), vanishing) and 0 < vanishing.sum() < 101


def test_ratios_are_beyond_spos_range_where_its_gradient_has_turned():
    log_ratio = torch.linspace(-0.5, 0.5, 101, requires_grad=True)
    rising = torch.autograd.grad(SPO(0.2)(log_ratio, torch.zeros(101), torch.ones(101)).sum(), log_ratio)[0] > 0
    falling = torch.autograd.grad(SPO(0.2)(log_ratio, torch.zeros(101), -torch.ones(101)).sum(), log_ratio)[0] < 0
    assert torch.equal(SPO(0.2).beyond(log_ratio), rising | falling)


def test_an_actor_and_a_critic_tell_how_often_ratios_are_clipped():
    _, told = learned(made(epochs=8, optimizer=Adam(3e-2)))
    shares = [metrics["policy/clip_fraction"].item() for metrics in told]
    assert shares[0] == 0 and 0 < max(shares) <= 1
