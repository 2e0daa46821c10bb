"""Sums over a whole batch in double precision, and numbers that are kept."""

import pytest
import torch

from rlloss.numbers import mean, once, variance


@pytest.mark.parametrize("shape", [(64,), (3, 8), (13,), (1,), ()])
def test_mean_and_variance_are_those_in_double_precision(shape):
    numbers = 1e3 + torch.randn(shape)  # Squares that are summed before the mean is taken off would lose all.
    exact = numbers.double()
    torch.testing.assert_close(mean(numbers).double(), exact.mean(), rtol=1e-6, atol=0)
    torch.testing.assert_close(variance(numbers).double(), exact.var(correction=0), rtol=1e-3, atol=1e-7)
    for function, expected in ((mean, torch.full(shape, 1 / numbers.numel())), (variance, (2 * (exact - exact.mean()) / numbers.numel()).float())):
        torch.testing.assert_close(torch.func.grad(function)(numbers), expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("numbers", [torch.tensor([-0.0, torch.nan, -torch.inf, 3.0]), torch.tensor([True, False]), torch.arange(6).reshape(2, 3).T, torch.tensor(2.0)])
def test_what_is_kept_is_the_same_in_memory_of_its_own(numbers):
    kept = once(numbers)
    torch.testing.assert_close(kept, numbers, rtol=0, atol=0, equal_nan=True)
    assert kept.data_ptr() != numbers.data_ptr() and kept.dtype == numbers.dtype
    if numbers.is_floating_point():
        assert torch.equal(torch.signbit(kept), torch.signbit(numbers))
        gradient = torch.func.grad(lambda x: (once(x) * torch.ones_like(x)).sum())(numbers)
        assert torch.equal(gradient, torch.ones_like(numbers))
