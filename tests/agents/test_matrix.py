"""Value loss × target × replay × head × steps: every pair of choices meets, learns a fixed batch, and learns it in a population."""

import dataclasses
import itertools

import numpy as np
import pytest
import torch
from torch.utils import _pytree as pytree

from agents import replay
from agents.agent import Agent
from agents.command_help import groups
from agents.compilation import bind
from agents.config import build
from agents.population import stack
from tests.agents.test_choices import SEAMS, TRAJECTORIES
from tests.conftest import small_config

VALUES, TARGETS = SEAMS["loss/value"], SEAMS["loss/target"]
REPLAYS, HEADS, STEPS = groups()["agent/replay"], groups()["head"], (1, 3)


def cases():
    """As many cases as there are pairs of value losses and targets; the other choices take turns, so that each meets each."""
    for (first, value), (second, target) in itertools.product(enumerate(VALUES), enumerate(TARGETS)):
        turn = first + second
        steps = 4 if target in TRAJECTORIES else STEPS[turn // 8 % 2]
        yield value, target, REPLAYS[turn % 2], HEADS[turn // 2 % len(HEADS)], steps


def named(case):
    """A case in one word."""
    return "-".join(map(str, case))


def test_every_pair_of_choices_meets():
    seen = {pair for case in cases() for pair in itertools.combinations([*enumerate(case[:4])], 2)}
    sizes = [len(choices) for choices in (VALUES, TARGETS, REPLAYS, HEADS)]
    assert len(seen) == sum(a * b for a, b in itertools.combinations(sizes, 2))
    assert {(case[0], case[4]) for case in cases()} >= set(itertools.product(VALUES, STEPS))


def filled(agent: Agent, runs: int):
    """Memories [runs, 2, 12, words] of random transitions with ends and cuts, and the learners that go with them."""
    rng, layout = np.random.default_rng(0), agent.layout
    memory = replay.memory(runs, 2, agent.plan(2).length, layout)
    slots = memory.shape[1] * memory.shape[2]
    learner = stack([agent.init(torch.Generator().manual_seed(run), slots) for run in range(runs)])
    for time in range(20):
        records = np.zeros((runs, 2), layout)
        records["observation"], records["next_observation"] = rng.normal(size=(2, runs, 2, 4))
        records["action"], records["reward"] = rng.integers(0, 2, (runs, 2)), rng.normal(size=(runs, 2))
        records["terminated"], records["truncated"], records["probability"] = time % 7 == 6, time % 5 == 4, 0.5
        agent.replay.write(memory.numpy(), time, records.view(np.int32).reshape(runs, 2, -1), learner.replay)
    return memory, learner


def made(case):
    """The agent of these choices."""
    value, target, kept, head, steps = case
    words = [f"loss/value={value}", f"loss/target={target}", f"agent/replay={kept}", f"head={head}", f"agent.steps={steps}"]
    return build(small_config(*words, "agent.replay.capacity=24", "optimizer.learning_rate=1e-2")).agent


@pytest.mark.parametrize("case", list(cases()), ids=named)
def test_a_fixed_batch_is_learned_alone_and_among_others(case):
    """Eagerly a run among others is the run alone but for rounding: torch multiplies several matrices otherwise than one. Compiled ones are equal, see below."""
    agents = [agent := made(case), dataclasses.replace(agent, discount=0.8)]
    memory, learner = filled(agents[0], 2)
    uniforms = torch.rand(2, agents[0].plan(2).update_uniforms, dtype=torch.float64)
    added, progress = torch.tensor(20.0, dtype=torch.float64), torch.tensor(0.5)

    together, metrics = torch.func.vmap(lambda agent, *rest: agent.update(*rest, added, progress))(stack(agents), learner, memory, uniforms)
    one = [torch.utils._pytree.tree_map(lambda leaf: leaf[1], tree) for tree in (learner, memory, uniforms)]
    alone, told = agents[1].update(*one, added, progress)
    torch.testing.assert_close(metrics["loss/total"][1], told["loss/total"], rtol=1e-4, atol=1e-5)
    for name, parameter in alone.parameters.items():
        torch.testing.assert_close(together.parameters[name][1], parameter, rtol=1e-3, atol=1e-4)

    losses, state = [told["loss/total"].item()], alone
    for _ in range(8):
        state, told = agents[1].update(state._replace(replay=one[0].replay), *one[1:], added, progress)
        losses.append(told["loss/total"].item())
    assert np.isfinite(losses).all() and min(losses[-3:]) < losses[0]


# So few that every value loss and every target is in one, with either replay and every head.
COMPILED = [next(case for case in cases() if case[:2] == (VALUES[number % len(VALUES)], target)) for number, target in enumerate(TARGETS)]


def test_every_choice_is_compiled_once():
    assert all({case[place] for case in COMPILED} == set(choices) for place, choices in enumerate((VALUES, TARGETS, REPLAYS, HEADS)))


@pytest.mark.slow  # Each case compiles a program of its own.
@pytest.mark.parametrize("case", COMPILED, ids=named)
def test_compiled_a_run_learns_bitwise_the_same_alone_and_among_others(case):
    agents = [agent := made(case), dataclasses.replace(agent, discount=0.8), dataclasses.replace(agent, max_gradient_norm=0.1)]

    def bound(chosen):
        torch.manual_seed(0)
        memory, learner = filled(agent, 3)
        uniforms = torch.rand(3, agent.plan(2).update_uniforms, dtype=torch.float64)
        inputs = [pytree.tree_map(lambda leaf: leaf[chosen].clone(), tree) for tree in (learner, stack(agents), memory, uniforms)]
        shared = torch.tensor(20.0, dtype=torch.float64), torch.tensor(0.5)
        program = bind(lambda learner, agent, *rest: agent.update(learner, *rest), inputs, shared, donate=True, compile=True, name="a test", say=print)
        for _ in range(3):
            told = program.result(program.run())
        return inputs[0], told

    together = bound([0, 1, 2])
    for run in range(3):
        alone = bound([run])
        assert all(torch.equal(some[run], one[0]) for some, one in zip(pytree.tree_leaves(together), pytree.tree_leaves(alone), strict=True))
    assert not torch.equal(*(pytree.tree_leaves(together[0].parameters)[0][run] for run in (0, 1)))
