"""Frozen dataclasses that are torch pytrees: floats are leaves, everything else is structure."""

import dataclasses
import functools
import types
import typing
from typing import Any, TypeVar

from torch import Tensor
from torch.utils import _pytree as pytree

Class = TypeVar("Class", bound=type)


@typing.dataclass_transform(frozen_default=True)
def frozen(cls: Class) -> Class:
    """Make `cls` a frozen dataclass and a torch pytree.

    Fields annotated `float`, `Tensor`, with a dataclass or a Protocol, or as a `dict` of such, are the tree's
    children: they pass through `torch.func.vmap` and may hold one number per run. All other fields (ints, strings,
    bools, tuples, spaces) are structure: two values with different structure don't stack. So is a child's being None.
    """
    return register(dataclasses.dataclass(frozen=True)(cls))


def register(cls: Class) -> Class:
    """Register a dataclass that exists already, such as a user's own loss, as a torch pytree.

    Registering a class twice does nothing. Raises TypeError if `cls` isn't a dataclass.
    """
    if not dataclasses.is_dataclass(cls):
        raise TypeError(f"{cls.__name__} is not a dataclass: decorate it with @dataclass(frozen=True)")
    if cls not in pytree.SUPPORTED_NODES:
        pytree.register_pytree_node(cls, _flatten, functools.partial(_unflatten, cls), flatten_with_keys_fn=_flatten_with_keys)
    return cls


@functools.cache
def _fields(cls: type) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Names of the children and of the structure of a dataclass."""
    hints = typing.get_type_hints(cls)
    names = [field.name for field in dataclasses.fields(cls)]
    children = tuple(name for name in names if _is_child(hints[name]))
    return children, tuple(name for name in names if name not in children)


def _is_child(hint: Any) -> bool:
    if typing.get_origin(hint) is dict:
        return _is_child(typing.get_args(hint)[1])
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return all(_is_child(each) for each in typing.get_args(hint) if each is not types.NoneType)
    is_protocol = getattr(hint, "_is_protocol", False)
    return hint in (float, Tensor) or dataclasses.is_dataclass(hint) or is_protocol


def _flatten(value: Any) -> tuple[list[Any], tuple[Any, ...]]:
    children, structure = _fields(type(value))
    # torch takes None for a leaf; an empty tuple has none.
    leaves = [() if (child := getattr(value, name)) is None else child for name in children]
    return leaves, tuple(getattr(value, name) for name in structure)


def _flatten_with_keys(value: Any) -> tuple[list[tuple[pytree.KeyEntry, Any]], tuple[Any, ...]]:
    children, _ = _fields(type(value))
    leaves, structure = _flatten(value)
    return list(zip(map(pytree.GetAttrKey, children), leaves, strict=True)), structure


def _unflatten(cls: type, leaves: Any, structure: tuple[Any, ...]) -> Any:
    # Not through __init__: its checks are for numbers, and leaves may be tracers, stacks or placeholders.
    value = object.__new__(cls)
    children, names = _fields(cls)
    for name, item in zip(children + names, (*leaves, *structure), strict=True):
        object.__setattr__(value, name, None if name in children and type(item) is tuple else item)
    return value
