"""The report in a real Chromium, where there is one, and a finished sweep in TensorBoard, over its HTTP API."""

import json
import re
import shutil
import subprocess
import sys
import time
import urllib.request

import pytest

from agents import report
from agents.config import build
from agents.run_records import read_runs
from agents.training import train
from tests.agents.test_report import HUBER, MSE, rising
from tests.conftest import small_config
from tests.sweeps import write_sweep

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
LOSSES, SEEDS = ("mse", "huber"), (0, 1)

# What a person would do and see, written into the page itself once it is there.
LOOK = """
<script>
addEventListener("load", () => {
  const table = document.querySelector("table"), first = () => [...table.tBodies[0].rows].map(row => row.cells[0].textContent);
  const heads = [...table.querySelectorAll("th button")], orders = [first()];
  for (const name of ["mean", "mean", "configuration"]) { heads.find(head => head.textContent === name).click(); orders.push(first()); }
  const seen = {
    orders,
    sorted: table.querySelector("[aria-sort]").textContent,
    figures: [...document.querySelectorAll("figure")].map(figure => ({
      name: figure.id, width: figure.querySelector("svg").getBoundingClientRect().width, paths: figure.querySelectorAll("path, use").length,
      shown: figure.querySelector("svg").checkVisibility(), caption: figure.querySelector("figcaption").textContent})),
    fetched: performance.getEntriesByType("resource").map(entry => entry.name),
    wide: document.documentElement.scrollWidth,
    paper: getComputedStyle(document.body).backgroundColor,
  };
  const told = document.createElement("pre"); told.id = "told"; told.textContent = JSON.stringify(seen); document.body.append(told);
});
</script>
"""


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    directory = tmp_path_factory.mktemp("sweep")
    write_sweep(directory, {MSE: rising(100), HUBER: rising(150), "loss/value=log_cosh": rising(120)}, seeds=range(4))
    report.write(report.make_report(read_runs([directory])), directory / "report")
    return directory / "report" / "index.html"


def seen(page, tmp_path, *flags):
    """What a browser sees of the page."""
    looked = tmp_path / "looked.html"
    looked.write_text(page.read_text().replace("</body>", f"{LOOK}</body>"))
    words = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}", *flags, "--dump-dom", looked.as_uri()]
    text = subprocess.run(words, capture_output=True, text=True, timeout=120, check=True).stdout
    return json.loads(re.search(r'<pre id="told">(.*?)</pre>', text, re.DOTALL)[1].replace("&amp;", "&").replace("&gt;", ">").replace("&lt;", "<"))


@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium")
def test_the_page_in_a_browser(page, tmp_path):
    found = seen(page, tmp_path, "--window-size=1300,900")
    assert found["orders"] == [["huber", "log_cosh", "mse"], ["huber", "log_cosh", "mse"], ["mse", "log_cosh", "huber"], ["huber", "log_cosh", "mse"]]
    assert found["sorted"] == "configuration" and found["fetched"] == [] and found["paper"] == "rgb(255, 255, 255)"
    assert len(found["figures"]) >= 5 and all(figure["shown"] and figure["width"] > 300 and figure["paths"] > 8 and figure["caption"] for figure in found["figures"])
    phone = seen(page, tmp_path, "--window-size=500,900", "--blink-settings=preferredColorScheme=0")
    assert phone["wide"] <= 500 and phone["paper"] == "rgb(22, 23, 26)" and all(300 < figure["width"] < 500 for figure in phone["figures"])


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
            process.terminate()


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
