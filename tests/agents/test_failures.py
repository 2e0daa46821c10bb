"""Runs that fail: told exactly, frozen, and of no consequence for the others."""

import dataclasses
import functools
import math
from dataclasses import dataclass

import pytest
import torch
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
from torch.utils import _pytree as pytree

from agents.training import train as train_population
from rlloss.value_losses import ScalarHead
from tests.conftest import COMPILED
from tests.events import events, scalars

train = functools.partial(train_population, compile=False)
WORDS = ["total_steps=300", "log_every=50", "checkpoint_every=80", "evaluation.every=120"]


@dataclass(frozen=True)
class Fragile(ScalarHead):
    """Squared error that is NaN once the mean error of a batch has passed `limit`: a float says which run it befalls."""

    limit: float = math.inf

    def pointwise(self, error):
        return error**2 + torch.where(error.abs().mean() > self.limit, math.nan, 0.0)


def made(small_run, directory, seeds, fails=(), words=()):
    """Runs with these seeds; those in `fails` have a loss that breaks after a while."""
    runs = [small_run(*WORDS, *words, f"seed={seed}", "loss/value=mse", directory=directory / str(seed)) for seed in seeds]
    return [dataclasses.replace(run, agent=dataclasses.replace(run.agent, value_loss=Fragile(0.0 if run.seed in fails else math.inf))) for run in runs]


def same(one, other):
    return all(torch.equal(a, b) for a, b in zip(pytree.tree_leaves(one), pytree.tree_leaves(other), strict=True))


def is_the_same_run(one, other):
    assert same(one.learner, other.learner) and one.evaluation_returns == other.evaluation_returns and one.complete and other.complete
    assert scalars(one.directory) == scalars(other.directory)


def status(directory):
    """What the HPARAMS tab is told of the end; None for nothing."""
    (content,) = [value.metadata.plugin_data.content for event in events(directory) for value in event.summary.value if value.tag == "_hparams_/session_end_info"] or [None]
    return content and HParamsPluginData.FromString(content).session_end_info.status


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
def test_a_run_that_diverges_fails_alone(small_run, tmp_path, compiled):
    """Infinite learning rates are refused, so a huge one: SGD's weights overflow within a few updates."""
    words = ["optimizer=sgd", "loss/value=huber", *WORDS, *(COMPILED if compiled else [])]

    def run(where, seed, rate):
        return small_run(*words, f"seed={seed}", f"optimizer.learning_rate={rate}", directory=tmp_path / where / str(seed))

    train = functools.partial(train_population, compile=compiled)
    both = train([run("both", 0, 0.01), run("both", 1, 1e38), run("both", 2, 0.02)])
    without = train([run("without", 0, 0.01), run("without", 2, 0.02)])
    for one, other in zip((both[0], both[2]), without, strict=True):
        is_the_same_run(one, other)
    is_the_same_run(both[0], train([run("alone", 0, 0.01)])[0])
    failed, alone = both[1], train([run("alone", 1, 1e38)])[0]
    assert dataclasses.replace(failed.failure, checkpoint=None) == dataclasses.replace(alone.failure, checkpoint=None)
    assert scalars(failed.directory) == scalars(alone.directory)
    assert not failed.complete and failed.stopped_by is None and 50 < failed.failure.step <= 60
