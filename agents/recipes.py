"""Recipes of `experiment=`: their numbers are for their own choices, which not every other choice has."""

import contextlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra.errors import HydraException
from omegaconf import OmegaConf


def misfit(directory: Path, words: Sequence[str], compose: Callable[[list[str]], Mapping[str, Any]]) -> str | None:
    """What is wrong with command-line words that name a recipe, and choices in which a number that it sets has no place; None where nothing is.

    `directory` is that of the config groups, `compose` makes a config of words.
    """
    said = dict(word.partition("=")[::2] for word in words)
    recipe, others = said.get("experiment"), [word for word in words if not word.startswith("experiment=")]
    file = directory / "experiment" / f"{recipe}.yaml"
    chosen = [word for word in others if (directory / word.partition("=")[0]).is_dir()]
    if not file.exists() or not chosen:
        return None
    settings = OmegaConf.to_container(OmegaConf.load(file), resolve=False)
    choices = {group.removeprefix("override /"): choice for item in settings.pop("defaults", []) for group, choice in item.items()}
    with contextlib.suppress(HydraException):  # A word may need the recipe.
        config = compose([*(f"{group}={choice}" for group, choice in choices.items() if group not in said), *others])
        if lost := _lacking(settings, config, ""):
            return f"experiment={recipe} sets {lost[0]}, which there isn't with {', '.join(chosen)}: its numbers are for its own choices; leave out the one or the other"
    return None


def _lacking(settings: Mapping[str, Any], config: Any, prefix: str) -> list[str]:
    """The dotted keys of settings that a config doesn't have."""
    found = []
    for key, node in settings.items():
        if not isinstance(config, Mapping) or key not in config:
            found.append(f"{prefix}{key}")
        elif isinstance(node, Mapping):
            found += _lacking(node, config[key], f"{prefix}{key}.")
    return found
