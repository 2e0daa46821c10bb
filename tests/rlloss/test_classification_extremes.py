"""Classification losses where logits are extreme, predictions certain, classes ruled out or digits few: finite, and right."""

import math

import pytest
import torch

from rlloss.classification import (
    binary_cross_entropy,
    binary_cross_entropy_with_logits,
    binary_focal,
    cross_entropy,
    cross_entropy_with_integer_labels,
    cross_entropy_with_logits,
    focal,
    kl_divergence,
)
from tests.rlloss.classified import GAMMAS, close, every_binary, every_categorical, random, tensor


def test_certain_predictions_cost_nothing_or_everything():
    probability, label = tensor([0.0, 1.0, 0.0, 1.0, 0.0, 1.0]).requires_grad_(), tensor([0.0, 1.0, 1.0, 0.0, 0.5, 0.5])
    loss = binary_cross_entropy(probability, label)
    assert loss.tolist() == [0, 0, math.inf, math.inf, math.inf, math.inf]
    assert torch.autograd.grad(loss.sum(), probability)[0].tolist() == [1, -1, -math.inf, math.inf, -math.inf, math.inf]

    rows = tensor([[0.0, 1.0, 0.0], [0.0, 0.5, 0.5], [0.0, 1.0, 0.0]]).requires_grad_()
    loss = cross_entropy(rows, tensor([[0.0, 1.0, 0.0], [0.0, 0.5, 0.5], [1.0, 0.0, 0.0]]))
    assert loss.tolist() == [0, pytest.approx(math.log(2)), math.inf]
    assert torch.autograd.grad(loss.sum(), rows)[0].tolist() == [[0, -1, 0], [0, -1, -1], [-math.inf, 0, 0]]


def test_certain_logits_cost_nothing_or_everything():
    x, y = tensor([math.inf, -math.inf, math.inf, -math.inf]), tensor([1.0, 0.0, 0.0, 1.0])
    gradient = torch.func.grad(lambda x: binary_cross_entropy_with_logits(x, y).sum())(x)
    assert binary_cross_entropy_with_logits(x, y).tolist() == [0, 0, math.inf, math.inf] and gradient.tolist() == [0, 0, 1, -1]
    assert binary_focal(x, y, 0.25, 2.0).tolist() == [0, 0, math.inf, math.inf]


def test_small_probabilities_keep_their_digits_in_float32():
    found = binary_cross_entropy(torch.tensor([1e-10, 1e-30]), torch.tensor([0.0, 1.0]))
    assert found.tolist() == pytest.approx([1e-10, 30 * math.log(10)], rel=1e-6)


@every_binary
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_extreme_logits_have_finite_binary_losses_and_gradients(loss, dtype):
    """The first is optax's issue 1267."""
    x = torch.tensor([1000.0, 1e4, -1e4, 1e4, -1e4, 1e30, -1e30, 18.0, -18.0], dtype=dtype)
    y = torch.tensor([1.0, 1.0, 0.0, 0.0, 1.0, 1.0, 0.0, 1.0, 0.0], dtype=dtype)
    first = torch.func.grad(lambda x: loss(x, y).sum())
    second = torch.func.grad(lambda x: first(x).sum())
    assert loss(x, y).isfinite().all() and first(x).isfinite().all() and second(x).isfinite().all()
    certain = torch.tensor([0, 1, 2, 5, 6])
    assert loss(x, y)[certain].tolist() == [0] * 5 and first(x)[certain].tolist() == [0] * 5
    scale = torch.ones(2) if loss is binary_cross_entropy_with_logits else torch.tensor([0.7, 0.3])
    torch.testing.assert_close(first(x)[3:5], (scale * torch.tensor([1.0, -1.0])).to(dtype))


@every_categorical
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_extreme_logits_have_finite_categorical_losses_and_gradients(loss, dtype):
    x = torch.tensor([[1e4, -1e4, 0.0], [1e4, 1e4, -1e4], [1e30, -1e30, 0.0], [18.0, 0.0, 0.0], [0.0, 0.0, 0.0]], dtype=dtype)
    scale = 1.0 if loss is cross_entropy_with_logits else 0.3
    for number in range(3):
        y = torch.nn.functional.one_hot(torch.full((5,), number), 3).to(dtype)
        first = torch.func.grad(lambda x: loss(x, y).sum())  # noqa: B023
        second = torch.func.grad(lambda x: first(x).sum())  # noqa: B023
        assert loss(x, y).isfinite().all() and first(x).isfinite().all() and second(x).isfinite().all()
        expected = [0.0, 0.0, 0.0] if number == 0 else [scale if i == 0 else -scale if i == number else 0.0 for i in range(3)]
        torch.testing.assert_close(first(x)[0], torch.tensor(expected, dtype=dtype))


@pytest.mark.parametrize("gamma", GAMMAS)
def test_gradients_in_float32_are_those_in_float64(gamma):
    x = torch.linspace(-60, 60, 241)
    one, pairs = torch.ones(241), torch.stack([x, torch.zeros(241), -x], -1)
    one_hot = torch.eye(3)[torch.arange(241) % 3]
    for logits, label, loss, digits in [(x, one, binary_focal, 1e-4), (x, 0 * one, binary_focal, 1e-4), (pairs, one_hot, focal, 1e-6)]:
        gradient = torch.func.grad(lambda x, y: loss(x, y, 0.3, gamma).sum())  # noqa: B023
        found, expected = gradient(logits, label).double(), gradient(logits.double(), label.double())
        torch.testing.assert_close(found, expected, rtol=digits, atol=1e-30 if loss is binary_focal else 1e-7)


@pytest.mark.parametrize("gamma", [0.0, 0.3, 2.0])
def test_gradients_reach_gamma_and_alpha_at_extreme_logits(gamma):
    x, label = torch.tensor([[1e4, -1e4], [-1e4, 1e4]]), torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    for loss in (binary_focal, focal):
        found = torch.func.grad(lambda a, g: loss(x, label, a, g).sum(), (0, 1))(torch.tensor(0.3), torch.tensor(gamma))  # noqa: B023
        assert all(gradient.isfinite() for gradient in found)


@pytest.mark.parametrize("gamma", [0.0, 2.0, 1e10, 1e30])
def test_focal_gradients_are_finite_at_any_gamma(gamma):
    x = torch.tensor([1e30, -1e30, 1e30, -1e30, 1e4, -3.0])
    y = torch.tensor([1.0, 0.0, 0.0, 1.0, 1.0, 0.0])
    gradient = torch.func.grad(lambda x: binary_focal(x, y, 0.25, gamma).sum())(x)
    assert gradient[:4].tolist() == [0, 0, 0.75, -0.25] and gradient.isfinite().all()
    rows, label = torch.stack([x, torch.zeros(6)], -1), torch.stack([y, 1 - y], -1)
    gradient = torch.func.grad(lambda x: focal(x, label, 1.0, gamma).sum())(rows)
    assert gradient[:4, 0].tolist() == [0, 0, 1, -1] and gradient.isfinite().all()


@every_categorical
def test_classes_that_are_ruled_out_change_nothing(loss):
    logits, label = random(4, 3), random(4, 3, seed=1).softmax(-1)
    ruled_out = torch.cat([logits, torch.full((4, 2), -math.inf)], -1)
    padded = torch.cat([label, torch.zeros(4, 2)], -1)
    close(loss(ruled_out, padded), loss(logits, label))
    gradient = torch.func.grad(lambda x: loss(x, padded).sum())(ruled_out)
    close(gradient[:, :3], torch.func.grad(lambda x: loss(x, label).sum())(logits))
    assert (gradient[:, 3:] == 0).all()


@every_categorical
def test_the_only_class_left_costs_nothing(loss):
    for logits in (tensor([2.0]), tensor([2.0, -math.inf, -math.inf])):
        label = torch.eye(len(logits), dtype=torch.float64)[0]
        assert loss(logits, label) == 0
        assert (torch.func.grad(loss)(logits, label) == 0).all()


def test_kl_of_classes_that_are_ruled_out():
    p, q = tensor([0.3, 1.0, -math.inf]), tensor([-0.2, 0.4, -math.inf])
    close(kl_divergence(p, q), kl_divergence(p[:2], q[:2]))
    gradient = torch.func.grad(kl_divergence)(p, q)
    close(gradient, [*torch.func.grad(kl_divergence)(p[:2], q[:2]).tolist(), 0.0])
    assert kl_divergence(q, tensor([0.0, -math.inf, 0.0])) == math.inf
    close(kl_divergence(torch.tensor([[1e4, -1e4]]), torch.tensor([[-1e4, 1e4]])), [2e4])


def test_focal_of_a_labelled_class_that_is_ruled_out_is_infinite_with_a_finite_gradient():
    logits, label = tensor([-math.inf, 0.0, 1.0]), tensor([1.0, 0.0, 0.0])
    gradient, loss = torch.func.grad_and_value(focal)(logits, label, 1.0, 2.0)
    assert loss == math.inf
    close(gradient, torch.func.grad(cross_entropy_with_logits)(logits, label))


def test_bfloat16_rounds_only_the_result():
    x, other = (3 * random(50, 6, seed=seed).bfloat16() for seed in (0, 1))
    label = other.float().softmax(-1).bfloat16()
    near = x + 0.05 * other
    for loss, second in [(kl_divergence, near), (focal, label), (cross_entropy_with_logits, label), (binary_focal, label)]:
        numbers = (0.3, 5.0) if loss in (focal, binary_focal) else ()
        exact = x.double(), second.double(), *numbers
        torch.testing.assert_close(loss(x, second, *numbers), loss(*exact).bfloat16(), rtol=0.01, atol=1e-6)
        gradient = torch.func.grad(lambda *arguments: loss(*arguments).sum())  # noqa: B023
        torch.testing.assert_close(gradient(x, second, *numbers), gradient(*exact).bfloat16(), rtol=0.01, atol=1e-5)
    integer = torch.func.grad(lambda x: cross_entropy_with_integer_labels(x, label.argmax(-1)).sum())
    torch.testing.assert_close(integer(x), integer(x.double()).bfloat16(), rtol=0.01, atol=1e-5)
