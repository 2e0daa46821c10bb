"""Substituted operations against torch's own: products of any shape and any way round, tanh and few categories in double precision."""

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx

from agents import substitutions
from agents.substitutions import Substitutions


def traced(function, *inputs):
    return make_fx(function, Substitutions(inputs).table)(*inputs)


def operations(graph):
    return {node.target for node in graph.graph.nodes if node.op == "call_function"}


@pytest.fixture
def slow_library(monkeypatch):
    monkeypatch.setattr(substitutions, "library_is_slow", lambda: True)


@pytest.mark.parametrize("turned_left", [False, True])
@pytest.mark.parametrize("turned_right", [False, True])
@pytest.mark.parametrize(("height", "depth", "width"), [(64, 64, 64), (102, 3, 64), (8, 64, 53), (4, 5, 16), (21, 7, 62)])
def test_products_are_torchs(slow_library, height, depth, width, turned_left, turned_right):
    left, right = torch.randn(3, height, depth), torch.randn(3, depth, width)
    left = left.mT.contiguous().mT if turned_left else left
    right = right.mT.contiguous().mT if turned_right else right

    def function(left, right):  # The factors are inputs, and made of inputs; one is read both ways.
        made = (left + 1).relu()
        return left @ right, made @ right, made.mT @ (left @ (right * 2))

    graph = traced(function, left, right)
    assert torch.ops.aten.bmm.default not in operations(traced(lambda left, right: left @ right, left, right))
    for found, expected in zip(graph(left, right), function(left.double(), right.double()), strict=True):
        torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5 * depth)


@pytest.mark.parametrize(("height", "width"), [(1, 64), (13, 64), (64, 2), (64, 20)])
def test_products_that_dont_divide_stay(slow_library, height, width):
    graph = traced(torch.bmm, torch.randn(2, height, 5), torch.randn(2, 5, width))
    assert torch.ops.aten.bmm.default in operations(graph)


def test_products_in_double_precision_stay(slow_library):
    assert torch.ops.aten.bmm.default in operations(traced(torch.bmm, torch.randn(2, 8, 5).double(), torch.randn(2, 5, 16).double()))


def test_tanh_is_right_everywhere():
    magnitudes = torch.cat([torch.logspace(-30, 1, 20_001), torch.tensor([7.99999, 8.0, 8.00001, 9.0, 50.0, 1e30, torch.inf])])
    x = torch.cat([-magnitudes, torch.tensor([0.0, torch.nan]), magnitudes])
    graph = traced(torch.tanh, x)
    assert torch.ops.aten.tanh.default not in operations(graph)
    torch.testing.assert_close(graph(x).double(), x.double().tanh(), rtol=4e-7, atol=0, equal_nan=True)
    assert graph(x)[~x.isnan()].abs().max() <= 1


def test_the_gradient_of_tanh_is_that_of_its_value():
    x = torch.linspace(-12, 12, 100_001)
    graph = traced(torch.func.grad(lambda x: torch.tanh(x).sum()), x)
    assert torch.ops.aten.tanh.default not in operations(graph)
    torch.testing.assert_close(graph(x).double(), 1 - x.double().tanh() ** 2, rtol=0, atol=7e-7)


def taken(logits, action):
    """log π(a) of few categories, in the last dimension and in one before, and its gradient."""

    def chosen(logits):
        last = logits.log_softmax(-1).gather(-1, action[..., None]).squeeze(-1)
        return (last * last.detach().sin()).sum() + logits.log_softmax(1).square().mean()

    return torch.func.grad_and_value(chosen)(logits)


@pytest.mark.parametrize("shape", [(50, 4, 2), (2, 7, 8), (4, 2, 3), (1, 5, 3)])
def test_few_categories_are_told_apart_as_by_torch(shape):
    logits, action = 20 * torch.randn(shape), torch.randint(shape[-1], shape[:-1])
    graph = traced(taken, logits, action)
    left = {torch.ops.aten._log_softmax.default, torch.ops.aten._log_softmax_backward_data.default, torch.ops.aten.gather.default, torch.ops.aten.scatter_add.default}
    assert not left & operations(graph) and left <= operations(make_fx(taken)(logits, action))
    for found, expected in zip(graph(logits, action), taken(logits.double(), action), strict=True):
        torch.testing.assert_close(found.double(), expected, rtol=2e-5, atol=2e-5)


def test_a_category_that_is_ruled_out_stays_so():
    logits = torch.tensor([[0.5, -torch.inf, 2.0], [-torch.inf, -torch.inf, -3.0], [1e30, 0.0, -1e30]])
    graph = traced(lambda x: (x.log_softmax(-1), torch.func.grad(lambda x: x.log_softmax(-1)[:, 2].sum())(x)), logits)
    log_policy, gradient = graph(logits)
    torch.testing.assert_close(log_policy, logits.log_softmax(-1))
    torch.testing.assert_close(gradient, torch.tensor([0.0, 0.0, 1.0]) - logits.softmax(-1))


@pytest.mark.parametrize(("shape", "places"), [((3, 9), (3, 1)), ((3, 4), (3, 2)), ((4, 3), (2, 1))], ids=["many", "several in a row", "some rows"])
def test_other_choices_stay(shape, places):
    graph = traced(lambda x, index: x.gather(1, index), torch.randn(shape), torch.zeros(places, dtype=torch.long))
    assert torch.ops.aten.gather.default in operations(graph)
    assert torch.ops.aten._log_softmax.default in operations(traced(lambda x: x.log_softmax(-1), torch.randn(3, 9)))
