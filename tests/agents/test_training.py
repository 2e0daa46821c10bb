"""The loop: solved toys with known values, populations bitwise equal to single runs, exact continuation."""

import dataclasses
import functools
import json
import os
import signal
import subprocess
import sys
import time
import warnings

import numpy as np
import pytest
import torch

from agents.config import build
from agents.run_directory import drop_checkpoints, newest_checkpoint, save_checkpoint
from agents.training import train as train_population
from tests.conftest import COMPILED, small_config
from tests.events import scalars
from tests.stopping import same

train = functools.partial(train_population, compile=False)


def test_the_identity_environment_is_solved(small_run):
    run = small_run("env.id=Identity-v0", "total_steps=1500", "agent.discount=0", "optimizer.learning_rate=0.01", "agent.exploration.epsilon.until=0.5")
    result = train([run])[0]
    assert result.evaluation_returns == [10.0, 10.0]


@pytest.mark.parametrize(("terminates", "value"), [(False, 1 / (1 - 0.5)), (True, None)])
def test_truncation_bootstraps_and_termination_does_not(small_run, terminates, value):
    """Always cut after 2 of endless rewards of 1, seen with one and the same observation, Q = 1/(1−γ); if the end
    is real, half of the transitions are worth 1 and half 1 + γQ, so Q = 1/(1−γ/2)."""
    options = ["env.id=Blind-v0", "+env.arguments.length=2", f"+env.arguments.terminates={terminates}", "agent.discount=0.5"]
    options += ["total_steps=1500", "optimizer.learning_rate=0.01", "optimizer.schedule.end=0", "loss/value=mse", "agent.exploration.epsilon.end=1.0"]
    run = small_run(*options)
    learner = train([run])[0].learner
    found = run.agent.action_values.outputs(learner.parameters, torch.ones(1, 1))[0, :, 0]
    torch.testing.assert_close(found, torch.full((2,), value or 1 / (1 - 0.25)), rtol=0.03, atol=0)


def test_the_same_seed_gives_the_same_run_and_another_does_not(small_run):
    first, second, other = (train([small_run(f"seed={seed}")])[0].learner for seed in (1, 1, 2))
    assert same(first, second) and not same(first, other)


@pytest.mark.parametrize(("num_envs", "every", "per_step", "starts", "updates"), [(1, 1, 1, 100, 200), (4, 1, 1, 100, 200), (4, 8, 3, 0, 111), (3, 5, 2, 50, 100), (3, 1, 1, 10, 290)])
def test_gradient_steps_keep_their_ratio_to_environment_steps(small_run, num_envs, every, per_step, starts, updates):
    """Of the 300 environment steps, every `every`-th one past `starts` brings `per_step` gradient steps."""
    run = small_run(f"num_envs={num_envs}", f"agent.update_every={every}", f"agent.updates_per_step={per_step}", f"agent.learning_starts={starts}")
    assert train([run])[0].updates == updates


OVERRIDES = [
    ["optimizer.learning_rate=1e-3", "agent.discount=0.99", "loss.value.delta=1.0"],
    ["optimizer.learning_rate=3e-3", "agent.discount=0.9", "loss.value.delta=0.1"],
    ["optimizer.learning_rate=1e-2", "agent.exploration.epsilon.end=0.5", "agent.max_gradient_norm=0.1"],
    ["optimizer.beta1=0.5", "optimizer.eps=1e-3", "optimizer.schedule.end=0"],
]


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
def test_a_run_among_eight_is_bitwise_the_run_alone(small_run, threads, tmp_path, compiled):
    def run(index, where):
        size = COMPILED if compiled else ["num_envs=2"]
        return small_run(*OVERRIDES[index % 4], f"seed={index}", *size, directory=tmp_path / where / str(index))

    threads(2)
    warnings.simplefilter("error")  # Going on without a compiler would be another test.
    together = train([run(index, "together") for index in range(8)], compile=compiled)
    assert len({float(result.learner.parameters["0.bias"][0]) for result in together}) == 8
    for index in (1, 2, 7):
        alone = train([run(index, "alone")], compile=compiled)[0]
        assert same(alone.learner, together[index].learner)
        assert alone.evaluation_returns == together[index].evaluation_returns
        events = scalars(tmp_path / "alone" / str(index))
        assert events == scalars(tmp_path / "together" / str(index))
        assert {"rollout/episode_return", "loss/value", "evaluation/return_mean"} <= {tag for _, tag, _ in events}


def test_runs_that_can_not_be_one_population_are_refused(small_run, tmp_path):
    with pytest.raises(ValueError, match="same total_steps"):
        train([small_run(), small_run("total_steps=10")])
    with pytest.raises(ValueError, match="differ in structure"):
        train([small_run(), small_run("network.hidden=[8]")])
    with pytest.raises(ValueError, match="share a directory"):
        train([small_run(directory=tmp_path / "x"), small_run("seed=1", directory=tmp_path / "x")])
    with pytest.raises(ValueError, match="no run"):
        train([])


def test_everything_asked_for_is_logged(small_run, tmp_path):
    train([small_run("evaluation.every=100", directory=tmp_path / "run")])
    found = scalars(tmp_path / "run", times=True)
    tags = {tag for _, tag, _ in found}
    expected = "rollout/episode_return rollout/episode_length evaluation/return_mean evaluation/return_std evaluation/return_min "
    expected += "evaluation/return_max loss/value loss/total td_error/abs_mean td_error/abs_p50 td_error/abs_p95 td_error/linear_zone_share "
    expected += "value/mean gradient/norm schedule/epsilon schedule/learning_rate time/steps_per_second time/updates_per_second"
    assert set(expected.split()) <= tags
    shares = {tag: value for step, tag, value in found if step == 300 and tag.endswith("_share") and tag.startswith("time/")}
    assert len(shares) == 7 and sum(shares.values()) == pytest.approx(1, abs=1e-5)
    assert [step for step, tag, _ in found if tag == "evaluation/return_mean"] == [100, 200, 300]
    lengths = [(step, value) for step, tag, value in found if tag == "rollout/episode_length"]
    assert [step for step, _ in lengths] == list(np.cumsum([value for _, value in lengths]))
    epsilon = {step: value for step, tag, value in found if tag == "schedule/epsilon"}
    assert epsilon[300] == pytest.approx(0.05) and epsilon[50] == pytest.approx(1 - 0.95 * (49 / 300) / 0.2, rel=1e-4)


@pytest.mark.parametrize("name", ["total_steps", "num_envs", "log_every", "checkpoint_every"])
def test_numbers_that_count_must_be_whole(small_run, name):
    with pytest.raises(ValueError, match=f"{name} must be a whole number, got 100"):
        dataclasses.replace(small_run(), **{name: 1e2})


def test_the_result_is_machine_readable(small_run, tmp_path):
    result = train([small_run(directory=tmp_path / "run")])[0]
    record = json.loads((tmp_path / "run" / "result.json").read_text())
    assert record["evaluation"]["returns"] == result.evaluation_returns and record["steps"] == 300 and record["updates"] == 250
    assert record["versions"]["torch"].partition("+")[0] == torch.__version__.partition("+")[0] and record["wall_seconds"] > 0
    assert {path.name.split(".")[0] for path in (tmp_path / "run").iterdir()} == {"config", "events", "checkpoint-000000000300", "lock", "result", "run"}
    lines = (tmp_path / "run" / "run.log").read_text().splitlines()
    assert [line.split(maxsplit=2)[2] for line in lines] == ["training begins at step 0", "complete at step 300"]


KILLED = """
import sys
from pathlib import Path
from tests.conftest import small_config
from agents.config import build
from agents.run_directory import drop_checkpoints, newest_checkpoint, save_checkpoint
from agents.training import train
train([build(small_config(*sys.argv[2:]), Path(sys.argv[1]))], compile=False)
"""


@pytest.mark.parametrize(("options", "steps"), [(["num_envs=2"], 1400), (["env.frame_stack=3", "agent.steps=3"], 1000), (["agent/target_network=polyak", "optimizer=rmsprop", "agent.update_every=130"], 4000)])
def test_a_killed_run_goes_on_bitwise_as_if_it_had_not_stopped(tmp_path, options, steps):
    options = [*options, f"total_steps={steps}", "checkpoint_every=300", "log_every=100", "evaluation.every=1000"]
    process = subprocess.Popen([sys.executable, "-c", KILLED, str(tmp_path / "killed"), *options])
    limit = time.time() + 120
    while not list((tmp_path / "killed").glob("checkpoint-*[1-9]*00")) and time.time() < limit:
        time.sleep(0.01)
    time.sleep(0.3)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not (tmp_path / "killed" / "result.json").exists()

    config = small_config(*options)
    resumed = train([build(config, tmp_path / "killed")], compile=False, resume=True)[0]
    straight = train([build(config, tmp_path / "straight")], compile=False)[0]
    assert resumed.steps == straight.steps == steps and resumed.updates == straight.updates
    assert same(resumed.learner, straight.learner)
    assert resumed.evaluation_returns == straight.evaluation_returns
    assert scalars(tmp_path / "killed") == scalars(tmp_path / "straight")


def test_a_population_goes_on_from_the_last_step_that_all_have(tmp_path):
    for run, steps in {"a": (100, 200), "b": (100,), "c": (0, 100)}.items():
        (tmp_path / run).mkdir()
        for step in steps:
            save_checkpoint(tmp_path / run, step, {}, {})
    assert newest_checkpoint([tmp_path / run for run in "abc"]) == 100
    drop_checkpoints(tmp_path / "b", keep={0})
    with pytest.raises(ValueError, match=f"no checkpoint in {tmp_path / 'b'}"):
        newest_checkpoint([tmp_path / run for run in "abc"])


def test_a_run_killed_while_it_was_finishing_finishes_once(small_run, tmp_path):
    run = small_run(directory=tmp_path / "run")
    first = train([run])[0]
    before = scalars(tmp_path / "run")
    (tmp_path / "run" / "result.json").unlink()
    again = train([run], resume=True)[0]
    assert again.evaluation_returns == first.evaluation_returns and scalars(tmp_path / "run") == before
    assert (tmp_path / "run" / "result.json").exists()


def test_another_run_does_not_go_on_in_a_directory(small_run, tmp_path):
    train([small_run(directory=tmp_path / "run")])
    others = {"seed=5": "seed", "total_steps=400": "total_steps", "agent.discount=0.5": "agent.discount", "agent.batch_size=8": "agent.batch_size"}
    others |= {"loss/value=pseudo_huber": "agent.value_loss", "agent.replay.capacity=100": "agent.replay.capacity", "network.hidden=[8]": "agent.network.hidden"}
    others |= {"+env.arguments.sutton_barto_reward=true": "env.arguments", "+env/wrapper=flatten": "env.wrappers"}
    for other, name in others.items():
        with pytest.raises(ValueError, match=f"holds another run: it differs in {name}"):
            train([small_run(other, directory=tmp_path / "run")], resume=True)


def test_a_population_that_does_not_fit_into_memory_is_refused(small_run, tmp_path, monkeypatch):
    monkeypatch.setattr("agents.run.available_memory", lambda: 50 * 1024)
    train([small_run(f"seed={seed}") for seed in range(4)])
    with pytest.raises(ValueError, match=r"replay needs 50.8 KiB of memory for 5 runs, the machine has 50 KiB available; lower agent.replay.capacity"):
        train([small_run(f"seed={seed}", directory=tmp_path / str(seed)) for seed in range(5)])
    assert not list(tmp_path.iterdir())


def test_lost_events_are_found_out(small_run, tmp_path):
    train([small_run(directory=tmp_path / "run")])
    (path,) = (tmp_path / "run").glob("events*")
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(ValueError, match="lost events"):
        train([small_run(directory=tmp_path / "run")], resume=True)


def test_two_runs_never_share_a_directory(small_run, tmp_path):
    train([small_run(directory=tmp_path / "run")])
    before = {path: path.stat().st_mtime for path in (tmp_path / "run").rglob("*")}
    with pytest.raises(ValueError, match="already holds a run"):
        train([small_run(directory=tmp_path / "run")])
    assert before == {path: path.stat().st_mtime for path in (tmp_path / "run").rglob("*")}
