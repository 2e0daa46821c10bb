"""ale-py's own vector environment as a pool: true last frames, stacks that begin with the first frame, exact continuation."""

import numpy as np
import pytest
import torch

from agents import rollouts
from agents.backends import BACKENDS
from agents.config import ConfigError, build, compose
from agents.environments import Environment
from agents.pool_kinds import Atari
from agents.replay import decode, record
from agents.training import train
from tests.conftest import small_config

vector_env = pytest.importorskip("ale_py.vector_env")

STACK = 3
# An episode is cut after 40 frames, ten steps and more.
ARGUMENTS = {"repeat_action_probability": 0.0, "max_num_frames_per_episode": 40, "noop_max": 5, "img_height": 20, "img_width": 30}
BREAKOUT = Environment("ALE/Breakout-v5", ARGUMENTS, backend="ale", frame_stack=STACK)


def made(seeds, environments=2):
    observation = np.zeros((len(seeds), environments, STACK, 20, 30), np.uint8)
    return BACKENDS["ale"].episodes([BREAKOUT] * len(seeds), seeds, observation, record((20, 30), torch.uint8, following=False))


def step(episodes, rng):
    actions = rng.integers(0, 4, episodes.records.shape)
    ended = episodes.step(actions, np.full(actions.shape, 0.25, np.float32))
    seen, last = episodes.records.copy(), episodes.observation.copy()
    episodes.advance()
    return actions, ended, seen, last


def test_frames_are_those_that_the_library_shows_before_it_begins_anew():
    episodes, rng = made([3]), np.random.default_rng(0)
    episodes.begin()
    library = vector_env.AtariVectorEnv("breakout", 2, stack_num=1, autoreset_mode="SameStep", reward_clipping=False, **ARGUMENTS)
    frames, _ = library.reset(seed=episodes.pools.pools[0].seeds)
    stacks = np.repeat(frames, STACK, 1)
    cuts = 0
    for _ in range(60):
        assert np.array_equal(episodes.observation[0], stacks)
        before = stacks
        actions, ended, seen, last = step(episodes, rng)
        frames, reward, terminated, truncated, information = library.step(actions[0])
        over = terminated | truncated
        shown = np.where(over[:, None, None, None], information["final_obs"], frames) if over.any() else frames
        assert np.array_equal(last[0], np.concatenate([before[:, 1:], shown], 1))
        assert np.array_equal(seen["observation"][0], before[:, -1]) and np.array_equal(seen["truncated"][0] == 1, truncated & ~terminated)
        assert np.array_equal(seen["reward"][0], reward) and [end.place for end in ended] == np.flatnonzero(over).tolist()
        stacks = np.where(over[:, None, None, None], np.repeat(frames, STACK, 1), last[0])
        cuts += truncated.sum()
    assert cuts > 6
    library.close()
    episodes.close()


def test_a_run_goes_on_exactly_where_it_was_and_is_the_same_alone():
    together, alone, rng = made([5, 6]), made([6]), np.random.default_rng(1)
    together.begin()
    alone.begin()
    for _ in range(40):
        actions, *_, last = step(together, rng)
        alone.step(actions[1:], np.ones((1, 2)))
        assert np.array_equal(last[1], alone.observation[0])
        alone.advance()
    resumed = made([5, 6])
    for run in range(2):
        resumed.resume(run, *together.saved(run), together.observation[run].copy())
    for seed in range(40):
        (_, *one), (_, *other) = (step(each, np.random.default_rng(seed)) for each in (together, resumed))
        assert one[0] == other[0] and all(np.array_equal(a, b) for a, b in zip(one[1:], other[1:], strict=True))


@pytest.mark.parametrize("agent", ["pqn", "ppo"])
def test_agents_that_keep_whole_stacks_are_shown_them(agent, monkeypatch):
    """What follows a step is what was acted on next, or what ended the episode; the oldest frame of it is the second oldest of before."""
    words = ["num_envs=2", "agent.rollout=16", "agent.minibatches=2", "agent.epochs=1", "total_steps=32", "evaluation.episodes=1", "evaluation.max_steps=5"]
    small = [f"{'' if name in ('repeat_action_probability', 'noop_max') else '+'}env.arguments.{name}={value}" for name, value in (ARGUMENTS | {"img_height": 36, "img_width": 36}).items()]
    run = build(compose([f"agent={agent}", "env=atari_breakout", "network=nature_cnn", "network.dense=8", "network.filters=[2,2,2]", *small, *words]))
    written = []
    monkeypatch.setattr(type(run.agent), "write", lambda self, memory, time, records, state: (written.append(records.copy()), rollouts.write(memory, time, records)))
    (result,) = train([run], compile=False)
    assert result.updates == 2
    records = decode(torch.from_numpy(np.stack(written)[:, 0]), run.agent.layout)
    over = ((records.terminated + records.truncated) > 0)[:-1]
    assert over.sum() == 2 and records.observation.shape == (16, 2, 4, 36, 36)
    assert torch.equal(records.next_observation[:, :, :-1], records.observation[:, :, 1:])
    assert torch.equal(records.next_observation[:-1][~over], records.observation[1:][~over])
    first = records.observation[1:][over]
    assert torch.equal(first, first[:, :1].expand_as(first)) and not torch.equal(first, records.next_observation[:-1][over])


def test_an_id_means_what_it_means_in_gymnasium():
    """v5 repeats actions at random, so two seeds part though they do the same; rewards are the game's own."""
    pool = Atari(Environment("ALE/Seaquest-v5", {"noop_max": 0, "img_height": 20, "img_width": 20}, backend="ale"), [1, 2])
    pool.reset(np.arange(2))
    rng, rewards, parted = np.random.default_rng(0), set(), False
    for _ in range(400):
        frames, reward, *_ = pool.step(np.full(2, rng.integers(18), np.int32), np.arange(2))
        parted |= not np.array_equal(*frames)
        rewards |= set(reward.tolist())
    assert parted and max(rewards) > 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["env.backend=ale"], "env.backend=ale is for Atari games, whose ids begin with ALE/, got CartPole-v1"),
        (["env=atari_pong", "env.id=ALE/Nothing-v5"], "ale-py can't make ALE/Nothing-v5"),
        (["env=atari_pong", "+env.arguments.size=3"], "ale-py can't make ALE/Pong-v5: TypeError"),
        (["env=atari_pong", "+env.arguments.life_loss_info=true"], "env.arguments.life_loss_info can't be set with env.backend=ale"),
        (["env=atari_pong", "+env/wrapper=flatten"], "env.wrappers can't be put around environments of env.backend=ale"),
    ],
)
def test_mistakes_are_one_line(words, message):
    with pytest.raises(ConfigError, match=message) as caught:
        build(small_config("network=nature_cnn", *words))
    assert "\n" not in str(caught.value)
