"""Composing many jobs: once for each set of choices, the numbers of the other jobs are put in their places.

Hydra takes 60 to 100 ms to compose a job, whatever it says. Jobs that differ in plain values of keys that there are differ
in nothing else once they are composed, so one of them is composed and the others are made from it. A word of which that
isn't sure (a choice, a package, `+` or `~`, a list, a reference, a key within another word's) is left to Hydra.
"""

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, OverrideType
from omegaconf import MISSING, AnyNode, DictConfig, OmegaConf

Load = Callable[[list[str]], DictConfig]


class Composed(NamedTuple):
    """One job's config."""

    words: tuple[str, ...]
    values: dict[str, Any]  # plain, without Hydra's own part; references such as ${network} stay, so that each thing is said once
    whole: DictConfig  # as Hydra composed it for a job with the same choices
    changed: dict[str, Any]  # the keys in which this job differs from that one, with its own values


def container(config: DictConfig) -> dict[str, Any]:
    """A composed config as plain values; references such as ${network} stay, so that each thing is said once."""
    config = OmegaConf.masked_copy(config, [key for key in config if key != "hydra"])
    return OmegaConf.to_container(config, resolve=False)


def compose_all(jobs: Sequence[Sequence[str]], load: Load, is_group: Callable[[str], bool]) -> list[Composed]:
    """What Hydra would compose of each job's words, much sooner where they differ in values alone.

    Args:
        jobs: the words of each job.
        load: composes one job's words.
        is_group: whether a word's key names a group of choices.
    """
    parse, is_group = functools.cache(_parsed), functools.cache(is_group)
    found: list[Composed | None] = [None] * len(jobs)
    places = range(len(jobs))
    for alike in _bucketed(places, lambda place: _mask([parse(word) for word in jobs[place]], is_group)).values():
        _fill(found, jobs, alike, load, parse, is_group)
    return found


def _fill(found: list[Composed | None], jobs: Sequence[Sequence[str]], places: Sequence[int], load: Load, parse: Callable[[str], Override], is_group: Callable[[str], bool]) -> None:
    """Compose jobs whose words have the same keys: the first by Hydra, and from it those that differ from it in values alone."""
    words = list(jobs[places[0]])
    whole = load(words)
    values = container(whole)
    overrides = [parse(word) for word in words]
    free = [_is_free(index, overrides, whole, is_group) for index in range(len(words))]
    bound = _bucketed(places, lambda place: tuple(word for word, is_free in zip(jobs[place], free, strict=True) if not is_free))
    for (first, *others), is_mine in zip(bound.values(), [True] + [False] * len(bound), strict=False):
        if not is_mine:
            _fill(found, jobs, [first, *others], load, parse, is_group)
            continue
        for place in (first, *others):
            changed = {parse(word).key_or_group: parse(word).value() for word, was in zip(jobs[place], words, strict=True) if word != was}
            found[place] = Composed(tuple(jobs[place]), put(values, changed), whole, changed)


def _parsed(word: str) -> Override:
    return OverridesParser.create().parse_override(word)


def _bucketed(items: Iterable[Any], key: Callable[[Any], Any]) -> dict[Any, list[Any]]:
    buckets: dict[Any, list[Any]] = {}
    for item in items:
        buckets.setdefault(key(item), []).append(item)
    return buckets


def _mask(overrides: Sequence[Override], is_group: Callable[[str], bool]) -> tuple[str, ...]:
    """The words without those values that may be free."""
    return tuple(override.key_or_group if _is_plain(override, is_group) else override.input_line for override in overrides)


def _is_plain(override: Override, is_group: Callable[[str], bool]) -> bool:
    """Whether a word gives a plain value to a key, as far as the word alone can tell."""
    key = override.key_or_group
    if override.type is not OverrideType.CHANGE or override.package is not None or "/" in key or "[" in key or key.startswith("hydra") or is_group(key):
        return False
    value = override.value()
    return value is None or (isinstance(value, (bool, int, float, str)) and "$" not in str(value) and value != MISSING)


def _is_free(index: int, overrides: Sequence[Override], whole: DictConfig, is_group: Callable[[str], bool]) -> bool:
    """Whether a word's value stands at its key in what was composed, just as it was said, and would with another value too."""
    mine, key = overrides[index], overrides[index].key_or_group
    if not _is_plain(mine, is_group):
        return False
    for place, other in enumerate(overrides):
        name = other.key_or_group
        nested = f"{name}.".startswith(f"{key}.") or f"{key}.".startswith(f"{name}.")
        chooses = is_group(name) and name != key and isinstance(other.value(), str)  # Choices are made before values are set.
        if place != index and nested and not chooses:
            return False
    *parents, last = key.split(".")
    node = whole
    for name in parents:
        node = node._get_node(name) if isinstance(node, DictConfig) and name in node else None
    leaf = node._get_node(last) if isinstance(node, DictConfig) and last in node else None
    return type(leaf) is AnyNode and type(leaf._value()) is type(mine.value()) and leaf._value() == mine.value()


def put(values: Mapping[str, Any], changed: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of plain values with others at some dotted keys."""
    fresh = _copy(values)
    for key, value in changed.items():
        *parents, last = key.split(".")
        functools.reduce(dict.__getitem__, parents, fresh)[last] = value
    return fresh


def _copy(node: Any) -> Any:
    if isinstance(node, dict):
        return {key: _copy(item) for key, item in node.items()}
    return [_copy(item) for item in node] if isinstance(node, list) else node
