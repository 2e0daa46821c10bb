"""Action spaces: what is stored, what environments take, and runs of continuous actions that go on exactly."""


import numpy as np
import pytest
from gymnasium import spaces

from agents.actions import storage, storing, taking
from agents.config import build, compose
from tests.stopping import goes_on_bitwise

SPACES = {
    "discrete": spaces.Discrete(3, start=-1),
    "multi_discrete": spaces.MultiDiscrete([2, 3], start=[1, 0]),
    "multi_binary": spaces.MultiBinary(3),
    "box": spaces.Box(np.float32([-2, 0]), np.float32([2, 10])),
    "half bounded": spaces.Box(np.float32([-np.inf, 0]), np.float32([1, np.inf])),
    "float64": spaces.Box(-0.4, 0.4, (2, 2), np.float64),
}


# How many categories the parts of an action have.
COUNTS = {"discrete": 3, "multi_discrete": (2, 3), "multi_binary": 2}


@pytest.mark.parametrize("name", SPACES)
def test_environments_get_actions_of_their_space(name):
    shape, dtype = storage(SPACES[name])
    rng = np.random.default_rng(0)
    stored = rng.integers(0, COUNTS[name], (50, *shape)) if name in COUNTS else 3 * rng.normal(size=(50, *shape))
    taken = taking(SPACES[name])(stored.astype(dtype))
    assert all(SPACES[name].contains(action) for action in taken)


@pytest.mark.parametrize("name", SPACES)
def test_actions_that_were_taken_are_stored_so_that_they_are_taken_again(name):
    SPACES[name].seed(0)
    taken = np.stack([SPACES[name].sample() for _ in range(50)])
    stored = storing(SPACES[name])(taken)
    assert stored.shape[1:] == storage(SPACES[name])[0] and str(stored.dtype) == storage(SPACES[name])[1]
    np.testing.assert_allclose(taking(SPACES[name])(stored), taken, rtol=1e-5, atol=1e-5)
    assert storing(spaces.Box(2.0, 2.0, ()))(np.float32([2.0])).tolist() == [0.0]


def test_numbers_within_bounds_fill_their_range():
    take = taking(SPACES["box"])
    assert take(np.float32([[-1, -1], [0, 0.5], [1, 7]])).tolist() == [[-2, 0], [0, 7.5], [2, 10]]
    assert taking(SPACES["half bounded"])(np.float32([[5, -5], [-7, 3]])).tolist() == [[1, 0], [-7, 3]]
    assert taking(SPACES["multi_discrete"])(np.int32([[0, 2]])).tolist() == [[1, 2]]


@pytest.mark.parametrize("space", [spaces.Text(3), spaces.Box(0, 9, (2,), np.int32)], ids=["text", "whole numbers"])
def test_other_spaces_are_refused(space):
    with pytest.raises(ValueError, match="actions must be Discrete, MultiDiscrete, MultiBinary or Box of floats"):
        storage(space)


@pytest.mark.parametrize("words", [["env=pendulum"], ["env.id=tests.toys:Match-v0", "+env.arguments.kind=multi_discrete"]], ids=["numbers", "categories"])
def test_a_stopped_run_goes_on_bitwise(tmp_path, words):
    words = ["agent=ppo", "num_envs=2", "agent.rollout=16", "total_steps=320", "evaluation.every=0", "evaluation.episodes=2", "checkpoint_every=100", "compile=false", *words]
    goes_on_bitwise(lambda directory: build(compose(words), directory), tmp_path, 70)
