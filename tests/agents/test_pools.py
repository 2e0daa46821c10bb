"""Environments that come in pools: true ends, seeds of each run's own, exact continuation, mistakes."""

import os

import numpy as np
import pytest
import torch
from torch.utils import _pytree as pytree

from agents.backends import BACKENDS
from agents.config import ConfigError, build, compose
from agents.environments import Environment, UnrepeatableError
from agents.evaluation import Evaluation
from agents.machine import cores, library_threads, thread_ids
from agents.pool_kinds import EnvPool
from agents.replay import record
from agents.training import train
from tests.conftest import small_config
from tests.events import scalars

pytest.importorskip("envpool")

CARTPOLE = Environment("CartPole-v1", {"max_episode_steps": 30}, backend="envpool")


def made(seeds, environments=3):
    observation = np.zeros((len(seeds), environments, 4), np.float32)
    return BACKENDS["envpool"].episodes([CARTPOLE] * len(seeds), seeds, observation, record((4,), torch.float32))


def step(episodes, rng):
    return step_with(episodes, rng.integers(0, 2, episodes.records.shape))


def step_with(episodes, actions):
    ended = episodes.step(actions, np.full(actions.shape, 0.5, np.float32))
    seen = episodes.records.copy()
    episodes.advance()
    return ended, seen


def test_ends_cuts_and_true_last_observations():
    episodes, rng = made([0, 1]), np.random.default_rng(0)
    episodes.begin()
    lengths, returns = np.zeros((2, 3), int), np.zeros((2, 3))
    found = {"terminated": 0, "truncated": 0}
    for _ in range(400):
        before = episodes.observation.copy()
        ended, seen = step(episodes, rng)
        assert np.array_equal(seen["observation"], before)
        lengths += 1
        returns += seen["reward"]
        fallen = (np.abs(seen["next_observation"][..., 0]) > 2.4) | (np.abs(seen["next_observation"][..., 2]) > 12 * np.pi / 180)
        late = lengths == 30
        assert np.array_equal(seen["terminated"] == 1, fallen & ~late) and np.array_equal(seen["truncated"] == 1, late)
        over = fallen | late
        assert {(end.run, end.place, end.episode_return, end.length) for end in ended} == {(r, p, returns[r, p], lengths[r, p]) for r, p in np.argwhere(over).tolist()}
        assert (np.abs(episodes.observation[over]) <= 0.05).all() and np.array_equal(episodes.observation[~over], seen["next_observation"][~over])
        lengths[over], returns[over] = 0, 0
        for name in found:
            found[name] += int(seen[name].sum())
    assert min(found.values()) > 3


def test_episodes_are_cut_where_the_library_cuts_none():
    cliff = Environment("CliffWalking-v0", {"max_episode_steps": 5}, backend="envpool")
    episodes = BACKENDS["envpool"].episodes([cliff], [0], np.zeros((1, 2), np.int32), record((), torch.int32))
    episodes.begin()
    first, actions = episodes.observation.copy(), np.array([[0, 2]])
    for count in range(1, 21):
        ended, seen = step_with(episodes, actions)
        assert (seen["truncated"] == (count % 5 == 0)).all() and not seen["terminated"].any()
        assert [end.length for end in ended] == [5, 5] * (count % 5 == 0)
        assert np.array_equal(episodes.observation, first) == (count % 5 == 0)


def test_a_library_has_as_many_threads_as_is_said(monkeypatch):
    for said, threads in {"3": 3, "0": cores(), "many": cores(), "": cores()}.items():
        monkeypatch.setenv("OMP_NUM_THREADS", said)
        assert library_threads() == threads
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert EnvPool(CARTPOLE, [0]).made.config["num_threads"] == 3


@pytest.mark.skipif(not hasattr(os, "SCHED_IDLE"), reason="there are no idle threads here")
def test_the_thread_that_only_prepares_steps_aside_and_no_other():
    before, ordinary = thread_ids(), os.sched_getscheduler(0)
    pool = EnvPool(Environment("CartPole-v1", {"num_threads": 2}, backend="envpool"), [0, 1])
    made = sorted(thread_ids() - before)
    pool.settle()
    assert [os.sched_getscheduler(thread) for thread in made] == [os.SCHED_IDLE, ordinary, ordinary]
    assert thread_ids() >= set(made) and os.sched_getscheduler(0) == ordinary


def test_a_run_goes_on_exactly_where_it_was():
    straight, rng = made([5, 6]), np.random.default_rng(1)
    straight.begin()
    for _ in range(100):
        step(straight, rng)
    resumed = made([5, 6])
    for run in range(2):
        resumed.resume(run, *straight.saved(run), straight.observation[run].copy())
    for _ in range(100):
        actions = np.random.default_rng(rng.integers(100)).bit_generator.state
        one, other = np.random.default_rng(), np.random.default_rng()
        one.bit_generator.state = other.bit_generator.state = actions
        (ended, seen), (again, same) = step(straight, one), step(resumed, other)
        assert ended == again and np.array_equal(seen, same)
    with pytest.raises(UnrepeatableError, match="does not repeat itself"):
        made([7]).resume(0, *straight.saved(0), straight.observation[0].copy())


def test_evaluation_plays_whole_episodes_from_seeds_of_its_own():
    def returns(step, episodes):
        observation = np.zeros((2, 3, 4), np.float32)
        return BACKENDS["envpool"].evaluate(lambda: (observation[..., 2] > 0).astype(np.int64), [CARTPOLE] * 2, observation, [0, 1], step, Evaluation(episodes=episodes))

    found = returns(10, 7)
    assert [len(each) for each in found] == [7, 7] and all(0 < each <= 30 for each in np.ravel(found))
    assert returns(10, 4) == [each[:4] for each in found]
    observation = np.zeros((1, 3, 4), np.float32)
    cut = BACKENDS["envpool"].evaluate(lambda: np.zeros(3, np.int64), [CARTPOLE], observation, [0], 0, Evaluation(episodes=3, max_steps=4))
    assert cut == [[4.0] * 3]


PQN = ["agent=pqn", "env.backend=envpool", "num_envs=4", "agent.rollout=8", "agent.minibatches=4", "network.hidden=[16]", "total_steps=640", "evaluation.episodes=3"]


@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["eager", "compiled"])
def test_runs_together_are_the_runs_alone(tmp_path, compiled):
    def run(seed, where):
        return build(compose([*PQN, f"seed={seed}"]), tmp_path / where / str(seed))

    together = train([run(seed, "together") for seed in range(3)], compile=compiled)
    for seed in range(3):
        alone = train([run(seed, "alone")], compile=compiled)[0]
        for one, other in zip(pytree.tree_leaves(alone.learner), pytree.tree_leaves(together[seed].learner), strict=True):
            # A single eager run goes without vmap, whose layer normalisation differs in the last bits.
            torch.testing.assert_close(one, other, **({"rtol": 0, "atol": 0} if compiled else {"rtol": 1e-3, "atol": 1e-4}))
        if compiled:
            assert alone.evaluation_returns == together[seed].evaluation_returns
            assert scalars(tmp_path / "alone" / str(seed)) == scalars(tmp_path / "together" / str(seed))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["env.id=Nowhere-v0", "env.backend=envpool"], "EnvPool can't make Nowhere-v0"),
        (["env.backend=nobody"], "env.backend must be gymnasium or envpool or ale or recorded, got nobody"),
        (["env.backend=envpool", "+env/wrapper=flatten"], "env.wrappers can't be put around environments of env.backend=envpool"),
        (["env.backend=envpool", "+env.arguments.batch_size=1"], "env.arguments.batch_size can't be set with env.backend=envpool"),
        (["env.backend=envpool", "env.id=FrozenLake-v1", "env.frame_stack=2"], "frame_stack 2 needs Box observations"),
        (["env.backend=envpool", "+env.arguments.size=3"], "EnvPool can't make CartPole-v1"),
        (["env.backend=envpool", "env.id=BabyAI-ActionObjDoor-v0"], "EnvPool can't make BabyAI-ActionObjDoor-v0: ValueError: it shows several observations at once"),
        (["env.backend=envpool", "env.id=Chess-v1"], "EnvPool can't make Chess-v1: ValueError: it shows several observations at once"),
    ],
)
def test_mistakes_are_one_line(words, message):
    with pytest.raises(ConfigError, match=message) as caught:
        build(small_config(*words))
    assert "\n" not in str(caught.value)


def test_runs_together_have_one_backend():
    runs = [build(compose([f"env.backend={backend}", "total_steps=10"])) for backend in ("gymnasium", "envpool")]
    with pytest.raises(ValueError, match="environments of the same backend"):
        train(runs, compile=False)
