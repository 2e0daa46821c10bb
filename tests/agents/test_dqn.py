"""DQN's update against a loop of plain torch autograd and torch.optim; acting; target networks."""

import dataclasses

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces

from agents import heads
from agents.batches import Batch
from agents.config import build, compose
from agents.dqn import DQN
from agents.exploration import EpsilonGreedy
from agents.networks import MLP, part
from agents.optimizers import Adam
from agents.replay import UniformReplay
from agents.schedules import Linear
from agents.target_networks import HardCopy, Polyak
from rlloss import C51, MSE, DoubleQLearning, GaussianNLL, Huber, PopArt, QLearning, QuantileHuber, TwoHot, settled

BOX, THREE = spaces.Box(-1, 1, (5,), np.float32), spaces.Discrete(3)


def _batch(n=16):
    return Batch(torch.randn(n, 5), torch.randint(3, (n,)), torch.randn(n), 0.9 * (torch.rand(n) < 0.7), torch.randn(n, 5))


def _module(parameters):
    module = torch.nn.Sequential(torch.nn.Linear(5, 8), torch.nn.Tanh(), torch.nn.Linear(8, 3))
    with torch.no_grad():
        for plain, ours in zip(module.parameters(), parameters.values(), strict=True):
            plain.copy_(ours if ours.shape == plain.shape else ours.T)
    return module


@pytest.mark.parametrize("target", [QLearning(), DoubleQLearning()])
@pytest.mark.parametrize(("loss", "reference"), [(MSE(), torch.nn.MSELoss()), (Huber(0.5), torch.nn.HuberLoss(delta=0.5))])
@pytest.mark.parametrize("tracking", [HardCopy(), Polyak(0.3)])
def test_updates_are_those_of_plain_torch(target, loss, reference, tracking):
    agent = DQN(BOX, THREE, 0.9, network=MLP((8,), "tanh"), optimizer=Adam(1e-2), value_loss=loss, target=target, target_network=tracking, max_gradient_norm=0.5)
    state = agent.init(torch.Generator().manual_seed(0), 1)
    online, frozen = _module(state.parameters), _module(state.parameters)
    optimizer = torch.optim.Adam(online.parameters(), 1e-2, eps=3e-4)
    for _ in range(20):
        batch = _batch()
        state, metrics = agent.learn(state, batch, torch.tensor(0.5))
        with torch.no_grad():
            following = frozen(batch.next_observation)
            chosen = (online if isinstance(target, DoubleQLearning) else frozen)(batch.next_observation).argmax(1)
            wanted = batch.reward + batch.discount * following[torch.arange(16), chosen]
        value = online(batch.observation)[torch.arange(16), batch.action]
        optimizer.zero_grad()
        expected = reference(value, wanted)
        expected.backward()
        norm = torch.nn.utils.clip_grad_norm_(online.parameters(), 0.5)
        optimizer.step()
        with torch.no_grad():
            for old, new in zip(frozen.parameters(), online.parameters(), strict=True):
                old += (0.3 if isinstance(tracking, Polyak) else 0.0) * (new - old)
        torch.testing.assert_close(metrics["loss/value"], expected.detach())
        torch.testing.assert_close(metrics["gradient/norm"], norm)
        torch.testing.assert_close(metrics["td_error"], (value - wanted).detach(), rtol=1e-4, atol=1e-5)
    for ours, theirs in ((state.parameters, online), (state.target_parameters, frozen)):
        for mine, plain in zip(ours.values(), theirs.parameters(), strict=True):
            torch.testing.assert_close(mine if mine.shape == plain.shape else mine.T, plain.detach(), rtol=1e-4, atol=1e-5)


def test_refresh_copies_the_online_network():
    agent = DQN(BOX, THREE)
    state = agent.init(torch.Generator().manual_seed(0), 1)
    state, _ = agent.learn(state, _batch(), torch.tensor(0.0))
    assert not torch.equal(state.parameters["0.weight"], state.target_parameters["0.weight"])
    assert torch.equal(agent.refresh(state, *[torch.zeros(0)] * 4).target_parameters["0.weight"], state.parameters["0.weight"])


def test_exploration_is_epsilon_greedy():
    agent = DQN(BOX, THREE, exploration=EpsilonGreedy(Linear(0.5, 0.5)))
    state, observation = agent.init(torch.Generator().manual_seed(0), 1), torch.randn(1, 5).expand(20_000, 5)
    numbers = torch.rand(40_000)
    greedy, certain = agent.act(state, observation, numbers, torch.tensor(0.0), torch.tensor(0.0))
    assert (greedy == greedy[0]).all() and (certain == 1).all()
    explored, probability = agent.act(state, observation, numbers, torch.tensor(0.0), torch.tensor(1.0))
    share = (explored == greedy).float().mean().item()
    assert share == pytest.approx(0.5 + 0.5 / 3, abs=0.02) and probability[explored == greedy].unique().item() == pytest.approx(0.5 + 0.5 / 3)
    assert torch.bincount(explored, minlength=3).min() > 20_000 / 6 * 0.95 and probability.min().item() == pytest.approx(0.5 / 3)
    extreme = torch.tensor([0.0, 1.0 - 2**-24])
    assert agent.act(state, observation[:1], extreme, torch.tensor(0.0), torch.tensor(1.0))[0].item() == 2


def test_images_and_categories_are_encoded():
    image = DQN(spaces.Box(0, 255, (4, 4), np.uint8), THREE)
    state = image.init(torch.Generator().manual_seed(0), 1)
    white, share = torch.full((1, 4, 4), 255, dtype=torch.uint8), torch.ones(1, 4, 4)
    torch.testing.assert_close(image.action_values.outputs(state.parameters, white), _plain(image, state.parameters, share))
    category = DQN(spaces.Discrete(4, start=2), THREE)
    state = category.init(torch.Generator().manual_seed(0), 1)
    torch.testing.assert_close(category.action_values.outputs(state.parameters, torch.tensor([2, 3, 4, 5])), _plain(category, state.parameters, torch.eye(4)))


def _plain(agent, parameters, x):
    """Outputs [batch, 3, 1] of encoded observations."""
    return agent.head(part("head.", parameters), agent.network(parameters, x), (3, 1))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"discount": 1.5}, "discount must be at least 0 and at most 1, got 1.5"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"replay": UniformReplay(10)}, "capacity 10 is smaller than batch_size 128"),
        ({"discount": 0.9, "steps": 0}, "steps must be at least 1"),
        ({"action_space": spaces.Box(-1, 1, (1,))}, "DQN needs Discrete actions"),
        ({"observation_space": spaces.Dict({})}, "observations must be Box, Discrete"),
    ],
)
def test_what_makes_no_sense_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        DQN(**{"observation_space": BOX, "action_space": THREE, **options})


@pytest.mark.parametrize(("inputs", "outputs"), [(4, 64), (64, 2), (64, 64), (20, 30), (30, 20), (3, 3), (8, 8), (8, 9), (9, 8), (1, 1)])
def test_linear_layers_of_every_width_agree_with_torch(inputs, outputs):
    parameters = heads.Linear().init(torch.Generator().manual_seed(0), inputs, (outputs, 1))
    weight = parameters["weight"].T if inputs <= 8 and inputs < outputs else parameters["weight"]
    x = torch.randn(7, inputs)
    torch.testing.assert_close(heads.Linear()(parameters, x, (outputs, 1))[..., 0], torch.nn.functional.linear(x, weight, parameters["bias"]))


def test_initial_weights_are_torchs_linear():
    parameters = MLP((400, 7)).init(torch.Generator().manual_seed(0), (100,))
    assert [tuple(p.shape) for p in parameters.values()] == [(400, 100), (400,), (7, 400), (7,)]
    assert parameters["0.weight"].abs().max() <= 0.1 and parameters["0.weight"].std().item() == pytest.approx(0.1 / 3**0.5, rel=0.02)


def test_the_agent_in_python_is_the_one_on_the_command_line():
    environment = gym.make("CartPole-v1")
    assert DQN(environment.observation_space, environment.action_space) == build(compose()).agent


@pytest.mark.parametrize("value_loss", [Huber(), GaussianNLL(), QuantileHuber(5)], ids=lambda loss: type(loss).__name__)
@pytest.mark.parametrize("head", [heads.Linear(), heads.Linear(hidden=2), heads.Dueling(heads.Noisy())], ids=["linear", "hidden", "noisy_dueling"])
def test_a_running_scale_moves_and_no_value_does(value_loss, head):
    value_loss = dataclasses.replace(value_loss, transform=PopArt(step_size=0.1))
    agent = DQN(BOX, THREE, 0.9, network=MLP((8,)), head=head, optimizer=Adam(0.0), value_loss=value_loss)
    state, observation = agent.init(torch.Generator().manual_seed(0), 1), torch.randn(6, 5)

    def values(state, parameters):
        return settled(value_loss, state.transform).value(agent.action_values.outputs(parameters, observation))

    state = state._replace(target_parameters={name: p + 0.1 for name, p in state.parameters.items()})
    state, _ = agent.learn(state, _batch(), torch.tensor(0.5))  # The first returns set the scale.
    before = values(state, state.parameters), values(state, state.target_parameters)
    for size in (100.0, 1.0):
        batch = _batch()
        state, metrics = agent.learn(state, batch._replace(reward=size * batch.reward, mask=torch.arange(16) < 12), torch.tensor(0.5))
        assert metrics["loss/value"].isfinite()
        torch.testing.assert_close((values(state, state.parameters), values(state, state.target_parameters)), before, rtol=1e-3, atol=1e-3)
    assert 5 < settled(value_loss, state.transform).transform.scale < 200


@pytest.mark.parametrize("value_loss", [TwoHot(41, -5.0, 5.0), C51(41, -5.0, 5.0)], ids=lambda loss: type(loss).__name__)
def test_a_categorical_head_learns_returns_of_a_size_that_nobody_said(value_loss):
    agent = DQN(BOX, THREE, 0.9, network=MLP((32,)), optimizer=Adam(1e-2), value_loss=dataclasses.replace(value_loss, transform=PopArt(step_size=0.1)))
    state, batch = agent.init(torch.Generator().manual_seed(0), 1), _batch()
    reward = 3000 + 500 * torch.randn(len(batch.reward), generator=torch.Generator().manual_seed(1))
    batch = batch._replace(reward=reward, discount=torch.zeros_like(batch.discount))
    for _ in range(300):
        state, metrics = agent.learn(state, batch, torch.tensor(0.0))
    assert (metrics["value"] - reward).abs().mean() < 100


@pytest.mark.parametrize("value_loss", [TwoHot(51, -5.0, 5.0), C51(51, -5.0, 5.0)], ids=lambda loss: type(loss).__name__)
def test_a_running_scale_sees_rare_returns_beyond_the_support(value_loss):
    """Of a hundred returns two are 100, seven deviations from the mean; a scale of clipped targets would shrink to nothing."""
    agent = DQN(BOX, THREE, 0.9, network=MLP((32,)), optimizer=Adam(1e-3), value_loss=dataclasses.replace(value_loss, transform=PopArt(step_size=0.1)))
    state, batch = agent.init(torch.Generator().manual_seed(0), 1), _batch()
    size, reward = len(batch.reward), torch.zeros(100)
    reward[:2] = 100.0
    for turn in range(300):
        drawn = torch.randint(100, (size,), generator=torch.Generator().manual_seed(turn))
        state, _ = agent.learn(state, batch._replace(reward=reward[drawn], discount=torch.zeros(size), mask=None), torch.tensor(0.0))
    assert settled(agent.value_loss, state.transform).transform.scale > 5


class _OneNumber:
    """A value loss that doesn't say how its outputs are moved."""

    outputs, transform = 1, PopArt()


def test_a_running_scale_needs_a_loss_that_can_be_moved():
    with pytest.raises(ValueError, match="value_loss _OneNumber can't take a running transform"):
        DQN(BOX, THREE, value_loss=_OneNumber())
