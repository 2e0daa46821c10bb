"""The figures of `rlloss-landscape`: regression, classification and policy losses, and categorical targets.

Derivatives come from automatic differentiation. Colours are those of Okabe and Ito, which the colour-blind tell
apart, and curves differ in their dashes too.
"""

import io
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import matplotlib
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from agents.config import ConfigError
from agents.event_log import EventLog
from agents.landscape import Loss, derivatives
from rlloss import AWR, C51, PPOKL, SPO, BehaviourCloning, Focal, HLGauss, PolicyGradient, PolicyLoss, PPOClip, TwoHot, VTracePolicyGradient
from rlloss.classification import BinaryCrossEntropy, BinaryFocal, CrossEntropy, kl_divergence

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
DASHES = ("-", (0, (4, 2)), (0, (1, 1.2)))
STYLE = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e4e4e4",
    "axes.axisbelow": True,
    "lines.linewidth": 1.8,
    "legend.frameon": False,
    "figure.facecolor": "white",
    "svg.hashsalt": "rlloss",
}


def all_figures(losses: Sequence[Loss]) -> dict[str, Callable[[], Figure]]:
    """Every figure by its name; `losses` are those of the error."""
    support = {"bins": 21, "vmin": -5.0, "vmax": 5.0}
    histograms = {"TwoHot": TwoHot(**support), "HLGauss, σ = 0.75 bins": HLGauss(**support), "C51": C51(**support)}
    return {
        "pointwise": lambda: of_errors(losses),
        "classification": of_probabilities,
        "policy": of_ratios,
        "targets": lambda: of_returns(histograms),
    }


def chosen_figures(losses: Sequence[Loss]) -> dict[str, Callable[[], Figure]]:
    """The figures of chosen value losses: of those of the error, and the targets of those with a histogram."""
    curves = [loss for loss in losses if loss.of_error]
    histograms = {loss.label: loss.histogram for loss in losses if loss.histogram}
    if not curves and not histograms:
        raise ConfigError(f"{', '.join(loss.label for loss in losses)}: nothing can be drawn of a head that holds neither one value nor a histogram")
    return ({"value": lambda: of_errors(curves)} if curves else {}) | ({"targets": lambda: of_returns(histograms)} if histograms else {})


def write(figures: Mapping[str, Callable[[], Figure]], directory: Path, suffix: str, tensorboard: bool) -> Iterator[Path]:
    """Draw figures into files of a directory, and into an event file; yields what was written."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        log = EventLog(directory) if tensorboard and figures else None
        for name, draw in figures.items():
            with matplotlib.rc_context(STYLE):
                figure = draw()
                path = directory / f"{name}.{suffix}"
                path.write_bytes(_rendered(figure, suffix))
                yield path
                if log:
                    log.image(f"landscape/{name}", _rendered(figure, "png"))
    except OSError as error:
        raise ConfigError(f"--out {directory}: {error.strerror}") from error
    if log:
        log.flush()
        yield log.path


def _rendered(figure: Figure, suffix: str) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format=suffix, dpi=150, metadata={"Date": None} if suffix == "svg" else None)
    return buffer.getvalue()


def _styles() -> Iterator[dict[str, object]]:
    """A colour and a dash for each curve; what is dashed lies above, so that curves that coincide are all seen."""
    for colour, layer in zip(itertools.cycle(COLOURS), itertools.cycle(range(len(DASHES))), strict=False):
        yield {"color": colour, "linestyle": DASHES[layer], "zorder": 2 + 0.1 * layer}


def _legend_beside(figure: Figure, axes: Axes, rows: int = 12) -> None:
    labels = axes.get_legend_handles_labels()
    figure.legend(*labels, loc="outside right center", ncols=-(-len(labels[0]) // rows), handlelength=2.6)


def of_errors(losses: Sequence[Loss]) -> Figure:
    """ℓ, ℓ′ and ℓ″ against the error, the losses in the order in which they end on the right."""
    error = torch.linspace(-4, 4, 801, dtype=torch.float64)
    curves = sorted(((loss.label, derivatives(loss.of_error, error)) for loss in losses), key=lambda curve: -curve[1][0][-1])
    figure = Figure(figsize=(12, 3.8), layout="constrained")
    panels = {"loss ℓ(e)": 0.5, "gradient ℓ′(e)": 0.5, "curvature ℓ″(e)": 2.0}
    for index, (axes, (title, room)) in enumerate(zip(figure.subplots(1, 3), panels.items(), strict=True)):
        for (label, parts), style in zip(curves, _styles(), strict=False):
            axes.plot(error, parts[index], label=label, **style)
        axes.set(title=title, xlabel="error e = prediction − target", xlim=(-4, 4), ylim=_limits([parts[index] for _, parts in curves], room))
    _legend_beside(figure, axes)
    return figure


def _limits(values: Sequence[Tensor], room: float) -> tuple[float, float]:
    """The range of most curves, and up to `room` times as much at each end for the others, which are cut there."""
    ends = torch.stack([torch.stack([value.min(), value.max()]) for value in values])
    low, high = ends[:, 0].quantile(0.25), ends[:, 1].quantile(0.75)
    more = room * (high - low)
    low, high = ends[:, 0].min().clamp(min=low - more).item(), ends[:, 1].max().clamp(max=high + more).item()
    margin = 0.06 * (high - low) or 1.0
    return low - margin, high + margin


def of_probabilities() -> Figure:
    """Loss against the probability of the right class: one of ten, the other nine sharing the rest, and one of two."""
    probability = torch.linspace(0.002, 0.999, 600, dtype=torch.float64)
    others = ((1 - probability) / 9)[:, None].expand(-1, 9)
    logits = torch.cat([probability[:, None], others], -1).log()
    label = torch.zeros_like(logits)
    label[:, 0] = 1
    smooth = 0.9 * label + 0.01
    ten = {"cross entropy": CrossEntropy()(logits, label), "cross entropy, label smoothing 0.1": CrossEntropy(0.1)(logits, label)}
    ten |= {"KL from the smoothed label": kl_divergence(smooth.log(), logits)}
    ten |= {f"focal, γ = {gamma:g}": Focal(gamma=gamma)(logits, label) for gamma in (0.5, 1.0, 2.0, 5.0)}
    logit, right = probability.logit(), torch.ones_like(probability)
    two = {"binary cross entropy": BinaryCrossEntropy(), "binary cross entropy, smoothing 0.1": BinaryCrossEntropy(0.1)}
    two |= {f"binary focal, α = ¼, γ = {gamma:g}": BinaryFocal(gamma=gamma) for gamma in (0.5, 1.0, 2.0, 5.0)}
    panels = {"ten": ten, "two": {name: loss(logit, right) for name, loss in two.items()}}
    figure = Figure(figsize=(12, 4), layout="constrained")
    for axes, (classes, curves) in zip(figure.subplots(1, 2), panels.items(), strict=True):
        for (name, loss), style in zip(curves.items(), _styles(), strict=False):
            axes.plot(probability, loss, label=name, **style)
        axes.set(title=f"{classes} classes: an easy example counts less with γ", xlabel=f"probability of the right class (of {classes})")
        axes.set(ylabel="loss (nats)", xlim=(0, 1), ylim=(0, 4))
        axes.legend()
    return figure


def of_ratios() -> Figure:
    """What a policy's gradient climbs, against the ratio, for a good action and a bad one."""
    losses: dict[str, PolicyLoss] = {
        "PPO-clip": PPOClip(),
        "PPO-clip, dual = 2": PPOClip(dual=2.0),
        "V-trace, ρ̄ = 1": VTracePolicyGradient(),
        "policy gradient": PolicyGradient(),
        "PPO-KL, β = ½": PPOKL(0.5),
        "SPO": SPO(),
        "AWR": AWR(),
        "behaviour cloning": BehaviourCloning(),
    }
    ratio = torch.linspace(0.02, 2.5, 1241, dtype=torch.float64)
    figure = Figure(figsize=(12, 4), layout="constrained")
    for axes, advantage, limits in zip(figure.subplots(1, 2), (1.0, -1.0), ((-1.5, 2.2), (-3.2, 0.8)), strict=True):
        for (name, loss), style in zip(losses.items(), _styles(), strict=False):
            axes.plot(ratio, _climbed(loss, ratio, advantage), label=name, **style)
        axes.axvline(1, color="#999999", linewidth=0.8, zorder=0)
        axes.set(title=f"advantage A = {advantage:+g}".replace("-", "−"), xlabel="ratio r = π(a|s)/μ(a|s)", xlim=(0, 2.5), ylim=limits)
        axes.set_ylabel("objective (integral of its gradient)")
    _legend_beside(figure, axes)
    return figure


def _climbed(loss: PolicyLoss, ratio: Tensor, advantage: float) -> Tensor:
    """The integral of the gradient over the ratio, A at r = 1: −ℓ itself, but where a weight in ℓ is detached."""
    ratio = ratio.clone().requires_grad_()
    objective = -loss(ratio.log(), torch.zeros_like(ratio), torch.full_like(ratio, advantage))
    (gradient,) = torch.autograd.grad(objective.sum(), ratio)
    ratio = ratio.detach()
    climbed = torch.cat([torch.zeros(1, dtype=ratio.dtype), torch.cumulative_trapezoid(gradient, ratio)])
    return climbed - climbed[(ratio - 1).abs().argmin()] + advantage


def of_returns(histograms: Mapping[str, TwoHot | HLGauss | C51]) -> Figure:
    """What categorical heads are trained towards, for a few returns near the middle of each support."""
    columns = min(len(histograms), 3)
    rows = -(-len(histograms) // columns)
    figure = Figure(figsize=(max(4 * columns, 6), 3.6 * rows), layout="constrained")
    panels = figure.subplots(rows, columns, sharey=True, squeeze=False)
    for axes, (title, loss) in itertools.zip_longest(panels.flat, histograms.items(), fillvalue=("", None)):
        if loss is None:
            axes.remove()
            continue
        support = loss.support(torch.zeros(()))
        targets = _moved(loss, support) if isinstance(loss, C51) else _spread(loss, support)
        near = slice(max(loss.bins // 2 - 10, 0), loss.bins // 2 + 11)
        _bars(axes, support[near], [target[near] for target in targets.values()], targets)
        axes.set(title=title + (", r + d·Z(s′) projected" if isinstance(loss, C51) else ""), xlabel="return", ylim=(0, 1.1))
    for axes in panels[:, 0]:
        axes.set_ylabel("probability of the bin")
    return figure


def _spread(loss: TwoHot | HLGauss, support: Tensor) -> dict[str, Tensor]:
    """The targets [bins] of three returns, so many bins from the middle."""
    middle = loss.bins // 2
    width = support[middle] - support[middle - 1]
    returns = [(support[middle] + bins * width).clamp(support[0], support[-1]) for bins in (-6.5, 0.0, 5.2)]
    return {_signs(f"y = {number.item():.3g}"): loss.probabilities(number) for number in returns}


def _moved(loss: C51, support: Tensor) -> dict[str, Tensor]:
    """A distribution Z(s′) near the middle, and two Bellman backups of it."""
    middle = loss.bins // 2
    width = (support[middle] - support[middle - 1]).item()
    logits = -0.5 * ((torch.arange(loss.bins) - middle - 1) / 1.6) ** 2
    found = {"Z(s′)": logits.softmax(-1)}
    for bins, discount in ((-5.5, 0.9), (4.0, 0.5)):
        reward = support[middle].item() * (1 - discount) + bins * width
        found[_signs(f"{reward:.3g} + {discount:g}·Z(s′)")] = loss.target(torch.tensor(reward), torch.tensor(discount), logits)
    return found


def _signs(text: str) -> str:
    return text.replace("-", "−")


def _bars(axes: Axes, support: Tensor, probabilities: Iterable[Tensor], labels: Iterable[str]) -> None:
    width = 0.9 * support.diff()
    width = torch.cat([width, width[-1:]])
    for probability, label, colour in zip(probabilities, labels, COLOURS, strict=False):
        axes.bar(support, probability, width=width, color=colour, alpha=0.75, label=label)
    axes.legend(loc="upper right", ncols=1)
