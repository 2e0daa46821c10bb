"""Optimisers against torch.optim, schedules against their end points, clipping against torch.nn.utils."""

import pytest
import torch

from agents.optimizers import SGD, Adam, RMSProp, clip_by_global_norm
from agents.schedules import Linear

PAIRS = [
    (Adam(3e-3, eps=1e-4, weight_decay=0.1), lambda p: torch.optim.Adam(p, 3e-3, eps=1e-4, weight_decay=0.1)),
    (Adam(), lambda p: torch.optim.Adam(p, 5e-4, eps=3e-4)),
    (RMSProp(1e-2, alpha=0.9, eps=1e-3, weight_decay=0.01), lambda p: torch.optim.RMSprop(p, 1e-2, alpha=0.9, eps=1e-3, weight_decay=0.01)),
    (SGD(0.1, momentum=0.9, weight_decay=0.01), lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, weight_decay=0.01)),
    (SGD(), lambda p: torch.optim.SGD(p, 1e-2)),
]


def _loss(parameters):
    return ((parameters["a"] @ parameters["b"] - 1) ** 2).mean()


@pytest.mark.parametrize(("ours", "theirs"), PAIRS, ids=lambda x: type(x).__name__ if not callable(x) else "torch")
def test_agrees_with_torch(ours, theirs):
    parameters = {"a": torch.randn(3, 4), "b": torch.randn(4)}
    reference = {name: p.clone().requires_grad_() for name, p in parameters.items()}
    optimizer, state = theirs(list(reference.values())), ours.init(parameters)
    for _ in range(50):
        optimizer.zero_grad()
        _loss(reference).backward()
        optimizer.step()
        gradient = torch.func.grad(_loss)(parameters)
        parameters, state = ours.step(parameters, gradient, state, torch.tensor(0.5))
    for name, p in reference.items():
        torch.testing.assert_close(parameters[name], p.detach(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("optimizer", [Adam(1e-3, schedule=Linear(1, 0)), RMSProp(1e-3, schedule=Linear(1, 0)), SGD(1e-3, schedule=Linear(1, 0))])
def test_a_rate_annealed_to_zero_moves_nothing(optimizer):
    parameters = {"a": torch.ones(3)}
    state = optimizer.init(parameters)
    assert optimizer.rate(torch.tensor(0.5)).item() == pytest.approx(5e-4)
    moved, _ = optimizer.step(parameters, {"a": torch.ones(3)}, state, torch.tensor(0.5))
    stays, _ = optimizer.step(parameters, {"a": torch.ones(3)}, state, torch.tensor(1.0))
    assert not torch.equal(moved["a"], parameters["a"]) and torch.equal(stays["a"], parameters["a"])


def test_linear_schedule_at_its_end_points():
    schedule = Linear(1.0, 0.1, 0.25)
    found = [schedule(torch.tensor(p)).item() for p in (0.0, 0.125, 0.25, 0.9)]
    assert found == pytest.approx([1.0, 0.55, 0.1, 0.1])


@pytest.mark.parametrize("limit", [0.1, 10.0, float("inf")])
def test_clipping_agrees_with_torch(limit):
    gradient = {"a": torch.randn(3, 3), "b": torch.randn(5)}
    reference = [torch.nn.Parameter(torch.zeros_like(g)) for g in gradient.values()]
    for p, g in zip(reference, gradient.values(), strict=True):
        p.grad = g.clone()
    expected = torch.nn.utils.clip_grad_norm_(reference, limit)
    clipped, norm = clip_by_global_norm(gradient, limit)
    torch.testing.assert_close(norm, expected)
    for p, g in zip(reference, clipped.values(), strict=True):
        torch.testing.assert_close(g, p.grad)


@pytest.mark.parametrize("make", [lambda: Adam(learning_rate=-1.0), lambda: Adam(beta1=1.5), lambda: RMSProp(eps=-1.0), lambda: SGD(momentum=float("nan"))])
def test_numbers_out_of_range_are_refused(make):
    with pytest.raises(ValueError, match="must be at least 0"):
        make()
