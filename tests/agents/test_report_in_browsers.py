"""The report in a real Chromium, where there is one, and a finished sweep in TensorBoard, over its HTTP API."""

import json
import re
import subprocess
import sys
import time
import urllib.request

import pytest

from agents import report
from agents.config import build
from agents.run_records import read_runs
from agents.training import train
from tests import chromium
from tests.agents.test_report import HUBER, MSE, rising
from tests.conftest import small_config
from tests.sweeps import write_sweep

LOSSES, SEEDS = ("mse", "huber"), (0, 1)

@pytest.fixture(scope="module")
def page(tmp_path_factory):
    directory = tmp_path_factory.mktemp("sweep")
    write_sweep(directory, {MSE: rising(100), HUBER: rising(150), "loss/value=log_cosh": rising(120)}, seeds=range(4))
    report.write(report.make_report(read_runs([directory])), directory / "report")
    return directory / "report" / "index.html"


@pytest.fixture(scope="module")
def tab(tmp_path_factory):
    if not chromium.COMMAND:
        pytest.skip("there is no Chromium")
    with chromium.browser(tmp_path_factory.mktemp("profile")) as page:
        yield page


FIGURES = """[...document.querySelectorAll("figure")].map(figure => ({
  width: figure.querySelector("svg").getBoundingClientRect().width, drawn: figure.querySelectorAll("path, use").length,
  shown: figure.querySelector("svg").checkVisibility(), caption: figure.querySelector("figcaption").textContent }))"""


def head(name):
    return f"[...document.querySelectorAll('table th button')].find(head => head.textContent === '{name}')"


def first_column(tab):
    return tab.eval("[...document.querySelector('table').tBodies[0].rows].map(row => row.cells[0].textContent)")


def test_the_page_in_a_browser(page, tab):
    tab.open(page.as_uri())
    figures = tab.eval(FIGURES)
    assert len(figures) >= 5 and all(figure["shown"] and figure["width"] > 300 and figure["drawn"] > 8 and figure["caption"] for figure in figures)
    assert "huber beats mse by" in tab.eval("document.body.innerText") and tab.eval("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert tab.requests == [page.as_uri()]


def test_a_click_on_a_head_sorts(page, tab):
    tab.open(page.as_uri())
    assert first_column(tab) == ["huber", "log_cosh", "mse"]
    for name, expected in (("mean", ["huber", "log_cosh", "mse"]), ("mean", ["mse", "log_cosh", "huber"]), ("configuration", ["huber", "log_cosh", "mse"]), ("configuration", ["mse", "log_cosh", "huber"])):
        tab.click(head(name))
        assert first_column(tab) == expected
    assert tab.eval("document.querySelector('[aria-sort]').textContent") == "configuration"


def test_the_page_on_a_phone_in_the_dark(page, tab):
    tab.open(page.as_uri(), width=390, height=844, dark=True)
    assert tab.eval("document.documentElement.scrollWidth") <= 390 and tab.eval("getComputedStyle(document.body).backgroundColor") == "rgb(22, 23, 26)"
    assert all(300 < figure["width"] < 390 for figure in tab.eval(FIGURES))
    assert tab.eval("getComputedStyle(document.querySelector('figure svg text')).fill") == "rgb(230, 230, 232)"


def test_the_page_names_nothing_outside(page):
    outside = re.findall(r"""(?:src|href|action)\s*=\s*["'](?!#)[^"']*|url\((?!#)[^)]*\)|@import[^;]*""", page.read_text())
    assert outside == []


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished sweep with its report, and the address of a TensorBoard that shows it."""
    directory = tmp_path_factory.mktemp("finished")
    train([build(small_config(f"loss/value={loss}", f"seed={seed}", "evaluation.every=100"), directory / f"{loss}-{seed}") for loss in LOSSES[:1] for seed in SEEDS], compile=False)
    train([build(small_config(f"loss/value={loss}", f"seed={seed}", "evaluation.every=100"), directory / f"{loss}-{seed}") for loss in LOSSES[1:] for seed in SEEDS], compile=False)
    report.write(report.make_report(read_runs([directory])), directory / "report")
    words = [sys.executable, "-m", "tensorboard.main", "--logdir", str(directory), "--port", "0", "--host", "127.0.0.1"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        try:
            line = next(line for line in process.stdout if "http://" in line)
            yield re.search(r"http://[\d.:]+", line)[0]
        finally:
            process.kill()  # Asked to end it once didn't, and the suite waited for ever.


def asked(address, path, body=None):
    """The answer of TensorBoard, once it has read the runs."""
    data = None if body is None else json.dumps(body).encode()
    for _ in range(120):
        try:
            with urllib.request.urlopen(urllib.request.Request(f"{address}/data/{path}", data, {"Content-Type": "application/json"})) as answer:
                if found := json.load(answer):
                    return found
        except urllib.error.HTTPError:
            pass
        time.sleep(0.5)
    raise AssertionError(f"TensorBoard never answered {path}")


def test_tensorboard_shows_the_scalars_and_the_figures(finished):
    tags = asked(finished, "plugin/scalars/tags")
    assert {f"{loss}-{seed}" for loss in LOSSES for seed in SEEDS} <= set(tags) and "report" not in tags
    assert {"evaluation/return_mean", "loss/value", "td_error/curvature"} <= set(tags["mse-0"])
    points = asked(finished, "plugin/scalars/scalars?run=mse-0&tag=evaluation%2Freturn_mean")
    assert [step for _, step, _ in points] == [100, 200, 300]
    pictures = asked(finished, "plugin/images/tags")["report"]
    assert "report/CartPole-v1/learning_curves" in pictures and "report" in asked(finished, "plugin/text/tags")["report"]


def test_tensorboards_hparams_table_has_a_row_a_configuration(finished):
    request = {"startIndex": 0, "sliceSize": 100, "allowedStatuses": ["STATUS_SUCCESS", "STATUS_RUNNING", "STATUS_UNKNOWN"], "colParams": [{"hparam": "loss.value", "includeInResult": True}]}
    groups = asked(finished, "plugin/hparams/session_groups", request)["sessionGroups"]
    rows = {group["hparams"]["loss.value"]: sorted(session["name"] for session in group["sessions"]) for group in groups}
    assert rows == {"rlloss.MSE": ["mse-0", "mse-1"], "rlloss.Huber": ["huber-0", "huber-1"]}
    described = asked(finished, "plugin/hparams/experiment", {"includeMetrics": True})
    assert {"seed", "optimizer.learning_rate", "loss.value.delta"} <= {info["name"] for info in described["hparamInfos"]}
    assert "evaluation/return_mean" in {info["name"]["tag"] for info in described["metricInfos"]}


def test_tensorboard_in_a_browser(finished, tab):
    everything = """(function text(node) { return [...[...node.childNodes].map(child => child.nodeType === 3 ? child.data : text(child)), node.shadowRoot ? text(node.shadowRoot) : ""].join(" ") })(document.body)"""
    tab.open(f"{finished}/#hparams")
    tab.wait(f"(told => ['Trial ID', 'rlloss.MSE', 'rlloss.Huber', 'optimizer.learning_rate'].every(word => told.includes(word)))({everything})")
    tab.open(f"{finished}/?again#images")
    tab.wait(f"{everything}.includes('report/CartPole-v1/learning_curves')")
    assert all(address.startswith((finished, "data:", "blob:")) for address in tab.requests)
