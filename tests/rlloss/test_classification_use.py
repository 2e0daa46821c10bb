"""Classification losses as training uses them: labels are data, runs have their own numbers, programs are traced, mistakes are refused."""

import dataclasses
import math

import pytest
import torch

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
from tests.rlloss.classified import BINARY, CATEGORICAL, OBJECTS, close, every_object, random, tensor


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


@pytest.mark.parametrize(
    "call",
    [lambda x: smooth_labels(x, 1.0), lambda x: binary_focal(x, x, 2.0, 1.0), lambda x: binary_focal(x, x, 0.5, -1.0), lambda x: focal(x, x, -1.0, 2.0)],
)
def test_the_functions_refuse_numbers_out_of_range(call):
    with pytest.raises(ValueError, match="must be at least 0"):
        call(torch.full((2, 2), 0.5))
