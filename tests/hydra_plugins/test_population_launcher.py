"""Sweeps as a person starts them: what they leave behind, and that each run ends as if it had been trained alone."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from filelock import FileLock
from omegaconf import OmegaConf
from safetensors.torch import load_file

from agents import run_directory
from agents.config import build, compose
from agents.display import quiet
from agents.launch import LOCK
from agents.machine import Stop
from agents.processes import Processes
from agents.sweep import Task
from agents.training import train as train_runs
from agents.workers import Finished
from hydra_plugins.rlloss import population_launcher
from tests.conftest import SMALL
from tests.events import scalars
from tests.here import HERE

REPOSITORY = Path(__file__).parents[2]
SHORT = [word for word in SMALL if not word.startswith("total_steps")]
PPO = ["agent=ppo", "network.hidden=[16]", "num_envs=2", "agent.rollout=32", "agent.sequence=8", "agent.minibatches=2", "total_steps=256", "log_every=64", "checkpoint_every=128",
       "evaluation.every=0", "evaluation.episodes=2", "compile=false"]  # fmt: skip
SAC = ["agent=sac", *(word for word in SMALL if not word.startswith(("loss/target", "optimizer.schedule", "agent.target_network", "total_steps"))), "total_steps=120"]


def start(directory, *words, **more):
    """Starts rlloss-train as a process of its own."""
    environment = {**os.environ, "PYTHONPATH": f"{REPOSITORY}", "RLLOSS_CACHE": f"{directory.parent / 'cache'}"}
    command = [sys.executable, "-c", "from agents.start import train; train()", *words]
    return subprocess.Popen(command, cwd=directory, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True, **more)


def wait_until(true, process=None):
    limit = time.time() + 90
    while not true():
        assert time.time() < limit and (process is None or process.poll() is None), process and process.communicate()
        time.sleep(0.02)


def left_behind(directory):
    """All that a run's future and its reader see: weights and memory, what was logged, what came of it."""
    (checkpoint,) = directory.glob("checkpoint-*")
    tensors = load_file(checkpoint / "state.safetensors")
    values = [value for value in scalars(directory) if not value[1].startswith("time/")]
    return tensors, values, json.loads((directory / "result.json").read_text())["evaluation"], (directory / "config.yaml").read_text()


def assert_same(one, two):
    tensors, *rest = left_behind(one)
    others, *other = left_behind(two)
    assert rest == other and tensors.keys() == others.keys()
    for name, tensor in tensors.items():
        assert torch.equal(tensor.view(torch.uint8) if tensor.dim() else tensor, others[name].view(torch.uint8) if tensor.dim() else others[name]), name


@pytest.mark.parametrize(("words", "swept"), [
    (SMALL, ["optimizer.learning_rate=1e-3,1e-4", "seed=0,1"]),
    (PPO, ["loss/value=mse,hl_gauss", "optimizer.learning_rate=1e-3,1e-4"]),
    (SAC, ["optimizer.learning_rate=1e-3,1e-4", "seed=0,1"]),
], ids=["dqn", "ppo", "sac"])  # fmt: skip
def test_a_run_of_a_sweep_is_as_if_it_had_been_trained_alone(rlloss_train, tmp_path, words, swept):
    code, out, err = rlloss_train("-m", *words, *swept, "hydra.sweep.dir=sweep", HERE)
    assert (code, err) == (0, ""), out
    directories = sorted((tmp_path / "sweep").glob("*/config.yaml"))
    assert len(directories) == 4
    for directory in (directories[0].parent, directories[-1].parent):
        alone = tmp_path / "alone" / directory.name
        job = OmegaConf.to_container(OmegaConf.load(directory / ".hydra" / "overrides.yaml"))
        train_runs([build(compose(job), alone)], display=quiet())
        assert_same(directory, alone)


def test_a_sweep_is_planned_told_and_continued(rlloss_train, tmp_path):
    words = ["-m", *SMALL, "agent.update_every=10", "loss/value=mse,huber", "hydra.sweep.dir=sweep", HERE]
    code, out, _ = rlloss_train(*words, "seed=range(2)", "hydra.launcher.dry_run=true")
    assert code == 0 and out.startswith("4 runs in 2 populations of 2, ") and "  sweep/value=huber,seed=1\n" in out
    assert not list(tmp_path.iterdir())

    code, out, err = rlloss_train(*words, "seed=range(2)")
    assert (code, err) == (0, "") and out.startswith("4 runs in 2 populations of 2, 1 at a time, ")
    assert "loss/value=huber: step 300 of 300  complete  best return " in out
    assert sorted(path.name for path in (tmp_path / "sweep").iterdir() if path.is_dir()) == ["value=huber,seed=0", "value=huber,seed=1", "value=mse,seed=0", "value=mse,seed=1"]
    files = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*/result.json")}

    code, out, err = rlloss_train(*words, "seed=range(3)")
    assert (code, err) == (0, "") and out.startswith("4 runs complete already, 2 runs in 2 populations of 1, ")
    assert {path: path.stat().st_mtime_ns for path in files} == files and len(list(tmp_path.rglob("*/result.json"))) == 6

    notes = (tmp_path / "sweep" / "multirun.yaml").read_text()
    code, out, err = rlloss_train(*words, "seed=range(3)", "agent.discount=0.5")
    assert "seed=range(3)" in notes and (tmp_path / "sweep" / "multirun.yaml").read_text() == notes
    assert code == 2 and err == "rlloss-train: sweep/value=mse,seed=0 holds another run: it differs in agent.discount; choose another hydra.sweep.dir\n"

    with FileLock(tmp_path / "sweep" / LOCK):
        code, out, err = rlloss_train(*words, "seed=range(4)")
    assert code == 2 and out == "" and err == "rlloss-train: another process is training in sweep\n"
    assert (tmp_path / "sweep" / "multirun.yaml").read_text() == notes


def test_two_runs_of_one_directory_are_refused_before_anything_starts(rlloss_train, tmp_path):
    code, out, err = rlloss_train("-m", *SMALL, "seed=0,1", "agent.discount=0.5,0.6", "hydra.sweep.dir=sweep", "hydra.sweep.subdir='${seed}'")
    assert (code, out) == (2, "") and err.count("\n") == 1
    assert "two runs would share sweep/0: agent.discount=0.5 and agent.discount=0.6; give each its own" in err and not list(tmp_path.iterdir())


def test_hydras_notes_are_those_of_the_basic_launcher(rlloss_train, tmp_path, monkeypatch):
    monkeypatch.setitem(population_launcher.BACKENDS, "processes", "tests.here.Here")  # Hydra would note it if it were said.
    words = ["-m", *SHORT, "total_steps=20", "loss/value=mse,huber", "seed=0,1", "hydra.job.name=${hydra:job.num}"]
    for launcher in ("basic", "population"):
        assert rlloss_train(*words, f"hydra/launcher={launcher}", f"hydra.sweep.dir={launcher}")[0] == 0
    for name in ("config.yaml", "hydra.yaml", "overrides.yaml"):
        one, two = ((tmp_path / launcher / "value=huber,seed=1" / ".hydra" / name).read_text() for launcher in ("basic", "population"))
        configs = [OmegaConf.to_container(OmegaConf.create(text.replace("=population", "=basic").replace("/population/", "/basic/").replace(": population", ": basic"))) for text in (one, two)]
        for config in configs if name == "hydra.yaml" else ():
            config["hydra"].pop("launcher")
        assert configs[0] == configs[1]


def _descendants(process):
    found = subprocess.run(["ps", "-ww", "-eo", "pid=,ppid=,args="], capture_output=True, text=True).stdout
    rows = [line.split(None, 2) for line in found.splitlines()]
    return [int(pid) for pid, parent, name in rows if int(parent) == process.pid and "spawn_main" in name]


LONG = [*SHORT, "total_steps=600"]
SWEPT = [*LONG, "loss/value=mse,huber", "seed=0,1", "hydra.launcher.workers=2", "hydra.sweep.dir=sweep"]


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The runs of that sweep in one process, never disturbed."""
    directory = tmp_path_factory.mktemp("alone")
    for loss in ("mse", "huber"):
        train_runs([build(compose([*LONG, f"loss/value={loss}", f"seed={seed}"]), directory / f"value={loss},seed={seed}") for seed in (0, 1)], display=quiet())
    return directory


def _under_way(directory):
    return lambda: len(list(directory.glob("sweep/*/checkpoint-*[1-9]00"))) >= 4


def test_a_sweep_that_was_killed_goes_on_bitwise(rlloss_train, tmp_path, alone):
    process = start(tmp_path, "-m", *SWEPT)
    wait_until(_under_way(tmp_path), process)
    workers = _descendants(process)
    assert len(workers) == 2
    process.kill()
    process.communicate()
    wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in workers))
    assert len(list(tmp_path.rglob("*/result.json"))) < 4
    code, out, err = rlloss_train("-m", *SWEPT, HERE)
    assert (code, err) == (0, "") and "continued" in out.splitlines()[0]
    for directory in alone.iterdir():
        assert_same(directory, tmp_path / "sweep" / directory.name)


def test_ctrl_c_saves_all_runs_and_says_how_to_go_on(rlloss_train, tmp_path, alone):
    process = start(tmp_path, "-m", *SWEPT)
    wait_until(_under_way(tmp_path), process)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGINT and err == "" and out.splitlines()[-1].startswith("everything is saved; continue with: ")
    assert "-m" in out.splitlines()[-1] and "hydra.sweep.dir=sweep" in out.splitlines()[-1]
    assert len(list(tmp_path.rglob("*/result.json"))) < 4
    assert rlloss_train("-m", *SWEPT, HERE)[0] == 0
    for directory in alone.iterdir():
        assert_same(directory, tmp_path / "sweep" / directory.name)


class Pressed:
    """A backend within which Ctrl-C is pressed twice."""

    workers, memory = 1, None

    def __init__(self, workers):
        pass

    def train(self, tasks, stopped):
        for _ in range(2):
            signal.raise_signal(signal.SIGINT)
            time.sleep(0.2)
        yield from ()

    def close(self):
        pass


def test_a_second_ctrl_c_too_says_how_to_go_on(rlloss_train, tmp_path):
    code, out, err = rlloss_train("-m", *SWEPT, f"hydra.launcher.backend={__name__}.Pressed")
    assert (code, err) == (128 + signal.SIGINT, "") and out.splitlines()[-1].startswith("stopped; continue with: ")


def test_a_worker_that_dies_fails_nothing(tmp_path, alone):
    process = start(tmp_path, "-m", *SWEPT)
    wait_until(_under_way(tmp_path), process)
    os.kill(_descendants(process)[0], signal.SIGKILL)
    out, err = process.communicate(timeout=90)
    assert (process.returncode, err) == (0, "") and "its worker process was killed" in out and "going on from the last checkpoints" in out
    for directory in alone.iterdir():
        assert_same(directory, tmp_path / "sweep" / directory.name)


def test_an_idle_worker_that_died_is_replaced():
    backend, nothing = Processes(1), Task((), None)
    assert list(backend.train([nothing], Stop())) == [Finished(0, ())]
    (worker,) = backend._idle
    os.kill(worker.process.pid, signal.SIGKILL)
    worker.process.join()
    assert list(backend.train([nothing], Stop())) == [Finished(0, ())]
    backend.close()


def test_a_run_that_fails_is_in_the_table_and_fails_no_other(rlloss_train, tmp_path):
    words = ["-m", *SMALL, "env.id=tests.toys:Failing-v0", "+env.arguments.last=1000,25", "hydra.sweep.dir=sweep", HERE]
    code, out, err = rlloss_train(*words)
    assert code == 1 and err == "" and "Traceback" not in out
    assert "1 run failed:\n  sweep/last=25  step 25  the environment raised RuntimeError" in out
    assert "Traceback" in (tmp_path / "sweep" / "last=25" / "run.log").read_text()
    assert run_directory.read_result(tmp_path / "sweep" / "last=1000") and run_directory.read_failure(tmp_path / "sweep" / "last=25")
    code, out, _ = rlloss_train(*words)
    assert code == 1 and out.startswith("1 run complete already, 1 run")


CALLBACK = '''
from hydra.experimental.callback import Callback

class Told(Callback):
    def on_job_start(self, config, **kwargs):
        print("started", config.hydra.job.num, config.seed, config.hydra.runtime.output_dir[-6:])

    def on_job_end(self, config, job_return, **kwargs):
        print("ended", config.hydra.job.num, job_return.status.name, job_return.return_value > 0)
'''


def test_hydras_callbacks_are_called(rlloss_train, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "my_callbacks.py").write_text(CALLBACK)
    code, out, err = rlloss_train("-m", *SHORT, "total_steps=20", "seed=0,1", HERE, "+hydra.callbacks.told._target_=my_callbacks.Told")
    assert (code, err) == (0, "")
    assert [line for line in out.splitlines() if line.startswith(("started", "ended"))] == ["started 0 0 seed=0", "started 1 1 seed=1", "ended 0 COMPLETED True", "ended 1 COMPLETED True"]
