"""Stacked frames against a plain list of episodes that holds every stack; what can't be known is never learned."""

import itertools
from typing import NamedTuple

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch.utils import _pytree as pytree

from agents import frames
from agents.config import ConfigError, build, compose
from agents.environments import Environment, Episodes
from agents.frames import Frames
from agents.population import stack, unstack
from agents.replay import Drawn, PrioritizedReplay, UniformReplay, decode, memory, record
from agents.spaces import storage
from agents.training import train
from tests.conftest import small_config

SHAPE, DISCOUNT = (2, 3), 0.9


class Row(NamedTuple):
    """One step as a person would write it down, with full stacks."""

    stack: np.ndarray
    action: int
    reward: float
    terminated: bool
    truncated: bool
    next_stack: np.ndarray
    index: int


def episodes(rng, times, count):
    """So many rows of episodes with random frames, ends and cuts; some are one step long."""
    rows = []
    while len(rows) < times:
        length = int(rng.integers(1, 8))
        seen = [rng.integers(0, 256, SHAPE, np.uint8) for _ in range(length + 1)]
        stacks = [np.stack([seen[max(0, now - back)] for back in reversed(range(count))]) for now in range(length + 1)]
        terminated = bool(rng.random() < 0.5)
        for now in range(length):
            last = now == length - 1
            both = last and rng.random() < 0.1
            row = (stacks[now], int(rng.integers(4)), float(rng.normal()), both or (last and terminated), both or (last and not terminated), stacks[now + 1], now)
            rows.append(Row(*row))
    return rows[:times]


class Told:
    """What a plain loop over all that ever happened says of a ring of the newest `length` rows."""

    def __init__(self, rows, length, count):
        self.rows, self.oldest, self.count = rows, max(0, len(rows) - length), count

    def usable(self, time):
        """Whether the row's stack and what follows it are in the ring."""
        if time >= len(self.rows):
            return False
        row = self.rows[time]
        begins = time - row.index  # A beginning is known by the row before it, or because nothing has been overwritten.
        known = time - self.count + 1 >= self.oldest or begins > self.oldest or self.oldest == 0
        return known and (row.terminated or (not row.truncated and time + 1 < len(self.rows)))

    def step(self, time, steps):
        """Reward, discount, last stack and the action taken there, None where there's none, of an n-step transition."""
        reward, discount = 0.0, 1.0
        for now in range(time, time + steps):
            row = self.rows[now]
            reward, discount = reward + discount * row.reward, discount * DISCOUNT * (not row.terminated)
            if row.terminated or not self.usable(now + 1):
                break
        return reward, discount, row.next_stack, None if row.terminated else self.rows[now + 1].action


def stored(told, length, replay):
    """The ring of several environments after all rows were written, one a time, and the learner's state of the replay."""
    layout = record(SHAPE, torch.uint8, following=False)
    kept = memory(1, len(told), replay.capacity // len(told), layout)
    assert kept.shape[2] == length
    state = replay.init(len(told) * length)
    state = stack([state])
    for time in range(len(told[0].rows)):
        records = np.zeros((1, len(told)), layout)
        for number, each in enumerate(told):
            row = each.rows[time]
            records[0, number] = (row.stack[-1], row.action, row.reward, row.terminated, row.truncated, 0.25)
        replay.write(kept.numpy(), time, records.view(np.int32).reshape(1, len(told), -1), state)
    return kept[0], layout, unstack(state, 0)


CASES = list(itertools.product([2, 4], [1, 5, 12, 13, 40], [1, 3]))


def case(count, times, replay=None, length=12, environments=3):
    rng = np.random.default_rng(times * count)
    told = [Told(episodes(rng, times, count), length, count) for _ in range(environments)]
    return told, *stored(told, length, replay or UniformReplay(length * environments))


def everywhere(told, length=12):
    """All rows that were written, as drawn ones, and the time of each."""
    times = len(told[0].rows)
    where = [(number, time) for number in range(len(told)) for time in range(told[0].oldest, times)]
    return Drawn(torch.tensor([number for number, _ in where]), torch.tensor([time % length for _, time in where])), where


def count_of(told):
    return torch.tensor(float(len(told[0].rows)), dtype=torch.float64)


@pytest.mark.parametrize(("count", "times", "steps"), CASES)
def test_transitions_are_those_of_a_list_of_episodes(count, times, steps):
    told, kept, layout, _ = case(count, times)
    drawn, where = everywhere(told)
    batch = frames.transitions(kept, drawn, count_of(told), layout, DISCOUNT, steps, count)
    assert batch.observation.dtype == batch.next_observation.dtype == torch.uint8
    assert batch.mask.tolist() == [told[number].usable(time) for number, time in where]
    for index, (number, time) in enumerate(where):
        if batch.mask[index]:
            row = told[number].rows[time]
            reward, discount, last, action = told[number].step(time, steps)
            assert np.array_equal(batch.observation[index], row.stack) and batch.action[index] == row.action
            assert batch.reward[index].item() == pytest.approx(reward, abs=1e-6) and batch.discount[index].item() == pytest.approx(discount, abs=1e-6)
            if discount:
                assert np.array_equal(batch.next_observation[index], last) and batch.next_action[index] == action


@pytest.mark.parametrize(("count", "times", "length"), [(count, times, length + 1) for count, times, length in CASES])
def test_sequences_are_those_of_a_list_of_episodes(count, times, length):
    told, kept, layout, _ = case(count, times)
    drawn, where = everywhere(told)
    batch = frames.sequences(kept, drawn, count_of(told), layout, DISCOUNT, length, count)
    seen = [field.unflatten(0, (length, -1)) for field in batch if field is not None]
    observation, action, reward, discount, following, truncated, probability, mask = seen
    for index, (number, time) in enumerate(where):
        each = told[number]
        for now in range(length):
            assert mask[now, index] == each.usable(time + now)
            if not mask[now, index]:
                assert now == 0 or truncated[now - 1, index]  # No return reaches over it.
                continue
            row = each.rows[time + now]
            assert np.array_equal(observation[now, index], row.stack) and action[now, index] == row.action and probability[now, index] == 0.25
            assert reward[now, index].item() == pytest.approx(row.reward) and discount[now, index].item() == pytest.approx(DISCOUNT * (not row.terminated))
            assert row.terminated or np.array_equal(following[now, index], row.next_stack)
            assert truncated[now, index] == (now == length - 1 or not each.usable(time + now + 1))


def test_prioritized_replay_draws_the_same_rows():
    told, kept, layout, state = case(4, 40, PrioritizedReplay(36))
    drawn = PrioritizedReplay(36).draw(state, torch.rand(256, dtype=torch.float64), (3, 12), count_of(told), torch.zeros(()))
    batch = frames.transitions(kept, drawn, count_of(told), layout, DISCOUNT, 3, 4)
    assert torch.equal(batch.weight, drawn.weight) and 0 < batch.mask.sum() < 256
    for index, (number, slot) in enumerate(zip(drawn.environment.tolist(), drawn.slot.tolist(), strict=True)):
        time = next(time for time in range(39, -1, -1) if time % 12 == slot)
        assert batch.mask[index] == told[number].usable(time) and np.array_equal(batch.observation[index, -1], told[number].rows[time].stack[-1])


def test_most_rows_count():
    """What is masked are cuts, the newest row, and the k − 1 oldest at most."""
    told, kept, layout, _ = case(4, 500, UniformReplay(300), 300, 1)
    drawn, where = everywhere(told, 300)
    mask = frames.transitions(kept, drawn, count_of(told), layout, DISCOUNT, 1, 4).mask
    cuts = sum(row.truncated and not row.terminated for row in told[0].rows[203:499])
    assert len(where) - 1 - 3 - cuts <= mask.sum() <= len(where) - 1 - cuts


def test_acting_sees_what_gymnasium_stacks():
    ours = Environment("CartPole-v1", frame_stack=3).make()
    theirs = gymnasium.wrappers.FrameStackObservation(gymnasium.make("CartPole-v1"), 3, padding_type="reset")
    assert isinstance(ours.observation_space, Frames) and ours.observation_space == Frames(ours.observation_space.frame, 3)
    assert ours.observation_space != theirs.observation_space and theirs.observation_space != ours.observation_space  # Otherwise stored.
    assert np.array_equal(ours.observation_space.low, theirs.observation_space.low) and ours.observation_space.dtype == theirs.observation_space.dtype
    for seed in range(3):
        assert np.array_equal(ours.reset(seed=seed)[0], theirs.reset(seed=seed)[0])
        for action in (0, 1, 0, 0, 1):
            assert np.array_equal(ours.step(action)[0], theirs.step(action)[0])


@pytest.mark.parametrize("terminates", [False, True])
def test_each_frame_is_recorded_once(terminates):
    made = Environment("Counting-v0", {"length": 3, "terminates": terminates}, frame_stack=2)
    space = made.make().observation_space
    layout = record(*storage(space.frame), following=False)
    assert layout.itemsize == 6 * 4
    going = Episodes([made], [0], np.zeros((1, 1, *space.shape), np.float32), layout)
    going.begin()
    acted, recorded = [], []
    for _ in range(7):
        acted.append(going.observation[0, 0, :, 0].tolist())
        going.step(np.zeros((1, 1), np.int64), np.ones((1, 1)))
        recorded.append(decode(torch.from_numpy(going.words[0].copy()), layout).observation.item())
        going.advance()
    assert acted == [[0, 0], [0, 1], [1, 2], [0, 0], [0, 1], [1, 2], [0, 0]] and recorded == [0, 1, 2, 0, 1, 2, 0]


def test_memory_is_a_kth_of_that_of_whole_stacks(small_run):
    one, whole = small_run("env.frame_stack=4"), small_run("+env/wrapper=frame_stack")
    assert one.agent.observation_space.shape == whole.agent.observation_space.shape == (4, 4)
    assert one.memory_bytes == 200 * 4 * (4 + 5) and whole.memory_bytes == 200 * 4 * (2 * 16 + 5)


@pytest.mark.parametrize("words", [[], ["agent/replay=prioritized", "loss/target=sarsa", "agent.steps=2"], ["loss/target=retrace", "agent.steps=4", "num_envs=2"]], ids=["q", "sarsa", "retrace"])
def test_a_run_among_others_is_the_run_alone(small_run, words):
    words = ["env.frame_stack=3", "total_steps=120", *words]
    together = train([small_run(f"seed={seed}", *words) for seed in range(2)], compile=False)
    alone = train([small_run("seed=1", *words)], compile=False)[0]
    assert alone.evaluation_returns == together[1].evaluation_returns
    for name, parameter in alone.learner.parameters.items():
        torch.testing.assert_close(together[1].learner.parameters[name], parameter, rtol=1e-4, atol=1e-6)


WHOLE = {
    "pqn": ["agent=pqn", "agent.rollout=8", "agent.minibatches=2", "num_envs=2"],
    "ppo": ["agent=ppo", "agent.rollout=8", "agent.minibatches=2", "num_envs=2"],
    "sac": ["agent=sac", "agent.batch_size=16", "agent.learning_starts=50", "agent.replay.capacity=100", "total_steps=80"],
}


@pytest.mark.parametrize("agent", WHOLE)
def test_agents_that_keep_whole_stacks_learn_what_they_do_with_gymnasiums_wrapper(agent):
    words = ["total_steps=160", "network.hidden=[16]", "evaluation.episodes=2", "compile=false", *WHOLE[agent]]
    ours, theirs = (train([build(compose([*words, *stacked]))])[0] for stacked in (["env.frame_stack=4"], ["+env/wrapper=frame_stack", "+env.wrappers.frame_stack.padding_type=reset"]))
    assert ours.updates and ours.evaluation_returns == theirs.evaluation_returns
    assert all(torch.equal(one, other) for one, other in zip(pytree.tree_leaves(ours.learner), pytree.tree_leaves(theirs.learner), strict=True))


@pytest.mark.parametrize(
    ("terminates", "words"), [(False, []), (True, []), (False, ["agent.steps=3"]), (False, ["loss/target=retrace", "agent.steps=3"])], ids=["cut", "ended", "3", "retrace"]
)
def test_a_cut_is_never_taken_for_an_end(small_run, terminates, words):
    """Rewards of 1 seen with one and the same observation: cut after 3 steps Q = 1/(1−γ); if the end is real, a third has nothing behind it."""
    value = 1 / (1 - 0.5 * 2 / 3) if terminates else 1 / (1 - 0.5)
    options = ["env.id=Blind-v0", "+env.arguments.length=3", f"+env.arguments.terminates={terminates}", "agent.discount=0.5", "env.frame_stack=2"]
    options += ["total_steps=600", "optimizer.learning_rate=0.02", "optimizer.schedule.end=0", "loss/value=mse", "agent.exploration.epsilon.end=1.0", *words]
    run = small_run(*options)
    learner = train([run], compile=False)[0].learner
    found = run.agent.action_values.outputs(learner.parameters, torch.ones(1, 2, 1))[0, :, 0]
    torch.testing.assert_close(found, torch.full((2,), value), rtol=0.03, atol=0)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["env.frame_stack=0"], "env.frame_stack must be at least 1, got 0"),
        (["env=frozen_lake", "env.frame_stack=2"], r"env: frame_stack 2 needs Box observations, this environment has Discrete\(16\); set frame_stack=1"),
        (["env.frame_stack=4", "agent.replay.capacity=20", "num_envs=5"], "capacity 20 is too small: num_envs 5 times 5 transitions are needed"),
    ],
)
def test_what_makes_no_sense_is_refused(words, message):
    with pytest.raises(ConfigError, match=message):
        build(small_config(*words))


def test_frames_of_any_number_type():
    for frame in (spaces.Box(0, 1, (3, 3), np.bool_), spaces.Box(0, 255, (3, 3), np.uint8), spaces.Box(-np.inf, np.inf, (2,), np.float64)):
        space = Frames(frame, 2)
        assert space.shape == (2, *frame.shape) and space.dtype == frame.dtype and storage(space)[1] == storage(frame)[1]


@pytest.mark.parametrize("words", [[], ["agent.steps=3"], ["loss/value=c51"], ["loss/target=retrace", "agent.steps=4"]], ids=["q", "3", "c51", "retrace"])
def test_what_is_masked_may_be_nan(words):
    """The reward of a step to a cut, from which nothing is learned with frames, reaches no parameter."""
    rng, learned = np.random.default_rng(0), []
    rewards = rng.normal(size=50)
    for unknown in (np.nan, 0):
        agent, rng = build(small_config("env.frame_stack=2", "agent.replay.capacity=40", "agent.batch_size=40", *words)).agent, np.random.default_rng(1)
        kept, state = memory(1, 1, 40, agent.layout), agent.init(torch.Generator().manual_seed(0), 40)
        for time, reward in enumerate(rewards):
            cut = time % 5 == 4
            record = np.array([[(rng.normal(size=4), time % 2, unknown if cut else reward, 0, cut, 0.5)]], agent.layout)
            agent.replay.write(kept.numpy(), time, record.view(np.int32).reshape(1, 1, -1), ())
        uniforms = (torch.arange(agent.plan(1).update_uniforms, dtype=torch.float64) + 0.5) / agent.plan(1).update_uniforms
        state, metrics = agent.update(state, kept[0], uniforms, torch.tensor(50.0, dtype=torch.float64), torch.tensor(0.5))
        assert not metrics["mask"].all() and metrics["loss/total"].isfinite()
        learned.append(state.parameters)
    assert all(torch.equal(parameter, learned[1][name]) for name, parameter in learned[0].items())
