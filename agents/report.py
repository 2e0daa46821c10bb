"""The command `rlloss-report`: from the directories of runs to a page, figures, tables and TensorBoard."""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from agents import comparisons, report_figures, report_tables
from agents.command_line import one_line
from agents.comparisons import Comparison, Configuration
from agents.config import ConfigError, nearest, refuse
from agents.event_log import EventLog
from agents.report_figures import Drawing
from agents.report_page import Figure, page
from agents.report_tables import Table
from agents.run_directory import CONFIG, EVENTS, refuse_unwritable
from agents.run_records import RunRecord, read_runs
from agents.scores import Environment, environments
from agents.sweep import counted
from agents.swept import chosen_keys, is_number, swept_keys


@dataclass(frozen=True)
class Section:
    """What a report says of one environment."""

    environment: Environment
    configurations: list[Configuration]
    comparisons: list[Comparison]
    sentences: list[str]
    notes: list[str]
    tables: dict[str, Table]
    drawings: list[Drawing]


@dataclass(frozen=True)
class Report:
    """A whole report."""

    title: str
    runs: int
    by: list[str]
    baseline: str | None
    sections: list[Section]
    together: tuple[Table, Drawing] | None = None  # all environments, normalised


def report_main() -> None:
    """`rlloss-report SWEEP_DIR`: compare the runs below a directory."""
    parser = argparse.ArgumentParser(prog="rlloss-report", description="Compare runs: one page, figures, a Markdown table, a CSV, and figures in TensorBoard.")
    parser.add_argument("directories", nargs="+", type=Path, metavar="SWEEP_DIR", help="directories with runs below them")
    parser.add_argument("--by", metavar="KEY[,KEY]", help="the settings that make a configuration, such as loss.value (all that differ)")
    parser.add_argument("--baseline", metavar="NAME", help="the configuration to compare the others with (mse, else the first)")
    parser.add_argument("--threshold", action="append", default=[], metavar="[ENV=]RETURN", help="the return that counts as solved (what Gymnasium says)")
    parser.add_argument("--difference", type=float, metavar="RETURN", help="a difference worth finding, for the number of seeds that it needs (the one seen)")
    parser.add_argument("--out", type=Path, metavar="DIRECTORY", help="where to write (SWEEP_DIR/report)")
    parser.error = refuse
    with one_line("rlloss-report"):
        options = parser.parse_args()
        out = options.out or options.directories[0] / "report"
        _refuse_unusable(options.directories, out)
        runs = _runs(options.directories)
        report = make_report(runs, by=options.by, baseline=options.baseline, thresholds=_thresholds(options.threshold), worth=options.difference)
        write(report, out)
        for section in report.sections:
            print(f"{section.environment.name}: {counted(len(section.environment.scores), 'run')}")
            print("".join(f"  {line}\n" for line in section.sentences), end="")
        print(f"report: {out / 'index.html'}")


def _refuse_unusable(directories: Sequence[Path], out: Path) -> None:
    """Raise ConfigError or RunDirectoryError if there is nothing to read, or nobody can write to `out`, before the work."""
    for directory in directories:
        if not directory.is_dir():
            raise ConfigError(f"{directory} is no directory; name one with runs below it")
    if (out / CONFIG).exists():
        raise ConfigError(f"{out} holds a run; choose another --out")
    refuse_unwritable(out, "directory for --out")


def _runs(directories: Sequence[Path]) -> list[RunRecord]:
    if not (runs := read_runs(directories)):
        raise ConfigError(f"there is no run in or below {', '.join(map(str, directories))}: a run is a directory with {CONFIG}")
    return runs


def _thresholds(words: Sequence[str]) -> dict[str, float]:
    """Thresholds by environment name, "" for all."""
    found = {}
    for word in words:
        name, _, number = word.rpartition("=")
        try:
            found[name] = float(number)
        except ValueError as error:
            raise ConfigError(f"--threshold {word}: write a number, such as 475, or with its environment CartPole-v1=475") from error
    return found


def make_report(
    runs: Sequence[RunRecord], by: str | None = None, baseline: str | None = None, thresholds: Mapping[str, float] | None = None, worth: float | None = None
) -> Report:
    """Compare runs; arguments as on the command line."""
    found = environments(runs, thresholds or {})
    if not found:
        raise ConfigError(f"none of the {len(runs)} runs is complete; continue them first" if len(runs) > 1 else "the only run is not complete; continue it first")
    there = [environment.name for environment in found]
    if unknown := [name for name in thresholds or {} if name and name not in there]:
        raise ConfigError(f"--threshold {unknown[0]}: no such environment; there is {', '.join(there)}{nearest(unknown[0], there)}")
    scores = [score for environment in found for score in environment.scores]
    known, where = [score.settings for score in scores], [environment.name for environment in found for _ in environment.scores]
    swept = swept_keys(known, where)
    keys = chosen_keys(by.split(","), known) if by else swept
    sides = {environment.name: comparisons.configurations(environment, keys, swept) for environment in found}
    against = comparisons.find_baseline(baseline, list(dict.fromkeys(each.name for side in sides.values() for each in side)))
    compared = comparisons.compared(sides, against)
    numbers = [key for key in swept if len({setting[key] for setting in known if is_number(setting.get(key))}) > 1]
    sections = [
        _section(environment, sides[environment.name], [each for each in compared if each.environment == environment.name], numbers, swept, worth)
        for environment in found
    ]
    return Report(" and ".join(there), len(scores), keys, against, sections, _together(found, sides, against))


def _section(
    environment: Environment, found: list[Configuration], compared: list[Comparison], numbers: Sequence[str], swept: Sequence[str], worth: float | None
) -> Section:
    """What a report says of one environment; `numbers` are those of the swept keys that are numbers."""
    choices = [key for key in swept if key not in numbers]
    tables = {"Return after training": report_tables.final_returns(found)}
    if compared:
        tables[f"Against {compared[0].baseline}"] = report_tables.improvements(compared)
    tables["Speed of learning"] = report_tables.learning(environment, found)
    if told := report_tables.diagnostics(found):
        tables["Losses and gradients"] = told
    if failed := [score for score in environment.scores if score.failed]:
        tables["Failed runs"] = report_tables.failures(failed, swept)
    if any(each.chosen for each in found):
        tables["Every setting"] = report_tables.final_returns(comparisons.configurations(environment, swept, swept))
    drawings = list(report_figures.drawings(environment, found, compared, numbers, choices))
    return Section(environment, found, compared, [comparisons.sentence(each, worth) for each in compared], _notes(environment, found), tables, drawings)


def _notes(environment: Environment, found: Sequence[Configuration]) -> list[str]:
    """What a reader must know of how the numbers of an environment came about."""
    notes = []
    if failed := sum(score.failed for score in environment.scores):
        notes.append(f"{failed} failed {'run counts' if failed == 1 else 'runs count'} with {comparisons.plain(environment.lowest)}, the lowest return of any run here, from where {'it' if failed == 1 else 'they'} failed on.")
    if pruned := sum(score.pruned for score in environment.scores):
        notes.append(f"{pruned} {'run that a search gave up counts' if pruned == 1 else 'runs that a search gave up count'} with the return at that step.")
    if environment.incomplete:
        notes.append(f"{len(environment.incomplete)} {'run is' if len(environment.incomplete) == 1 else 'runs are'} not complete and left out, such as {environment.incomplete[0].directory}.")
    if environment.repeated:
        notes.append(f"{environment.repeated} {'run is' if environment.repeated == 1 else 'runs are'} there twice, with the same settings and seed; the newer {'one counts' if environment.repeated == 1 else 'ones count'}.")
    if not environment.evaluated:
        notes.append("There are no evaluations during training, so curves, areas and steps to the threshold are of training episodes.")
    if any(each.chosen for each in found):
        flattered = any(each.flattered for each in found)
        way = "chosen by the same few seeds that score it, which flatters those with more settings to choose from" if flattered else "chosen by every third seed; the others score it"
        notes.append(f"Each configuration stands with the best of its other settings, {way}.")
    few = min(len(each.scores) for each in found)
    if few == 1:
        notes.append("A configuration with one seed has no interval: nothing can be said of chance.")
    elif few < 10:
        notes.append(f"With {few} seeds bootstrap intervals are somewhat too narrow.")
    if len(found) > report_figures.MOST:
        notes.append(f"Figures show the first {report_figures.MOST} of {len(found)} configurations.")
    return notes


def _together(found: Sequence[Environment], sides: Mapping[str, Sequence[Configuration]], baseline: str | None) -> tuple[Table, Drawing] | None:
    """Final returns of all environments, each on a scale from 0, its lowest run, to 1, its highest.

    None for one environment, or where they share no configuration.
    """
    shared = set.intersection(*({each.name for each in side} for side in sides.values()))
    if len(found) < 2 or not shared:
        return None
    scaled: dict[str, list[np.ndarray]] = {}
    for environment in found:
        finals = np.array([score.final for score in environment.scores])
        for each in sides[environment.name]:
            if each.name in shared:
                scaled.setdefault(each.name, []).append((each.numbers("final") - finals.min()) / max(np.ptp(finals), 1e-12))
    return report_tables.normalised(scaled, baseline), report_figures.normalised(scaled)


def write(report: Report, out: Path) -> None:
    """Write a report into a directory, over an older one."""
    out.mkdir(parents=True, exist_ok=True)
    for old in [*out.glob(EVENTS), *out.glob("figures/*.svg"), *out.glob("figures/*.png")]:
        old.unlink()
    (out / "figures").mkdir(exist_ok=True)
    log = EventLog(out)
    drawn: dict[str, list[Figure]] = {}
    for section in report.sections:
        drawn[section.environment.name] = [_drawn(drawing, section.environment.name, out, log) for drawing in section.drawings]
    together = _drawn(report.together[1], "all", out, log) if report.together else None
    text = markdown(report)
    log.text("report", text)
    log.flush()
    (out / "table.md").write_text(text)
    rows = [
        report_tables.configuration_numbers(section.environment, each, next((one for one in section.comparisons if one.name == each.name), None))
        for section in report.sections
        for each in section.configurations
    ]
    (out / "table.csv").write_text(report_tables.comma_separated(rows))
    (out / "index.html").write_text(page(report, drawn, together))


def _drawn(drawing: Drawing, environment: str, out: Path, log: EventLog) -> Figure:
    png, svg = report_figures.rendered(drawing)
    name = "".join(letter if letter.isalnum() or letter in "-_." else "-" for letter in f"{environment}_{drawing.name}")
    (out / "figures" / f"{name}.png").write_bytes(png)
    (out / "figures" / f"{name}.svg").write_text(svg)
    log.image(f"report/{environment}/{drawing.name}", png)
    return Figure(name, drawing.caption, svg)


def markdown(report: Report) -> str:
    """The report's sentences, notes and tables in Markdown."""
    parts = [f"# {report.title}\n\n{counted(report.runs, 'run')}, by {', '.join(report.by) or 'nothing'}.\n"]
    if report.together:
        parts.append(f"\n## All environments\n\n{report_tables.markdown(report.together[0])}")
    for section in report.sections:
        parts.append(f"\n## {section.environment.name}\n")
        parts += ["\n" + "".join(f"- {line}\n" for line in lines) for lines in (section.sentences, section.notes) if lines]
        parts += [f"\n### {title}\n\n{report_tables.markdown(table)}" for title, table in section.tables.items()]
    return "".join(parts)
