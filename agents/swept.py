"""What a sweep varied: found by comparing the configs of its runs, and named as a person would say it on the command line."""

import functools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import yaml

from agents.config import ConfigError, config_directory, nearest
from agents.run_records import RunRecord
from agents.sweep import short

# What differs between runs and is no setting of an experiment.
APART = ("seed", "resume", "compile", "log_every", "checkpoint_every", "evaluation.every", "evaluation.episodes")
ENVIRONMENT = "env."
SHORT = 12  # characters of a number that a person writes


def settings(run: RunRecord) -> dict[str, Any]:
    """A run's config as dotted keys; a part stands as the name of its choice, such as loss.value: huber.

    References to other parts are left out, so that each number stands once.
    """
    flat: dict[str, Any] = {}
    _flatten(run.config, "", run.choices, flat)
    return {key: value for key, value in flat.items() if key not in APART}


def _flatten(node: Any, path: str, choices: Mapping[str, str], flat: dict[str, Any]) -> None:
    if isinstance(node, Mapping):
        if "_target_" in node:
            flat[path] = choice_name(path, node, choices)
        for key, value in node.items():
            if key != "_target_":
                _flatten(value, f"{path}.{key}".lstrip("."), choices, flat)
    elif isinstance(node, list):
        flat[path] = tuple(str(item) for item in node)
    elif not (isinstance(node, str) and node.startswith("${")):
        flat[path] = node


def choice_name(path: str, node: Mapping[str, Any], choices: Mapping[str, str]) -> str:
    """How a part is chosen on the command line: as this run's own line said, or the file in conf with the same class and the most equal values.

    A class that no file names goes by its own name.
    """
    group, target = path.replace(".", "/"), node["_target_"]
    among, _, last = group.rpartition("/")
    if _files(among).get(last, {}).get("_target_") == target:  # One of a list, such as loss.regularizer.l2.
        return last
    known = _files(group)
    if (said := choices.get(group)) in known and known[said].get("_target_", target) == target:
        return said
    equal = {name: sum(node.get(key) == value for key, value in file.items()) for name, file in known.items() if file.get("_target_") == target}
    return max(equal, key=equal.get) if equal else str(target).rpartition(".")[2]


@functools.cache
def _files(group: str) -> dict[str, dict[str, Any]]:
    """The choices of a group with what their files say of it; some say more than that."""
    files = {path.stem: yaml.safe_load(path.read_text()) or {} for path in sorted((config_directory() / group).glob("*.yaml"))}
    return {name: file.get(group, file) for name, file in files.items()}


def environment_names(runs: Sequence[Mapping[str, Any]]) -> list[str]:
    """Each run's environment by name, of its settings; where one id has several settings these are said too."""
    keys = [key for key in _differing(runs) if key.startswith(ENVIRONMENT)]
    ids = [str(run.get("env.id")) for run in runs]
    names = []
    for run, name in zip(runs, ids, strict=True):
        others = [other for other, same in zip(runs, ids, strict=True) if same == name]
        varied = [key for key in keys if len({repr(other.get(key)) for other in others}) > 1]
        names.append(label(name, {key: run.get(key) for key in varied}))
    return names


def label(name: str, values: Mapping[str, Any]) -> str:
    """A name and the settings that go with it."""
    return " ".join([name, *(f"{short(key, values)}={value_name(value)}" for key, value in values.items() if value is not None)]).strip()


def swept_keys(runs: Sequence[Mapping[str, Any]], environments: Sequence[str]) -> list[str]:
    """The keys that differ between runs of one environment, choices first; what follows from keys before it is left out.

    So loss.value=mse,huber is one key, though the two have different settings below it.
    """
    groups = [[run for run, where in zip(runs, environments, strict=True) if where == name] for name in dict.fromkeys(environments)]
    differing = {key for group in groups for key in _differing(group) if not key.startswith(ENVIRONMENT) and key != "env"}
    kept: list[str] = []
    for key in sorted(differing, key=lambda key: (not _is_choice(key), key.count("."), key)):
        if any(not _follows(key, kept, group) for group in groups):
            kept.append(key)
    return kept


def _is_choice(key: str) -> bool:
    return bool(_files(key.replace(".", "/")))


def _differing(runs: Sequence[Mapping[str, Any]]) -> list[str]:
    keys = dict.fromkeys(key for run in runs for key in run)
    return [key for key in keys if len({repr(run.get(key)) for run in runs}) > 1]


def _follows(key: str, others: Sequence[str], runs: Sequence[Mapping[str, Any]]) -> bool:
    """Whether the value of a key is the same wherever those of the others are."""
    seen: dict[tuple, str] = {}
    return all(seen.setdefault(tuple(repr(run.get(other)) for other in others), repr(run.get(key))) == repr(run.get(key)) for run in runs)


def chosen_keys(words: Iterable[str], runs: Sequence[Mapping[str, Any]]) -> list[str]:
    """The keys that --by names: whole ones, or the end of one alone, such as learning_rate; ConfigError for one that isn't there."""
    known = list(dict.fromkeys(key for run in runs for key in run))
    return [_key(word.replace("/", "."), known, runs) for word in words]


def _key(word: str, known: Sequence[str], runs: Sequence[Mapping[str, Any]]) -> str:
    ends = [key for key in known if key.endswith(f".{word}")]
    differing = [key for key in ends if len({repr(run.get(key)) for run in runs}) > 1]
    if word in known:
        return word
    if len(found := differing or ends) == 1:
        return found[0]
    if found:
        raise ConfigError(f"--by {word} may be {' or '.join(found)}; say which")
    raise ConfigError(f"--by {word}: no run has this key{nearest(word, known) or nearest(word, [short(key, known) for key in known])}")


def configuration(run: Mapping[str, Any], keys: Sequence[str]) -> str:
    """The name of a run's configuration: its choices as words, its numbers with the end of their keys."""
    words = [str(run[key]) if _is_part(key, run) else f"{short(key, keys)}={value_name(run[key])}" for key in keys if run.get(key) is not None]
    return " ".join(words) or "all"


def _is_part(key: str, run: Mapping[str, Any]) -> bool:
    """Whether the value of a key is the name of a choice or of a class."""
    return _is_choice(key) or any(other.startswith(f"{key}.") for other in run)


def is_number(value: Any) -> bool:
    """Whether a value is a number; True and False are none."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def value_name(value: Any) -> str:
    """A value as a person writes it: a short number whole, so that two of them never share a name, one that a search drew with six digits."""
    if isinstance(value, tuple):
        return f"[{','.join(value)}]"
    if not isinstance(value, float):
        return str(value)
    whole = f"{value:.15g}"
    return whole if len(whole) <= SHORT else f"{value:g}"
