"""Searching with Optuna: ask for a batch of trials, train it, tell what came of it. A trial is the mean over its seeds."""

import math
import statistics
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import optuna
from hydra.utils import instantiate
from optuna.trial import FrozenTrial, Trial, TrialState

from agents.config import ConfigError
from agents.search_space import SearchSpace

WORDS = "words"


class Trained(NamedTuple):
    """What came of a run or a trial: its mean evaluation return, None where it failed, and the step at which it was pruned, if it was."""

    value: float | None
    pruned: int | None = None


def open_study(space: SearchSpace, *, storage: str | None, name: str, sampler: Mapping[str, Any], seed: int) -> optuna.Study:
    """The study of a search, continued where the storage has it already; the higher a value the better.

    Raises ConfigError if the study is that of another search.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
    study = optuna.create_study(study_name=name, storage=storage, direction="maximize", load_if_exists=True)
    # A sampler that began from the same seed again would ask for the same trials again.
    study.sampler = instantiate(sampler, seed=seed + len(study.trials))
    words = [*space.fixed, *space.seeds, *(f"{key}: {distribution}" for key, distribution in space.searched.items())]
    before = study.user_attrs.get(WORDS, words)
    if differing := set(words) ^ set(before):
        raise ConfigError(f"the study {name} in {storage} is of another search: it differs in {', '.join(sorted(differing)[:3])}; choose another hydra.sweeper.study")
    study.set_user_attr(WORDS, words)
    return study


def search(study: optuna.Study, space: SearchSpace, trials: int, batch: int, train: Callable[[list[list[str]], int], Sequence[Trained]], say: Callable[[str], None]) -> None:
    """Search until the study has so many trials.

    Args:
        study: what was found so far; trials that were begun and never told, because the process died, come first.
        space: what is searched.
        trials: how many trials the study shall have.
        batch: the most trials that are asked for, and trained, at once.
        train: trains the runs of these words, of which the first has this number, and says what came of each.
        say: prints a line.
    """
    while (left := trials - len(_finished(study))) > 0:
        asked: list[FrozenTrial | Trial] = study.get_trials(states=[TrialState.RUNNING])[:batch]
        asked += [study.ask(space.searched) for _ in range(min(batch, left) - len(asked))]
        known = {_key(trial): _told(trial) for trial in _finished(study)}  # Runs repeat themselves: the same settings end the same.
        fresh = list({_key(trial): trial for trial in asked if _key(trial) not in known}.values())
        trained = train([words for trial in fresh for words in space.runs(trial.params)], asked[0].number * len(space.seeds)) if fresh else ()
        for place, trial in enumerate(fresh):
            known[_key(trial)] = _mean(trained[place * len(space.seeds) : (place + 1) * len(space.seeds)])
        for trial in asked:
            _tell(study, trial, known[_key(trial)])
        say(in_words(study, trials))


def _finished(study: optuna.Study) -> list[FrozenTrial]:
    return [trial for trial in study.get_trials(deepcopy=False) if trial.state.is_finished()]


def _key(trial: FrozenTrial | Trial) -> tuple:
    return tuple(sorted(trial.params.items()))


def _told(trial: FrozenTrial) -> Trained:
    """What was told of a trial."""
    return Trained(trial.value, trial.last_step if trial.state is TrialState.PRUNED else None)


def _mean(runs: Sequence[Trained]) -> Trained:
    """What came of a trial, over its seeds; it failed where one of them did."""
    values = [run.value for run in runs]
    whole = None not in values and all(map(math.isfinite, values))
    return Trained(statistics.fmean(values) if whole else None, runs[0].pruned)


def _tell(study: optuna.Study, trial: FrozenTrial | Trial, trained: Trained) -> None:
    if trained.value is None:
        study.tell(trial.number, state=TrialState.FAIL)
    elif trained.pruned is None:
        study.tell(trial.number, trained.value)
    else:
        Trial(study, trial._trial_id).report(trained.value, trained.pruned)
        study.tell(trial.number, state=TrialState.PRUNED)


def in_words(study: optuna.Study, trials: int) -> str:
    """How a search stands, in one line."""
    found = _finished(study)
    count = {state: sum(trial.state is state for trial in found) for state in TrialState}
    others = ", ".join(f"{count[state]} {word}" for state, word in ((TrialState.PRUNED, "pruned"), (TrialState.FAIL, "failed")) if count[state])
    said = f"{len(found)} of {trials} trials{f' ({others})' if others else ''}"
    if not count[TrialState.COMPLETE]:
        return f"{said}, none complete"
    best = study.best_trial
    return f"{said}, best return {best.value:.1f} with {' '.join(f'{key}={value}' for key, value in best.params.items())}"
