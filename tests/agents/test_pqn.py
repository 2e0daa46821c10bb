"""PQN against plain loops: returns of a rollout, the orders it is learned in, gradients; every value loss and head."""

import dataclasses

import numpy as np
import pytest
import torch
from gymnasium import spaces

from agents import heads, replay
from agents.command_help import groups
from agents.config import ConfigError, build, compose
from agents.networks import MLP
from agents.optimizers import SGD
from agents.pqn import PQN
from agents.training import train
from rlloss import C51, MSE, PengQLambda, PopArt, QuantileHuber, Retrace

BOX, THREE, ENVIRONMENTS = spaces.Box(-1, 1, (5,), np.float32), spaces.Discrete(3), 4


def rollout(agent, seed=0):
    """A state with a whole rollout in memory [environments, time, words], and its fields [environments, time]."""
    rng, length = np.random.default_rng(seed), agent.plan(ENVIRONMENTS).length
    records = np.zeros((ENVIRONMENTS, length), agent.layout)
    records["observation"], records["next_observation"] = rng.normal(size=(2, ENVIRONMENTS, length, 5))
    records["action"], records["reward"] = rng.integers(0, 3, (ENVIRONMENTS, length)), rng.normal(size=(ENVIRONMENTS, length))
    records["terminated"] = rng.random((ENVIRONMENTS, length)) < 0.2
    records["truncated"] = (rng.random((ENVIRONMENTS, length)) < 0.2) & (records["terminated"] == 0)
    records["probability"] = 0.4
    memory = replay.memory(1, ENVIRONMENTS, length, agent.layout)
    state = agent.init(torch.Generator().manual_seed(0), ENVIRONMENTS * length)
    for time in range(length):
        agent.write(memory.numpy(), length + time, records[None, :, time].copy().view(np.int32).reshape(1, ENVIRONMENTS, -1), state)
    return state, memory[0], records


def refreshed(agent, state, memory):
    uniforms = torch.rand(agent.plan(ENVIRONMENTS).refresh_uniforms)
    return agent.refresh(state, memory, uniforms, torch.tensor(0.0), torch.tensor(0.0))


@pytest.mark.parametrize("target", [PengQLambda(0.7), Retrace(0.9)])
def test_returns_are_those_of_a_plain_loop(target):
    agent = PQN(BOX, THREE, 0.9, rollout=7, minibatches=4, network=MLP((8,)), target=target)
    state, memory, seen = rollout(agent)
    found = refreshed(agent, state, memory).returns.reshape(ENVIRONMENTS, 7)
    q = {name: agent.action_values.outputs(state.parameters, torch.from_numpy(seen[name].reshape(-1, 5).copy())).reshape(ENVIRONMENTS, 7, 3) for name in ("observation", "next_observation")}
    for environment in range(ENVIRONMENTS):
        correction = 0.0
        for time in reversed(range(7)):
            row, values = seen[environment, time], q["observation"][environment, time]
            bootstrap = 0.9 * (1 - row["terminated"]) * q["next_observation"][environment, time].max().item()
            value, going_on = values[row["action"]].item(), not (row["terminated"] or row["truncated"]) and time < 6
            if isinstance(target, PengQLambda):  # G = r + γ((1−λ)·max Q(s′) + λ·G′)
                expected = row["reward"] + bootstrap + (0.9 * 0.7 * correction if going_on else 0.0)
                correction = expected - q["next_observation"][environment, time - 1].max().item() if time else 0.0
            else:  # G = Q + δ + γ·c′·(G′ − Q′),  c = λ·min(1, π/μ)
                expected = row["reward"] + bootstrap + (0.9 * correction if going_on else 0.0)
                correction = 0.9 * min(1.0, float(values.argmax().item() == row["action"]) / 0.4) * (expected - value)
            assert found[environment, time].item() == pytest.approx(expected, rel=1e-4, abs=1e-5)


def test_every_epoch_learns_every_record_once_in_an_order_of_its_own():
    agent = PQN(BOX, THREE, rollout=8, epochs=3, minibatches=4, network=MLP((8,)))
    state, memory, _ = rollout(agent)
    orders = refreshed(agent, state, memory).order.reshape(3, 32)
    assert all(order.sort().values.equal(torch.arange(32)) for order in orders)
    assert not orders[0].equal(orders[1]) and not orders[1].equal(orders[2])


def test_updates_are_those_of_plain_torch():
    agent = PQN(BOX, THREE, 0.9, rollout=8, minibatches=4, network=MLP((8,)), optimizer=SGD(0.1), max_gradient_norm=float("inf"))
    state, memory, seen = rollout(agent)
    state = refreshed(agent, state, memory)
    module = torch.nn.Sequential(torch.nn.Linear(5, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
    with torch.no_grad():
        for plain, ours in zip(module.parameters(), state.parameters.values(), strict=True):
            plain.copy_(ours if ours.shape == plain.shape else ours.T)
    optimizer = torch.optim.SGD(module.parameters(), 0.1)
    rows = seen.reshape(-1)
    for number in range(6):
        chosen = state.order[number].numpy()
        values = module(torch.from_numpy(rows["observation"][chosen])).gather(1, torch.from_numpy(rows["action"][chosen]).long()[:, None])[:, 0]
        loss = (values - state.returns[chosen]).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        state, metrics = agent.update(state, memory, torch.rand(0), torch.tensor(0.0), torch.tensor(0.0))
        torch.testing.assert_close(metrics["loss/value"], loss.detach())
    for plain, ours in zip(module.parameters(), state.parameters.values(), strict=True):
        torch.testing.assert_close(ours if ours.shape == plain.shape else ours.T, plain.detach())


@pytest.mark.parametrize("value", groups()["loss/value"])
def test_every_value_loss_learns_a_rollout(value):
    agent = dataclasses.replace(build(compose(["agent=pqn", f"loss/value={value}", "num_envs=4"])).agent, observation_space=BOX, action_space=THREE, rollout=8, minibatches=2)
    state, memory, _ = rollout(agent)
    state, losses = refreshed(agent, state, memory), []
    for _ in range(agent.epochs * agent.minibatches):
        state, metrics = agent.update(state, memory, torch.rand(0, dtype=torch.float64), torch.tensor(0.0), torch.tensor(0.0))
        losses.append(metrics["loss/total"].item())
    assert np.isfinite(losses).all() and np.mean(losses[-2:]) < np.mean(losses[:2])


@pytest.mark.parametrize("value_loss", [MSE(transform=PopArt()), QuantileHuber(5, transform=PopArt()), C51(11)], ids=["mse", "quantile", "c51"])
def test_noisy_heads_and_running_scales(value_loss):
    agent = PQN(BOX, THREE, rollout=8, minibatches=2, network=MLP((8,)), head=heads.Dueling(heads.Noisy()), value_loss=value_loss)
    plan = agent.plan(ENVIRONMENTS)
    state, memory, _ = rollout(agent)
    before = refreshed(agent, state, memory)
    assert not torch.equal(before.returns, refreshed(agent, state, memory).returns), "the noise of a refresh is drawn anew"
    after, metrics = agent.update(before, memory, torch.rand(plan.update_uniforms, dtype=torch.float64), torch.tensor(0.0), torch.tensor(0.0))
    assert metrics["loss/value"].isfinite() and after.next == 1
    assert not value_loss.outputs < 6 or after.transform.seen > 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["agent.minibatches=15"], "agent.minibatches 15 must divide the 2048 transitions of a rollout, agent.rollout 64 times num_envs 32"),
        (["loss/target=q_learning"], "target QLearning looks at single steps, but PQN learns from rollouts"),
        (["agent.rollout=1"], "agent.rollout must be at least 2"),
        (["loss/regularizer=[entropy]"], "regularizers.entropy needs .*, which PQN doesn't have"),
    ],
)
def test_what_makes_no_sense_is_refused(words, message):
    with pytest.raises(ConfigError, match=message):
        build(compose(["agent=pqn", *words]))


def test_it_trains_on_gymnasiums_environments():
    result = train([build(compose(["agent=pqn", "num_envs=4", "agent.rollout=8", "agent.minibatches=4", "total_steps=200", "evaluation.episodes=2"]))], compile=False)[0]
    assert result.complete and result.updates == 6 * 16 and all(parameter.isfinite().all() for parameter in result.learner.parameters.values())
