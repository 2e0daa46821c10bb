"""A sweep as values: names, groups and plans."""

import itertools
import math
from pathlib import Path

import pytest
from hydra.errors import HydraException
from hypothesis import given
from hypothesis import strategies as st

from agents import rates, sweep
from agents.config import ConfigError, build
from agents.population import stack
from agents.run import check_together
from agents.run_directory import RunDirectoryError
from agents.sweep import Job, Standing, Task
from tests.conftest import small_config

NEW = Standing(None, frozenset())

CHOICES = [
    ["optimizer.learning_rate=0.1", "agent.discount=0.5", "seed=3", "agent.exploration.epsilon.end=0.3"],
    ["agent.batch_size=8", "network.hidden=[8]", "total_steps=200", "num_envs=2", "log_every=20", "evaluation.episodes=3", "agent.steps=2"],
    ["loss/value=mse", "loss/value=hl_gauss", "loss/value=quantile_huber", "loss.value._target_=rlloss.PseudoHuber"],
    ["loss/regularizer=[l2]", "loss/regularizer=[l1]", "loss/regularizer=[l2,l1]", "head=dueling", "agent=sac", "agent/target_network=polyak"],
    ["env=acrobot", "env.frame_stack=2", "+env.arguments.sutton_barto_reward=true", "+env/wrapper=[time_aware]", "+env/wrapper=[time_limit]"],
]


def _run(words):
    try:
        return build(small_config(*[word for word in words if word]))
    except (ConfigError, HydraException):  # Not every choice goes with every other.
        return None


def _train_accepts(runs):
    try:
        check_together(runs)
        stack([run.agent for run in runs])
    except ValueError:
        return False
    return True


@pytest.fixture(scope="module")
def runs():
    pairs = [["", word] for family in CHOICES for word in family]
    crossed = [[one, two] for family, other in itertools.pairwise(CHOICES) for one in family[:2] for two in other[:2]]
    found = [run for run in map(_run, [*pairs, *crossed, ["seed=5"], [""]]) if run]
    assert len(found) > 25
    return found


def test_runs_are_grouped_as_training_accepts_them(runs):
    groups = [places for places, _ in sweep.groups(runs, [NEW] * len(runs))]
    assert sorted(place for places in groups for place in places) == list(range(len(runs)))
    assert 1 < len(groups) < len(runs)
    for places in groups:
        assert _train_accepts([runs[place] for place in places])
    for index, one in enumerate(groups):
        for other in groups[index + 1 :]:
            assert not _train_accepts([runs[one[0]], runs[other[0]]])


def test_eager_runs_are_not_compiled_with_others():
    runs = [build(small_config(f"compile={word}")) for word in ("false", "true")]
    assert len(sweep.groups(runs, [NEW, NEW])) == 2


def test_runs_go_on_from_a_step_that_all_of_a_population_have(small_run):
    steps = [{1, 2}, {1}, {1, 2}, set(), {3}]
    found = sweep.groups([small_run()] * 5, [Standing(None, frozenset(each)) for each in steps])
    assert found == [([0, 1, 2], 1), ([4], 3), ([3], None)]


def test_labels_name_what_is_swept():
    jobs = [["total_steps=300", "loss/value=mse", "optimizer.learning_rate=0.001", "seed=3"]]
    assert sweep.labels(jobs, ["loss/value", "optimizer.learning_rate", "seed"]) == ["value=mse,learning_rate=0.001,seed=3"]
    assert sweep.labels([["loss.regularizer.l2.weight=1", "loss.regularizer.l1.weight=2"]], ["loss.regularizer.l2.weight", "loss.regularizer.l1.weight"]) == ["l2.weight=1,l1.weight=2"]
    assert sweep.labels([["experiment=study/cartpole", "loss/regularizer=[l2,cql]"]], ["experiment", "loss/regularizer"]) == ["experiment=study_cartpole,regularizer=l2_cql"]
    assert sweep.labels([["seed=1"]], []) == ["run"]
    assert [sweep.short(key, ["a.b", "b", "c.d"]) for key in ("a.b", "b", "c.d")] == ["a.b", "b", "d"]


@given(st.lists(st.tuples(st.text(max_size=90), st.text(max_size=90)), min_size=1, unique=True))
def test_labels_are_file_names_of_their_own(values):
    jobs = [[f"a={one}", f"+b.c@d={two}"] for one, two in values]
    labels = sweep.labels(jobs, ["a", "+b.c@d"])
    assert len(set(labels)) == len(jobs)
    for label in labels:
        assert len(label.encode()) <= 255 and "/" not in label and label not in (".", "..")
    # A sweep over more values finds the same runs under the same names, but for those that would share one.
    alone = [label for job in jobs for label in sweep.labels([job], ["a", "+b.c@d"])]
    assert all(label == one if alone.count(one) == 1 else label.startswith(f"{one},") for label, one in zip(labels, alone, strict=True))


def test_two_runs_of_one_directory_are_refused_by_name():
    jobs = [Job(("seed=1", "a=2"), Path("here"), {}), Job(("seed=2", "a=2"), Path("there/../here"), {})]
    with pytest.raises(RunDirectoryError, match=r"^two runs would share there/../here: seed=1 and seed=2; give each its own"):
        sweep.refuse_shared(jobs)
    sweep.refuse_shared([jobs[0], Job(("seed=2",), Path("there"), {})])


def _tasks(*sizes, step=None):
    return [Task((Job((), Path("x"), {"total_steps": 100}),) * size, step) for size in sizes]


@pytest.mark.parametrize(
    ("tasks", "complete", "workers", "seconds", "words"),
    [
        (_tasks(*[32] * 9), 0, 2, 360.0, "288 runs in 9 populations of 32, 2 at a time, about 6 minutes"),
        (_tasks(1), 0, 2, None, "1 run in 1 population of 1, 1 at a time, time unknown until the first steps"),
        (_tasks(500, 500), 8, 1, 7200.0, "8 runs complete already, 1,000 runs in 2 populations of 500, 1 at a time, about 2 hours"),
        (_tasks(3, 4, step=10), 0, 2, 1.0, "7 runs (7 continued) in 2 populations of 3 to 4, 2 at a time, about 1 second"),
        ([], 1, 2, 0.0, "1 run complete already, nothing is left to train"),
    ],
)
def test_the_plan_in_words(tasks, complete, workers, seconds, words):
    assert sweep.in_words(tasks, complete, workers, seconds) == words


def test_populations_are_named_by_what_tells_them_apart():
    jobs = {loss: tuple(Job((f"loss/value={loss}", f"seed={seed}", "total_steps=3"), Path("x"), {}) for seed in range(2)) for loss in ("mse", "huber")}
    assert sweep.names([Task(jobs["mse"], None), Task(jobs["huber"], None), Task(jobs["huber"], None)]) == ["loss/value=mse", "loss/value=huber (1)", "loss/value=huber (2)"]
    assert sweep.names([Task((*jobs["mse"], *jobs["huber"]), None)]) == ["population 1"]


@given(st.lists(st.integers(1, 300), min_size=1, max_size=5), st.integers(1, 16), st.integers(1, 300))
def test_populations_are_equal_and_leave_no_worker_idle(counts, workers, most):
    size = rates.best_size(counts, [1.0] * len(counts), [{}] * len(counts), workers, most)
    assert 1 <= size <= most
    for count in counts:
        shares = rates.shares(count, size)
        assert sum(shares) == count and max(shares) <= size and max(shares) - min(shares) <= 1
    if most >= sum(counts) >= workers:
        assert sum(len(rates.shares(count, size)) for count in counts) >= min(workers, 2)


def test_sizes_balance_the_workers_and_follow_what_was_measured():
    assert rates.shares(66, rates.best_size([66], [1.0], [{}], 2, 128)) in ([33, 33], [17, 17, 16, 16])
    assert rates.best_size([64], [1.0], [{64: 1000.0, 32: 100.0, 16: 100.0}], 1, 64) == 64
    assert 8 <= rates.best_size([64], [1.0], [{64: 100.0, 32: 100.0, 8: 1000.0}], 1, 128) < 20


def test_rates_are_kept_for_the_structure(monkeypatch, tmp_path):
    monkeypatch.setenv("RLLOSS_CACHE", str(tmp_path))
    rates.keep(small_config(), 4, 100.0)
    rates.keep(small_config("seed=3", "agent.discount=0.5", "total_steps=1000"), 8, 180.0)
    rates.keep(small_config(), 4, 90.0)
    assert rates.read(small_config("optimizer.learning_rate=1.0")) == ({4: 100.0, 8: 180.0}, {4: 90.0, 8: 180.0})
    assert rates.read(small_config("agent.batch_size=8")) == ({}, {})
    for file in (tmp_path / "rates").iterdir():
        file.write_text('{"4": 100.0}')  # As another version may have written it.
    assert rates.read(small_config()) == ({}, {})
    assert rates.rate(8, {4: 100.0, 8: 180.0}) == 180.0 and math.isclose(rates.rate(16, {8: 95.0}), 100.0)
