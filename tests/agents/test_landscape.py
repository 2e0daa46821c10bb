"""The command rlloss-landscape: what its table says, what its figures show, and what mistakes cost."""

import inspect
import struct
import sys

import pytest
import torch

import rlloss
from agents import landscape
from rlloss import pointwise
from tests.events import events

LOSS, CURVATURE, GROWTH, INFLUENCE = (landscape.COLUMNS.index(name) for name in ("loss", "curvature at 0", "growth", "influence"))


@pytest.fixture
def command(monkeypatch, capsys):
    def call(*words):
        monkeypatch.setattr(sys, "argv", ["rlloss-landscape", *map(str, words)])
        landscape.landscape_main()
        return capsys.readouterr()

    return call


def _rows(markdown):
    return [[cell.strip() for cell in line.strip("| ").replace("\\|", "∣").split(" | ")] for line in markdown.splitlines()[2:]]


def test_the_table_has_every_pointwise_function_once(command):
    public = [name for name, item in vars(pointwise).items() if inspect.isfunction(item) and item.__module__ == pointwise.__name__ and name[0] != "_"]
    table = command("--markdown").out
    names = [row[LOSS].partition("(")[0] for row in _rows(table)]
    assert [names.count(name) for name in public] == [1] * len(public) and len(public) >= 10
    assert {"focal", "ppo_clip", "soft_actor", "HLGauss", "MSE"} <= set(names) and "adapt_coefficient" not in names
    assert len({line.replace("\\|", "").count("|") for line in table.splitlines()}) == 1


def test_every_row_says_its_formula_purpose_and_paper():
    for loss in (loss for section in landscape.sections() for loss in section):
        cells = dict(zip(landscape.COLUMNS, landscape.row(loss), strict=True))
        assert cells["formula"] and cells["for"] and cells["paper"], loss.label


@pytest.mark.parametrize(
    ("words", "curvature", "growth", "influence"),
    [
        (["loss.value=mse"], "2", "quadratic", "unbounded"),
        (["loss.value=mse", "matched_curvature=true"], "1", "quadratic", "unbounded"),
        (["loss/value=huber", "loss.value.delta=0.25"], "1", "linear", "bounded"),
        (["loss/value=smooth_l1", "beta=0.25"], "4", "linear", "bounded"),
        (["loss.value=log_cosh"], "1", "linear", "bounded"),
        (["loss.value=quantile", "tau=0.9"], "kink", "linear", "bounded"),
        (["loss.value=robust", "alpha=-2", "scale=2"], "0.25", "constant", "bounded, redescending"),
        (["loss.value=robust", "alpha=-inf"], "1", "constant", "bounded, redescending"),
        (["loss.value=robust", "alpha=0"], "1", "logarithmic", "bounded, redescending"),
        (["loss.value=robust", "alpha=0.5"], "1", "power 0.5", "bounded, redescending"),
        (["loss.value=robust", "alpha=1.5"], "1", "power 1.5", "unbounded"),
        (["loss.value=gaussian_nll"], "1", "quadratic", "unbounded"),
        (["loss.value=hl_gauss"], "–", "–", "–"),
        (["loss.value=expectile", "tau=0.7"], "1.4|0.6, mean 1", "quadratic", "unbounded"),
    ],
)
def test_behaviour_is_what_the_papers_say(words, curvature, growth, influence):
    (loss,) = landscape.chosen_losses(words)
    cells = landscape.row(loss)
    assert (cells[CURVATURE], cells[GROWTH], cells[INFLUENCE]) == (curvature, growth, influence)


def test_formula_and_gradient_are_told_apart():
    assert landscape.formula(pointwise.huber) == ("ℓ(e) = ½e² if |e| ≤ δ; δ(|e| − ½δ) otherwise", "ℓ′(e) = clip(e, −δ, δ)")
    assert landscape.formula(pointwise.absolute_error) == ("ℓ(e) = |e|", "ℓ′(e) = sign(e), 0 at 0")
    assert landscape.formula(lambda: None) == ("", "")


def test_choices_are_combined(command):
    printed = command("loss.value=huber,mse,two_hot", "delta=0.5,1,2")
    labels = [line.split("  ")[0] for line in printed.out.splitlines()]
    assert labels == ["loss", "Huber(delta=0.5)", "Huber(delta=1)", "Huber(delta=2)", "MSE", "TwoHot"]
    assert printed.err == ""


@pytest.mark.parametrize("words", [["loss.value=hl_gauss,two_hot,c51"], ["loss.value=c51", "bins=2,5,51,101"], ["loss.value=mse,two_hot", "vmin=10"]])
def test_targets_of_chosen_histograms_are_drawn(command, tmp_path, words):
    command(*words, "--out", tmp_path)
    assert (tmp_path / "targets.png").stat().st_size > 5000 and (tmp_path / "value.png").exists() == ("mse" in words[0])


def test_gradients_are_found_where_the_formula_stands():
    assert landscape.gradient(rlloss.Huber) == "ℓ′(e) = clip(e, −δ, δ)" and landscape.gradient(rlloss.GaussianNLL) == "∂ℓ/∂e = e/σ²"
    without = {loss.documented.__name__ for section in landscape.sections() for loss in section if not landscape.gradient(loss.documented)}
    assert not without


def test_gradients_of_classification_are_those_that_the_table_says():
    x, other, y = (torch.randn(5, dtype=torch.float64) for _ in range(3))
    label, alpha, gamma = y.softmax(0), 0.3, 1.7
    p, q = x.sigmoid(), other.softmax(0)
    found = torch.func.grad(lambda x: rlloss.binary_focal(x, label, alpha, gamma).sum())(x)
    expected = alpha * label * (1 - p) ** gamma * (gamma * p * p.log() + p - 1)
    torch.testing.assert_close(found, expected + (1 - alpha) * (1 - label) * p**gamma * (p - gamma * (1 - p) * (1 - p).log()))
    p = x.softmax(0)
    g = alpha * label * (1 - p) ** (gamma - 1) * (1 - p - gamma * p * p.log())
    torch.testing.assert_close(torch.func.grad(lambda x: rlloss.focal(x, label, alpha, gamma))(x), p * g.sum() - g)
    divergence = torch.func.grad(lambda x, other: rlloss.kl_divergence(x, other), (0, 1))(x, other)
    torch.testing.assert_close(divergence, (p * (p.log() - q.log() - (p * (p.log() - q.log())).sum()), q - p))


def test_gradients_of_soft_actors_are_those_that_the_table_says():
    logits, value, alpha = torch.randn(2, 3, dtype=torch.float64), torch.randn(2, 3, dtype=torch.float64), 0.4
    policy = logits.softmax(-1)
    loss = rlloss.discrete_soft_actor(logits, value, alpha)
    gradient = torch.func.grad(lambda logits: rlloss.discrete_soft_actor(logits, value, alpha).sum())(logits)
    torch.testing.assert_close(gradient, policy * (alpha * policy.log() - value - loss[:, None]))
    log_temperature, entropy = torch.tensor(-0.3, dtype=torch.float64), torch.randn(4, dtype=torch.float64)
    told = rlloss.temperature_loss(log_temperature, entropy, 0.7)
    moved = torch.func.grad(lambda x: rlloss.temperature_loss(x, entropy, 0.7).sum())(log_temperature)
    torch.testing.assert_close(moved, told.sum())


@pytest.mark.parametrize("advantage", [1.5, -1.5])
def test_gradients_of_policies_are_those_that_the_table_says(advantage):
    ratio = torch.tensor([0.5, 0.9, 1.0, 1.1, 2.0], dtype=torch.float64)
    weight = ratio.clamp(max=1)
    inside = (ratio < 1.2) if advantage > 0 else (ratio > 0.8)
    expected = {
        rlloss.PolicyGradient(): -advantage,
        rlloss.VTracePolicyGradient(): -weight * advantage,
        rlloss.PPOClip(): -ratio * advantage * inside,
        rlloss.PPOKL(0.5): -ratio * advantage + 0.5 * (ratio - 1),
        rlloss.SPO(): -ratio * (advantage - 1.5 / 0.2 * (ratio - 1)),
        rlloss.AWR(): -torch.tensor(advantage, dtype=torch.float64).exp(),
        rlloss.BehaviourCloning(): -1.0,
    }
    for loss, gradient in expected.items():
        log_probability = ratio.log().requires_grad_()
        loss(log_probability, torch.zeros_like(ratio), torch.full_like(ratio, advantage)).sum().backward()
        torch.testing.assert_close(log_probability.grad, gradient + torch.zeros_like(ratio))


def test_a_field_alone_chooses_the_losses_that_have_it():
    assert [loss.label for loss in landscape.chosen_losses(["delta=3"])] == ["Huber(delta=3)", "PseudoHuber(delta=3)"]


def test_a_loss_of_ones_own_is_named_with_its_module(tmp_path, monkeypatch):
    text = "from dataclasses import dataclass\nfrom rlloss import ScalarHead\n@dataclass(frozen=True)\nclass Cubic(ScalarHead):\n    strength: float = 1.0\n"
    (tmp_path / "own_losses.py").write_text(f"{text}    def pointwise(self, error):\n        return self.strength * error.abs() ** 3\n")
    monkeypatch.syspath_prepend(tmp_path)
    (loss,) = landscape.chosen_losses(["loss.value=own_losses.Cubic", "strength=2"])
    assert next(iter(landscape.chosen_losses(["loss.value._target_=own_losses.Cubic", "+loss.value.strength=2"]))).label == loss.label
    label, formula, gradient, curvature, *rest, purpose, paper = landscape.row(loss)
    assert (label, formula, gradient, *rest, purpose, paper) == ("Cubic(strength=2)", "–", "–", "power 3", "unbounded", "–", "–")
    assert float(curvature) < 1e-6


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["loss.value=hubr"], "did you mean huber?"),
        (["loss.value=huber", "dleta=1"], "no field dleta; there is delta, matched_curvature; did you mean delta?"),
        (["loss.value=huber", "delta=-1"], "loss.value.delta must be greater than 0"),
        (["loss.value=huber", "delta=a"], "loss.value.delta must be a number"),
        (["loss.value=nowhere.Loss"], "there is no nowhere.Loss"),
        (["loss.value=rlloss.L2"], "is not a value loss"),
        (["huber"], "say name=values"),
        (["--format", "jpg"], "invalid choice"),
        (["--tensorboard"], "--out DIRECTORY"),
        (["--format", "svg"], "--format is for figures, which need a directory; name it with --out DIRECTORY"),
        (["--out", __file__], "Not a directory"),
        (["--out", "/proc/x"], "can't write to /proc/x"),
    ],
)
def test_mistakes_are_one_line(monkeypatch, capsys, words, expected):
    monkeypatch.setattr(sys, "argv", ["rlloss-landscape", *words])
    with pytest.raises(SystemExit) as stopped:
        landscape.landscape_main()
    out, error = capsys.readouterr()
    assert out == "" and stopped.value.code == 2 and error.count("\n") == 1 and error.startswith("rlloss-landscape: ") and expected in error


def test_figures_are_drawn_and_tensorboard_reads_them(command, tmp_path):
    from matplotlib import image

    command("--out", tmp_path, "--tensorboard")
    names = ["classification", "pointwise", "policy", "targets"]
    assert sorted(path.stem for path in tmp_path.glob("*.png")) == names
    pictures = {value.tag: value.image for event in events(tmp_path) for value in event.summary.value}
    assert sorted(pictures) == [f"landscape/{name}" for name in names]
    for name in names:
        path = tmp_path / f"{name}.png"
        pixels = image.imread(path)
        inked = (pixels[..., :3] < 0.9).any(-1)
        assert 0.02 < inked.mean() < 0.5 and inked.any(0).mean() > 0.8
        picture = pictures[f"landscape/{name}"]
        assert picture.encoded_image_string == path.read_bytes()
        assert (picture.height, picture.width) == pixels.shape[:2] == struct.unpack(">II", path.read_bytes()[16:24])[::-1]


def test_chosen_losses_are_drawn_as_svg(command, tmp_path):
    command("loss.value=huber,quantile_huber,hl_gauss", "--out", tmp_path, "--format", "svg", "delta=0.5,1")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["targets.svg", "value.svg"]
    assert (tmp_path / "value.svg").read_text().count("<path") > 10


def test_what_a_policy_climbs_is_its_objective():
    """The integral of the gradient is −ℓ itself where nothing is detached; for V-trace A·(1 + log r) above ρ̄ and A·r below."""
    from agents import landscape_figures as figures

    ratio = torch.linspace(0.5, 2, 3001, dtype=torch.float64)
    climbed = figures._climbed(figures.SPO(), ratio, -1.0)
    torch.testing.assert_close(climbed, -ratio - 2.5 * (ratio - 1) ** 2, atol=1e-5, rtol=0)
    climbed = figures._climbed(figures.VTracePolicyGradient(), ratio, 1.0)
    torch.testing.assert_close(climbed, torch.where(ratio < 1, ratio, 1 + ratio.log()), atol=1e-5, rtol=0)
