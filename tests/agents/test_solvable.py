"""Environments that can be solved exactly: what DQN's own update learns is what dynamic programming says.

The networks are tables (one-hot states, no hidden layer), so the right answer Q* is a fixed point of the updates. How far from it they
may end follows from the contraction |Q − Q*| ≤ |Q − TQ| / (1 − γ): when the updates have come to rest, |Q − TQ| is some
roundings of float32, 1e-7 of the largest value each; a hundred of them are allowed.
"""

import gymnasium
import numpy as np
import pytest
import torch

from agents.config import build
from agents.dqn import DQN
from agents.networks import MLP
from agents.optimizers import SGD, Adam
from agents.replay import UniformReplay, memory
from agents.target_networks import Polyak
from agents.training import train
from rlloss import C51, MSE, DoubleQLearning, ExpectedSARSA, QLearning, QuantileHuber
from tests.conftest import small_config

DISCOUNT = 0.8
ROUNDINGS = 1e-5
SOLVABLE = {
    "lake": ("FrozenLake-v1", {"is_slippery": False}),
    "slippery lake": ("FrozenLake-v1", {"is_slippery": True}),
    "cliff": ("CliffWalking-v1", {}),
    "chain": ("Chain-v0", {}),
}


def made(name):
    """The environment, and its transitions P[state][action] = [(probability, next state, reward, terminated), …]."""
    environment = gymnasium.make(SOLVABLE[name][0], **SOLVABLE[name][1])
    return environment, environment.unwrapped.P


def value_iteration(transitions, policy):
    """Q [states, actions] of float64, where `policy` says the value of a next state from its Q [actions]."""
    q = np.zeros((len(transitions), len(transitions[0])))
    for _ in range(1000):
        following = [policy(row) for row in q]
        q = np.array([[sum(p * (r + DISCOUNT * (not end) * following[s]) for p, s, r, end in outcomes) for outcomes in state.values()] for state in transitions.values()])
    return q


def learned(environment, transitions, steps, **parts):
    """Q [states, actions] after so many of an agent's updates, each on all transitions at once, in proportion to their probabilities."""
    rows = [(s, a, *outcome) for s, actions in transitions.items() for a, outcomes in actions.items() for outcome in outcomes]
    assert all(len({round(outcome[0], 9) for outcome in outcomes}) == 1 for actions in transitions.values() for outcomes in actions.values())
    # |φ|² = 2 for a one-hot state and the bias, and each action has its share of the rows, so e² curves by at most 4/actions:
    # SGD with momentum μ is stable below 0.5·(1 + μ)·actions.
    parts = {"value_loss": MSE(), "optimizer": SGD(0.5 * len(transitions[0]), momentum=0.6), **parts}
    agent = DQN(
        environment.observation_space, environment.action_space, DISCOUNT, batch_size=len(rows), network=MLP(()), target_network=Polyak(1.0),
        max_gradient_norm=float("inf"), replay=UniformReplay(len(rows)), **parts,
    )  # fmt: skip
    kept = memory(1, 1, agent.plan(1).length, agent.layout)
    for time, (state, action, _, following, reward, terminated) in enumerate(rows):
        record = np.array([[(state, action, reward, terminated, 0, 1, following)]], agent.layout)
        agent.replay.write(kept.numpy(), time, record.view(np.int32).reshape(1, 1, -1), ())
    each_once, added = (torch.arange(len(rows), dtype=torch.float64) + 0.5) / len(rows), torch.tensor(len(rows), dtype=torch.float64)
    state = agent.init(torch.Generator().manual_seed(0), len(rows))
    for step in range(steps):
        state, _ = agent.update(state, kept[0], each_once, added, torch.tensor(step / steps))
    return agent.value_loss.value(agent.action_values.outputs(state.parameters, torch.arange(len(transitions)))).numpy()


def assert_solved(q, right, tolerance=ROUNDINGS):
    np.testing.assert_allclose(q, right, atol=tolerance * max(1, np.abs(right).max()) / (1 - DISCOUNT), rtol=0)
    # The greedy policy is optimal: what it chooses is a best action, of which there may be several.
    best = right.max(1)
    np.testing.assert_allclose(right[np.arange(len(q)), q.argmax(1)], best, atol=1e-9)


def greedy(q):
    """The value of the best action."""
    return q.max()


CASES = [("chain", QLearning(), greedy), ("lake", QLearning(), greedy), ("slippery lake", QLearning(), greedy), ("cliff", QLearning(), greedy)]
CASES += [("slippery lake", DoubleQLearning(), greedy), ("slippery lake", ExpectedSARSA(epsilon=0.5), lambda q: 0.5 * q.max() + 0.5 * q.mean())]


@pytest.mark.parametrize(("name", "target", "policy"), CASES, ids=lambda case: case if isinstance(case, str) else type(case).__name__)
def test_values_are_those_of_value_iteration(name, target, policy):
    environment, transitions = made(name)
    assert_solved(learned(environment, transitions, 700, target=target), value_iteration(transitions, policy))


# Projecting keeps the mean, so both have Q* as theirs. A softmax comes near an unmixed distribution only as fast as 1/updates: C51 is
# allowed a thousandth.
DISTRIBUTIONS = [(QuantileHuber(5), SGD(4.0, momentum=0.6), ROUNDINGS), (C51(bins=21, vmin=-0.5, vmax=1.5), Adam(0.1), 1e-3)]


@pytest.mark.parametrize(("value_loss", "optimizer", "tolerance"), DISTRIBUTIONS, ids=["quantile_huber", "c51"])
def test_distributions_have_the_mean_of_value_iteration(value_loss, optimizer, tolerance):
    environment, transitions = made("chain")
    q = learned(environment, transitions, 1000, target=QLearning(), value_loss=value_loss, optimizer=optimizer)
    assert_solved(q, value_iteration(transitions, greedy), tolerance)


@pytest.mark.parametrize("target", ["retrace", "watkins_q_lambda"])
def test_returns_of_random_behaviour_lead_to_optimal_values(target):
    """Learned in the loop from random actions: corrected returns are those of the greedy policy, without noise where nothing is random."""
    words = ["env.id=Chain-v0", "network.hidden=[]", f"loss/target={target}", "loss/value=mse", "agent.steps=4", "optimizer=sgd", "optimizer.learning_rate=0.5"]
    words += ["agent.exploration.epsilon.end=1", "agent.max_gradient_norm=inf", f"agent.discount={DISCOUNT}", "agent.batch_size=64", "agent.target_network.every=1"]
    run = build(small_config(*words, "agent.replay.capacity=1000", "total_steps=400", "num_envs=2"))
    (result,) = train([run], compile=False)
    q = run.agent.value_loss.value(run.agent.action_values.outputs(result.learner.parameters, torch.arange(6))).numpy()
    assert_solved(q, value_iteration(made("chain")[1], greedy))


def test_the_chains_values_are_its_formula():
    right = value_iteration(made("chain")[1], greedy)
    np.testing.assert_allclose(right[:, 1], DISCOUNT ** (5 - np.arange(6)), rtol=1e-12)
    assert right[0, 0] == 0.1
