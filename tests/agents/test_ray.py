"""A sweep on a real Ray cluster of two workers; one of them is killed in the middle, or told to stop, or sees another disk."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from agents import run_directory
from agents.config import build
from agents.display import quiet
from agents.sweep import Job, Task
from agents.training import train
from agents.workers import Outcome, Progress
from tests.conftest import SMALL, small_config
from tests.events import scalars

ray = pytest.importorskip("ray")

from ray.cluster_utils import Cluster  # noqa: E402

from agents import ray_workers  # noqa: E402

REPOSITORY = Path(__file__).parents[2]
STEPS = 6000
LONG = [*SMALL, f"total_steps={STEPS}", "log_every=1000", "checkpoint_every=1000", "agent.update_every=8"]
SWEPT = ["loss.value.delta=0.5,1.0", "optimizer.learning_rate=1e-3,1e-2", "seed=0,1"]


@pytest.fixture
def cluster(monkeypatch):
    """A head without processors, and two workers of one each."""
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    started = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    started.workers = [started.add_node(num_cpus=1) for _ in range(2)]
    started.wait_for_nodes()
    yield started
    started.shutdown()


def begin(cluster, directory, *words):
    """Starts a sweep of eight runs in populations of two."""
    command = [sys.executable, REPOSITORY / "scripts" / "train.py", "-m", *LONG, *SWEPT, "hydra.launcher.backend=ray", "hydra.launcher.size=2", f"hydra.sweep.dir={directory}", *words]
    return subprocess.Popen(command, env={**os.environ, "RAY_ADDRESS": cluster.address}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def checkpoints(directory):
    return {path.parent.name: int(path.name.removeprefix("checkpoint-")) for path in sorted(Path(directory).glob("*/checkpoint-*"))}


def until(condition, seconds=240):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it took too long"
        time.sleep(0.05)


def in_the_middle(directory):
    """Two populations have saved something, and none is complete."""
    found = checkpoints(directory)
    return len(found) == 4 and all(0 < step < STEPS for step in found.values())


def assert_as_alone(directory, alone):
    """All runs are complete; three of them are compared with the same runs trained alone, to the bit."""
    runs = sorted(path.parent for path in Path(directory).glob("*/result.json"))
    assert len(runs) == 8
    for run in runs[::3]:
        other = alone / run.name
        train([build(run_directory.read_config(run), other)], display=quiet())
        assert run_directory.read_result(run)["evaluation"] == run_directory.read_result(other)["evaluation"]
        assert scalars(run) == scalars(other)
        mine, its = (run_directory.load_checkpoint(each, STEPS)[0] for each in (run, other))
        assert mine.keys() == its.keys() and all(torch.equal(mine[name], its[name]) for name in mine)


@pytest.mark.slow
def test_a_killed_worker_loses_nothing(cluster, tmp_path):
    process = begin(cluster, tmp_path / "sweep")
    until(lambda: in_the_middle(tmp_path / "sweep"))
    cluster.remove_node(cluster.workers[0], allow_graceful=False)
    out, _ = process.communicate(timeout=400)
    assert process.returncode == 0 and out.count("its worker died") == 1, out
    assert_as_alone(tmp_path / "sweep", tmp_path / "alone")


@pytest.mark.slow
def test_a_stopped_sweep_is_saved_and_continued(cluster, tmp_path):
    process = begin(cluster, tmp_path / "sweep")
    until(lambda: in_the_middle(tmp_path / "sweep"))
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 130 and "Traceback" not in out, out
    assert len(checkpoints(tmp_path / "sweep")) == 4 and not any(step % 1000 == 0 for step in checkpoints(tmp_path / "sweep").values())
    process = begin(cluster, tmp_path / "sweep")
    out, _ = process.communicate(timeout=400)
    assert process.returncode == 0 and "8 runs (4 continued)" in out, out
    assert_as_alone(tmp_path / "sweep", tmp_path / "alone")


class Remote:
    """A method as a worker calls it, without a cluster."""

    def __init__(self, method):
        self.remote = method


def test_a_worker_that_does_not_see_the_directories_brings_them_back(monkeypatch, tmp_path):
    """Without a cluster, so that it surely works in a folder of its own: stopped at once, and continued from what came back."""
    monkeypatch.setattr(ray, "get", lambda found: found)
    desk = type("", (), {"read": Remote(ray_workers.packed), "write": Remote(ray_workers.unpack)})
    jobs = tuple(Job((), tmp_path / "sweep" / str(seed), small_config(f"seed={seed}")) for seed in (0, 1))
    told = []

    def stop_once(event):
        told.append(event)
        if isinstance(event, Progress) and not any(isinstance(other, Progress) for other in told[:-1]):
            signal.raise_signal(signal.SIGTERM)

    stopped = ray_workers._train_apart(Task(jobs, None), 0, stop_once, desk)
    (step,) = set(checkpoints(tmp_path / "sweep").values())
    assert stopped.outcomes == (Outcome(), Outcome()) and 0 < step < 300
    finished = ray_workers._train_apart(Task(jobs, step), 0, lambda event: None, desk)
    for job, outcome in zip(jobs, finished.outcomes, strict=True):
        alone = train([build(job.config, tmp_path / "alone" / job.directory.name)], display=quiet())[0]
        assert outcome.value == pytest.approx(sum(alone.evaluation_returns) / 2) and scalars(job.directory) == scalars(alone.directory)
