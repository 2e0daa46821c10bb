"""Runs that fail: told exactly, frozen, and of no consequence for the others."""

import dataclasses
import functools
import math
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tensorboard.plugins.hparams.api_pb2 import Status
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
from torch.utils import _pytree as pytree

from agents import faults
from agents.config import build, compose
from agents.display import quiet
from agents.environments import Environment
from agents.evaluation import Evaluation
from agents.machine import AT_ONCE, Stopped, interruptible
from agents.pools import PoolEpisodes, evaluate
from agents.population import Population
from agents.replay import record
from agents.run_directory import read_failure, read_result
from agents.streams import EpisodeSeeds
from agents.training import Training
from agents.training import train as train_population
from rlloss.value_losses import ScalarHead
from tests.conftest import COMPILED, SMALL, small_config
from tests.events import events, scalars

train = functools.partial(train_population, compile=False)
WORDS = ["loss/value=mse", "total_steps=200", "log_every=50", "checkpoint_every=80", "evaluation.every=120"]
FRAGILE = "loss.value._target_=tests.agents.test_failures.Fragile"
NEVER = 1e9


@dataclass(frozen=True)
class Fragile(ScalarHead):
    """Squared error that is NaN where the mean absolute error of a batch is above `limit`: a float says which run it befalls."""

    limit: float = NEVER

    def pointwise(self, error):
        return error**2 + torch.where(error.abs().mean() > self.limit, math.nan, 0.0)


def runs(directory, limits, *words, config=small_config):
    """Runs by seed with limits of their own."""
    return [build(config(*WORDS, *words, FRAGILE, f"+loss.value.limit={limit}", f"seed={seed}"), directory / str(seed)) for seed, limit in limits.items()]


def is_the_same_run(one, other):
    assert all(torch.equal(a, b) for a, b in zip(pytree.tree_leaves(one.learner), pytree.tree_leaves(other.learner), strict=True))
    assert one.evaluation_returns == other.evaluation_returns and one.complete and other.complete
    assert scalars(one.directory) == scalars(other.directory) and read_result(one.directory)["steps"] == one.steps


def status(directory):
    """What the HPARAMS tab is told of the run's end."""
    ends = [value.metadata.plugin_data.content for event in events(directory) for value in event.summary.value if value.tag == "_hparams_/session_end_info"]
    return [HParamsPluginData.FromString(content).session_end_info.status for content in ends]


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
def test_a_run_that_diverges_fails_alone(tmp_path, compiled):
    """SGD with a learning rate of 1e38: the weights overflow within a few updates."""
    train = functools.partial(train_population, compile=compiled)

    def run(where, seed, rate):
        words = [*WORDS, "loss/value=huber", "optimizer=sgd", f"seed={seed}", f"optimizer.learning_rate={rate}", *(COMPILED if compiled else [])]
        return build(small_config(*words), tmp_path / where / str(seed))

    both = train([run("both", 0, 0.01), run("both", 1, 1e38), run("both", 2, 0.02)])
    without = train([run("without", 0, 0.01), run("without", 2, 0.02)])
    is_the_same_run(both[0], without[0])
    is_the_same_run(both[2], without[1])
    is_the_same_run(both[0], train([run("alone", 0, 0.01)])[0])
    failed, alone = both[1], train([run("alone", 1, 1e38)])[0]
    assert not failed.complete and failed.stopped_by is None and 50 < failed.failure.step <= 60
    assert dataclasses.replace(failed.failure, checkpoint=None) == dataclasses.replace(alone.failure, checkpoint=None)
    assert scalars(failed.directory) == scalars(alone.directory)


AGENTS = {
    "prioritized": ["agent/replay=prioritized", "agent.batch_size=16", "agent.learning_starts=50", "agent.replay.capacity=200", "agent.update_every=4"],
    "ppo": ["agent=ppo", "agent.rollout=5", "agent.minibatches=1", "agent.epochs=1", "num_envs=2"],
}


@pytest.mark.parametrize("words", AGENTS.values(), ids=AGENTS)
def test_the_step_and_the_term_are_exact_in_every_agent(tmp_path, words):
    """A healthy run that logs every step says when the mean error first passes a limit."""
    made = functools.partial(runs, config=lambda *overrides: compose(["network.hidden=[16]", "evaluation.episodes=2", *words, *overrides]))
    (healthy,) = train(made(tmp_path / "healthy", {1: NEVER}, "log_every=1"))
    steps, errors = zip(*[(step, value) for step, tag, value in scalars(healthy.directory) if tag == "td_error/abs_mean"], strict=True)
    update = next(update for update in range(3, len(errors)) if errors[update] > max(errors[:update]))
    limit = (errors[update] + max(errors[:update])) / 2

    together = train(made(tmp_path / "together", {0: NEVER, 1: limit}))
    assert (together[1].failure.step, together[1].failure.term) == (steps[update], "loss/value")
    assert together[1].failure.reason == f"loss/value became nan at step {steps[update]}"
    is_the_same_run(together[0], train(made(tmp_path / "without", {0: NEVER, 2: NEVER}))[0])


def test_what_a_failed_run_leaves_behind(tmp_path):
    good, failed = train(runs(tmp_path, {0: NEVER, 1: 1.05}))
    directory, failure = failed.directory, failed.failure
    assert failure == read_failure(directory) and read_failure(good.directory) is None
    last = failure.step // 80 * 80
    assert failure.checkpoint == directory / f"checkpoint-{last:012d}" and failure.traceback == ""
    assert list(directory.glob("*checkpoint*")) == [failure.checkpoint] and list(good.directory.glob("*checkpoint*")) == [good.directory / "checkpoint-000000000200"]
    assert all(tensor.isfinite().all() for tensor in load_file(failure.checkpoint / "state.safetensors").values())
    assert f"{failure.reason}; last good checkpoint: checkpoint-{last:012d}\n" in (directory / "run.log").read_text()
    assert read_result(directory) is None and status(directory) == [Status.STATUS_FAILURE] and status(good.directory) == [Status.STATUS_SUCCESS]
    looked = -(-failure.step // 10) * 10
    assert max(step for step, *_ in scalars(directory)) < -(-looked // 50) * 50 <= failed.steps + 50
    assert len(failed.evaluation_returns) == (2 if failure.step > 120 else 0)


def test_a_failed_run_fails_again_from_its_last_good_checkpoint(tmp_path):
    def made(limit):
        return runs(tmp_path, {1: limit})

    first = train(made(1.05))[0]
    before = scalars(first.directory)
    again = train(made(1.05), resume=True)[0]
    assert again.failure == first.failure == read_failure(first.directory) and scalars(first.directory) == before
    assert status(first.directory) == [Status.STATUS_FAILURE] and (first.directory / "run.log").read_text().count(first.failure.reason) == 2


def test_the_loop_ends_when_all_have_failed(tmp_path):
    results = train(runs(tmp_path, {0: 0.0, 1: 0.0}, "total_steps=100000"))
    assert [result.steps for result in results] == [80, 80] and {result.failure.step for result in results} == {51}


def test_weights_that_are_no_numbers_are_never_saved(tmp_path):
    """Before the first update, where no loss tells."""
    training = Training(runs(tmp_path, {0: NEVER, 1: NEVER}), False, quiet())
    for run in training.runs:
        run.directory.mkdir()
    training.begin()
    training.step = 10
    training.population.learner.parameters["0.bias"][1, 3] = math.inf
    training.checkpoint()
    training.step = 20
    training.checkpoint()
    assert list(training.failed) == [1]
    failure = training.failed[1].failure
    assert (failure.term, failure.step, failure.checkpoint.name) == ("weights", 10, "checkpoint-000000000000")
    names = [sorted(int(path.name[11:]) for path in run.directory.glob("checkpoint-*")) for run in training.runs]
    assert names == [[0, 20], [0]]
    training.close()


def test_only_losses_and_gradients_are_watched_and_the_first_fault_stays():
    metrics = {"loss/total": 1.0, "loss/value": 1.0, "value/explained_variance": math.nan, "gradient/norm": 1.0, "td_error": math.nan}
    note = faults.none(1)

    def update(added, **changed):
        told = {name: torch.tensor(changed.get(name.replace("/", "_"), value)) for name, value in metrics.items()}
        note[0] = faults.noted(note[0], told, torch.tensor(float(added), dtype=torch.float64))
        return faults.read(note, told)

    assert update(1) == {}
    assert update(2**53 - 1, loss_total=math.inf, loss_value=-math.inf, gradient_norm=math.nan) == {0: ("loss/value", -math.inf, 2**53 - 1)}
    assert update(7, gradient_norm=math.nan) == update(8) == {0: ("loss/value", -math.inf, 2**53 - 1)}


@pytest.mark.parametrize(
    ("argument", "step", "said"),
    [
        ("last=40", 80, "the step went wrong"),
        (f"cursed={EpisodeSeeds(1, 'episodes', 0)[8]}", 80, "the reset went wrong"),
        (f"cursed={EpisodeSeeds(1, 'episodes', 1)[0]}", 0, "the reset went wrong"),
        (f"cursed={EpisodeSeeds(1, 'evaluation', 120)[1]}", 120, "the reset went wrong in evaluation"),
    ],
    ids=["step", "reset", "first reset", "evaluation"],
)
def test_an_environment_that_raises_fails_its_own_run(tmp_path, argument, step, said):
    def made(where, *seeds):
        words = [*WORDS, "env.id=tests.toys:Failing-v0", "num_envs=2", "agent.update_every=10"]
        return [build(small_config(*words, f"+env.arguments.{argument if seed == 1 else 'last=9999'}", f"seed={seed}"), tmp_path / where / str(seed)) for seed in seeds]

    both, without = train(made("both", 0, 1, 2)), train(made("without", 0, 2))
    is_the_same_run(both[0], without[0])
    is_the_same_run(both[2], without[1])
    failure = both[1].failure
    assert failure.reason == f"the environment raised RuntimeError: {said} at step {step}" and failure.step == step
    assert failure.term == "environment" and "toys.py" in failure.traceback and failure.traceback in (both[1].directory / "run.log").read_text()
    assert (failure.checkpoint is None) == (step == 0)
    assert scalars(both[1].directory) == scalars(train(made("alone", 1))[0].directory)


def test_ctrl_c_is_no_environment_that_raises(tmp_path, monkeypatch):
    def interrupted(self, action):
        raise KeyboardInterrupt

    monkeypatch.setattr("tests.toys.Failing.step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train([build(small_config(*WORDS, "env.id=tests.toys:Failing-v0"), tmp_path)])
    assert read_failure(tmp_path) is None


class Fake:
    """A pool of environments that observe nothing and end after ten steps; raises at step `arguments["last"]`."""

    partial = False
    spaces = gymnasium.spaces.Box(-1, 1, (1,), np.float32), gymnasium.spaces.Discrete(2)

    def __init__(self, environment, seeds):
        self.left, self.age = environment.arguments["last"], np.zeros(len(seeds), int)

    def settle(self):
        pass

    def reset(self, places):
        self.age[places] = 0
        return np.zeros((len(places), 1), np.float32)

    def step(self, actions, places):
        self.left, self.age = self.left - 1, self.age + 1
        if self.left == 0:
            raise RuntimeError("the pool went wrong")
        over = self.age >= 10
        return np.full((len(places), 1), self.age[0], np.float32), np.ones(len(places), np.float32), over, np.zeros_like(over)

    def close(self):
        raise RuntimeError("that too")


def test_a_pool_that_raises_fails_the_runs_in_it():
    environments = [Environment("Fake", {"last": last}) for last in (-1, 4, -1)]
    episodes = PoolEpisodes(Fake, environments, [0, 1, 2], np.zeros((3, 2, 1), np.float32), record((1,), torch.float32))
    episodes.begin()
    for step in range(1, 26):
        ended = episodes.step(np.zeros((3, 2), np.int64), np.ones((3, 2)))
        episodes.advance()
        assert list(episodes.raised) == ([1] if step >= 4 else []) and {each.run for each in ended} == ({0, 2} if step % 10 == 0 else set())
    episodes.close()
    observation, raised = np.zeros((3, 2, 1), np.float32), {}
    returns = evaluate(Fake, lambda: np.zeros((3, 2), np.int64), environments, observation, [0, 1, 2], 0, Evaluation(episodes=3), raised=raised)
    assert list(raised) == [1] and returns[0] == returns[2] == [10.0] * 3
    with pytest.raises(RuntimeError, match="the pool went wrong"):
        evaluate(Fake, lambda: np.zeros((3, 2), np.int64), environments, observation, [0, 1, 2], 0, Evaluation(episodes=3))


KILLED = """
import sys
from pathlib import Path
from agents.training import train
from tests.agents.test_failures import runs
train(runs(Path(sys.argv[1]), {0: 1e9, 1: 0.0}, "total_steps=600", "agent.update_every=10"), compile=False)
"""


def test_a_killed_population_with_a_failed_run_goes_on_from_the_last_checkpoint_of_all(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", KILLED, str(tmp_path / "killed")])
    limit = time.time() + 60
    while not list((tmp_path / "killed" / "0").glob("checkpoint-*[1-9]?0")) and time.time() < limit:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL and read_failure(tmp_path / "killed" / "1").step == 60
    good, failed = train(runs(tmp_path / "killed", {0: NEVER, 1: 0.0}, "total_steps=600", "agent.update_every=10"), resume=True)
    is_the_same_run(good, train(runs(tmp_path / "straight", {0: NEVER, 1: NEVER}, "total_steps=600", "agent.update_every=10"))[0])
    assert failed.failure.step == 60 and failed.failure.checkpoint.name == "checkpoint-000000000000"


FULL = """
import resource, sys
from agents.start import train
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv.pop(1)), resource.RLIM_INFINITY))
train()
"""


@pytest.mark.parametrize("log_every", [1, 100_000], ids=["events", "checkpoint"])
def test_a_full_disk_is_one_line_and_leaves_nothing_half_written(tmp_path, log_every):
    """A limit on the size of files stands for it."""
    words = [*SMALL, "total_steps=100000", f"log_every={log_every}", "agent.replay.capacity=2000", "hydra.run.dir=run", "agent.update_every=1000"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    found = subprocess.run([sys.executable, "-c", FULL, "40000", *words], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert found.returncode == 2 and found.stderr.count("\n") == 1, found.stderr
    assert found.stderr.startswith("rlloss-train: can't write to ") and "File too large" in found.stderr and "resume=" in found.stderr
    assert not list(tmp_path.glob("run/.checkpoint-*")) and scalars(tmp_path / "run")
    (checkpoint,) = tmp_path.glob("run/checkpoint-*")
    assert load_file(checkpoint / "state.safetensors")["memory"].shape[1] == int(checkpoint.name[11:])


@pytest.mark.parametrize("times", [1, 2])
def test_ctrl_c_during_an_evaluation_is_heard(tmp_path, capsys, monkeypatch, times):
    act, presses = Population.act_greedily, iter([None] * times)

    def pressed(population, progress):
        if next(presses, "no more") is None:
            os.kill(os.getpid(), signal.SIGINT)
        return act(population, progress)

    monkeypatch.setattr(Population, "act_greedily", pressed)
    run = build(small_config(*WORDS, "env.id=tests.toys:Failing-v0", "agent.update_every=10"), tmp_path)
    if times == 2:
        monkeypatch.setattr("agents.machine.AT_ONCE", 0)
        with pytest.raises(KeyboardInterrupt):
            train([run])
    else:
        (result,) = train([run])
        assert result.stopped_by == signal.SIGINT and result.steps == 120
    said = "stopping: the evaluation at step 120 is finished first, then all is saved; asked once more it ends at once, and the checkpoint of step 80 is kept"
    assert capsys.readouterr().out.count(said) == 1
    assert [path.name for path in tmp_path.glob("*checkpoint-*")] == [f"checkpoint-{120 if times == 1 else 80:012d}"]


def test_signals_that_come_at_once_are_one():
    """As the command timeout sends them, to the process and to its group."""
    with interruptible() as stop:
        for _ in range(2):
            signal.raise_signal(signal.SIGTERM)
        assert stop.number == signal.SIGTERM
        time.sleep(1.5 * AT_ONCE)
        with pytest.raises(Stopped):
            signal.raise_signal(signal.SIGTERM)
