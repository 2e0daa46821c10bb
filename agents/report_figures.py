"""The figures of `rlloss-report`: one panel each, so that a phone can show them. Configurations keep their colour throughout.

Colours of text and lines are names that the page replaces by its own, light or dark.
"""

import io
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from agents import statistics
from agents.comparisons import Comparison, Configuration
from agents.landscape_figures import COLOURS, DASHES, STYLE
from agents.scores import Environment, Score, on_grid
from agents.swept import configuration, is_number

TEXT, GRID = "#1b1b1c", "#e3e3e4"
PALETTE = (*COLOURS[:6], "#8a8a8a", "#A05A2C")
MOST = 12  # configurations in one figure
REPORT_STYLE = STYLE | {
    "font.size": 9.5,
    "axes.titlesize": 10,
    "text.color": TEXT,
    "axes.labelcolor": TEXT,
    "axes.edgecolor": TEXT,
    "xtick.color": TEXT,
    "ytick.color": TEXT,
    "grid.color": GRID,
    "axes.titlelocation": "left",
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "legend.fontsize": 8.5,
}

DIAGNOSTICS = {
    "td_error/linear_zone_share": "share of errors in the linear zone",
    "td_error/abs_mean": "mean size of TD errors",
    "td_error/abs_p50": "median size of TD errors",
    "td_error/abs_p95": "95th percentile of TD errors",
    "td_error/curvature": "effective curvature: mean ℓ″ over the errors",
    "gradient/norm": "gradient norm before clipping",
    "policy/clip_fraction": "share of ratios beyond the clip range",
    "value/explained_variance": "explained variance of the critic",
    "loss/value": "value loss",
}


class Drawing(NamedTuple):
    """A figure before it is drawn: its file's name, what it shows in words, and how it is drawn into axes."""

    name: str
    caption: str
    draw: Callable[[Axes], None]
    height: float = 3.3


def rendered(drawing: Drawing) -> tuple[bytes, str]:
    """A figure as PNG and as SVG."""
    with matplotlib.rc_context(REPORT_STYLE):
        figure = Figure(figsize=(4.8, drawing.height), layout="constrained")
        axes = figure.subplots()
        drawing.draw(axes)
        handles, labels = axes.get_legend_handles_labels()
        if labels:
            columns = 3 if max(map(len, labels)) < 12 else 2 if max(map(len, labels)) < 26 else 1
            figure.set_figheight(drawing.height + 0.17 * ((len(labels) - 1) // columns))  # So that a long legend leaves room for what it explains.
            figure.legend(handles, labels, loc="outside lower center", ncols=columns, handlelength=2.2)
        png, svg = io.BytesIO(), io.BytesIO()
        figure.savefig(png, format="png", dpi=150)
        figure.savefig(svg, format="svg", metadata={"Date": None})
    return png.getvalue(), svg.getvalue().decode()


def drawings(
    environment: Environment, found: Sequence[Configuration], comparisons: Sequence[Comparison], numbers: Sequence[str], choices: Sequence[str]
) -> Iterator[Drawing]:
    """All figures of an environment; `numbers` are the keys of numbers that were swept, `choices` the other keys."""
    shown = found[:MOST]
    what = "greedy evaluations" if environment.evaluated else "training episodes"
    yield Drawing("learning_curves", f"Learning curves: interquartile mean of the return of {what}, with its 95% interval.", lambda axes: _curves(axes, shown))
    height = 1.1 + 0.38 * len(shown)
    yield Drawing("final_return", "Final return: every run, the interquartile mean and its 95% interval.", lambda axes: _finals(axes, shown), max(height, 2.2))
    yield Drawing("profile", "Performance profile: the share of runs whose final return is above a value, with its 95% band.", lambda axes: _profiles(axes, shown))
    if comparisons:
        caption = f"Probability that a run is better than {comparisons[0].baseline}'s{' at the same seed' if comparisons[0].difference.paired else ''}, with its 95% interval."
        yield Drawing("improvement", caption, lambda axes: _improvements(axes, comparisons, [each.name for each in found]), max(1.1 + 0.38 * len(comparisons), 2.0))
    if environment.threshold is not None:
        caption = f"Sample efficiency: the share of runs that have come to a return of {environment.threshold:g}, by step."
        yield Drawing("efficiency", caption, lambda axes: _efficiency(axes, shown))
    for key in numbers:
        caption = f"Sensitivity: final return against {key}; points are runs, lines interquartile means with 95% intervals, other settings pooled."
        yield Drawing(f"sensitivity_{key}", caption, lambda axes, key=key: _sensitivity(axes, environment.scores, key, choices, [each.name for each in found]))
    for tag, caption in DIAGNOSTICS.items():
        if any(tag in score.record.scalars for each in shown for score in each.scores):
            yield Drawing(tag.replace("/", "_"), f"{caption[0].upper()}{caption[1:]} ({tag}): median of runs, and their middle half.", lambda axes, tag=tag: _diagnostic(axes, shown, tag))


def style(index: int) -> dict[str, object]:
    """The colour and dash of a configuration by its place."""
    return {"color": PALETTE[index % len(PALETTE)], "linestyle": DASHES[index // len(PALETTE) % len(DASHES)]}


def _shade(axes: Axes, x: np.ndarray, middle: np.ndarray, low: np.ndarray, high: np.ndarray, index: int, label: str) -> None:
    axes.plot(x, middle, label=label, **style(index), marker="o" if len(x) == 1 else None)
    axes.fill_between(x, low, high, color=style(index)["color"], alpha=0.18, linewidth=0)


def _curves(axes: Axes, found: Sequence[Configuration]) -> None:
    for index, each in enumerate(found):
        steps, values = on_grid([score.curve for score in each.scores])
        if len(steps):
            _shade(axes, steps, *statistics.band(values), index, each.name)
    _steps(axes, "return")


def _steps(axes: Axes, what: str) -> None:
    axes.set(xlabel="environment steps", ylabel=what)
    axes.xaxis.set_major_formatter(lambda step, _: f"{step / 1e6:g}M" if step >= 1e6 else f"{step / 1e3:g}k" if step >= 1e3 else f"{step:g}")
    axes.xaxis.set_major_locator(matplotlib.ticker.MaxNLocator(6))


def _finals(axes: Axes, found: Sequence[Configuration]) -> None:
    for index, each in enumerate(found):
        scores, estimate, colour = each.numbers("final"), statistics.estimate([each.numbers("final")]), style(index)["color"]
        jitter = (np.arange(len(scores)) * 0.618 % 1 - 0.5) * 0.5
        axes.plot(scores, index + jitter, "o", color=colour, alpha=0.45, markersize=5, markeredgewidth=0)
        axes.plot([estimate.low, estimate.high], [index, index], color=colour, linewidth=3, solid_capstyle="butt")
        axes.plot(estimate.value, index, "D", color=colour, markersize=6, markeredgecolor="white")
    axes.set(yticks=range(len(found)), yticklabels=[each.name for each in found], xlabel="final return", ylim=(len(found) - 0.4, -0.6))
    axes.grid(axis="y", visible=False)


def _profiles(axes: Axes, found: Sequence[Configuration]) -> None:
    everything = np.concatenate([each.numbers("final") for each in found])
    thresholds = np.linspace(everything.min(), everything.max(), 101) if np.ptp(everything) else everything[0] + np.linspace(-1, 1, 101)
    for index, each in enumerate(found):
        _shade(axes, thresholds, *statistics.profile_band([each.numbers("final")], thresholds), index, each.name)
    axes.set(xlabel="final return τ", ylabel="share of runs above τ", ylim=(-0.02, 1.02))


def _improvements(axes: Axes, comparisons: Sequence[Comparison], names: Sequence[str]) -> None:
    for row, each in enumerate(comparisons):
        colour = style(names.index(each.name))["color"]
        axes.plot([each.improvement.low, each.improvement.high], [row, row], color=colour, linewidth=3, solid_capstyle="butt")
        axes.plot(each.improvement.value, row, "D", color=colour, markersize=6, markeredgecolor="white")
    axes.axvline(0.5, color=TEXT, linewidth=0.8, linestyle=":")
    axes.set(yticks=range(len(comparisons)), yticklabels=[each.name for each in comparisons], xlim=(-0.02, 1.02), ylim=(len(comparisons) - 0.4, -0.6))
    axes.set_xlabel(f"P(better than {comparisons[0].baseline})")
    axes.grid(axis="y", visible=False)


def _efficiency(axes: Axes, found: Sequence[Configuration]) -> None:
    for index, each in enumerate(found):
        reached, last = np.sort(each.numbers("reached")), max((score.curve.steps[-1] for score in each.scores if len(score.curve.steps)), default=0)
        within = reached[np.isfinite(reached)]
        steps, shares = [0, *within, last], [0, *(np.arange(1, len(within) + 1) / len(reached)), len(within) / len(reached)]
        axes.step(steps, shares, where="post", label=each.name, **style(index))
    _steps(axes, "share of runs")
    axes.set_ylim(-0.02, 1.02)


def _sensitivity(axes: Axes, scores: Sequence[Score], key: str, choices: Sequence[str], names: Sequence[str]) -> None:
    groups: dict[str, list[Score]] = {name: [] for name in names if any(configuration(score.settings, choices) == name for score in scores)}
    for score in scores:
        if is_number(score.settings.get(key)):
            groups.setdefault(configuration(score.settings, choices), []).append(score)
    groups = {name: group for name, group in groups.items() if group}
    values = sorted({float(score.settings[key]) for group in groups.values() for score in group})
    wide = values[0] > 0 and values[-1] / values[0] >= 8
    for index, (name, group) in enumerate(list(groups.items())[:MOST]):
        at = {value: np.array([score.final for score in group if score.settings[key] == value]) for value in values}
        at = {value: finals for value, finals in at.items() if len(finals)}
        estimates = [statistics.estimate([finals]) for finals in at.values()]
        beside = 0.015 * (index - (len(groups) - 1) / 2)  # So that groups don't hide each other.
        places = [value * (values[-1] / values[0]) ** beside if wide else value + (values[-1] - values[0]) * beside for value in at]
        for place, finals in zip(places, at.values(), strict=True):
            axes.plot(np.full(len(finals), place), finals, "o", color=style(index)["color"], alpha=0.3, markersize=4, markeredgewidth=0)
        margins = np.nan_to_num([[each.value - each.low, each.high - each.value] for each in estimates]).clip(0).T
        axes.errorbar(places, [each.value for each in estimates], yerr=margins, label=name, capsize=3, elinewidth=2, marker="D", markersize=5, **style(index))
    if wide:
        axes.set_xscale("log")
    axes.set_xticks(values, [f"{value:g}" for value in values])
    axes.minorticks_off()
    axes.set(xlabel=key, ylabel="final return")


def _diagnostic(axes: Axes, found: Sequence[Configuration], tag: str) -> None:
    highest, lowest = -math.inf, math.inf
    for index, each in enumerate(found):
        steps, values = on_grid([score.record.scalars[tag] for score in each.scores if tag in score.record.scalars])
        if len(steps):
            low, middle, high = np.percentile(values, (25, 50, 75), axis=0)
            _shade(axes, steps, middle, low, high, index, each.name)
            highest, lowest = max(highest, middle.max()), min(lowest, middle.min())
    if lowest > 0 and highest > 50 * lowest:
        axes.set_yscale("log")
    _steps(axes, "")


def normalised(found: Mapping[str, Sequence[np.ndarray]]) -> Drawing:
    """The figure of normalised returns [seeds] of all environments, by configuration: interquartile means with intervals."""

    def draw(axes: Axes) -> None:
        for index, (_, strata) in enumerate(found.items()):
            estimate, colour = statistics.estimate(strata), style(index)["color"]
            axes.plot([estimate.low, estimate.high], [index, index], color=colour, linewidth=3, solid_capstyle="butt")
            axes.plot(estimate.value, index, "D", color=colour, markersize=6, markeredgecolor="white")
        axes.set(yticks=range(len(found)), yticklabels=list(found), xlabel="normalised final return", ylim=(len(found) - 0.4, -0.6))
        axes.grid(axis="y", visible=False)

    return Drawing("normalised", "Interquartile mean of the normalised final return over all environments, with its 95% interval, stratified by environment.", draw, max(1.1 + 0.38 * len(found), 2.2))
