"""Classification losses against formulas in mpmath and NumPy, torch.nn.functional and optax, and the article's numbers."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rlloss.classification import (
    BinaryCrossEntropy,
    BinaryFocal,
    CrossEntropy,
    Focal,
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

GAMMAS = [0.0, 1e-6, 0.3, 1.0, 2.0, 5.0]
BINARY = {"bce": binary_cross_entropy_with_logits} | {f"focal {g:g}": (lambda x, y, g=g: binary_focal(x, y, 0.3, g)) for g in GAMMAS}
CATEGORICAL = {"ce": cross_entropy_with_logits} | {f"focal {g:g}": (lambda x, y, g=g: focal(x, y, 0.3, g)) for g in GAMMAS}
OBJECTS = [BinaryCrossEntropy(0.2), CrossEntropy(0.2), BinaryFocal(0.3, 1.5), Focal(0.3, 1.5)]
every_binary = pytest.mark.parametrize("loss", BINARY.values(), ids=BINARY)
every_categorical = pytest.mark.parametrize("loss", CATEGORICAL.values(), ids=CATEGORICAL)
every_object = pytest.mark.parametrize("loss", OBJECTS, ids=repr)

shares = st.floats(0, 1, allow_subnormal=False)
logit_rows = st.lists(st.floats(-30, 30), min_size=2, max_size=6)


def tensor(numbers):
    return torch.tensor(numbers, dtype=torch.float64)


def random(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def close(found, expected, tolerance=1e-12):
    torch.testing.assert_close(found, torch.as_tensor(expected, dtype=found.dtype), rtol=tolerance, atol=tolerance)


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


def test_certain_predictions_cost_nothing_or_everything():
    probability, label = tensor([0.0, 1.0, 0.0, 1.0, 0.0, 1.0]).requires_grad_(), tensor([0.0, 1.0, 1.0, 0.0, 0.5, 0.5])
    loss = binary_cross_entropy(probability, label)
    assert loss.tolist() == [0, 0, math.inf, math.inf, math.inf, math.inf]
    assert torch.autograd.grad(loss.sum(), probability)[0].tolist() == [1, -1, -math.inf, math.inf, -math.inf, math.inf]

    rows = tensor([[0.0, 1.0, 0.0], [0.0, 0.5, 0.5], [0.0, 1.0, 0.0]]).requires_grad_()
    loss = cross_entropy(rows, tensor([[0.0, 1.0, 0.0], [0.0, 0.5, 0.5], [1.0, 0.0, 0.0]]))
    assert loss.tolist() == [0, pytest.approx(math.log(2)), math.inf]
    assert torch.autograd.grad(loss.sum(), rows)[0].tolist() == [[0, -1, 0], [0, -1, -1], [-math.inf, 0, 0]]


def test_small_probabilities_keep_their_digits_in_float32():
    found = binary_cross_entropy(torch.tensor([1e-10, 1e-30]), torch.tensor([0.0, 1.0]))
    assert found.tolist() == pytest.approx([1e-10, 30 * math.log(10)], rel=1e-6)


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


def test_no_gradient_reaches_a_label():
    logits, label = random(3, 4).requires_grad_(), random(3, 4, seed=1).softmax(-1).requires_grad_()
    for loss in (*OBJECTS, binary_cross_entropy_with_logits, cross_entropy_with_logits, *BINARY.values(), *CATEGORICAL.values()):
        loss(logits, label).sum().backward()
    for loss in (binary_cross_entropy, cross_entropy):
        loss(logits.softmax(-1), label).sum().backward()
    assert label.grad is None and not smooth_labels(label, 0.1).requires_grad
    assert logits.grad.abs().sum() > 0


@every_object
def test_every_run_of_a_population_may_have_its_own_numbers(loss):
    names = [field.name for field in dataclasses.fields(loss)]
    runs = [dataclasses.replace(loss, **{name: getattr(loss, name) * factor for name in names}) for factor in (1.0, 0.5, 0.0)]
    stacked = dataclasses.replace(loss, **{name: torch.tensor([getattr(run, name) for run in runs]) for name in names})
    logits, label = random(3, 5, 4).float(), random(3, 5, 4, seed=1).softmax(-1).float()
    expected = torch.stack([run(x, y) for run, x, y in zip(runs, logits, label, strict=True)])
    torch.testing.assert_close(torch.func.vmap(lambda loss, x, y: loss(x, y))(stacked, logits, label), expected)
    assert not torch.allclose(expected[0], runs[1](logits[0], label[0]))
    gradient = torch.func.vmap(torch.func.grad(lambda x, loss, y: loss(x, y).sum()))(logits, stacked, label)
    torch.testing.assert_close(gradient[1], torch.func.grad(lambda x: runs[1](x, label[1]).sum())(logits[1]))


def test_integer_labels_under_vmap():
    logits, label = random(3, 5, 4), torch.randint(4, (3, 5))
    close(torch.func.vmap(torch.func.vmap(cross_entropy_with_integer_labels))(logits, label), cross_entropy_with_integer_labels(logits, label))


def test_traced_programs_compute_the_same():
    from torch.fx.experimental.proxy_tensor import make_fx

    logits, label, gamma = random(5, 4), random(5, 4, seed=1).softmax(-1), tensor(1.5)

    def losses(logits, label, gamma):
        number = label.argmax(-1)
        return (
            binary_focal(logits, label, 0.25, gamma),
            torch.func.grad(lambda x: focal(x, label, gamma, gamma).sum())(logits),
            BinaryCrossEntropy(0.1)(logits, label),
            CrossEntropy(0.1)(logits, label) + cross_entropy(label, label) + cross_entropy_with_integer_labels(logits, number),
            kl_divergence(logits, label) + binary_cross_entropy(label, label).sum(-1),
        )

    other = logits.flip(0), label.flip(0), tensor(0.5)
    for trace in (make_fx(losses)(logits, label, gamma), make_fx(losses, tracing_mode="symbolic")(logits, label, gamma)):
        torch.testing.assert_close(trace(*other), losses(*other))
    torch.testing.assert_close(torch.compile(losses, backend="eager", fullgraph=True)(*other), losses(*other))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_dtypes_are_kept(dtype):
    x, y = torch.zeros(3, 4, dtype=dtype), torch.full((3, 4), 0.25, dtype=dtype)
    number = torch.zeros(3, dtype=torch.int64)
    gamma = torch.tensor(2.0, dtype=torch.float64)
    found = [*(loss(x, y) for loss in OBJECTS), *(loss(y, y) for loss in (binary_cross_entropy, cross_entropy, kl_divergence))]
    found += [cross_entropy_with_integer_labels(x, number), smooth_labels(y, gamma / 4)]
    found += [binary_focal(x[0, 0], y[0, 0], gamma, gamma), focal(x, y, gamma, gamma)]
    assert all(each.dtype == dtype for each in found)


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


@every_object
def test_unequal_shapes_and_integers_are_refused(loss):
    with pytest.raises(ValueError, match="never broadcast"):
        loss(torch.zeros(4, 1), torch.zeros(4, 4))
    for argument in ("label", "logits"):
        with pytest.raises(TypeError, match=f"{argument}.* must be floating point, got torch.int64"):
            loss(*(torch.zeros(4, 2, dtype=torch.int64 if argument == name else torch.float32) for name in ("logits", "label")))


def test_what_the_functions_refuse():
    zeros = torch.zeros(4, 3)
    for loss in (binary_cross_entropy, cross_entropy, kl_divergence):
        with pytest.raises(ValueError, match="never broadcast"):
            loss(zeros, torch.zeros(4, 1))
        with pytest.raises(TypeError, match=r"must be floating point, got torch.int64"):
            loss(zeros, zeros.long())
    with pytest.raises(TypeError, match=r"logits must be floating point, got torch.int64"):
        cross_entropy_with_integer_labels(zeros.long(), torch.zeros(4, dtype=torch.int64))
    for dtype in (torch.float32, torch.int32, torch.bool):
        with pytest.raises(TypeError, match=f"label must be int64, got {dtype}"):
            cross_entropy_with_integer_labels(zeros, torch.zeros(4, dtype=dtype))
    with pytest.raises(ValueError, match=r"logits_of_one_class \(4,\), label \(4, 1\)"):
        cross_entropy_with_integer_labels(zeros, torch.zeros(4, 1, dtype=torch.int64))


@pytest.mark.parametrize("number", [-1, -100, 3])
def test_integer_labels_out_of_range_are_never_ignored(number):
    with pytest.raises(RuntimeError, match="out of bounds"):
        cross_entropy_with_integer_labels(torch.zeros(2, 3), torch.tensor([0, number]))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: BinaryCrossEntropy(1.0), "smoothing must be at least 0 and less than 1, got 1"),
        (lambda: CrossEntropy(-0.1), "smoothing must be at least 0"),
        (lambda: CrossEntropy(math.nan), "smoothing must be at least 0 and less than 1, got nan"),
        (lambda: BinaryFocal(alpha=1.5), "alpha must be at least 0 and at most 1"),
        (lambda: BinaryFocal(gamma=-1.0), "gamma must be at least 0"),
        (lambda: BinaryFocal(gamma=math.inf), "gamma must be at least 0"),
        (lambda: Focal(alpha=-1.0), "alpha must be at least 0"),
        (lambda: Focal(gamma=math.nan), "gamma must be at least 0, got nan"),
    ],
)
def test_ranges(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_certain_logits_cost_nothing_or_everything():
    x, y = tensor([math.inf, -math.inf, math.inf, -math.inf]), tensor([1.0, 0.0, 0.0, 1.0])
    gradient = torch.func.grad(lambda x: binary_cross_entropy_with_logits(x, y).sum())(x)
    assert binary_cross_entropy_with_logits(x, y).tolist() == [0, 0, math.inf, math.inf] and gradient.tolist() == [0, 0, 1, -1]
    assert binary_focal(x, y, 0.25, 2.0).tolist() == [0, 0, math.inf, math.inf]


@pytest.mark.parametrize("gamma", [0.0, 2.0, 1e10, 1e30])
def test_focal_gradients_are_finite_at_any_gamma(gamma):
    x = torch.tensor([1e30, -1e30, 1e30, -1e30, 1e4, -3.0])
    y = torch.tensor([1.0, 0.0, 0.0, 1.0, 1.0, 0.0])
    gradient = torch.func.grad(lambda x: binary_focal(x, y, 0.25, gamma).sum())(x)
    assert gradient[:4].tolist() == [0, 0, 0.75, -0.25] and gradient.isfinite().all()
    rows, label = torch.stack([x, torch.zeros(6)], -1), torch.stack([y, 1 - y], -1)
    gradient = torch.func.grad(lambda x: focal(x, label, 1.0, gamma).sum())(rows)
    assert gradient[:4, 0].tolist() == [0, 0, 1, -1] and gradient.isfinite().all()


def test_focal_of_a_labelled_class_that_is_ruled_out_is_infinite_with_a_finite_gradient():
    logits, label = tensor([-math.inf, 0.0, 1.0]), tensor([1.0, 0.0, 0.0])
    gradient, loss = torch.func.grad_and_value(focal)(logits, label, 1.0, 2.0)
    assert loss == math.inf
    close(gradient, torch.func.grad(cross_entropy_with_logits)(logits, label))


@pytest.mark.parametrize(
    "call",
    [lambda x: smooth_labels(x, 1.0), lambda x: binary_focal(x, x, 2.0, 1.0), lambda x: binary_focal(x, x, 0.5, -1.0), lambda x: focal(x, x, -1.0, 2.0)],
)
def test_the_functions_refuse_numbers_out_of_range(call):
    with pytest.raises(ValueError, match="must be at least 0"):
        call(torch.full((2, 2), 0.5))
