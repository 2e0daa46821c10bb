"""Actor losses against rlax, torch.distributions, exact optima and finite differences."""

import numpy as np
import pytest
import torch

from rlloss.actor_losses import deterministic_policy_gradient, discrete_soft_actor, soft_actor, temperature_loss


def _normal(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=torch.float64)


def test_the_deterministic_policy_gradient_equals_rlaxs():
    """rlax takes ∇ₐQ and builds a loss whose gradient in the action is −∇ₐQ; ours gets it through Q."""
    rlax, jax = pytest.importorskip("rlax"), pytest.importorskip("jax")
    action, centre = _normal(7).float(), _normal(8)[:7].float()

    def action_value(a):
        return -(a - centre).square() + a.sin()

    ours = torch.func.grad(lambda a: deterministic_policy_gradient(action_value(a)).sum())(action)
    slope = np.asarray((-2 * (action - centre) + action.cos()).numpy())
    theirs = jax.grad(lambda a: rlax.dpg_loss(a, slope).sum())(action.numpy())
    torch.testing.assert_close(ours, torch.tensor(np.asarray(theirs)))


def test_the_soft_actor_loss_is_least_at_the_boltzmann_policy():
    """For Q = −a²/2 the optimum is N(0, α): the mean over many reparameterised samples has no gradient there, and has elsewhere."""
    alpha, noise = 0.3, torch.randn(200_000, generator=torch.Generator().manual_seed(1), dtype=torch.float64)

    def objective(scale):
        action = scale * noise
        log_probability = torch.distributions.Normal(torch.zeros_like(scale), scale).log_prob(action)
        return soft_actor(log_probability, -0.5 * action**2, alpha).mean()

    at = {factor: torch.func.grad(objective)(torch.tensor(factor * alpha**0.5, dtype=torch.float64)).item() for factor in (0.8, 1.0, 1.2)}
    assert at[0.8] < -0.05 and abs(at[1.0]) < 0.01 and at[1.2] > 0.05


def test_the_discrete_soft_actor_loss_is_the_expectation_of_the_sampled_one():
    """A NumPy loop over all actions."""
    logits, values = _normal(5, 4), _normal(4, 5).T
    expected = []
    for row, q in zip(logits.numpy(), values.numpy(), strict=True):
        pi = np.exp(row) / np.exp(row).sum()
        expected.append(sum(p * (0.7 * np.log(p) - x) for p, x in zip(pi, q, strict=True)))
    torch.testing.assert_close(discrete_soft_actor(logits, values, 0.7), torch.tensor(np.array(expected)))


def test_the_discrete_soft_actor_loss_is_least_at_the_boltzmann_policy():
    """There it is −α·log Σ exp(Q/α), the soft value, with gradient 0."""
    values, alpha = _normal(6, 4), 0.4
    optimum = values / alpha
    soft_value = alpha * torch.logsumexp(values / alpha, -1)
    torch.testing.assert_close(discrete_soft_actor(optimum, values, alpha), -soft_value)
    gradient = torch.func.grad(lambda x: discrete_soft_actor(x, values, alpha).sum())(optimum)
    torch.testing.assert_close(gradient, torch.zeros_like(gradient), rtol=0, atol=1e-12)
    assert (discrete_soft_actor(optimum + 0.3 * _normal(6, 4), values, alpha) > -soft_value).all()


def test_extreme_logits_give_the_true_loss_and_no_gradient():
    logits, values = torch.tensor([[1e4, -1e4, 0.0]]), torch.tensor([[2.0, 1e30, -1e30]])
    torch.testing.assert_close(discrete_soft_actor(logits, values, 1.0), torch.tensor([-2.0]))
    gradient = torch.func.grad(lambda x: discrete_soft_actor(x, values, 1.0).sum())(logits)
    torch.testing.assert_close(gradient, torch.zeros(1, 3))


@pytest.mark.parametrize("entropy, sign", [(0.5, -1), (2.0, 1)])
def test_the_temperature_rises_while_the_entropy_is_below_its_target(entropy, sign):
    """The target is 1 nat; minimising steps against the gradient, which is −α(log π + H̄)."""
    log_temperature = torch.tensor(np.log(0.2))
    gradient = torch.func.grad(lambda x: temperature_loss(x, torch.full((3,), -entropy, dtype=torch.float64), 1.0).sum())(log_temperature)
    torch.testing.assert_close(gradient.item(), 3 * 0.2 * (entropy - 1.0))
    assert np.sign(gradient.item()) == sign


def test_gradients_agree_with_finite_differences():
    log_probability, values, logits = _normal(9).requires_grad_(), _normal(9).requires_grad_(), _normal(3, 4).requires_grad_()
    log_temperature = torch.tensor(-0.7, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, q: soft_actor(x, q, 0.3), (log_probability, values))
    assert torch.autograd.gradcheck(lambda x: discrete_soft_actor(x, _normal(3, 4).flip(0), 0.3), logits)
    assert torch.autograd.gradcheck(lambda x: temperature_loss(x, _normal(5), -2.0), log_temperature)


def test_what_is_detached_gets_no_gradient():
    log_probability, values, logits, action_values = _normal(4), _normal(4), _normal(4, 3), _normal(3, 4).T
    log_temperature = torch.tensor(0.1, dtype=torch.float64)
    for tensor in (log_probability, values, logits, action_values, log_temperature):
        tensor.requires_grad_()
    alpha = log_temperature.exp()
    (soft_actor(log_probability, values, alpha).sum() + discrete_soft_actor(logits, action_values, alpha).sum()).backward()
    assert log_temperature.grad is None and action_values.grad is None
    torch.testing.assert_close(log_probability.grad, alpha.detach().expand(4))
    torch.testing.assert_close(values.grad, -torch.ones(4, dtype=torch.float64))
    log_probability.grad = None
    temperature_loss(log_temperature, log_probability, -1.0).sum().backward()
    assert log_probability.grad is None and log_temperature.grad is not None


def test_every_run_of_a_population_may_have_its_own_temperature():
    logits, values, alpha = _normal(3, 6, 4), _normal(4, 6, 3).permute(2, 1, 0), torch.tensor([0.1, 0.5, 2.0], dtype=torch.float64)
    together = torch.func.vmap(discrete_soft_actor)(logits, values, alpha)
    alone = torch.stack([discrete_soft_actor(x, q, float(a)) for x, q, a in zip(logits, values, alpha, strict=True)])
    torch.testing.assert_close(together, alone, rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_the_dtype_stays(dtype):
    one = torch.ones(3, dtype=dtype)
    found = (
        deterministic_policy_gradient(one),
        soft_actor(one, one, torch.tensor(0.2)),
        discrete_soft_actor(one, one, 0.2),
        temperature_loss(one[0], one, torch.tensor(1.0)),
    )
    assert all(loss.dtype == dtype for loss in found)


def test_unequal_shapes_and_integers_are_refused():
    column, row = torch.zeros(4, 1), torch.zeros(4)
    for function in (soft_actor, discrete_soft_actor):
        with pytest.raises(ValueError, match="shapes differ"):
            function(column, row, 0.1)
        with pytest.raises(TypeError, match="must be floating point"):
            function(row, row.long(), 0.1)
    with pytest.raises(ValueError, match="log_temperature must be 0-dim"):
        temperature_loss(row, row, 1.0)
    with pytest.raises(TypeError, match="action_value must be floating point"):
        deterministic_policy_gradient(row.long())
