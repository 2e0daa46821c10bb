"""Pointwise losses against torch.nn.functional (an independent implementation), identities, and the article's numbers."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rlloss import huber, squared_error

errors = st.floats(-1e6, 1e6, allow_nan=False)
deltas = st.floats(1e-3, 1e3)


def test_squared_error_is_the_articles():
    assert squared_error(torch.tensor(90.0 - 30.0)) == 3600


@given(errors, deltas)
def test_huber_equals_torchs(error, delta):
    error = torch.tensor(error, dtype=torch.float64)
    expected = torch.nn.functional.huber_loss(error, torch.zeros_like(error), delta=delta, reduction="none")
    torch.testing.assert_close(huber(error, delta), expected, rtol=1e-12, atol=1e-12)


@given(errors, deltas)
def test_hubers_gradient_is_the_clipped_error(error, delta):
    gradient = torch.func.grad(huber)(torch.tensor(error, dtype=torch.float64), delta)
    assert gradient.item() == pytest.approx(min(max(error, -delta), delta), rel=1e-12, abs=1e-12)


@given(st.floats(-10, 10))
def test_huber_with_a_large_delta_is_half_the_squared_error(error):
    error = torch.tensor(error, dtype=torch.float64)
    torch.testing.assert_close(huber(error, 1e9), 0.5 * squared_error(error), rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("delta", [0.5, 1.0, 3.0])
def test_gradients_in_float64(delta):
    error = torch.tensor([-4.0, -0.3, 0.2, 2.0], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda e: huber(e, delta), error)
    assert torch.autograd.gradcheck(squared_error, error)


def test_huber_is_finite_at_huge_errors():
    error = torch.tensor([1e30, -1e30])
    torch.testing.assert_close(huber(error, 1.0), torch.tensor([1e30, 1e30]))
    torch.testing.assert_close(torch.func.grad(lambda e: huber(e, 1.0).sum())(error), torch.tensor([1.0, -1.0]))


def test_every_run_of_a_population_may_have_its_own_delta():
    error, deltas = torch.randn(5, 7), torch.rand(5) + 0.1
    together = torch.func.vmap(huber)(error, deltas)
    torch.testing.assert_close(together, torch.stack([huber(e, d) for e, d in zip(error, deltas, strict=True)]), rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_the_dtype_stays(dtype):
    assert huber(torch.ones(3, dtype=dtype), 1.0).dtype == squared_error(torch.ones(3, dtype=dtype)).dtype == dtype
