"""Searching with Optuna: known optima, what is told of runs that fail, and a search that was killed."""

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from agents.config import ConfigError
from tests.conftest import SMALL
from tests.here import HERE

optuna = pytest.importorskip("optuna")

from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution  # noqa: E402
from optuna.trial import TrialState  # noqa: E402

from agents.search import Trained, open_study, search  # noqa: E402
from agents.search_space import search_space  # noqa: E402


def space_of(*words):
    return search_space(OverridesParser.create().parse_overrides(list(words)))


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("interval(0.5, 2.0)", FloatDistribution(0.5, 2.0)),
        ("tag(log, interval(1e-4, 1e-2))", FloatDistribution(1e-4, 1e-2, log=True)),
        ("interval(1, 9)", FloatDistribution(1.0, 9.0)),
        ("int(interval(1, 9))", IntDistribution(1, 9)),
        ("tag(log, int(interval(8, 256)))", IntDistribution(8, 256, log=True)),
        ("range(1, 10, 3)", IntDistribution(1, 7, step=3)),
        ("range(10, 1, -4)", IntDistribution(2, 10, step=4)),
        ("range(0.5, 2.0, 0.5)", FloatDistribution(0.5, 1.5, step=0.5)),
        ("mse,huber", CategoricalDistribution(("mse", "huber"))),
        ("null,1,'a b'", CategoricalDistribution(("null", "1", "'a b'"))),
    ],
)
def test_words_are_read_as_hydra_and_optuna_mean_them(word, expected):
    assert space_of(f"a.b={word}").searched == {"a.b": expected}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["a=3", "seed=0,1"], "there is nothing to search"),
        (["a=1,2", "seed=interval(0, 9)"], "say them: seed=0,1,2"),
        (["a=tag(log, range(1, 10))"], "a: a range has equal steps"),
        (["a=tag(log, interval(-1.0, 1.0))"], "a: `low > 0` must hold"),
    ],
)
def test_what_cannot_be_searched_is_refused(words, message):
    with pytest.raises(ConfigError, match=message):
        space_of(*words)


def test_a_trial_has_a_run_for_each_seed_and_the_corners_have_every_end_and_choice():
    space = space_of("b=2", "x=interval(0.0, 1.0)", "loss/value=mse,huber,l1", "seed=3,4")
    assert space.runs({"x": 0.5, "loss/value": "mse"}) == [["b=2", "x=0.5", "loss/value=mse", f"seed={seed}"] for seed in (3, 4)]
    said = [(words[1], words[2]) for words in space.corners()]
    assert said == [("x=0.0", "loss/value=mse"), ("x=1.0", "loss/value=mse"), ("x=0.4142", "loss/value=mse"), ("x=0.0", "loss/value=huber"), ("x=0.0", "loss/value=l1")]


def study_of(space, storage=None, sampler="TPESampler"):
    return open_study(space, storage=storage, name="test", sampler={"_target_": f"optuna.samplers.{sampler}"}, seed=0)


def numbers(words):
    return dict(word.split("=") for word in words)


def test_the_best_of_a_parabola_is_found_in_batches():
    """Each seed shifts it, so that only their mean has its peak at 3."""
    space, batches = space_of("x=interval(-10.0, 10.0)", "seed=0,2"), []

    def train(runs, number):
        batches.append((number, len(runs)))
        return [Trained(-((float(each["x"]) - 2 - float(each["seed"])) ** 2)) for each in map(numbers, runs)]

    study = study_of(space)
    search(study, space, 50, 16, train, lambda line: None)
    assert batches == [(0, 32), (32, 32), (64, 32), (96, 4)]
    assert study.best_params["x"] == pytest.approx(3, abs=0.5) and study.best_value == pytest.approx(-1, abs=0.25)


def test_what_comes_of_runs_is_told():
    """A trial fails with any of its runs, NaN is no value, and a pruned one keeps what it had."""
    space = space_of("x=0,1,2,3", "seed=0,1")
    fates = {"0": (Trained(5.0), Trained(7.0)), "1": (Trained(9.0), Trained(None)), "2": (Trained(float("nan")), Trained(1.0)), "3": (Trained(1.0, 50), Trained(2.0, 50))}
    study, lines = study_of(space), []
    for x in fates:
        study.enqueue_trial({"x": x})
    search(study, space, 4, 4, lambda runs, number: [fates[each["x"]][int(each["seed"])] for each in map(numbers, runs)], lines.append)
    states = {trial.params["x"]: (trial.state, trial.value) for trial in study.trials}
    assert states == {"0": (TrialState.COMPLETE, 6.0), "1": (TrialState.FAIL, None), "2": (TrialState.FAIL, None), "3": (TrialState.PRUNED, 1.5)}
    assert lines == ["4 of 4 trials (1 pruned, 2 failed), best return 6.0 with x=0"]


def test_the_same_settings_are_trained_once():
    space, trained = space_of("x=0,1"), []

    def train(runs, number):
        trained.extend(numbers(words)["x"] for words in runs)
        return [Trained(float(numbers(words)["x"])) for words in runs]

    search(study_of(space, sampler="RandomSampler"), space, 12, 4, train, lambda line: None)
    assert sorted(trained) == ["0", "1"]


def test_a_search_that_was_killed_goes_on_with_the_trials_it_had_begun(tmp_path):
    space, storage, begun = space_of("x=interval(0.0, 1.0)"), f"sqlite:///{tmp_path}/study.db", []

    def killed(runs, number):
        begun.append(runs)
        if len(begun) == 2:
            raise KeyboardInterrupt
        return [Trained(0.0)] * len(runs)

    with pytest.raises(KeyboardInterrupt):
        search(study_of(space, storage), space, 9, 3, killed, lambda line: None)
    search(study_of(space, storage), space, 9, 3, lambda runs, number: begun.append(runs) or [Trained(0.0)] * len(runs), lambda line: None)
    assert begun[2] == begun[1] and len(begun) == 4
    assert len({words[0] for runs in begun for words in runs}) == 9
    with pytest.raises(ConfigError, match="is of another search: it differs in"):
        study_of(space_of("x=interval(0.0, 2.0)"), storage)


def test_rlloss_train_searches(rlloss_train, tmp_path):
    """The return of this environment says how near x is to 0.3, whatever the agent does; the worse half is pruned."""
    words = ["hydra/sweeper=optuna_search", HERE, "hydra.launcher.rungs=[30]", "hydra.sweep.dir=found", "hydra.sweeper.trials=4", *SMALL]
    words += ["env.id=tests.toys:Peak-v0", "total_steps=60", "+env.arguments.x=interval(0.0, 1.0)"]
    code, out, _ = rlloss_train("-m", *words, "hydra.launcher.dry_run=true")
    assert code == 0 and out.startswith("4 trials of 1 run") and not list(tmp_path.iterdir())
    code, out, _ = rlloss_train("-m", *words)
    assert code == 0 and "4 of 4 trials (2 pruned), best return" in out
    trials = optuna.load_study(study_name="rlloss", storage="sqlite:///found/study.db").trials
    assert [trial.state for trial in sorted(trials, key=lambda trial: trial.value)] == [TrialState.PRUNED] * 2 + [TrialState.COMPLETE] * 2
    for trial in trials:
        x = trial.params["+env.arguments.x"]
        assert trial.value == pytest.approx(-5 * (x - 0.3) ** 2)
        assert (tmp_path / "found" / f"x={x}" / "result.json").exists() == (trial.state is TrialState.COMPLETE)
