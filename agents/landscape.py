"""The command `rlloss-landscape`: what each loss is and how it behaves, as a table and as figures.

Formula, gradient, purpose and paper are read from the docstrings, so that they are said once. Curvature,
growth and influence are computed by automatic differentiation, never copied. A loss "of the error" is one whose
head is sure of one value: then only the distance of that value from the target counts.
"""

import argparse
import dataclasses
import inspect
import itertools
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import torch
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import OmegaConf
from rich.console import Console
from rich.table import Table
from rich.text import Text
from torch import Tensor

from agents.command_line import one_line
from agents.config import Builder, ConfigError, config_directory, nearest, refuse
from agents.run_directory import refuse_unwritable
from rlloss import C51, GaussianNLL, HLGauss, QuantileHuber, TwoHot, ValueLoss, actor_losses, classification, pointwise, policy_gradients

# Where functions have no defaults: numbers at which no two of the curves are the same.
SHOWN = {"delta": 1.0, "beta": 0.5, "tau": 0.7, "alpha": -2.0, "scale": 1.0, "log_variance": 0.0}
GRADIENT = ("ℓ′", "∂ℓ", "∇ℓ")  # how one begins
NONE = "–"
COLUMNS = ("loss", "formula", "gradient", "curvature at 0", "growth", "influence", "for", "paper")


class Loss(NamedTuple):
    """A loss with its hyperparameters: a name for it, where its docstring is, and ℓ(e) or a histogram of returns where there is one."""

    label: str
    documented: Any
    of_error: Callable[[Tensor], Tensor] | None = None
    histogram: TwoHot | HLGauss | C51 | None = None


def landscape_main() -> None:
    """`rlloss-landscape`: print the table of losses, and draw them."""
    parser = argparse.ArgumentParser(prog="rlloss-landscape", description="What each loss is and how it behaves: a table, and figures with --out.")
    parser.add_argument("words", nargs="*", metavar="NAME=VALUES", help="value losses to compare, such as: loss.value=huber,mse delta=0.5,1,2")
    parser.add_argument("--markdown", action="store_true", help="write the table as Markdown")
    parser.add_argument("--out", type=Path, metavar="DIRECTORY", help="draw figures into this directory")
    parser.add_argument("--format", choices=("png", "svg"), help="of the figures (png)")
    parser.add_argument("--tensorboard", action="store_true", help="write the figures into an event file in DIRECTORY too")
    parser.error = refuse
    with one_line("rlloss-landscape"):
        options = parser.parse_intermixed_args()
        if (options.tensorboard or options.format) and not options.out:
            refuse(f"--{'tensorboard' if options.tensorboard else 'format'} is for figures, which need a directory; name it with --out DIRECTORY")
        chosen = list(chosen_losses(options.words)) if options.words else None
        if options.out:
            from agents import landscape_figures as drawing  # matplotlib is slow to import, and needed for this alone.

            refuse_unwritable(options.out, "directory for --out")
            figures = drawing.chosen_figures(chosen) if chosen else drawing.all_figures(pointwise_losses())
        _print_table([chosen] if chosen else sections(), options.markdown)
        if options.out:
            for loss in chosen or ():
                if not loss.of_error and not loss.histogram:
                    print(f"{loss.label} isn't drawn: its head holds neither one value nor a histogram", file=sys.stderr)
            for path in drawing.write(figures, options.out, options.format or "png", options.tensorboard):
                print(path, file=sys.stderr)


def sections() -> list[list[Loss]]:
    """All losses, those of a kind together."""
    others = [[Loss(function.__name__, function) for function in _functions(module)] for module in (classification, policy_gradients, actor_losses)]
    return [pointwise_losses(), *others, list(_built(_value_losses(), {}))]


def pointwise_losses() -> list[Loss]:
    """The functions of `rlloss.pointwise`, at the numbers in `SHOWN`."""
    return [_at_shown(function) for function in _functions(pointwise)]


def _at_shown(function: Callable[..., Tensor]) -> Loss:
    numbers = {name: SHOWN[name] for name in inspect.signature(function).parameters if name != "error"}

    def of_error(error: Tensor) -> Tensor:
        return function(error, **{name: torch.full_like(error, number) for name, number in numbers.items()})

    return Loss(_label(function.__name__, numbers), function, of_error)


def _functions(module: ModuleType) -> list[Callable[..., Tensor]]:
    """The public losses of a module, as they stand there; label and coefficient updates aren't losses."""
    functions = (item for name, item in vars(module).items() if inspect.isfunction(item) and not name.startswith("_"))
    return [item for item in functions if item.__module__ == module.__name__ and formula(item)[0].startswith(("ℓ", "KL"))]


def _label(name: str, numbers: Mapping[str, Any]) -> str:
    return f"{name}({', '.join(f'{key}={value:g}' for key, value in numbers.items())})" if numbers else name


def chosen_losses(words: Sequence[str]) -> Iterator[Loss]:
    """The value losses of words such as loss.value=huber,mse and delta=0.5,1,2: all combinations."""
    values = {key.removeprefix("loss.value."): given for key, given in map(_parsed, words)}
    names = [str(name) for spelling in ("loss.value", "loss/value", "_target_") for name in values.pop(spelling, ())]
    if names:
        return _built(names, values)
    return _built([name for name in _value_losses() if values.keys() & _fields(name)] or _value_losses(), values)


def _parsed(word: str) -> tuple[str, list[Any]]:
    try:
        override = OverridesParser.create().parse_override(word)
    except HydraException as error:
        raise ConfigError(f"{word} is not understood; say name=values, such as loss.value=huber,mse or delta=0.5,1,2") from error
    return override.key_or_group, list(override.sweep_iterator()) if override.is_sweep_override() else [override.value()]


def _value_losses() -> list[str]:
    return sorted(path.stem for path in (config_directory() / "loss/value").glob("*.yaml"))


def _built(names: Sequence[str], values: Mapping[str, Sequence[Any]]) -> Iterator[Loss]:
    has = {name: _fields(name) for name in names}
    known = sorted(set().union(*has.values()))
    for field in values:
        if field not in known:
            raise ConfigError(f"{', '.join(names)}: no field {field}; there is {', '.join(known) or 'none'}{nearest(field, known)}")
    for name in names:
        mine = {field: numbers for field, numbers in values.items() if field in has[name]}
        for numbers in itertools.product(*mine.values()):
            yield _value_loss(_build(name, dict(zip(mine, numbers, strict=True))), mine)


def _fields(name: str) -> set[str]:
    """The fields that a number can be given for."""
    loss = _build(name, {})
    return {field.name for field in dataclasses.fields(loss) if isinstance(getattr(loss, field.name), (bool, int, float))}


def _build(name: str, numbers: Mapping[str, Any]) -> ValueLoss:
    """The value loss of a choice in conf/loss/value, or of the dotted name of a class."""
    choices = _value_losses()
    if name not in choices and "." not in name:
        raise ConfigError(f"loss.value={name} is not a choice; choose one of {', '.join(choices)}{nearest(name, choices)}")
    node = {"_target_": name} if "." in name else OmegaConf.to_container(OmegaConf.load(config_directory() / f"loss/value/{name}.yaml"))
    shared = OmegaConf.load(config_directory() / "train.yaml").return_range
    loss = Builder({"loss": {"value": node | dict(numbers)}, "return_range": shared}).build("loss.value")
    if not (isinstance(loss, ValueLoss) and dataclasses.is_dataclass(loss)):
        raise ConfigError(f"loss.value={name} is not a value loss: a dataclass with the members of rlloss.ValueLoss")
    return loss


def _value_loss(loss: ValueLoss, varied: Iterable[str]) -> Loss:
    of_error = _of_error(loss)
    numbers = {field.name: getattr(loss, field.name) for field in dataclasses.fields(loss)}
    shown = {name: number for name, number in numbers.items() if name in varied or (of_error and type(number) in (int, float))}
    return Loss(_label(type(loss).__name__, shown), type(loss), of_error, loss if isinstance(loss, (TwoHot, HLGauss, C51)) else None)


def _of_error(loss: ValueLoss) -> Callable[[Tensor], Tensor] | None:
    """The loss of a head that is sure of a value `error` away from the target 0; None where a sure head's loss is infinite."""
    if isinstance(loss, GaussianNLL):
        return lambda error: loss(torch.stack([error, torch.zeros_like(error)], -1), torch.zeros_like(error))
    if isinstance(loss, QuantileHuber):
        return lambda error: loss(error[..., None].expand(*error.shape, loss.outputs), loss.of_return(torch.zeros_like(error)))
    if loss.outputs == 1:
        return lambda error: loss(error[..., None], torch.zeros_like(error))
    return None


def derivatives(of_error: Callable[[Tensor], Tensor], error: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """ℓ, ℓ′ and ℓ″ at errors [n]."""
    gradient = torch.func.grad(of_error)
    parts = of_error(error), torch.func.vmap(gradient)(error), torch.func.vmap(torch.func.grad(gradient))(error)
    return tuple(part + torch.zeros_like(error) for part in parts)  # A derivative that is 0 everywhere has no memory of its own.


def behaviour(of_error: Callable[[Tensor], Tensor]) -> tuple[str, str, str]:
    """Curvature at zero, growth, and influence (how |ℓ′| ends) of a loss of the error."""
    # Beside zero, since the derivatives of |e| and of maxima at their kink are a convention.
    _, slope, curvature = derivatives(of_error, torch.tensor([-1e-8, 1e-8], dtype=torch.float64))
    smooth = abs(slope[1] - slope[0]) < 1e-3
    error = torch.tensor([[-1e6, 1e6], [-1e12, 1e12]], dtype=torch.float64)
    loss, slope, _ = (part.view(2, 2) for part in derivatives(of_error, error.flatten()))
    exponent = torch.where(loss == 0, 0, error * slope / loss).amax(-1)  # d log ℓ / d log |e|, of the steeper side
    size = slope.abs().amax(-1)
    influence = "unbounded" if size[1] > 1.01 * size[0] else "bounded" if size[1] > 0.5 * size[0] else "bounded, redescending"
    return _curvature(*curvature.tolist()) if smooth else "kink", _growth(*exponent.tolist()), influence if size.any() else "bounded, redescending"


def _curvature(below: float, above: float) -> str:
    """The curvature at zero, of both sides where they differ."""
    mean = f"{round((below + above) / 2, 6):.3g}"
    return mean if abs(below - above) < 1e-3 else f"{below:.3g}|{above:.3g}, mean {mean}"


def _growth(near: float, far: float) -> str:
    """In words, from the exponents at 10⁶ and 10¹²: a power's stays, a logarithm's halves, a constant's vanishes."""
    if far < 1e-4 or far < 0.4 * near:
        return "constant"
    if far < 0.75 * near:
        return "logarithmic"
    return {1.0: "linear", 2.0: "quadratic"}.get(round(far, 2), f"power {far:.3g}")


def formula(documented: Any) -> tuple[str, str]:
    """The formula of a docstring, and the gradient where it names one; what it says of ℓ″ and kinks has its own column."""
    lines = itertools.dropwhile(lambda line: not line.startswith("    "), (inspect.getdoc(documented) or "").splitlines())
    text = "\n".join(itertools.takewhile(str.strip, lines))
    text = re.sub(r"\s*\n\s*(?==)", " ", text)
    text = re.sub(rf"\s*\n\s*(?={'|'.join(GRADIENT)})", ",  ", text)
    text = re.sub(r"\s*\n\s*", "; ", text)
    parts = [" ".join(part.split()) for part in re.split(r"[,;] {2,}", text)]
    gradients = [part for part in parts if part.startswith(GRADIENT)]
    return ", ".join(part for part in parts if part not in gradients and not part.startswith(("ℓ″", "a kink"))), ", ".join(gradients)


def row(loss: Loss) -> tuple[str, ...]:
    """The cells of a loss, in the order of `COLUMNS`."""
    said = dict(re.findall(r"^(For|Source): (.+)", inspect.getdoc(loss.documented) or "", re.MULTILINE))
    computed = behaviour(loss.of_error) if loss.of_error else (NONE, NONE, NONE)
    cells = (loss.label, formula(loss.documented)[0], gradient(loss.documented), *computed, said.get("For", ""), said.get("Source", ""))
    return tuple(cell or NONE for cell in cells)


def gradient(documented: Any) -> str:
    """The gradient of a loss: its docstring's, or that of the pointwise function that a value loss calls."""
    if found := formula(documented)[1]:
        return found
    method = vars(documented).get("pointwise", vars(documented).get("__call__")) if inspect.isclass(documented) else None
    called = method.__code__.co_names if method else ()
    return next((gradient(function) for function in _functions(pointwise) if function.__name__ in called), "")


def _print_table(groups: Sequence[Sequence[Loss]], markdown: bool) -> None:
    console = Console(highlight=False)
    if markdown:
        rows = [COLUMNS, ("---",) * len(COLUMNS), *(row(loss) for group in groups for loss in group)]
        lines = [f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |" for cells in rows]
        console.print(Text("\n".join(lines)), soft_wrap=True)
    elif console.is_terminal:
        _print_stacked(console, groups)
    else:
        rows = [COLUMNS, *(row(loss) for group in groups for loss in group)]
        widths = [max(map(len, cells)) for cells in zip(*rows, strict=True)]
        console.print(Text("\n".join("  ".join(map(str.ljust, cells, widths)).rstrip() for cells in rows)), soft_wrap=True)


def _print_stacked(console: Console, groups: Sequence[Sequence[Loss]]) -> None:
    """For a terminal, too narrow for eight columns: formula over gradient, purpose over paper."""
    table = Table(leading=1)
    table.add_column("loss", max_width=22, overflow="fold")
    table.add_column("formula\ngradient")
    table.add_column("curvature at 0\ngrowth\ninfluence", width=14)
    table.add_column("for\npaper")
    for group in groups:
        for loss in group:
            label, *said, curvature, growth, influence, purpose, paper = row(loss)
            stacked = (label.replace("(", "\n("), "\n".join(filter(None, said)), "\n".join(filter(None, (curvature, growth, influence))))
            table.add_row(*map(Text, stacked), Text(purpose).append(f"\n{paper}", "dim"))
        table.add_section()
    console.print(table)
