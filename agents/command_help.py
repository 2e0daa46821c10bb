"""What `rlloss-train --help` says, taken from the config files and their comments."""

import re
from collections.abc import Iterator
from pathlib import Path

from omegaconf import OmegaConf

from agents.config import config_directory


def groups() -> dict[str, list[str]]:
    """The config groups and their choices."""
    found: dict[str, list[str]] = {}
    for path in sorted(config_directory().rglob("*.yaml")):
        group, choice = group_and_choice(path.relative_to(config_directory()).with_suffix("").as_posix())
        if group:
            found.setdefault(group, []).append(choice)
    return found


def group_and_choice(file: str) -> tuple[str, str]:
    """The group that a config file belongs to, and what is chosen there; recipes may lie in folders: experiment=study/cartpole."""
    group, _, choice = file.partition("/") if file.startswith("experiment/") else file.rpartition("/")
    return group, choice


def help_text() -> str:
    """What can be said on the command line, taken from the config files and their comments."""
    lines = ["rlloss-train trains an agent. Say what to change as name=value; everything has a default.", ""]
    lines += ["  rlloss-train env=acrobot loss/value=huber loss.value.delta=0.5 seed=3", "  rlloss-train -m loss/value=mse,huber seed=0,1,2      all combinations, trained together", ""]
    lines += ["  rlloss-train resume=RUN_DIR                          continue a run that was stopped"]
    lines += ["  rlloss-train resume=RUN_DIR trust=my_module          the same where its config names code of my_module"]
    lines += ["  rlloss-train loss.value._target_=my_module.MyLoss    a class of your own, found where you work", ""]
    lines += ["Choices (name=choice; + before a group in which nothing is chosen by default):"]
    default = dict(default_choices())
    for group, choices in groups().items():
        lines += [f"  {group}=[…], a list, empty by default" if default.get(group) == [] else f"  {group}" if group in default else f"  +{group}"]
        for choice in choices:
            mark = "(default) " if default.get(group) == choice else ""
            lines += [f"    {choice:<31}{mark}{_first_comment(config_directory() / group / f'{choice}.yaml')}"]
    lines += ["", "Settings (name=value), with their defaults:"]
    lines += _settings("train", "")
    for group, choice in default.items():
        if choice and (settings := _settings(f"{group}/{choice}", group.replace("/", "."))):
            lines += ["", f"Settings of {group}={choice}, the default:", *settings]
    lines += ["", "Those of other choices: rlloss-train GROUP=CHOICE --cfg job"]
    return "\n".join(lines)


def default_choices(file: str = "train", prefix: str = "") -> Iterator[tuple[str, str | list[str]]]:
    """The groups of a config file and what is chosen in them, a choice, a list or nothing (""), the choices' own groups included."""
    for item in OmegaConf.load(config_directory() / f"{file}.yaml").get("defaults", []):
        for group, choice in item.items() if OmegaConf.is_dict(item) else ():
            if not group.startswith("override "):
                yield f"{prefix}{group}", list(choice) if OmegaConf.is_list(choice) else choice or ""
            if isinstance(choice, str) and not group.startswith("override "):
                yield from default_choices(f"{prefix}{group}/{choice}", f"{prefix}{group}/")


def _settings(file: str, prefix: str) -> list[str]:
    """The settings of a config file as dotted names with their values and comments."""
    lines, path = [], []
    for line in (config_directory() / f"{file}.yaml").read_text().splitlines():
        found = re.match(r"( *)(\w+):(?: ([^#]*))?(# .*)?$", line)
        if not found or found[2] in ("_target_", "_partial_", "defaults") or "${" in line:
            continue
        path = [*path[: len(found[1]) // 2], found[2]]
        if path[0] == "hydra":
            break
        value, comment = (found[3] or "").strip(), (found[4] or "").removeprefix("# ")
        name = ".".join([*filter(None, [prefix]), *path])
        if value or comment:
            lines.append(f"  {f'{name}={value}' if value else f'{name}.…':<46}{comment}".rstrip())
    return lines


def _first_comment(path: Path) -> str:
    return next((line[2:] for line in path.read_text().splitlines() if line.startswith("# ") and not line.startswith("# @")), "")
