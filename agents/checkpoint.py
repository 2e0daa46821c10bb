"""What a checkpoint says of the run that wrote it, so that no other run goes on from it."""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

# Counts up when a checkpoint would go on otherwise than the code that wrote it.
FORMAT = 7


def described(value: Any, name: str) -> dict[str, Any]:
    """Everything that a value consists of, by dotted name, as JSON keeps it."""
    if dataclasses.is_dataclass(value):
        parts = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
        return {name: type(value).__name__} | _described(parts, name)
    if isinstance(value, Mapping):
        return {name: list(value)} | _described(value, name)
    # Where an object lies in memory is no part of it.
    return {name: value if isinstance(value, (bool, int, float, str)) else re.sub(r" at 0x\w+", "", repr(value))}


def _described(parts: Mapping[str, Any], name: str) -> dict[str, Any]:
    return {key: each for part, value in parts.items() for key, each in described(value, f"{name}.{part}").items()}


def identity(run: Any) -> dict[str, Any]:
    """What must be equal for a run to be the one that a checkpoint is of."""
    numbers = {"format": FORMAT, "seed": run.seed, "total_steps": run.total_steps, "num_envs": run.num_envs}
    return numbers | described(run.agent, "agent") | described(run.environment, "env")


def differences(run: Any, written: Mapping[str, Any]) -> list[str]:
    """The names of what a run and the identity in a checkpoint differ in."""
    if written.get("format") != FORMAT:
        return ["the format of checkpoints"]
    mine = identity(run)
    return [name for name in {**mine, **written} if name not in written or name not in mine or written[name] != mine[name]]
