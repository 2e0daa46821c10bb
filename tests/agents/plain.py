"""Plain torch beside the off-policy actor-critics: modules with the weights of ours, batches, noise."""

import numpy as np
import pytest
import torch
from gymnasium import spaces

from agents import replay
from agents.batches import Batch
from tests.toys import Regulator

BOX, TWO, THREE = spaces.Box(-1, 1, (5,), np.float32), spaces.Box(-3, 1, (2,), np.float32), spaces.Discrete(3)
START = torch.tensor(0.0)

# A run that learns to regulate.
REGULATED = [
    "env.id=tests.toys:Regulator-v0", "network.hidden=[32,32]", "num_envs=8", "agent.discount=0.9", "total_steps=6000", "agent.update_every=4", "agent.batch_size=128",
    "agent.learning_starts=400", "optimizer.learning_rate=5e-3", "optimizer.schedule.end=0", "agent.target_network.rate=0.02",
    "evaluation.every=0", "evaluation.episodes=1", "checkpoint_every=0", "compile=false",
]  # fmt: skip


def assert_regulated(x, action):
    """Stored actions [batch, 1], of which 1 is two of the environment's, answer x [batch, 1] with the gain of Riccati's equation."""
    assert -2 * (x * action).sum() / (x * x).sum() == pytest.approx(Regulator.gain(0.9), rel=0.2)


def module(parameters, inputs, outputs, hidden=8):
    """A torch.nn.Module with our parameters, in their order."""
    made = torch.nn.Sequential(torch.nn.Linear(inputs, hidden), torch.nn.ReLU(), torch.nn.Linear(hidden, outputs))
    with torch.no_grad():
        for theirs, ours in zip(made.parameters(), parameters.values(), strict=True):
            theirs.copy_(ours if ours.shape == theirs.shape else ours.T)
    return made


def critic(parameters, index, inputs, outputs):
    """One of our critics as a module."""
    return module({name: p[index] for name, p in parameters.items()}, inputs, outputs)


def assert_critics_equal(parameters, modules):
    """Our critics' parameters are those of modules."""
    for index, plain in enumerate(modules):
        assert_equal({name: p[index] for name, p in parameters.items()}, plain)


def assert_equal(parameters, module):
    """Our parameters are those of a module, in order."""
    for (name, ours), plain in zip(parameters.items(), module.parameters(), strict=True):
        torch.testing.assert_close(ours if ours.shape == plain.shape else ours.T, plain.detach(), rtol=1e-4, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}")


def batch(space, n=16, weighted=False, seed=0):
    """A batch of transitions, a third of which end."""
    generator = torch.Generator().manual_seed(seed)
    observation, following = torch.randn(2, n, 5, generator=generator)
    action = torch.randint(3, (n,), generator=generator) if isinstance(space, spaces.Discrete) else 2 * torch.rand(n, 2, generator=generator) - 1
    discount = 0.9 * (torch.rand(n, generator=generator) < 0.7)
    weight = torch.rand(n, generator=generator) if weighted else None
    return Batch(observation, action, torch.randn(n, generator=generator), discount, following, weight=weight)


def normal(uniforms):
    """Normal numbers [batch, 2] of uniform ones [batch, 2], by the method of Box and Muller."""
    radius, angle = np.sqrt(-2 * np.log(1 - uniforms[:, 0].numpy())), 2 * np.pi * uniforms[:, 1].numpy()
    return torch.from_numpy(np.stack([radius * np.cos(angle), radius * np.sin(angle)], -1)).float()


def filled(agent, steps=12, environments=2):
    """A memory [environments, steps, words] of random transitions with ends and cuts, its records, and an initial state that goes with it."""
    rng, layout = np.random.default_rng(0), agent.layout
    records = np.zeros((environments, steps), layout)
    records["observation"], records["next_observation"] = rng.normal(size=(2, environments, steps, 5))
    discrete = isinstance(agent.action_space, spaces.Discrete)
    records["action"] = rng.integers(3, size=(environments, steps)) if discrete else rng.uniform(-1, 1, (environments, steps, 2))
    records["reward"], records["probability"] = rng.normal(size=(environments, steps)), 0.5
    records["terminated"] = rng.random((environments, steps)) < 0.2
    records["truncated"] = (rng.random((environments, steps)) < 0.2) & (records["terminated"] == 0)
    state = agent.init(torch.Generator().manual_seed(0), environments * steps)
    memory = replay.memory(1, environments, steps, layout)
    for time in range(steps):
        agent.replay.write(memory.numpy(), time, records[None, :, time].copy().view(np.int32).reshape(1, environments, -1), _stacked(state.replay))
    return memory[0], records, state


def _stacked(state):
    """The same memory with a dimension of one run in front."""
    return torch.utils._pytree.tree_map(lambda leaf: leaf[None], state)
