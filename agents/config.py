"""From a composed config to a `Run`: every mistake is found here, named by its key, before training starts."""

import dataclasses
import difflib
import functools
import importlib
import inspect
import re
import traceback
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import gymnasium
import torch
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from omegaconf import MISSING, DictConfig, OmegaConf
from torch import nn

from agents import recipes
from agents.backends import backend
from agents.composition import container
from agents.environments import Environment
from agents.modules import Module
from agents.replay import memory
from agents.run import LOWEST, Run, refuse_oversized
from rlloss import register

OURS = ("rlloss", "agents", "gymnasium")
REFERENCE = re.compile(r"\$\{([\w.]+)\}")
RESERVED = ("_target_", "_partial_")
Spaces = Callable[[Environment], dict[str, Any]]


class ConfigError(ValueError):
    """A mistake in a config, in one line for a person."""


def config_directory() -> Path:
    """Where the config groups are: inside the installed package, or beside it in a checkout."""
    package = Path(__file__).parent
    return package / "conf" if (package / "conf").is_dir() else package.parent / "conf"


def compose(overrides: Sequence[str] = ()) -> dict[str, Any]:
    """The config that `rlloss-train` makes of these command-line words, without Hydra's own part."""
    with initialize_config_dir(str(config_directory()), version_base="1.3"):
        try:
            config = _composed(overrides)
        except ValueError as error:  # Hydra raises it for some malformed words.
            raise ConfigError(f"{' '.join(overrides)}: {error}") from error
        if wrong := recipes.misfit(config_directory(), overrides, _composed):
            raise ConfigError(wrong)
    return config


def _composed(words: Sequence[str]) -> dict[str, Any]:
    return container(hydra_compose("train", list(words)))


def build(config: Mapping[str, Any], directory: Path | None = None, spaces: Spaces | None = None) -> Run:
    """The run that a config describes, its environment tried once for its spaces, unless a function gives those.

    Raises ConfigError for anything that is wrong, with the key.
    """
    needed = (*LOWEST, "compile", "env", "agent", "evaluation")
    if missing := [name for name in needed if name not in config]:
        raise ConfigError(f"the config has no {missing[0]}; don't delete it")
    _refuse_unknown(config, (*needed, "network", "head", "optimizer", "loss", "return_range", "resume"), "")
    builder = Builder(config)
    environment = builder.build("env")
    if not isinstance(environment, Environment):
        raise ConfigError(f"env: expected an Environment, got {_kind(environment)}; choose one with env=name")
    both = (spaces or spaces_of)(environment)
    plain = {name: _typed(config[name], int, name) for name in LOWEST}
    _typed(config["compile"], bool, "compile")
    agent = builder.build("agent", **both)
    if unread := [name for name, part in config.get("loss", {}).items() if part and f"loss.{name}" not in builder.read]:
        raise ConfigError(f"loss.{unread[0]} is not read by {config['agent'].get('_target_')}; leave it out")
    try:
        run = Run(agent, environment, evaluation=builder.build("evaluation"), directory=directory, config=config, **plain)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    if any(str(name).partition(".")[0] not in OURS for path, name in _code_names(config) if not path.startswith("env.")):
        _try_out(run)
    return run


def build_all(configs: Sequence[Mapping[str, Any]], directories: Sequence[Path | None], names: Sequence[str] = ()) -> list[Run]:
    """The runs that many configs describe, as `build` makes each; what they have in common is made once, each environment is tried once.

    A mistake is said with the name of its run, if there are names.
    """
    made: dict[str, Run] = {}
    tried: dict[str, dict[str, Any]] = {}

    def spaces(environment: Environment) -> dict[str, Any]:
        name = repr(environment)
        return tried[name] if name in tried else tried.setdefault(name, spaces_of(environment))

    def of(config: Mapping[str, Any], directory: Path | None, name: str) -> Run:
        others = repr({**config, "seed": None})
        try:
            if others not in made or "${seed}" in others:
                made[others] = build(config, directory, spaces)
                return made[others]
            return dataclasses.replace(made[others], seed=_typed(config["seed"], int, "seed"), directory=directory, config=config)
        except ValueError as error:
            raise ConfigError(f"{error} (in {name})" if name else str(error)) from error

    return [of(*each) for each in zip(configs, directories, names or [""] * len(configs), strict=True)]


def refuse_deletions(words: Sequence[str]) -> None:
    """Refuse to delete an argument of a class, unless another class is put in its place: its own default would silently be used."""
    deleted = [word[1:].partition("=")[0] for word in words if word.startswith("~")]
    whole = OmegaConf.create(compose([word for word in words if not word.startswith("~")])) if deleted else None
    for key in deleted:
        parent = key.replace("/", ".").rpartition(".")[0]
        node = OmegaConf.select(whole, parent) if parent else None
        if "_target_" in (node or {}) and not any(word.lstrip("+").startswith(f"{parent}._target_=") for word in words):
            raise ConfigError(f"~{key}: it can't be deleted, {node._target_} would silently use a default of its own; give it a value, {key}=…")


def _try_out(run: Run) -> None:
    """Make one update of an agent with a person's own code on empty memory, so that what fails does so before training starts."""
    try:
        refuse_oversized([run])
    except ValueError as error:
        raise ConfigError(str(error)) from error
    plan = run.plan
    empty = memory(1, run.num_envs, plan.length, run.agent.layout)[0]
    state = run.agent.init(torch.Generator(), run.num_envs * plan.length)
    try:
        run.agent.update(state, empty, torch.zeros(plan.update_uniforms, dtype=torch.float64), torch.ones((), dtype=torch.float64), torch.zeros(()))
    except Exception as error:
        frame = traceback.extract_tb(error.__traceback__)[-1]
        raise ConfigError(f"agent: its first update fails: {type(error).__name__}: {error} ({frame.filename}, line {frame.lineno})") from error


def spaces_of(environment: Environment) -> dict[str, Any]:
    """The spaces that an agent needs of its environment, which is made once for them; raises ConfigError where that fails."""
    if not environment.id:
        raise ConfigError("env.id is empty; name a Gymnasium environment, such as env.id=CartPole-v1, or choose one with env=name")
    try:
        observation_space, action_space = backend(environment).spaces(environment)
    except ValueError as error:
        found = re.search(r"unexpected keyword argument '(\w+)'", str(error))
        if found and environment.backend == "gymnasium":
            takes = _constructor_arguments(environment)
            raise ConfigError(f"env.arguments.{found[1]}: {environment.id} takes no {found[1]}; it takes {', '.join(takes) or 'none'}{nearest(found[1], takes)}") from error
        raise ConfigError(f"env: {error}") from error
    return {"observation_space": observation_space, "action_space": action_space}


def _constructor_arguments(environment: Environment) -> list[str]:
    """The names of what may be given to an environment's constructor, and to gymnasium.make."""
    entry = gymnasium.spec(environment.id).entry_point
    constructor = gymnasium.envs.registration.load_env_creator(entry) if isinstance(entry, str) else entry
    return [name for name, parameter in inspect.signature(constructor).parameters.items() if parameter.kind is not inspect.Parameter.VAR_KEYWORD]


class Builder:
    """Makes values of config nodes with `_target_`, checking names and types against the target's own."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        self.config = config
        self.read: set[str] = set()

    @functools.cached_property
    def root(self) -> DictConfig:
        """The config as OmegaConf's, which takes longer to make than all else here: for what plain values can't tell."""
        return OmegaConf.create(dict(self.config))

    def build(self, path: str, **given: Any) -> Any:
        """The value of the node at a dotted path; `given` are arguments that no config can hold, for all in it that take them."""
        return self._value(self._node(path), path, **given)

    def _node(self, path: str) -> Any:
        node = self.config
        for name in path.split("."):
            if not isinstance(node, Mapping) or name not in node:
                node = OmegaConf.select(self.root, path)
                return OmegaConf.to_container(node, resolve=False) if OmegaConf.is_config(node) else node
            node = node[name]
        return node

    def _value(self, node: Any, path: str, **given: Any) -> Any:
        if reference := _reference(node):
            self.read.add(reference)
            return self.build(reference, **given)
        if isinstance(node, str) and "${" in node:
            return OmegaConf.select(self.root, path)
        if isinstance(node, list):
            return [self._value(item, f"{path}[{index}]", **given) for index, item in enumerate(node)]
        if not isinstance(node, Mapping):
            return node
        if "_target_" not in node:
            return {key: self._value(item, f"{path}.{key}", **given) for key, item in node.items()}
        return self._call(node, path, given)

    def _call(self, node: Mapping[str, Any], path: str, given: Mapping[str, Any]) -> Any:
        target = locate(node["_target_"], f"{path}._target_")
        arguments = {key: self._value(item, f"{path}.{key}", **given) for key, item in node.items() if key not in RESERVED}
        if inspect.isclass(target) and issubclass(target, nn.Module):
            _check_arguments(target, arguments, path)
            target, arguments = Module, {"target": target, "arguments": arguments}
        given = {name: each for name, each in given.items() if name in inspect.signature(target).parameters}
        if dataclasses.is_dataclass(target) and target is not Module:
            places = {key: _reference(item) or f"{path}.{key}" for key, item in node.items()}
            arguments = _checked(target, arguments, path, places, given)
        if node.get("_partial_"):  # Wrappers of Gymnasium's want tuples, which YAML doesn't have.
            return functools.partial(target, **{name: tuple(each) if isinstance(each, list) else each for name, each in arguments.items()})
        try:
            return target(**arguments, **given)
        except (TypeError, ValueError) as error:
            raise ConfigError(f"{path}.{error}" if _names_field(target, str(error)) else f"{path}: {error}") from error


def _reference(node: Any) -> str | None:
    """The dotted path that a value such as ${loss.value} refers to."""
    found = REFERENCE.fullmatch(node) if isinstance(node, str) else None
    return found[1] if found else None


def locate(name: str, path: str) -> Any:
    """The class or function with this dotted name; raises ConfigError if there is none."""
    if name == MISSING:
        raise ConfigError(f"{path} must be given: the dotted name of a class, such as my_module.MyClass")
    module, _, attribute = str(name).rpartition(".")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(f"{path}: there is no {name} ({error})") from error
    if not (inspect.isclass(found) or inspect.isfunction(found)):
        raise ConfigError(f"{path}: {name} is neither a class nor a function")
    return found


def refuse_untrusted(config: Mapping[str, Any], trusted: Iterable[str]) -> None:
    """Raise ConfigError unless every `_target_` and environment of a config lies in a trusted package.

    A config that came with a run directory could otherwise run any code on the machine.
    """
    allowed = {*OURS, *trusted}
    for path, name in _code_names(OmegaConf.to_container(OmegaConf.create(dict(config)), resolve=True)):
        package = str(name).partition(".")[0]
        found = locate(name, path) if package in allowed and path.endswith("_target_") else None
        if package not in allowed or (found and not (inspect.isclass(found) and found.__module__.partition(".")[0] in allowed)):
            raise ConfigError(f"{path}: {name} is not part of rlloss; if you trust that code, allow it with --trust {package} (trust={package} beside resume)")


def _code_names(node: Any, path: str = "") -> Iterable[tuple[str, str]]:
    if isinstance(node, list):
        node = dict(enumerate(node))
    if isinstance(node, Mapping):
        for key, value in node.items():
            where = f"{path}.{key}".lstrip(".")
            if key == "_target_":
                yield where, value
            elif key == "id" and ":" in str(value):
                yield where, str(value).partition(":")[0]
            else:
                yield from _code_names(value, where)


def refuse(message: str) -> None:
    """Raise a ConfigError."""
    raise ConfigError(message)


def nearest(word: str, words: Iterable[str]) -> str:
    """A question that names the most similar of some words; empty where none is."""
    found = difflib.get_close_matches(word, list(words), n=1, cutoff=0.5)
    return f"; did you mean {found[0]}?" if found else ""


def no_key(key: str, known: Sequence[str]) -> str:
    """What to say of a key that doesn't exist: the most similar one, or those that stand beside it."""
    parent, _, last = key.rpartition(".")
    beside = [word.rpartition(".")[2] for word in known if word.rpartition(".")[0] == parent and "_target_" not in word]
    if close := difflib.get_close_matches(last, beside, n=1):
        return f"there is no key {key}; did you mean {f'{parent}.' if parent else ''}{close[0]}?"
    if short := [word for word in known if last in _abbreviations(word) and word.startswith(f"{parent}." if parent else "")]:
        return f"there is no key {key}; did you mean {short[0]}?"
    if parent and beside:
        return f"there is no key {key}; {parent} has {', '.join(beside)}"
    return f"there is no key {key}{nearest(key, known)}"


def _abbreviations(key: str) -> tuple[str, str]:
    """What a person may take for the name of a key: learning_rate, and lr, for optimizer.learning_rate."""
    last = key.rpartition(".")[2]
    return last, "".join(word[:1] for word in last.split("_"))


def keys(config: Any, prefix: str = "") -> list[str]:
    """All dotted keys of a config."""
    if not isinstance(config, Mapping):
        return []
    return [name for key, value in config.items() for name in (f"{prefix}{key}", *keys(value, f"{prefix}{key}."))]


def _checked(target: type, arguments: Mapping[str, Any], path: str, places: Mapping[str, str], given: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of a dataclass with their types made right: 1 for a float is 1.0, a list for a tuple is a tuple."""
    hints = typing.get_type_hints(target)
    names = [field.name for field in dataclasses.fields(target) if field.init and field.name not in given]
    _refuse_unknown(arguments, names, f"{path}.")
    register(target)
    return {key: _typed(value, hints[key], places[key]) for key, value in arguments.items()}


def _check_arguments(target: type, arguments: Mapping[str, Any], path: str) -> None:
    """Raise ConfigError for an argument that the constructor of a person's own class doesn't have."""
    known = inspect.signature(target).parameters
    if all(parameter.kind is not parameter.VAR_KEYWORD for parameter in known.values()):
        for name in arguments:
            if name not in known:
                has = f"it has {', '.join(known)}" if known else "it has none"
                raise ConfigError(f"{path}.{name} is no argument of {target.__name__}, {has}; say {path}=module to leave out those of another choice")


def _refuse_unknown(found: Iterable[str], known: Iterable[str], prefix: str) -> None:
    for name in found:
        if name not in known:
            raise ConfigError(no_key(prefix + name, [prefix + word for word in known]))


def _typed(value: Any, hint: Any, path: str) -> Any:
    """The value as the type its annotation asks for, or a ConfigError."""
    origin, options = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return None if value is None and type(None) in options else _typed(value, next(option for option in options if option is not type(None)), path)
    if hint in (int, float, str, bool):
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if hint is float and number:
            return float(value)
        if hint is int and number and float(value).is_integer():
            return int(value)
        if hint in (str, bool) and isinstance(value, hint):
            return value
        raise ConfigError(f"{path} must be {_in_words(hint.__name__)}, got {value!r}")
    if origin is tuple:
        if not isinstance(value, list):
            raise ConfigError(f"{path} must be a list such as [1, 2], got {value!r}")
        return tuple(_typed(item, options[0], f"{path}[{index}]") for index, item in enumerate(value))
    if isinstance(value, (str, int, float, type(None))) and inspect.isclass(hint):
        choice = f" (a choice is made with a slash: {path.replace('.', '/')}={value})" if isinstance(value, str) else ""
        raise ConfigError(f"{path} must be a part with a _target_, got {value!r}{choice}")
    return value


def _in_words(name: str) -> str:
    return {"int": "a whole number", "float": "a number", "str": "text", "bool": "true or false"}[name]


def _names_field(target: Any, message: str) -> bool:
    """Whether a message of a dataclass begins with one of its fields, and so continues a path."""
    return dataclasses.is_dataclass(target) and re.split(r"[ .]", message)[0] in {field.name for field in dataclasses.fields(target)}


def _kind(value: Any) -> str:
    return type(value).__name__
