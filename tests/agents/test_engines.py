"""Launchers of others: every run in its own directory, with the result that it has when trained one after the other; failures are said."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

from agents import run_directory
from tests.conftest import SMALL
from tests.events import scalars

REPOSITORY = Path(__file__).parents[2]
PLUGINS = {"joblib": "hydra_joblib_launcher", "submitit_local": "hydra_submitit_launcher", "ray": "hydra_ray_launcher"}


def sweep(folder, launcher, *words):
    """Two runs by a launcher, in a process of its own."""
    command = [sys.executable, REPOSITORY / "scripts" / "train.py", "-m", *SMALL, "seed=0,1", f"hydra/launcher={launcher}", f"hydra.sweep.dir={launcher}", *words]
    return subprocess.run(command, cwd=folder, env={**os.environ, "RAY_AUTH_MODE": "disabled"}, capture_output=True, text=True, timeout=300)


@pytest.mark.slow
@pytest.mark.parametrize("launcher", PLUGINS)
def test_a_launcher_trains_what_the_basic_one_does(launcher, tmp_path):
    if not importlib.util.find_spec(f"hydra_plugins.{PLUGINS[launcher]}"):
        pytest.skip(f"{PLUGINS[launcher]} is not installed")
    for each in ("basic", launcher):
        done = sweep(tmp_path, each)
        assert done.returncode == 0, done.stderr
    for seed in (0, 1):
        one, other = (tmp_path / each / f"seed={seed}" for each in ("basic", launcher))
        assert scalars(one) == scalars(other)
        assert run_directory.read_result(one)["evaluation"] == run_directory.read_result(other)["evaluation"]
    failed = sweep(tmp_path, launcher, "env.id=tests.toys:Failing-v0", "+env.arguments.last=100", f"hydra.sweep.dir={launcher}-failed")
    assert failed.returncode == 1 and "2 of 2 runs failed; the first, " in failed.stderr and "the environment raised" in failed.stderr
