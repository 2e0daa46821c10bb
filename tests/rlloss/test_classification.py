"""Classification losses against formulas in mpmath and NumPy, torch.nn.functional and optax, and the article's numbers."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rlloss.classification import (
    BinaryCrossEntropy,
    CrossEntropy,
    binary_cross_entropy,
    binary_cross_entropy_with_logits,
    binary_focal,
    cross_entropy,
    cross_entropy_with_integer_labels,
    cross_entropy_with_logits,
    focal,
    kl_divergence,
    smooth_labels,
)
from tests.rlloss.classified import GAMMAS, close, logit_rows, random, shares, tensor


def test_the_articles_examples():
    assert binary_cross_entropy(tensor(0.8), tensor(0.0)).item() == pytest.approx(1.609, abs=5e-4)
    assert binary_cross_entropy_with_logits(tensor(math.log(0.8 / 0.2)), tensor(0.0)).item() == pytest.approx(1.609, abs=5e-4)
    assert cross_entropy(tensor([0.7, 0.2, 0.1]), tensor([0.0, 1.0, 0.0])).item() == pytest.approx(-math.log(0.2))
    prediction, alpha = 0.9, 0.25  # −αₜ(1 − ŷₜ)^γ log ŷₜ, where ŷₜ is 0.9 for label 1 and 0.1 for label 0.
    found = binary_focal(tensor([math.log(9.0)] * 2), tensor([1.0, 0.0]), alpha, 2.0)
    expected = [-alpha * (1 - prediction) ** 2 * math.log(prediction), -(1 - alpha) * prediction**2 * math.log(1 - prediction)]
    assert found.tolist() == pytest.approx(expected)


@given(shares, shares)
def test_binary_cross_entropy_is_torchs(probability, label):
    probability = min(max(probability, 1e-40), 1 - 1e-15)  # torch cuts logarithms at −100.
    expected = torch.nn.functional.binary_cross_entropy(tensor(probability), tensor(label))
    close(binary_cross_entropy(tensor(probability), tensor(label)), expected)


@given(st.floats(-700, 700), shares)
def test_bce_with_logits_is_torchs(logit, label):
    close(
        binary_cross_entropy_with_logits(tensor(logit), tensor(label)),
        torch.nn.functional.binary_cross_entropy_with_logits(tensor(logit), tensor(label)),
    )


def test_torchs_categorical_losses_agree():
    logits, other, label = 5 * random(7, 3, 4), random(7, 3, 4, seed=1), torch.randint(4, (7, 3))
    functional, columns = torch.nn.functional, logits.movedim(-1, 1)  # torch has the classes second.
    soft = other.softmax(-1)
    expected = functional.cross_entropy(columns, soft.movedim(-1, 1), reduction="none", label_smoothing=0.2)
    close(CrossEntropy(0.2)(logits, soft), expected)
    close(cross_entropy_with_integer_labels(logits, label), functional.cross_entropy(columns, label, reduction="none"))
    expected = functional.kl_div(other.log_softmax(-1), logits.log_softmax(-1), reduction="none", log_target=True).sum(-1)
    close(kl_divergence(logits, other), expected)


def test_optax_agrees():
    optax = pytest.importorskip("optax")
    generator = np.random.default_rng(0)
    logits = (4 * generator.normal(size=(9, 5))).astype(np.float32)
    label = (generator.random((9, 5)) < 0.5).astype(np.float32)
    number = generator.integers(0, 5, 9)
    one_hot = np.eye(5, dtype=np.float32)[number]
    x, y, k, rows = (torch.tensor(array) for array in (logits, label, number, one_hot))
    for found, expected in [
        (binary_cross_entropy_with_logits(x, y), optax.sigmoid_binary_cross_entropy(logits, label)),
        (cross_entropy_with_logits(x, rows), optax.softmax_cross_entropy(logits, one_hot)),
        (cross_entropy_with_integer_labels(x, k), optax.softmax_cross_entropy_with_integer_labels(logits, number)),
        (smooth_labels(rows, 0.1), optax.smooth_labels(one_hot, 0.1)),
        (kl_divergence(x, rows), optax.kl_divergence(torch.log_softmax(rows, -1).numpy(), x.softmax(-1).numpy())),
        *((binary_focal(x, y, 0.3, g), optax.sigmoid_focal_loss(logits, label, alpha=0.3, gamma=g)) for g in (0.5, 2.0)),
    ]:
        torch.testing.assert_close(found, torch.tensor(np.array(expected)), rtol=2e-5, atol=1e-5)


@pytest.mark.parametrize("gamma", GAMMAS)
@given(st.lists(st.floats(-300, 300), min_size=2, max_size=5))
def test_focal_is_the_papers_formula(gamma, row):
    """In 400 digits, where 1 − p needs no care."""
    mpmath = pytest.importorskip("mpmath")
    with mpmath.workdps(400):
        weights = [mpmath.exp(x) for x in row]
        p = [w / mpmath.fsum(weights) for w in weights]
        terms = [float(-((1 - q) ** gamma) * mpmath.log(q)) for q in p]
        q = 1 / (1 + mpmath.exp(-row[0]))
        yes, no = float(-((1 - q) ** gamma) * mpmath.log(q)), float(-(q**gamma) * mpmath.log(1 - q))
    close(binary_focal(tensor([row[0]] * 3), tensor([1.0, 0.0, 0.6]), 0.3, gamma), tensor([0.3 * yes, 0.7 * no, 0.18 * yes + 0.28 * no]), 1e-11)
    each = focal(tensor(row).expand(len(row), len(row)), torch.eye(len(row), dtype=torch.float64), 0.3, gamma)
    close(each, 0.3 * tensor(terms), 1e-11)
    uniform = torch.full((len(row),), 1 / len(row), dtype=torch.float64)
    close(focal(tensor(row), uniform, 0.3, gamma), 0.3 * tensor(terms).mean(), 1e-11)


@given(st.floats(-500, 500), shares, shares)
def test_binary_focal_without_gamma_is_weighted_bce(logit, label, alpha):
    x, y, one, zero = tensor(logit), tensor(label), tensor(1.0), tensor(0.0)
    weighted = alpha * y * binary_cross_entropy_with_logits(x, one) + (1 - alpha) * (1 - y) * binary_cross_entropy_with_logits(x, zero)
    close(binary_focal(x, y, alpha, 0.0), weighted)
    close(binary_focal(x, y, 0.5, 0.0), 0.5 * binary_cross_entropy_with_logits(x, y))


@given(logit_rows, st.floats(0, 3))
def test_focal_without_gamma_is_alpha_times_ce(row, alpha):
    label = tensor(row[::-1]).softmax(-1)
    close(focal(tensor(row), label, alpha, 0.0), alpha * cross_entropy_with_logits(tensor(row), label))


@given(logit_rows)
def test_one_hot_equals_integer_and_probabilities_equal_logits(row):
    logits = tensor(row).expand(len(row), len(row))
    one_hot, soft = torch.eye(len(row), dtype=torch.float64), tensor(row[::-1]).softmax(-1)
    close(cross_entropy_with_logits(logits, one_hot), cross_entropy_with_integer_labels(logits, torch.arange(len(row))))
    close(cross_entropy_with_logits(tensor(row), soft), cross_entropy(tensor(row).softmax(-1), soft), 1e-10)
    mild = tensor(row) / 3
    close(binary_cross_entropy_with_logits(mild, soft), binary_cross_entropy(mild.sigmoid(), soft), 1e-10)


@given(st.floats(-30, 30), shares, st.floats(0, 5))
def test_two_classes_are_one_logit(logit, label, gamma):
    x, y = tensor([logit, 0.0]), tensor([label, 1 - label])
    close(cross_entropy_with_logits(x, y), binary_cross_entropy_with_logits(x[0], y[0]))
    close(focal(x, y, 0.5, gamma), binary_focal(x[0], y[0], 0.5, gamma))
    close(CrossEntropy(0.3)(x, y), BinaryCrossEntropy(0.3)(x[0], y[0]))


@given(logit_rows, logit_rows)
def test_kl_is_cross_entropy_less_entropy(one, other):
    size = min(len(one), len(other))
    p, q = tensor(one[:size]), tensor(other[:size])
    probability = p.softmax(-1)
    entropy = torch.distributions.Categorical(logits=p).entropy()
    close(kl_divergence(p, q), cross_entropy_with_logits(q, probability) - entropy, 1e-10)
    assert kl_divergence(p, q) >= -1e-13
    assert kl_divergence(p, p) == 0


@given(logit_rows, st.floats(0, 0.999))
def test_smoothing_keeps_the_sum_and_the_share_of_the_uniform(row, smoothing):
    label = tensor(row).softmax(-1)
    found = smooth_labels(label, smoothing)
    assert found.sum().item() == pytest.approx(1) and (found >= smoothing / len(row) * (1 - 1e-12)).all()
    close(found - 1 / len(row), (1 - smoothing) * (label - 1 / len(row)))


@pytest.mark.parametrize("order", [torch.autograd.gradcheck, torch.autograd.gradgradcheck])
def test_gradients_in_float64(order):
    x, label = 3 * random(3, 4), random(3, 4, seed=1).softmax(-1)
    alpha, gamma = tensor(0.3), tensor(1.3)
    inputs = [each.requires_grad_() for each in (x, alpha, gamma)]
    assert order(lambda x, a, g: binary_focal(x, label, a, g), inputs)
    assert order(lambda x, a, g: focal(x, label, a, g), inputs)
    assert order(lambda x: binary_cross_entropy_with_logits(x, label), x)
    assert order(lambda x: cross_entropy_with_logits(x, label), x)
    assert order(lambda x: cross_entropy_with_integer_labels(x, torch.tensor([2, 0, 3])), x)
    assert order(kl_divergence, (x, random(3, 4, seed=2).requires_grad_()))
    probability = random(3, 4, seed=3).softmax(-1).requires_grad_()
    assert order(lambda p: binary_cross_entropy(p, label), probability)
    assert order(lambda p: cross_entropy(p, label), probability)
