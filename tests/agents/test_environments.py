"""Episodes: true last observations, exact returns, seeds, and going on from (seed, actions)."""

import copy

import numpy as np
import pytest
import torch

from agents.environments import Environment, Episodes, UnrepeatableError
from agents.replay import record


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
        ("ALE/Pong-v5", {}, r"needs the extra atari: pip install 'rlloss\[atari\]'"),
        ("Broken-v0", {}, "Broken-v0 can't be made: RuntimeError: no licence for this"),
        ("nomodule:Env-v0", {}, "nomodule:Env-v0 can't be made"),
        ("CartPole-v1", {"gravity": 3}, "CartPole-v1 can't be made"),
    ],
)
def test_what_can_not_be_made_is_said_in_one_line(name, arguments, message):
    with pytest.raises(ValueError, match=message) as caught:
        Environment(name, arguments).make()
    assert "\n" not in str(caught.value)
