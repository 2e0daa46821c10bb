"""Value loss × advantage × policy loss × regularisers × kind of action: every pair meets, learns a fixed rollout, and learns it in a population."""

import dataclasses
import itertools

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch.utils import _pytree as pytree

from agents import replay
from agents.actor_critic import ActorCritic
from agents.command_help import groups
from agents.compilation import bind
from agents.config import build, compose
from agents.networks import MLP
from agents.policies import Gaussian
from agents.population import stack

VALUES, POLICIES = groups()["loss/value"], groups()["loss/policy"]
TARGETS = ["gae", "n_step", "td_lambda", "v_trace", "retrace", "peng_q_lambda", "watkins_q_lambda"]
REGULARIZERS = ["[]", "[entropy]", "[entropy,l2]", "[l1,feature_norm]", "[elastic_net]"]
BOX = spaces.Box(-1, 1, (3,), np.float32)
ACTIONS = {
    "Discrete": (spaces.Discrete(3), Gaussian()),
    "MultiDiscrete": (spaces.MultiDiscrete([2, 3]), Gaussian()),
    "MultiBinary": (spaces.MultiBinary(2), Gaussian()),
    "Box": (spaces.Box(-2, 2, (2,), np.float32), Gaussian()),
    "squashed Box": (spaces.Box(-2, 2, (2,), np.float32), Gaussian(state_dependent=True, squashed=True)),
}
SHAPE = 2, 6  # environments, steps
PROGRESS = torch.tensor(0.25)


def cases():
    """As many cases as there are pairs of value losses and advantages; the others take turns, so that each meets each."""
    for (first, value), (second, target) in itertools.product(enumerate(VALUES), enumerate(TARGETS)):
        policy = POLICIES[3 * (first + second) % len(POLICIES)]
        yield value, target, policy, REGULARIZERS[(4 * first + 3 * second) % len(REGULARIZERS)], list(ACTIONS)[(4 * first + 2 * second) % len(ACTIONS)]


def test_every_pair_of_choices_meets():
    choices = VALUES, TARGETS, POLICIES, REGULARIZERS, ACTIONS
    seen = {pair for case in cases() for pair in itertools.combinations([*enumerate(case)], 2)}
    assert len(seen) == sum(len(a) * len(b) for a, b in itertools.combinations(choices, 2))


def made(value, target, policy, regularizers, action) -> ActorCritic:
    words = [f"loss/value={value}", f"loss/target={target}", f"loss/policy={policy}", f"loss/regularizer={regularizers}"]
    agent = build(compose(["agent=ppo", *words, "optimizer.learning_rate=2e-4", "agent.rollout=6", "agent.minibatches=2"])).agent
    space, gaussian = ACTIONS[action]
    return dataclasses.replace(agent, observation_space=BOX, action_space=space, gaussian=gaussian, network=MLP((8,)))


def filled(agent: ActorCritic, runs: int):
    """Memories [runs, environments, steps, words] of random rollouts with ends and cuts, and the learners that go with them."""
    rng, layout, shape = np.random.default_rng(0), agent.layout, (runs, *SHAPE)
    agent.action_space.seed(0)
    records = np.zeros(shape, layout)
    records["observation"], records["next_observation"] = rng.normal(size=(2, *shape, 3))
    for place in np.ndindex(shape):
        records["action"][place] = 0.4 * agent.action_space.sample() if isinstance(agent.action_space, spaces.Box) else agent.action_space.sample()
    records["reward"], records["probability"] = rng.normal(size=shape), 0.5
    records["terminated"] = rng.random(shape) < 0.2
    records["truncated"] = (rng.random(shape) < 0.2) & (records["terminated"] == 0)
    memory = replay.memory(runs, *SHAPE, layout)
    memory.numpy()[...] = records.view(np.int32).reshape(*shape, -1)
    return memory, stack([agent.init(torch.Generator().manual_seed(run), SHAPE[0] * SHAPE[1]) for run in range(runs)])


def learned(agent, learner, memory, shuffle):
    """A rollout made into returns, and one minibatch learned."""
    learner = agent.refresh(learner, memory, shuffle, torch.zeros(()), PROGRESS)
    return agent.update(learner, memory, torch.zeros(0), torch.zeros(()), PROGRESS)


@pytest.mark.parametrize("case", list(cases()), ids=lambda case: "-".join(map(str, case)))
def test_a_fixed_rollout_is_learned_alone_and_among_others(case):
    agents = [agent := made(*case), dataclasses.replace(agent, discount=0.8)]
    memory, learner = filled(agent, 2)
    shuffle = torch.rand(2, agent.plan(SHAPE[0]).refresh_uniforms)
    together, metrics = torch.func.vmap(learned)(stack(agents), learner, memory, shuffle)
    one = [pytree.tree_map(lambda leaf: leaf[1], tree) for tree in (learner, memory, shuffle)]
    alone, told = learned(agents[1], *one)
    torch.testing.assert_close(metrics["loss/total"][1], told["loss/total"], rtol=1e-4, atol=1e-5)
    for name, parameter in alone.parameters.items():
        torch.testing.assert_close(together.parameters[name][1], parameter, rtol=1e-3, atol=1e-4)

    losses, state = [told["loss/total"].item()], alone
    for _ in range(12):  # The same minibatch again and again.
        state, told = agents[1].update(state._replace(next=torch.zeros_like(state.next)), one[1], torch.zeros(0), torch.zeros(()), PROGRESS)
        losses.append(told["loss/total"].item())
    assert np.isfinite(losses).all() and min(losses[-3:]) < losses[0]


@pytest.mark.slow  # Each kind of action compiles two programs of its own.
@pytest.mark.parametrize("case", [next(case for case in cases() if case[4] == action) for action in ACTIONS], ids=lambda case: "-".join(map(str, case)))
def test_compiled_a_run_learns_bitwise_the_same_alone_and_among_others(case):
    agents = [agent := made(*case), dataclasses.replace(agent, discount=0.8), dataclasses.replace(agent, value_weight=1.0)]

    def bound(chosen):
        memory, learner = filled(agent, 3)
        shuffle = torch.rand(3, agent.plan(SHAPE[0]).refresh_uniforms, generator=torch.Generator().manual_seed(0))
        inputs = [pytree.tree_map(lambda leaf: leaf[chosen].clone(), tree) for tree in (learner, stack(agents), memory, shuffle)]
        program = bind(lambda learner, agent, *rest: learned(agent, learner, *rest), inputs, donate=True, compile=True, name="a test", say=print)
        for _ in range(3):
            told = program.result(program.run())
        return inputs[0], told

    together, alone = bound([0, 1, 2]), bound([1])
    assert all(torch.equal(some[1], one[0]) for some, one in zip(pytree.tree_leaves(together), pytree.tree_leaves(alone), strict=True))
