"""Frozen dataclasses as pytrees: floats are data, everything else is structure."""

import dataclasses

import pytest
import torch
from torch.utils import _pytree as pytree

from agents.population import stack, unstack
from rlloss import Huber, frozen, register


@frozen
class Outer:
    inner: Huber
    scale: float = 2.0
    width: int = 3


@dataclasses.dataclass(frozen=True)
class Theirs:
    strength: float = 1.0
    name: str = "x"


def test_floats_are_leaves_and_the_rest_is_structure():
    leaves, structure = pytree.tree_flatten(Outer(Huber(0.5)))
    assert leaves == [0.5, 2.0]
    assert pytree.tree_unflatten(leaves, structure) == Outer(Huber(0.5))
    assert pytree.tree_structure(Outer(Huber(), width=4)) != structure
    assert pytree.tree_structure(Outer(Huber(9.0), scale=0.0)) == structure


@frozen
class Optional:
    inner: Huber | None = None
    scale: float | None = None
    bias: float = 1.0


def test_none_is_structure_and_what_stands_in_its_place_is_data():
    some, none = Optional(Huber(0.5), 2.0), Optional()
    assert pytree.tree_leaves(some) == [0.5, 2.0, 1.0] and pytree.tree_leaves(none) == [1.0]
    for value in (some, none, Optional(None, 3.0), Optional(Huber(2.0))):
        assert pytree.tree_unflatten(*pytree.tree_flatten(value)) == value
    seen = torch.func.vmap(lambda each, x: x * each.bias if each.scale is None else x * each.scale)
    assert seen(stack([none, Optional(bias=5.0)]), torch.ones(2)).tolist() == [1.0, 5.0]
    assert seen(stack([some, Optional(Huber(), 3.0)]), torch.ones(2)).tolist() == [2.0, 3.0]
    with pytest.raises(ValueError, match="differ in structure"):
        stack([some, none])


def test_stacking_and_taking_apart():
    stacked = stack([Outer(Huber(d), s) for d, s in ((0.5, 1.0), (2.0, 3.0))])
    assert stacked.inner.delta.tolist() == [0.5, 2.0] and stacked.scale.tolist() == [1.0, 3.0] and stacked.width == 3
    assert unstack(stacked, 1).inner.delta.item() == 2.0


def test_other_structure_does_not_stack():
    with pytest.raises(ValueError, match="differ in structure"):
        stack([Outer(Huber(), width=1), Outer(Huber(), width=2)])


def test_a_users_own_dataclass_is_sweepable_once_registered():
    register(register(Theirs))
    found = torch.func.vmap(lambda theirs, x: theirs.strength * x)(stack([Theirs(1.0), Theirs(3.0)]), torch.ones(2))
    assert found.tolist() == [1.0, 3.0]


def test_only_dataclasses_register():
    with pytest.raises(TypeError, match="int is not a dataclass"):
        register(int)
