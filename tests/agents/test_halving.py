"""Pruning: known rules, and a sweep of which the worse half is given up at a rung while the others end as if alone."""

import functools
import math

import pytest
import torch

from agents import run_directory
from agents.config import build
from agents.display import quiet
from agents.halving import Halving, Pruned, by_setting, worst
from agents.training import train
from tests.conftest import SMALL
from tests.events import scalars
from tests.here import HERE


def test_half_of_the_settings_is_left_after_each_rung_and_at_least_one():
    halving = Halving((10, 20, 30, 40), 0.5)
    assert [halving.left(9, rung) for rung in range(4)] == [5, 3, 2, 1]
    assert Halving((10,), 0.01).left(9, 0) == 1


@pytest.mark.parametrize("rungs", [(0,), (20, 10), (10, 10)])
def test_rungs_increase(rungs):
    with pytest.raises(ValueError, match="rungs must be steps above 0"):
        Halving(rungs)


def test_settings_are_compared_by_the_mean_over_their_seeds_and_a_failed_run_makes_the_worst():
    alike = by_setting([{"x": x, "seed": seed} for x in "abcd" for seed in (0, 1)])
    assert alike == [[0, 1], [2, 3], [4, 5], [6, 7]]
    values = dict(enumerate([9.0, 0.0, 4.0, 6.0, 100.0, None, 1.0, 1.0]))
    assert worst(alike, values, 2) == [[6, 7], [4, 5]]
    for place in range(8):  # No order is told by NaN.
        assert worst(alike, {**dict.fromkeys(range(8), 1.0), place: math.nan}, 3) == [alike[place // 2]]


def test_a_pruned_value_is_a_number_and_knows_its_step():
    assert Pruned(1.5, 20) == 1.5 and Pruned(1.5, 20).step == 20


@pytest.fixture
def sweep(rlloss_train):
    """Sweeps four settings of two seeds each; Peak's return says how near x is to 0.3."""
    words = ["-m", *SMALL, "agent.update_every=10", "env.id=tests.toys:Peak-v0", "+env.arguments.x=0,0.2,0.5,1", "seed=0,1", "hydra.sweep.dir=sweep", "hydra.launcher.rungs=[100,200]", HERE]
    return functools.partial(rlloss_train, *words)


def test_the_worse_half_is_pruned_and_the_others_end_as_if_alone(sweep, tmp_path):
    code, out, _ = sweep()
    assert code == 0 and "step 100: 2 of 4 settings go on" in out and "step 200: 1 of 4 settings go on" in out
    pruned = {path.name: run_directory.read_pruned(path) for path in (tmp_path / "sweep").iterdir() if path.is_dir()}
    steps = {name: found and found["step"] for name, found in pruned.items()}
    assert steps == {f"x={x},seed={seed}": step for x, step in (("0", 100), ("0.2", None), ("0.5", 200), ("1", 100)) for seed in (0, 1)}
    assert pruned["x=1,seed=0"]["return_mean"] == pytest.approx(-5 * 0.7**2)
    for name, step in steps.items():
        directory, other = tmp_path / "sweep" / name, tmp_path / "alone" / name
        assert (step is None) == (directory / "result.json").exists()
        if name.endswith("seed=1"):
            continue
        train([build(run_directory.read_config(directory), other)], display=quiet())
        alone = scalars(other)
        assert scalars(directory) == [value for value in alone if value[0] <= (step or 300)]
        if step is None:
            mine, its = (run_directory.load_checkpoint(each, 300)[0] for each in (directory, other))
            assert mine.keys() == its.keys() and all(torch.equal(mine[key], its[key]) for key in mine)
    code, out, _ = sweep()
    assert code == 0 and "nothing is left to train" in out


def test_rungs_lie_before_the_end(sweep):
    code, _, err = sweep("hydra.launcher.rungs=[100,300]")
    assert code == 2 and "hydra.launcher.rungs must lie before total_steps, got 300" in err
    code, _, err = sweep("hydra.launcher.rungs=[100,50]")
    assert code == 2 and "hydra.launcher.rungs must be steps above 0 that increase, got [100, 50]" in err
