"""What all tests share: a compile cache inside the checkout, toy environments, and a small run."""

import os
import sys
from pathlib import Path

os.environ.setdefault("RLLOSS_CACHE", str(Path(__file__).parents[1] / ".cache"))

import hypothesis
import pytest
import torch

from agents import command_line
from agents.config import build, compose
from tests import toys  # noqa: F401  (registers the toy environments)

torch.set_num_threads(1)  # Tests are small: more threads only wait for each other.

hypothesis.settings.register_profile("slow machines", deadline=None)
hypothesis.settings.load_profile("slow machines")

SMALL = [
    "network.hidden=[16]",
    "loss/value=huber",
    "loss/target=q_learning",
    "optimizer.schedule.end=1",
    "agent.batch_size=16",
    "agent.learning_starts=50",
    "agent.replay.capacity=200",
    "agent.target_network.every=40",
    "total_steps=300",
    "log_every=50",
    "checkpoint_every=100",
    "evaluation.every=0",
    "evaluation.episodes=2",
    "compile=false",
]

# The one structure that tests compile: so large that a compiler would share out a sum between threads.
COMPILED = ["network.hidden=[64,64]", "agent.batch_size=64", "num_envs=2"]


def small_config(*overrides):
    """The config of a small CartPole run with further overrides."""
    # What another choice doesn't have.
    without = [key for choice, key in (("agent/target_network=polyak", "target_network.every"), ("network=", "network.hidden")) if any(word.startswith(choice) for word in overrides)]
    return compose([*(word for word in SMALL if not any(key in word for key in without)), *overrides])


@pytest.fixture
def small_run():
    """Makes a small CartPole run from further overrides."""

    def make(*overrides, directory=None):
        return build(small_config(*overrides), directory)

    return make


@pytest.fixture
def rlloss_train(monkeypatch, tmp_path, capfd):
    """Runs rlloss-train, or another command, in this process and in an empty directory; gives (exit code, standard output, standard error)."""
    monkeypatch.chdir(tmp_path)

    def run(*words, main=command_line.train_main):
        monkeypatch.setattr(sys, "argv", ["rlloss-train", *words])
        monkeypatch.setattr(sys, "path", list(sys.path))
        try:
            main()
            code = 0
        except SystemExit as error:
            code = error.code
        return code, *capfd.readouterr()

    return run


@pytest.fixture
def threads():
    """Sets torch's number of threads for one test."""
    yield torch.set_num_threads
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _deterministic():
    torch.manual_seed(0)
