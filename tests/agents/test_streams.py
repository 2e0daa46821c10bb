"""Random streams: functions of seed, name and position alone."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from agents.streams import EpisodeSeeds, Uniforms, generator


@given(st.lists(st.integers(0, 5000), min_size=1, max_size=20), st.integers(0, 2**32))
def test_numbers_do_not_depend_on_what_was_asked_before(positions, seed):
    asked = Uniforms([seed], "x", (3,))
    for position in positions:
        assert np.array_equal(asked[position], Uniforms([seed], "x", (3,))[position])


def test_a_run_has_the_same_numbers_in_any_population():
    alone, among = Uniforms([7], "x", (2,)), Uniforms([3, 7, 9], "x", (2,))
    for position in (0, 5, 2047, 2048, 9999):
        assert np.array_equal(alone[position][0], among[position][1])


def test_seeds_names_and_positions_differ():
    numbers = [generator(seed, name, place).random() for seed in (0, 1) for name in ("a", "b") for place in (0, 1)]
    assert len(set(numbers)) == 8
    assert len({EpisodeSeeds(0, "episodes", env)[k] for env in range(10) for k in range(100)}) > 995


@given(st.lists(st.integers(0, 500), min_size=1, max_size=20))
def test_an_episodes_seed_depends_on_its_place_alone(positions):
    asked = EpisodeSeeds(3, "episodes", 1)
    for position in positions:
        assert 0 <= asked[position] == EpisodeSeeds(3, "episodes", 1)[position] < 2**31


def test_numbers_are_uniform():
    uniforms = Uniforms([0], "x", (64,), np.float64)
    sample = np.concatenate([uniforms[k][0].copy() for k in range(500)])
    assert sample.min() >= 0 and sample.max() < 1
    counts = np.histogram(sample, bins=20, range=(0, 1))[0]
    assert ((counts - 1600) ** 2 / 1600).sum() < 43.8  # chi-squared, 19 degrees of freedom, p = 0.001
