"""Critics against plain torch: what they say, the lowest of them, gradients, a running scale."""

import dataclasses

import pytest
import torch
from gymnasium import spaces

from agents.critics import Critics
from agents.networks import MLP
from rlloss import C51, CQL, DR3, L2, MSE, FeatureNorm, Huber, PopArt, QuantileHuber, settled
from tests.agents.plain import BOX, THREE, TWO, batch, critic

SPACES = pytest.mark.parametrize("space", [TWO, THREE], ids=["box", "discrete"])


def build(space, value_loss=None, regularizers=None, count=2):
    return Critics(BOX, space, MLP((8,)), value_loss or MSE(), regularizers or {}, count)


def made(*choices, **named):
    critics = build(*choices, **named)
    return critics, critics.init(torch.Generator().manual_seed(0))


def plain(critics, parameters):
    """Critics as functions of a batch's observation and action, [batch, outputs] or, of Discrete actions, [batch, actions, outputs]."""
    actions, outputs = critics.shape
    modules = [critic(parameters, index, 5 if critics.discrete else 7, actions * outputs) for index in range(critics.count)]
    if critics.discrete:
        return modules, [lambda observation, action, module=module: module(observation).unflatten(-1, (actions, outputs)) for module in modules]
    return modules, [lambda observation, action, module=module: module(torch.cat([observation, action], 1)) for module in modules]


@SPACES
@pytest.mark.parametrize("value_loss", [MSE(), C51(11, -3.0, 3.0), QuantileHuber(5)], ids=lambda loss: type(loss).__name__)
def test_outputs_are_those_of_modules_and_the_lowest_those_of_a_loop(space, value_loss):
    critics, parameters = made(space, value_loss, count=3)
    parameters = {name: 4 * p for name, p in parameters.items()}  # So that the lowest isn't the same everywhere.
    seen, (_, functions) = batch(space), plain(critics, parameters)
    inputs = critics.inputs(seen.observation, seen.action)
    expected = torch.stack([function(seen.observation, seen.action) for function in functions]).detach()
    torch.testing.assert_close(critics.outputs(parameters, inputs), expected)
    torch.testing.assert_close(critics.of_one({name: p[1] for name, p in parameters.items()}, inputs), expected[1])
    lowest, flat = critics.lowest(parameters, value_loss, inputs), expected.flatten(1, -2)
    assert lowest.shape == expected.shape[1:]
    for place, found in enumerate(lowest.reshape(-1, value_loss.outputs)):
        values = [value_loss.value(flat[index, place]).item() for index in range(3)]
        torch.testing.assert_close(found, flat[values.index(min(values)), place])
    assert len({int(value_loss.value(flat)[:, place].argmin()) for place in range(flat.shape[1])}) > 1


@SPACES
@pytest.mark.parametrize("weighted", [False, True])
def test_every_critic_learns_as_it_would_alone(space, weighted):
    """The gradient is torch's, of Huber's loss and of half the squared weights, and no critic's depends on the other."""
    critics, parameters = made(space, Huber(0.5), {"l2": L2(0.3)})
    seen, (modules, functions) = batch(space, weighted=weighted), plain(critics, parameters)
    target = torch.randn(16)
    gradient, metrics = critics.gradient(parameters, critics.value_loss, seen, target, None)
    weight = seen.weight if weighted else torch.ones(16)
    losses, squares, values = [], [], []
    for module, function in zip(modules, functions, strict=True):
        said = function(seen.observation, seen.action)
        value = (said[torch.arange(16), seen.action] if critics.discrete else said).squeeze(-1)
        losses.append((weight * torch.nn.functional.huber_loss(value, target, reduction="none", delta=0.5)).mean())
        squares.append(0.15 * sum((p**2).sum() for name, p in module.named_parameters() if name.endswith("weight")))
        (losses[-1] + squares[-1]).backward()
        values.append(value.detach())
    torch.testing.assert_close((metrics["loss/value"], metrics["loss/l2"]), (sum(losses).detach(), sum(squares).detach()))
    torch.testing.assert_close(metrics["loss/total"], metrics["loss/value"] + metrics["loss/l2"])
    torch.testing.assert_close(metrics["td_error"], torch.stack([(value - target).abs() for value in values]).mean(0))
    torch.testing.assert_close(metrics["value"], torch.stack(values).mean(0))
    torch.testing.assert_close(metrics["linear_zone"], torch.stack([((value - target).abs() > 0.5).float() for value in values]).mean(0))
    for index, module in enumerate(modules):
        for ours, theirs in zip(gradient.values(), module.parameters(), strict=True):
            torch.testing.assert_close(ours[index] if ours[index].shape == theirs.shape else ours[index].T, theirs.grad, rtol=1e-4, atol=1e-6)


def test_regularisers_read_features_of_the_next_action_and_values_of_discrete_ones():
    critics, parameters = made(TWO, regularizers={"dr3": DR3(1.0), "feature_norm": FeatureNorm(1.0)})
    seen, next_action, (modules, _) = batch(TWO), torch.rand(16, 2), plain(*made(TWO))
    _, metrics = critics.gradient(parameters, MSE(), seen, torch.zeros(16), next_action)
    pairs = [[module[:2](torch.cat(both, 1)) for both in ((seen.observation, seen.action), (seen.next_observation, next_action))] for module in modules]
    assert metrics["loss/dr3"].item() == pytest.approx(sum((here * there).sum(-1).mean() for here, there in pairs).item(), rel=1e-5)
    assert metrics["loss/feature_norm"].item() == pytest.approx(sum((here**2).sum(-1).mean() for here, _ in pairs).item(), rel=1e-5)
    critics, parameters = made(THREE, regularizers={"cql": CQL(1.0)})
    seen, (modules, _) = batch(THREE), plain(*made(THREE))
    _, metrics = critics.gradient(parameters, MSE(), seen, torch.zeros(16), None)
    assert metrics["loss/cql"].item() == pytest.approx(sum(torch.nn.functional.cross_entropy(module(seen.observation), seen.action) for module in modules).item(), rel=1e-5)


@SPACES
@pytest.mark.parametrize("value_loss", [Huber(), QuantileHuber(5)], ids=lambda loss: type(loss).__name__)
def test_a_running_scale_moves_and_no_value_does(space, value_loss):
    value_loss = dataclasses.replace(value_loss, transform=PopArt(step_size=0.1))
    critics, parameters = made(space, value_loss)
    seen, other = batch(space), {name: p + 0.1 for name, p in parameters.items()}
    inputs = critics.inputs(seen.observation, seen.action)

    def values(trees, transform):
        return [settled(value_loss, transform).value(critics.outputs(tree, inputs)) for tree in trees]

    trees, transform = critics.moved([parameters, other], value_loss.transform.init(), 50 + 10 * seen.reward)  # The first returns set the scale.
    before = values(trees, transform)
    trees, moved = critics.moved(trees, transform, 500 * seen.reward)
    assert not torch.equal(moved.variance, transform.variance)
    torch.testing.assert_close(values(trees, moved), before, rtol=1e-4, atol=1e-2)


@pytest.mark.parametrize(
    ("space", "choices", "message"),
    [
        (TWO, {"regularizers": {"cql": CQL()}}, "regularizers.cql needs action_values, which SAC doesn't have"),
        (THREE, {"regularizers": {"policy": L2()}}, "regularizers.policy would take the place of loss/policy"),
        (THREE, {"count": 0}, "critics must be at least 1, got 0"),
    ],
)
def test_what_makes_no_sense_is_refused(space, choices, message):
    with pytest.raises(ValueError, match=message):
        build(space, **choices).check("SAC")


def test_discrete_critics_don_t_read_actions():
    assert build(THREE).reads == (5,) and build(TWO).reads == (7,) and build(spaces.Box(-1, 1, (2, 3))).reads == (11,)
