"""The tables of a report as plain values, and as Markdown and CSV."""

import csv
import io
import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from agents import statistics
from agents.comparisons import Comparison, Configuration, plain
from agents.report_figures import DIAGNOSTICS
from agents.scores import Environment, Score, late_mean
from agents.statistics import Estimate
from agents.swept import configuration

STATISTICS: Mapping[str, Callable[[np.ndarray], np.ndarray]] = {"IQM": statistics.interquartile_mean, "mean": statistics.mean, "median": statistics.median}


class Cell(NamedTuple):
    """What a cell says, and the number or the word by which its column is sorted."""

    text: str
    key: float | str


class Table(NamedTuple):
    """A table: the heads of its columns and its rows."""

    heads: Sequence[str]
    rows: Sequence[Sequence[Cell]]


def word(text: str) -> Cell:
    """A cell of text."""
    return Cell(text, text)


def number(value: float, text: str | None = None) -> Cell:
    """A cell of one number."""
    return Cell(plain(value) if text is None else text, value)


def interval(found: Estimate) -> Cell:
    """A cell of a number and its interval."""
    scale = (found.high - found.low) / 2 or None
    bounds = "" if math.isnan(found.low) else f" ({plain(found.low, scale)} to {plain(found.high, scale)})"
    return Cell(f"{plain(found.value, scale if bounds else None)}{bounds}", found.value)


def duration(seconds: float) -> str:
    """Seconds in the unit a person would choose."""
    if math.isnan(seconds):
        return "–"
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def estimates(found: Configuration, what: str) -> dict[str, Estimate]:
    """IQM, mean and median of a number of runs, `final` or `area`, with their intervals."""
    values = found.numbers(what)
    values = values[np.isfinite(values)]
    return {name: statistics.estimate([values], statistic) if len(values) else Estimate(math.nan) for name, statistic in STATISTICS.items()}


def steps_to_threshold(found: Configuration) -> Estimate:
    """The median over runs of the step at which the threshold was reached; inf where half of them never did."""
    return statistics.estimate([found.numbers("reached")], statistics.median)


def final_returns(found: Sequence[Configuration]) -> Table:
    """The return after training, with failures: one row a configuration."""
    chosen = any(each.chosen for each in found)
    heads = ["configuration", *["best other settings"] * chosen, "seeds", "failed", *STATISTICS]
    rows = [[word(each.name), *[word(each.chosen)] * chosen, *_counts(each), *map(interval, estimates(each, "final").values())] for each in found]
    return Table(heads, rows)


def _counts(found: Configuration) -> list[Cell]:
    return [number(count, str(count)) for count in (len(found.scores), found.failures)]


def learning(environment: Environment, found: Sequence[Configuration]) -> Table:
    """How fast configurations learned, in steps and in seconds."""
    heads = ["configuration", *(f"area under the curve, {name}" for name in STATISTICS)]
    if environment.threshold is not None:
        heads += [f"runs that came to {environment.threshold:g}", "median steps there"]
    return Table([*heads, "time with its population"], [_learned(environment, each) for each in found])


def _learned(environment: Environment, found: Configuration) -> list[Cell]:
    cells = [word(found.name), *map(interval, estimates(found, "area").values())]
    if environment.threshold is not None:
        cells += [number(found.reached / len(found.scores), f"{found.reached} of {len(found.scores)}"), _steps(steps_to_threshold(found))]
    return [*cells, number(found.seconds, duration(found.seconds))]


def _steps(found: Estimate) -> Cell:
    say = ["never" if math.isinf(step) else f"{step:,.0f}" for step in found]
    return Cell(say[0] if math.isnan(found.low) or len(set(say)) == 1 else f"{say[0]} ({say[1]} to {say[2]})", found.value)


def improvements(comparisons: Sequence[Comparison]) -> Table:
    """Each configuration against the baseline."""
    heads = ["configuration", "difference of means ± 95%", "p, corrected", "P(better)", "p of P(better), corrected", "seeds", "paired"]
    rows = []
    for each in comparisons:
        found = each.difference
        margin = "" if math.isnan(found.margin) else f" ± {plain(found.margin, found.margin)}"
        difference = Cell(f"{plain(found.value, found.margin if margin else None)}{margin}", found.value)
        cells = [word(each.name), difference, p_value(each.p), interval(each.improvement), p_value(each.improvement_p)]
        rows.append([*cells, number(found.seeds, str(found.seeds)), word("yes" if found.paired else "no")])
    return Table(heads, rows)


def p_value(p: float) -> Cell:
    """A cell of a p-value."""
    return Cell("–" if math.isnan(p) else "< 0.001" if p < 0.001 else f"{p:.3f}", p)


def diagnostics(found: Sequence[Configuration]) -> Table | None:
    """Medians over runs of what losses and gradients were like in the second half of training; None where nothing was logged."""
    tags = [tag for tag in DIAGNOSTICS if any(tag in score.record.scalars for each in found for score in each.scores)]
    rows = [[word(each.name), *(number(diagnostic(each, tag)) for tag in tags)] for each in found]
    return Table(["configuration", *(DIAGNOSTICS[tag] for tag in tags)], rows) if tags else None


def diagnostic(found: Configuration, tag: str) -> float:
    """The median over runs of a tag's mean in the second half of training."""
    values = np.array([late_mean(score, tag) for score in found.scores])
    return float(np.nanmedian(values)) if np.isfinite(values).any() else math.nan


def normalised(found: Mapping[str, Sequence[np.ndarray]], baseline: str | None) -> Table:
    """Normalised returns [seeds] of every environment, by configuration, and how often they are ahead of the baseline's."""
    heads = ["configuration", *(f"normalised return, {name}" for name in STATISTICS), *[f"P(better than {baseline})"] * (baseline in found)]
    rows = []
    for name, strata in found.items():
        cells = [word(name), *(interval(statistics.estimate(strata, statistic)) for statistic in STATISTICS.values())]
        if baseline in found:
            cells.append(word("–") if name == baseline else interval(statistics.probability_of_improvement(strata, found[baseline])))
        rows.append(cells)
    return Table(heads, rows)


def failures(failed: Sequence[Score], swept: Sequence[str]) -> Table:
    """The runs that failed: which, where and why."""
    rows = []
    for score in failed:
        failure = score.record.failure
        cells = [word(configuration(score.settings, swept)), number(score.seed, str(score.seed)), number(failure.step, f"{failure.step:,}")]
        rows.append([*cells, word(failure.reason), word(score.record.directory.name)])
    return Table(["configuration", "seed", "step", "reason", "directory"], rows)


def markdown(table: Table) -> str:
    """A table in Markdown."""
    lines = [table.heads, ["---"] * len(table.heads), *([cell.text for cell in row] for row in table.rows)]
    return "".join(f"| {' | '.join(cell.replace('|', '∣') for cell in line)} |\n" for line in lines)


def comma_separated(rows: Sequence[Mapping[str, object]]) -> str:
    """Rows of one kind as CSV, numbers in full; what a row hasn't is empty."""
    heads = list(dict.fromkeys(head for row in rows for head in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, heads, lineterminator="\n")
    writer.writeheader()
    writer.writerows({head: "" if isinstance(value, float) and math.isnan(value) else value for head, value in row.items()} for row in rows)
    return text.getvalue()


def configuration_numbers(environment: Environment, found: Configuration, comparison: Comparison | None) -> dict[str, object]:
    """All numbers of a configuration, for the CSV."""
    row: dict[str, object] = {"environment": environment.name, "configuration": found.name, "other_settings": found.chosen}
    row |= {"seeds": len(found.scores), "failed": found.failures}
    measured = {f"{what}_{name.lower()}": each for what in ("final", "area") for name, each in estimates(found, what).items()}
    if environment.threshold is not None:
        row |= {"threshold": environment.threshold, "reached": found.reached}
        measured["steps_to_threshold_median"] = steps_to_threshold(found)
    if comparison:
        difference = comparison.difference
        row |= {"baseline": comparison.baseline, "difference": difference.value, "difference_margin": difference.margin, "difference_p_corrected": comparison.p}
        row |= {"paired": difference.paired, "improvement_p_corrected": comparison.improvement_p}
        measured["improvement"] = comparison.improvement
    row |= {f"{name}{end}": value for name, each in measured.items() for end, value in zip(("", "_low", "_high"), each, strict=True)}
    row["wall_seconds_median"] = found.seconds
    return row | {tag: diagnostic(found, tag) for tag in DIAGNOSTICS}
