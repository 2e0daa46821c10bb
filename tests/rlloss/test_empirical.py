"""The reduction: what it divides by, what masks and weights do, and what terms' gradients are."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rlloss import empirical_loss, gradient_cosines, gradient_norms, term_gradients, total


def test_it_divides_by_the_number_of_elements_and_keeps_weights():
    losses, weights = torch.tensor([1.0, 2.0, 4.0]), torch.tensor([1.0, 0.5, 0.0], requires_grad=True)
    assert empirical_loss(losses, weights).item() == pytest.approx(2 / 3)
    assert not empirical_loss(losses, weights).requires_grad


def test_a_mask_changes_what_it_divides_by_and_hides_nan():
    losses = torch.tensor([1.0, math.nan, 5.0], requires_grad=True)
    mask = torch.tensor([True, False, True])
    loss = empirical_loss(losses, torch.tensor([1.0, 1.0, 3.0]), mask)
    loss.backward()
    assert loss.item() == 8.0 and losses.grad.tolist() == [0.5, 0.0, 1.5]
    assert empirical_loss(losses, mask=torch.zeros(3, dtype=torch.bool)).item() == 0


def test_a_masked_weight_may_be_anything_and_half_precision_does_not_overflow():
    losses, mask = torch.tensor([1.0, 1.0], requires_grad=True), torch.tensor([True, False])
    empirical_loss(losses, torch.tensor([2.0, math.inf]), mask).backward()
    assert losses.grad.tolist() == [2.0, 0.0]
    assert empirical_loss(torch.ones(70_000, dtype=torch.float16), mask=torch.ones(70_000, dtype=torch.bool)) == 1


@given(st.lists(st.tuples(st.floats(-1e3, 1e3), st.floats(0, 10), st.booleans()), min_size=1))
def test_it_is_the_formula(rows):
    losses, weights = (torch.tensor(column, dtype=torch.float64) for column in list(zip(*rows, strict=True))[:2])
    kept = [(loss, weight) for loss, weight, keep in rows if keep]
    expected = sum(loss * weight for loss, weight in kept) / max(len(kept), 1)
    found = empirical_loss(losses, weights, torch.tensor([keep for *_, keep in rows]))
    assert found.item() == pytest.approx(expected, rel=1e-9, abs=1e-9)


def test_mistakes_are_refused():
    with pytest.raises(ValueError, match="weights"):
        empirical_loss(torch.zeros(4), torch.zeros(4, 1))
    with pytest.raises(TypeError, match="mask must be bool"):
        empirical_loss(torch.zeros(4), mask=torch.ones(4))
    with pytest.raises(TypeError, match="losses must be floating point"):
        empirical_loss(torch.zeros(4, dtype=torch.int64))
    with pytest.raises(ValueError, match="term l2 must be 0-dim"):
        total({"l2": torch.ones(3)})
    with pytest.raises(ValueError, match="no term"):
        total({})


def test_a_total_keeps_its_terms():
    objective = total({"value": torch.tensor(2.0), "l2": torch.tensor(0.5)})
    assert objective.total == 2.5 and {name: float(term) for name, term in objective.terms.items()} == {"value": 2.0, "l2": 0.5}


def test_terms_gradients_add_up_to_the_totals():
    x, y = torch.randn(16, 4), torch.randn(16)
    parameters = {"w": torch.randn(4), "b": torch.zeros(())}

    def terms(p):
        return {"value": empirical_loss((x @ p["w"] + p["b"] - y) ** 2), "l2": 0.1 * (p["w"] ** 2).sum(), "none": 0 * p["b"]}

    gradients = term_gradients(terms, parameters)
    expected = torch.func.grad(lambda p: total(terms(p)).total)(parameters)
    for name in parameters:
        torch.testing.assert_close(sum(gradient[name] for gradient in gradients.values()), expected[name])
    torch.testing.assert_close(gradients["l2"]["w"], 0.2 * parameters["w"])
    assert gradient_norms(gradients)["l2"].item() == pytest.approx(0.2 * parameters["w"].norm().item())


def test_cosines_tell_help_from_fight():
    terms = lambda p: {"up": p.sum(), "more": 3 * p.sum(), "down": -p.sum(), "aside": p[0] - p[1], "none": 0 * p.sum()}  # noqa: E731
    cosines = gradient_cosines(term_gradients(terms, torch.zeros(2)))
    found = {pair: round(float(cosine), 5) for pair, cosine in cosines.items()}
    assert found["up", "more"] == 1 and found["up", "down"] == -1 and found["up", "aside"] == 0 and found["up", "none"] == 0


@pytest.mark.parametrize("size", [1e-25, 1e20])
def test_cosines_of_very_small_and_very_large_gradients(size):
    cosines = gradient_cosines(term_gradients(lambda p: {"a": size * p.sum(), "b": -size * p[0]}, torch.zeros(2)))
    assert cosines["a", "b"].item() == pytest.approx(-math.sqrt(0.5), rel=1e-5)


def test_terms_gradients_pass_through_vmap():
    scales = torch.tensor([1.0, 2.0])
    norms = torch.func.vmap(lambda s: gradient_norms(term_gradients(lambda p: {"a": s * p.sum()}, torch.zeros(4))))(scales)
    torch.testing.assert_close(norms["a"], 2 * scales)


def test_nothing_at_all_has_no_loss():
    for losses in (torch.zeros(0), torch.zeros(0, 3)):
        assert empirical_loss(losses).item() == empirical_loss(losses, torch.zeros_like(losses)).item() == 0


def test_a_weight_of_zero_leaves_out_what_is_infinite():
    losses = torch.tensor([math.inf, 3.0, math.nan], requires_grad=True)
    loss = empirical_loss(losses, torch.tensor([0.0, 2.0, 0.0]))
    loss.backward()
    assert loss.item() == 2 and losses.grad.tolist() == [0, pytest.approx(2 / 3), 0]


@pytest.mark.parametrize("mask", [None, torch.ones(128, dtype=torch.bool)])
def test_a_mean_does_not_overflow_and_keeps_the_dtype_of_the_losses(mask):
    assert empirical_loss(torch.full((128,), 1e37), mask=mask).item() == pytest.approx(1e37)
    assert empirical_loss(torch.ones(128).bfloat16(), torch.full((128,), 2.0), mask).dtype == torch.bfloat16


def test_cosines_and_norms_of_the_largest_and_of_empty_gradients():
    assert gradient_cosines({"a": torch.full((4,), 3e38), "b": torch.ones(4)})["a", "b"].item() == pytest.approx(1)
    norms = gradient_norms({"a": {"w": torch.tensor([3.0, 4.0]), "none": torch.zeros(0)}, "b": {"none": torch.zeros(0)}})
    assert norms["a"].item() == pytest.approx(5) and norms["b"].item() == 0
