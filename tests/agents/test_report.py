"""The command rlloss-report on runs whose numbers are known: what it reads, compares and says, and what it writes."""

import csv
import json
import math
import sys

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader

from agents import comparisons, report, scores, swept
from agents.config import compose
from agents.run import Failure
from agents.run_directory import write_failure, write_pruned
from agents.run_records import read_runs, run_directories
from tests.sweeps import STEPS, write_run, write_sweep

MSE, HUBER = "loss/value=mse", "loss/value=huber"


def rising(height, noise=5.0):
    """Returns that rise to a height, with a noise of each seed's own."""
    return lambda seed: [height * step / STEPS[-1] + noise * np.random.default_rng([seed, int(abs(height))]).normal() for step in STEPS]


def made(directory, **options):
    return report.make_report(read_runs([directory]), **options)


@pytest.fixture
def command(monkeypatch, capsys):
    def call(*words):
        monkeypatch.setattr(sys, "argv", ["rlloss-report", *map(str, words)])
        report.report_main()
        return capsys.readouterr().out

    return call


@pytest.fixture(scope="module")
def two_losses(tmp_path_factory):
    directory = tmp_path_factory.mktemp("two")
    write_sweep(directory, {MSE: rising(100), HUBER: rising(150)})
    return directory


def test_scalars_are_read_as_tensorboard_reads_them(tmp_path):
    write_run(tmp_path / "a", [1.0, 2.0], MSE, scalars=[(500, {"loss/value": 0.5, "td_error/abs_mean": 1.5}), (700, {"loss/value": 0.25})])
    (path,) = (tmp_path / "a").glob("events*")
    theirs = {}
    for event in LegacyEventFileLoader(str(path)).Load():
        for value in event.summary.value:
            if value.HasField("simple_value"):
                theirs.setdefault(value.tag, []).append((event.step, value.simple_value))
    (run,) = read_runs([tmp_path])
    assert {tag: list(zip(*curve, strict=True)) for tag, curve in run.scalars.items()} == theirs
    with path.open("ab") as file:
        file.write(b"\x30\0\0\0\0\0\0\0half")  # A record that a killed process left.
    assert {tag: curve.values.tolist() for tag, curve in read_runs([tmp_path])[0].scalars.items()} == {tag: curve.values.tolist() for tag, curve in run.scalars.items()}


def test_runs_are_found_at_any_depth_once_and_the_reports_own_folder_is_none(two_losses, command):
    command(two_losses)
    assert len(list(run_directories(two_losses))) == 16 == len(read_runs([two_losses, two_losses / "3"]))


def test_hydras_notes_are_no_run(tmp_path):
    write_run(tmp_path / "0", [1.0, 2.0], MSE)
    for directory in (tmp_path / "0" / ".hydra", tmp_path / "1" / ".hydra"):  # The second job never began.
        directory.mkdir(parents=True)
        (directory / "config.yaml").write_text("seed: 0\n")
    assert list(run_directories(tmp_path)) == [tmp_path / "0"]


def test_a_configuration_is_named_as_it_is_chosen():
    def names(*words):
        run = swept.settings(type("Run", (), {"config": compose(list(words)), "choices": {}}))
        return run["loss.value"], run["agent"], run["optimizer"]

    assert names() == ("mse", "dqn", "adam") and names("loss/value=matched_mse")[0] == "matched_mse"
    assert names("loss/value=hl_gauss", "agent=ppo")[:2] == ("hl_gauss", "ppo") and names("loss.value.matched_curvature=true")[0] == "matched_mse"
    run = type("Run", (), {"config": compose(["loss.value._target_=my_module.Cubic", "agent=double_dqn"]), "choices": {"agent": "double_dqn"}})
    assert swept.settings(run)["loss.value"] == "Cubic" and swept.settings(run)["agent"] == "double_dqn"


@pytest.mark.parametrize(
    ("jobs", "keys", "names"),
    [
        ([[MSE], [HUBER], ["loss/value=hl_gauss"]], ["loss.value"], ["hl_gauss", "huber", "mse"]),
        ([[MSE], [HUBER, "loss.value.delta=0.5"], [HUBER]], ["loss.value", "loss.value.delta"], ["huber delta=0.5", "huber delta=1", "mse"]),
        ([["optimizer.learning_rate=1e-3"], ["optimizer.learning_rate=1e-4"]], ["optimizer.learning_rate"], ["learning_rate=0.0001", "learning_rate=0.001"]),
        ([[MSE], ["loss/value=matched_mse"]], ["loss.value"], ["matched_mse", "mse"]),
        ([[MSE], [MSE, "loss/regularizer=[l2]"]], ["loss.regularizer.l2"], ["all", "l2"]),
        ([["agent=dqn"], ["agent=ppo"]], ["agent"], ["dqn", "ppo"]),
        ([["network.hidden=[64,64]"], ["network.hidden=[32]"]], ["network.hidden"], ["hidden=[32]", "hidden=[64,64]"]),
    ],
)
def test_what_was_swept_is_found(tmp_path, jobs, keys, names):
    for index, words in enumerate(jobs):
        for seed in range(2):
            write_run(tmp_path / f"{index}-{seed}", [1.0, 2.0], *words, seed=seed)
    found = made(tmp_path)
    assert found.by == keys
    assert [each.name for each in found.sections[0].configurations] == names


def test_numbers_that_a_person_writes_never_share_a_name():
    numbers = [0.99999999, 0.9999999, 1.0, 1e6, 1_000_001.0, 3e-4, 1e-10]
    assert [swept.value_name(number) for number in numbers] == ["0.99999999", "0.9999999", "1", "1000000", "1000001", "0.0003", "1e-10"]
    assert swept.value_name(0.00034123958719031) == "0.00034124"


def test_environments_are_never_pooled(tmp_path):
    write_sweep(tmp_path, {f"env={env} {loss}": rising(height) for env, height in (("cartpole", 100), ("acrobot", -90)) for loss in (MSE, HUBER)}, seeds=range(3))
    found = made(tmp_path)
    assert {section.environment.name: section.environment.threshold for section in found.sections} == {"CartPole-v1": 475, "Acrobot-v1": -100}
    assert all([each.name for each in section.configurations] == ["huber", "mse"] and len(section.configurations[0].scores) == 3 for section in found.sections)
    assert found.by == ["loss.value"]
    table, _ = found.together
    finals = [np.array([score.final for score in section.environment.scores]) for section in found.sections]
    huber = [(section.configurations[0].numbers("final") - all_of.min()) / np.ptp(all_of) for section, all_of in zip(found.sections, finals, strict=True)]
    assert [row[0].text for row in table.rows] == ["huber", "mse"] and table.rows[0][2].key == pytest.approx(np.mean(huber)) and len(table.rows[0]) == 5


def test_the_numbers_of_a_configuration_are_those_written(tmp_path):
    for seed, final in enumerate((10.0, 20.0, 40.0, 80.0)):
        write_run(tmp_path / str(seed), [0.0, 0.0, *[final] * 8], MSE, seed=seed)
    (only,) = made(tmp_path, thresholds={"": 40}).sections[0].configurations
    assert only.numbers("final").tolist() == [10, 20, 40, 80]
    assert only.numbers("area") == pytest.approx(np.array([10, 20, 40, 80]) * 7.5 / 9)
    assert only.numbers("reached").tolist() == [math.inf, math.inf, 3000, 3000] and only.seconds == 60


def test_a_failed_run_counts_with_the_lowest_return(tmp_path):
    write_run(tmp_path / "fine", [5.0] * 9 + [100.0], MSE)
    write_run(tmp_path / "failed", [50.0, 60.0], MSE, seed=1, failed=True)
    write_run(tmp_path / "stopped", [7.0], MSE, seed=2, complete=False)
    section = made(tmp_path).sections[0]
    (only,) = section.configurations
    assert only.failures == 1 and only.numbers("final").tolist() == [100, 5]
    assert only.scores[1].curve.values.tolist() == [50, 60] + [5] * 8 and only.scores[1].curve.steps.tolist() == list(STEPS)
    assert any("1 failed run counts with 5.00" in note for note in section.notes) and any("1 run is not complete" in note for note in section.notes)
    (row,) = section.tables["Failed runs"].rows
    assert [cell.text for cell in row] == ["all", "1", "2,000", "the loss is nan", "failed"]


def test_what_a_failed_run_was_evaluated_at_later_doesnt_count(tmp_path):
    write_run(tmp_path / "fine", [5.0] * 9 + [100.0], MSE)
    write_run(tmp_path / "failed", [50.0] * 10, MSE, seed=1, failed=True)
    write_failure(tmp_path / "failed", Failure("weights are nan", "weights", 2500, None))
    (only,) = made(tmp_path).sections[0].configurations
    assert only.scores[1].curve.values.tolist() == [50, 50] + [5] * 8 and only.scores[1].final == 5


def test_a_run_that_was_given_up_counts_with_its_return_then(tmp_path):
    write_run(tmp_path / "fine", [5.0] * 9 + [100.0], MSE)
    write_run(tmp_path / "pruned", [20.0, 30.0], MSE, seed=1, complete=False)
    write_pruned(tmp_path / "pruned", 2000, 30.0)
    section = made(tmp_path).sections[0]
    (only,) = section.configurations
    assert only.scores[1].curve.values.tolist() == [20] + [30] * 9 and only.numbers("final").tolist() == [100, 30] and not only.failures
    assert any("a search gave up" in note for note in section.notes)


def test_of_the_same_run_twice_one_counts(tmp_path):
    for name, value in (("first", 1.0), ("again", 2.0)):
        write_run(tmp_path / name, [value, value], MSE)
    section = made(tmp_path).sections[0]
    assert len(section.environment.scores) == 1 and any("twice" in note for note in section.notes)


def test_without_evaluations_curves_are_of_training_episodes(tmp_path):
    write_run(tmp_path / "a", [], MSE, final=9.0, scalars=[(step, {"rollout/episode_return": float(step)}) for step in (100, 150, 5000, 10_000)])
    section = made(tmp_path).sections[0]
    curve = section.configurations[0].scores[0].curve
    assert (curve.steps[0], curve.values[0], curve.values[-1], len(curve.steps)) == (200, 125, 10_000, 50) and curve.values[30] == 5000
    assert any("training episodes" in note for note in section.notes)


def test_a_difference_is_said_plainly(two_losses):
    (said,) = made(two_losses).sections[0].sentences
    found = made(two_losses).sections[0].comparisons[0].difference
    assert said == f"huber beats mse by {found.value:.{1 if found.margin < 10 else 0}f} ± {found.margin:.{1 if found.margin < 10 else 0}f} (95%), 8 paired seeds."
    assert made(two_losses, baseline="huber").sections[0].sentences[0].startswith("mse loses to huber by ")


def test_where_nothing_can_be_told_it_says_how_many_seeds_would(tmp_path):
    write_sweep(tmp_path, {MSE: rising(100, 30), HUBER: rising(101, 30)})
    (said,) = made(tmp_path, worth=10).sections[0].sentences
    assert said.startswith("No difference between huber and mse can be told at 8 paired seeds (") and said.endswith("would be needed to see one of 10.")
    needed, deviation = int(said.split("about ")[1].split(" ")[0]), made(tmp_path).sections[0].comparisons[0].difference.deviation
    assert needed == pytest.approx((1.96 + 0.84) ** 2 * (deviation / 10) ** 2, rel=0.15)  # The normal approximation.


def test_one_seed_and_equal_runs_are_said(tmp_path):
    write_sweep(tmp_path / "one", {MSE: rising(100), HUBER: rising(150)}, seeds=[0])
    section = made(tmp_path / "one").sections[0]
    assert "one seed, which tells nothing" in section.sentences[0] and any("has no interval" in note for note in section.notes)
    write_sweep(tmp_path / "equal", {MSE: lambda seed: [seed] * 10, HUBER: lambda seed: [seed] * 10}, seeds=range(3))
    assert made(tmp_path / "equal").sections[0].sentences == ["huber and mse are the same at all 3 paired seeds."]
    write_sweep(tmp_path / "flat", {MSE: lambda seed: [500] * 10, HUBER: lambda seed: [9] * 10}, seeds=range(3))
    (said,) = made(tmp_path / "flat").sections[0].sentences
    assert said == "huber is behind mse by 491 at all 3 paired seeds, which are too few to tell it from chance (p = 0.25)."


def test_seeds_that_dont_match_are_compared_unpaired(tmp_path):
    write_sweep(tmp_path, {MSE: rising(100)}, seeds=range(5))
    write_sweep(tmp_path, {HUBER: rising(150)}, seeds=range(5, 10))
    assert not made(tmp_path).sections[0].comparisons[0].difference.paired


def test_the_best_setting_is_chosen_by_other_seeds_than_score_it(tmp_path):
    rates = {f"{MSE} optimizer.learning_rate={rate}": rising(height) for rate, height in ((1e-3, 100), (1e-4, 200))}
    rates |= {f"{HUBER} optimizer.learning_rate={rate}": rising(height) for rate, height in ((1e-3, 300), (1e-4, 150))}
    write_sweep(tmp_path, rates)
    section = made(tmp_path, by="loss.value").sections[0]
    assert {each.name: each.chosen for each in section.configurations} == {"huber": "learning_rate=0.001", "mse": "learning_rate=0.0001"}
    assert section.comparisons[0].difference.value == pytest.approx(100, abs=10) and [score.seed for score in section.configurations[0].scores] == [1, 2, 4, 5, 7]
    assert section.sentences[0].startswith("huber (learning_rate=0.001) beats mse (learning_rate=0.0001) by ")
    assert list(section.tables) == ["Return after training", "Against mse", "Speed of learning", "Every setting"] and len(section.tables["Every setting"].rows) == 4
    assert any(drawing.name == "sensitivity_optimizer.learning_rate" for drawing in section.drawings)


def scored(seed, final, **settings):
    record = type("Run", (), {"seed": seed, "failure": None, "pruned": None, "result": {}})
    return scores.Score(record, settings, final, None, math.nan, math.nan)


def test_choosing_flatters_nobody_and_finds_no_difference_where_there_is_none():
    generator, means, findings = np.random.default_rng(0), [], 0
    for _ in range(600):
        # Ten settings of one loss, one of the other, all alike: the best of ten by the same seeds would be half a deviation ahead.
        everything = [scored(seed, generator.normal(), loss="a", rate=rate) for seed in range(8) for rate in range(10)]
        everything += [scored(seed, generator.normal(), loss="b", rate=0) for seed in range(8)]
        a, b = comparisons.configurations(scores.Environment("e", everything, None, 0.0, True), ["loss"], ["loss", "rate"])
        means.append(a.numbers("final").mean())
        findings += comparisons._compared("e", a, b).difference.p < 0.05
    assert abs(np.mean(means)) < 3 * np.std(means) / math.sqrt(600) and findings / 600 == pytest.approx(0.05, abs=0.027)


def test_comparisons_are_corrected_together(tmp_path):
    losses = {f"loss/value={name}": rising(height, 20) for name, height in (("mse", 100), ("huber", 130), ("log_cosh", 101), ("smooth_l1", 102))}
    write_sweep(tmp_path, losses)
    found = made(tmp_path).sections[0].comparisons
    least = min(each.p for each in found)
    assert {each.tests for each in found} == {3} and least < 0.5 and least == pytest.approx(3 * min(each.difference.p for each in found))


def test_what_is_written(two_losses, command, tmp_path):
    said = command(two_losses, "--out", tmp_path / "out", "--threshold", "CartPole-v1=120")
    out = tmp_path / "out"
    assert "huber beats mse" in said and str(out / "index.html") in said
    rows = list(csv.DictReader((out / "table.csv").open()))
    assert [(row["configuration"], row["seeds"], row["reached"]) for row in rows] == [("huber", "8", "8"), ("mse", "8", "0")]
    section = made(two_losses).sections[0]
    assert float(rows[0]["final_mean"]) == pytest.approx(section.configurations[0].numbers("final").mean())
    assert float(rows[0]["difference"]) == pytest.approx(section.comparisons[0].difference.value) and rows[1]["difference"] == ""
    table = (out / "table.md").read_text()
    assert "| huber | 8 | 0 | " in table and "huber beats mse" in table
    names = {path.stem for path in (out / "figures").iterdir()}
    assert {"CartPole-v1_learning_curves", "CartPole-v1_final_return", "CartPole-v1_profile", "CartPole-v1_improvement", "CartPole-v1_efficiency"} <= names
    assert all((out / "figures" / f"{name}{kind}").read_bytes()[:5] in (b"\x89PNG\r", b"<?xml") for name in names for kind in (".png", ".svg"))
    command(two_losses, "--out", out)  # Written again it is one report, not two.
    (log,) = out.glob("events*")
    tags = [value.tag for event in LegacyEventFileLoader(str(log)).Load() for value in event.summary.value]
    assert tags.count("report") == 1 and "report/CartPole-v1/learning_curves" in tags


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["{}/nowhere"], "is no directory"),
        (["{}/empty"], "there is no run in or below"),
        (["{}/two", "--by", "loss.valeu"], "did you mean loss.value?"),
        (["{}/two", "--by", "learning_rat"], "did you mean optimizer.learning_rate?"),
        (["{}/two", "--baseline", "hubr"], "is no configuration of these runs; there is huber, mse; did you mean huber?"),
        (["{}/two", "--threshold", "high"], "write a number"),
        (["{}/two", "--threshold", "CartPole=1"], "did you mean CartPole-v1?"),
        (["{}/two", "--out", "{}/two/0"], "holds a run"),
        (["{}/stopped"], "the only run is not complete; continue it first"),
    ],
)
def test_mistakes_are_one_line(words, said, two_losses, tmp_path, command, capsys):
    (tmp_path / "two").symlink_to(two_losses)
    (tmp_path / "empty").mkdir()
    write_run(tmp_path / "stopped" / "a", [1.0], MSE, complete=False)
    with pytest.raises(SystemExit) as stopped:
        command(*(word.format(tmp_path) for word in words))
    error = capsys.readouterr().err
    assert stopped.value.code == 2 and said in error and error.count("\n") == 1


def test_one_run_is_said_as_one(command, tmp_path):
    write_run(tmp_path / "a", [1.0, 2.0], MSE)
    assert command(tmp_path).startswith("CartPole-v1: 1 run\n")
    assert "\n1 run, by" in (tmp_path / "report" / "table.md").read_text() and "<h1>1 run on CartPole-v1" in (tmp_path / "report" / "index.html").read_text()


def test_a_place_to_write_is_looked_for_before_the_work(monkeypatch, capsys, command, two_losses, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setattr(report, "read_runs", lambda directories: pytest.fail("runs were read first"))
    with pytest.raises(SystemExit):
        command(two_losses, "--out", tmp_path / "file" / "out")
    assert "choose another directory for --out" in capsys.readouterr().err


def test_a_config_that_came_with_a_run_runs_no_code(tmp_path):
    config = compose([MSE]) | {"env": {"_target_": "os.system", "id": "surely_missing_module:Env-v0"}}
    write_run(tmp_path / "a", [1.0, 2.0], config=json.loads(json.dumps(config)))
    assert made(tmp_path).sections[0].environment.name == "surely_missing_module:Env-v0"


def test_a_baseline_is_named_wholly_by_a_word_or_by_a_value():
    names = ["mse learning_rate=0.1", "huber learning_rate=0.1", "huber learning_rate=0.2"]
    wanted = {"huber learning_rate=0.1": names[1], "mse": names[0], "learning_rate=0.2": names[2], "0.2": names[2], None: names[0]}
    assert {each: comparisons.find_baseline(each, names) for each in wanted} == wanted
