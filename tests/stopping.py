"""A run that is stopped on its way and goes on, beside the same run in one go."""

import contextlib

import pytest
import torch
from torch.utils import _pytree as pytree

from agents.training import train
from tests.events import scalars


class Stop:
    """Asks to stop after so many loops of training, as Ctrl-C does."""

    number = 2

    def __init__(self, loops):
        self.left = loops

    def __call__(self):
        self.left -= 1
        return self.left < 0


def stopped(run, loops):
    """Train a run, stopped after so many loops, or sooner where it is asked within them whether it shall stop."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("agents.training.interruptible", lambda: contextlib.nullcontext(Stop(loops)))
        result = train([run], compile=False)[0]
    assert not result.complete and 0 < result.steps <= loops * run.num_envs


def same(one, other):
    """Whether two pytrees of tensors are bitwise equal."""
    return all(torch.equal(a, b) for a, b in zip(pytree.tree_leaves(one), pytree.tree_leaves(other), strict=True))


def goes_on_bitwise(make, directory, loops):
    """The result of the run that `make` makes in a directory, the same when it was stopped after so many loops and resumed, logs included."""
    whole = train([make(directory / "whole")], compile=False)[0]
    run = make(directory / "parts")
    stopped(run, loops)
    parts = train([run], resume=True, compile=False)[0]
    assert parts.complete and same(parts.learner, whole.learner) and parts.evaluation_returns == whole.evaluation_returns
    assert sorted(scalars(directory / "parts")) == sorted(scalars(directory / "whole"))
    return whole
