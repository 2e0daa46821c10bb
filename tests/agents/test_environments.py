"""Episodes: true last observations, exact returns, seeds, and going on from (seed, actions)."""

import copy
import sys

import gymnasium
import numpy as np
import pytest
import torch

from agents.command_help import groups
from agents.config import Builder, build
from agents.environments import Environment, Episodes, UnrepeatableError
from agents.replay import record
from agents.spaces import storage
from agents.training import train
from tests.conftest import small_config


def _episodes(name, runs=1, num_envs=1, **arguments):
    made = Environment(name, arguments)
    shape, dtype = ((), torch.int32) if "Identity" in name else (made.make().observation_space.shape, torch.float32)
    observation = np.zeros((runs, num_envs, *shape), str(dtype).removeprefix("torch."))
    episodes = Episodes([made] * runs, range(runs), observation, record(shape, dtype))
    episodes.begin()
    return episodes


@pytest.mark.parametrize("terminates", [False, True])
def test_the_true_last_observation_and_only_real_ends_are_recorded(terminates):
    episodes = _episodes("Counting-v0", length=3, terminates=terminates)
    seen = []
    for _ in range(7):
        ended = episodes.step(np.zeros((1, 1), np.int64), np.ones((1, 1)))
        r = episodes.records[0, 0]
        seen.append((r["observation"][0], r["next_observation"][0], r["terminated"], bool(ended)))
        episodes.advance()
    last = float(terminates)
    assert seen == [(0, 1, 0, False), (1, 2, 0, False), (2, 3, last, True)] * 2 + [(0, 1, 0, False)]


def test_returns_and_lengths_are_counted_per_environment():
    episodes = _episodes("Counting-v0", runs=2, num_envs=2, length=4)
    for step in range(1, 9):
        ended = episodes.step(np.zeros((2, 2), np.int64), np.ones((2, 2)))
        episodes.advance()
        assert ended == ([(run, place, 4.0, 4) for run in range(2) for place in range(2)] if step % 4 == 0 else [])


def test_actions_and_observations_may_start_anywhere():
    episodes = _episodes("Identity-v0", numbers=3, start=5)
    for _ in range(20):
        seen = int(episodes.observation[0, 0])
        assert 5 <= seen <= 7
        episodes.step(np.array([[seen - 5]]), np.ones((1, 1)))
        assert episodes.records["reward"][0, 0] == 1 and episodes.records["action"][0, 0] == seen - 5
        episodes.advance()


def test_every_episode_starts_from_a_seed_of_its_own():
    episodes = _episodes("CartPole-v1", runs=2, num_envs=2)
    starts = [episodes.observation.copy()]
    while len(starts) < 4:
        if episodes.step(np.zeros((2, 2), np.int64), np.ones((2, 2))):
            episodes.advance()
            starts.append(episodes.observation.copy())
        else:
            episodes.advance()
    first = starts[0].reshape(4, 4)
    assert len(np.unique(first, axis=0)) == 4
    again = _episodes("CartPole-v1", runs=2, num_envs=2)
    assert np.array_equal(again.observation, starts[0])


def test_going_on_from_seed_and_actions():
    rng = np.random.default_rng(0)
    actions = rng.integers(0, 2, (200, 1, 2))
    straight = _episodes("CartPole-v1", num_envs=2)
    for action in actions[:100]:
        straight.step(action, np.ones((1, 2)))
        straight.advance()
    resumed = _episodes("CartPole-v1", num_envs=2)
    resumed.resume(0, *copy.deepcopy(straight.saved(0)), straight.observation[0].copy())
    for action in actions[100:]:
        assert straight.step(action, np.ones((1, 2))) == resumed.step(action, np.ones((1, 2)))
        assert np.array_equal(straight.records, resumed.records)
        straight.advance()
        resumed.advance()


def test_an_environment_that_does_not_repeat_itself_is_found_out():
    episodes = _episodes("Unrepeatable-v0")
    with pytest.raises(UnrepeatableError, match="does not repeat itself"):
        episodes.resume(0, *episodes.saved(0), episodes.observation[0].copy())


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("Nonsense-v0", {}, "there is no environment Nonsense-v0"),
        ("Broken-v0", {}, "Broken-v0 can't be made: RuntimeError: no licence for this"),
        ("nomodule:Env-v0", {}, "nomodule:Env-v0 can't be made"),
        ("CartPole-v1", {"gravity": 3}, "CartPole-v1 can't be made"),
    ],
)
def test_what_can_not_be_made_is_said_in_one_line(name, arguments, message):
    with pytest.raises(ValueError, match=message) as caught:
        Environment(name, arguments).make()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("name", "module", "extra"), [("ALE/Pong-v5", "ale_py", "atari"), ("MinAtar/Breakout-v1", "minatar", "minatar"), ("HalfCheetah-v5", "mujoco", "mujoco")])
def test_an_extra_that_is_not_installed_is_named(monkeypatch, name, module, extra):
    for found in [found for found in sys.modules if found.partition(".")[0] == module]:
        monkeypatch.delitem(sys.modules, found)
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ValueError, match=rf"environment {name} needs the extra {extra}: pip install 'rlloss\[{extra}\]'$"):
        Environment(name).make()


def test_a_wrapper_that_needs_the_extra_says_so_too(monkeypatch):
    pytest.importorskip("ale_py")
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(ValueError, match=r"environment ALE/Pong-v5 needs the extra atari: pip install 'rlloss\[atari\]'$"):
        Environment("ALE/Pong-v5", {"frameskip": 1}, {"atari": gymnasium.wrappers.AtariPreprocessing}).make()


MINATAR = [name for name in groups()["env"] if name.startswith("minatar_")]
GAMES = [(name, "minatar_cnn", ["minatar"]) for name in MINATAR] + [(name, "nature_cnn", ["ale_py"]) for name in ("atari_pong", "atari_breakout")]


@pytest.mark.parametrize(("name", "network", "modules"), GAMES)
def test_games_are_learned_and_repeat_themselves(tmp_path, name, network, modules):
    """A run that is stopped in the middle of an episode goes on exactly, which takes an environment that repeats itself."""
    for module in modules:
        pytest.importorskip(module)
    words = [f"env={name}", f"network={network}", "network.dense=16", "evaluation.episodes=1", "evaluation.max_steps=20", "agent.batch_size=4"]
    run = build(small_config(*words, "total_steps=60"), tmp_path)
    assert storage(run.agent.observation_space)[1] == torch.uint8 and run.agent.observation_space.shape in ((10, 10, run.agent.observation_space.shape[-1]), (4, 84, 84))
    (result,) = train([run], compile=False)
    assert result.updates == 10 and len(result.evaluation_returns) == 1
    (tmp_path / "result.json").unlink()
    assert train([run], compile=False, resume=True)[0].evaluation_returns == result.evaluation_returns


class _Colour(gymnasium.Env):
    observation_space, action_space = gymnasium.spaces.Box(0, 255, (10, 12, 3), np.uint8), gymnasium.spaces.Discrete(2)

    def reset(self, **options):
        return np.zeros((10, 12, 3), np.uint8), {}


def test_images_are_resized():
    pytest.importorskip("cv2")
    wrap = Builder(small_config("+env/wrapper=resize", "env.wrappers.resize.shape=[20,30]")).build("env").wrappers["resize"]
    resized = wrap(_Colour())
    assert resized.observation_space.shape == resized.reset()[0].shape == (20, 30, 3)
