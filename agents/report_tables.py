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
from agents.scores import Environment, late_mean
from agents.statistics import Estimate

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


def results(environment: Environment, found: Sequence[Configuration]) -> Table:
    """Returns, failures, speed: one row a configuration."""
    chosen = any(each.chosen for each in found)
    heads = ["configuration", *["best other settings"] * chosen, "seeds", "failed"]
    heads += [f"final return, {name}" for name in STATISTICS] + [f"area under the curve, {name}" for name in STATISTICS]
    heads += ["reached", "median steps to the threshold"] * (environment.threshold is not None) + ["wall time"]
    return Table(heads, [_result(environment, each, chosen) for each in found])


def _result(environment: Environment, found: Configuration, chosen: bool) -> list[Cell]:
    cells = [word(found.name), *[word(" or ".join(found.chosen))] * chosen, number(len(found.scores), str(len(found.scores))), number(found.failures, str(found.failures))]
    cells += [interval(each) for what in ("final", "area") for each in estimates(found, what).values()]
    if environment.threshold is not None:
        reached = int(np.isfinite(found.numbers("reached")).sum())
        cells += [number(reached / len(found.scores), f"{reached} of {len(found.scores)}"), _steps(steps_to_threshold(found))]
    seconds = found.numbers("seconds")
    typical = float(np.nanmedian(seconds)) if np.isfinite(seconds).any() else math.nan
    return [*cells, number(typical, duration(typical))]


def _steps(found: Estimate) -> Cell:
    say = [("never" if math.isinf(step) else f"{step:,.0f}") for step in found]
    return Cell(say[0] if math.isnan(found.low) else f"{say[0]} ({say[1]} to {say[2]})", found.value)


def improvements(comparisons: Sequence[Comparison]) -> Table:
    """Each configuration against the baseline."""
    heads = ["configuration", "difference of means ± 95%", "p, corrected", "P(better)", "p of P(better), corrected", "seeds", "paired"]
    rows = []
    for each in comparisons:
        found = each.difference
        margin = "" if math.isnan(found.margin) else f" ± {plain(found.margin, found.margin)}"
        difference = Cell(f"{plain(found.value, found.margin if margin else None)}{margin}", found.value)
        rows.append([word(each.name), difference, p_value(each.p), interval(each.improvement), p_value(each.improvement_p), number(found.seeds, str(found.seeds)), word("yes" if found.paired else "no")])
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


def settings(found: Sequence[Configuration]) -> Table:
    """Every setting that was tried."""
    heads = ["configuration", "seeds", "failed", *(f"final return, {name}" for name in STATISTICS)]
    return Table(heads, [[word(each.name), number(len(each.scores), str(len(each.scores))), number(each.failures, str(each.failures)), *(interval(one) for one in estimates(each, "final").values())] for each in found])


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
    row: dict[str, object] = {"environment": environment.name, "configuration": found.name, "other_settings": " or ".join(found.chosen)}
    row |= {"seeds": len(found.scores), "failed": found.failures}
    measured = {f"{what}_{name.lower()}": each for what in ("final", "area") for name, each in estimates(found, what).items()}
    if environment.threshold is not None:
        row |= {"threshold": environment.threshold, "reached": int(np.isfinite(found.numbers("reached")).sum())}
        measured["steps_to_threshold_median"] = steps_to_threshold(found)
    if comparison:
        difference = comparison.difference
        row |= {"baseline": comparison.baseline, "difference": difference.value, "difference_margin": difference.margin, "difference_p_corrected": comparison.p}
        row |= {"paired": difference.paired, "improvement_p_corrected": comparison.improvement_p}
        measured["improvement"] = comparison.improvement
    row |= {f"{name}{end}": value for name, each in measured.items() for end, value in zip(("", "_low", "_high"), each, strict=True)}
    seconds = found.numbers("seconds")
    row["wall_seconds_median"] = float(np.nanmedian(seconds)) if np.isfinite(seconds).any() else math.nan
    return row | {tag: diagnostic(found, tag) for tag in DIAGNOSTICS}
