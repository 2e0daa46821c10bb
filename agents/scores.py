"""The numbers that a report compares: each run's final return, its curve and the area under it, by environment.

A run that failed counts with the lowest return that any run was evaluated at in its environment, from where it failed on; one that
a search gave up counts with its return at that step, to the end. One that was stopped, or is still at work, is left out. Of the same
run twice the newer one counts.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import gymnasium
import numpy as np

from agents import statistics
from agents.run_directory import CONFIG
from agents.run_records import EVALUATION, TRAINING, Curve, RunRecord
from agents.swept import environment_names, settings

BINS = 50


@dataclass(frozen=True)
class Score:
    """A run and its numbers; `reached` is the step at which its curve came to the threshold, inf where it never did."""

    record: RunRecord
    settings: Mapping[str, Any]
    final: float
    curve: Curve
    area: float
    reached: float

    @property
    def seed(self) -> int:
        """The run's seed."""
        return self.record.seed

    @property
    def failed(self) -> bool:
        """Whether the run failed."""
        return self.record.failure is not None

    @property
    def pruned(self) -> bool:
        """Whether a search gave the run up."""
        return bool(self.record.pruned)

    @property
    def seconds(self) -> float:
        """The time that its training took, in which others of its population were trained too; NaN where it isn't known."""
        return float((self.record.result or {}).get("wall_seconds", math.nan))


@dataclass(frozen=True)
class Environment:
    """The runs of one environment; `evaluated` says whether curves are of greedy evaluations, or else of training episodes."""

    name: str
    scores: list[Score]
    threshold: float | None
    lowest: float
    evaluated: bool
    incomplete: list[RunRecord] = field(default_factory=list)
    repeated: int = 0


def environments(runs: Sequence[RunRecord], thresholds: Mapping[str, float]) -> list[Environment]:
    """The runs by environment, those without any finished run left out; `thresholds` by environment name, "" for all others."""
    known = [settings(run) for run in runs]
    names = environment_names(known)
    found = []
    for name in dict.fromkeys(names):
        here = [(run, setting) for run, setting, where in zip(runs, known, names, strict=True) if where == name]
        threshold = thresholds.get(name, thresholds.get("", usual_threshold(str(here[0][1].get("env.id")))))
        if environment := _environment(name, here, threshold):
            found.append(environment)
    return found


def usual_threshold(environment_id: str) -> float | None:
    """The return at which Gymnasium calls an environment solved; None where it doesn't say."""
    spec = gymnasium.registry.get(environment_id)
    return spec.reward_threshold if spec else None


def _environment(name: str, runs: Sequence[tuple[RunRecord, Mapping[str, Any]]], threshold: float | None) -> Environment | None:
    ended = [(run, setting) for run, setting in runs if run.failure or _final(run) is not None]
    counted = _newest(ended)
    evaluated = all(EVALUATION in run.scalars and len(run.scalars[EVALUATION].steps) > 1 for run, _ in counted if run.result)
    read = _evaluations if evaluated else _training
    curves = [read(run) for run, _ in counted]
    returns = [curve.values for curve in curves] + [np.array([final]) for run, _ in counted if (final := _final(run)) is not None]
    if not counted or not sum(map(len, returns)):
        return None
    lowest = float(np.nanmin(np.concatenate(returns)))
    steps = np.unique(np.concatenate([curve.steps for (run, _), curve in zip(counted, curves, strict=True) if run.result] or [curve.steps for curve in curves]))
    scores = [_score(run, setting, curve, steps, lowest, threshold) for (run, setting), curve in zip(counted, curves, strict=True)]
    incomplete = [run for run, _ in runs if all(run is not other for other, _ in ended)]
    return Environment(name, scores, threshold, lowest, evaluated, incomplete, len(ended) - len(counted))


def _newest(runs: Sequence[tuple[RunRecord, Mapping[str, Any]]]) -> list[tuple[RunRecord, Mapping[str, Any]]]:
    """Of runs with the same settings and seed the one that was started last."""
    kept = {}
    for run, setting in sorted(runs, key=lambda pair: (pair[0].directory / CONFIG).stat().st_mtime):
        kept[repr(sorted(setting.items())), run.seed] = run, setting
    return list(kept.values())


def _score(run: RunRecord, setting: Mapping[str, Any], curve: Curve, steps: np.ndarray, lowest: float, threshold: float | None) -> Score:
    final = lowest if run.failure else _final(run)
    if not run.result:
        curve = _continued(curve, run.failure.step if run.failure else run.pruned["step"], steps, final)
    reached = statistics.crossing(*curve, threshold) if threshold is not None else math.nan
    return Score(run, setting, final, curve, statistics.area(*curve), reached)


def _continued(curve: Curve, until: float, steps: np.ndarray, value: float) -> Curve:
    """A curve up to a step, and one value at all later ones."""
    own = curve.steps <= until
    later = steps[steps > (curve.steps[own][-1] if own.any() else -1)]
    return Curve(np.append(curve.steps[own], later), np.append(curve.values[own], np.full(len(later), value)))


def _final(run: RunRecord) -> float | None:
    """The mean return of the evaluation after training, or of that at which a search gave the run up; None before there was one."""
    if run.result:
        return float(run.result["evaluation"]["return_mean"])
    return float(run.pruned["return_mean"]) if run.pruned else None


def _evaluations(run: RunRecord) -> Curve:
    return run.scalars.get(EVALUATION, Curve(np.empty(0), np.empty(0)))


def _training(run: RunRecord) -> Curve:
    """The mean return of the training episodes that ended in each of `BINS` equal parts of the training; of an empty part that of the one before."""
    steps, values = run.scalars.get(TRAINING, Curve(np.empty(0), np.empty(0)))
    edges = np.linspace(0, float(run.config.get("total_steps", 1)), BINS + 1)
    place = np.clip(np.digitize(steps, edges, right=True) - 1, 0, BINS - 1)
    counts = np.bincount(place, minlength=BINS)
    filled = np.nonzero(counts)[0]
    if not len(filled):
        return Curve(np.empty(0), np.empty(0))
    means = np.bincount(place, values, minlength=BINS)[filled] / counts[filled]
    whole = np.arange(filled[0], BINS if run.result else filled[-1] + 1)
    return Curve(edges[1:][whole], means[np.searchsorted(filled, whole, side="right") - 1])


def on_grid(curves: Sequence[Curve]) -> tuple[np.ndarray, np.ndarray]:
    """The steps [points] that all curves span, and their values [curves, points] there, linear in between."""
    curves = [curve for curve in curves if len(curve.steps)]
    if not curves:
        return np.empty(0), np.empty((0, 0))
    low, high = max(curve.steps[0] for curve in curves), min(curve.steps[-1] for curve in curves)
    steps = np.unique(np.concatenate([curve.steps for curve in curves]))
    steps = steps[(steps >= low) & (steps <= high)]
    return steps, np.stack([np.interp(steps, *curve) for curve in curves])


def late_mean(score: Score, tag: str) -> float:
    """The mean of a tag in the second half of what a run logged of it; NaN where it logged nothing."""
    curve = score.record.scalars.get(tag)
    return float(np.mean(curve.values[curve.steps >= curve.steps[-1] / 2])) if curve else math.nan
