"""Heads against closed forms: dueling's identities, the moments of noise, rescaled outputs."""

import math

import pytest
import torch

from agents import heads
from tests.agents.test_networks import check_agrees, check_everywhere, seeded

SHAPES = [(3, 1), (5, 7), (40, 1)]
EVERY = [
    heads.Linear(),
    heads.Linear(hidden=12),
    heads.Noisy(),
    heads.Noisy(hidden=12),
    heads.Dueling(),
    heads.Dueling(heads.Linear(hidden=12)),
    heads.Dueling(heads.Noisy()),
    heads.Dueling(heads.Noisy(hidden=12, sigma=0.3)),
]


def made(head, shape, width=10):
    """Parameters, features, and noise for a head."""
    return head.init(seeded(), width, shape), torch.randn(6, width), torch.randn(head.numbers(width, shape)) if head.numbers(width, shape) else None


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("head", EVERY)
def test_rescaled_parameters_give_rescaled_outputs(head, shape):
    parameters, features, noise = made(head, shape)
    scale, shift = torch.rand(shape[1]) + 0.5, torch.randn(shape[1])
    rescaled = head.rescaled(parameters, scale, shift)
    assert {name: p.shape for name, p in rescaled.items()} == {name: p.shape for name, p in parameters.items()}
    for given in (noise, None):
        expected = scale * head(parameters, features, shape, given) + shift
        torch.testing.assert_close(head(rescaled, features, shape, given), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_hidden_layer_is_torchs(shape):
    head, features = heads.Linear(hidden=12), torch.randn(6, 10)
    module = torch.nn.Sequential(torch.nn.Linear(10, 12), torch.nn.ReLU(), torch.nn.Linear(12, shape[0] * shape[1]), torch.nn.Unflatten(1, shape))
    check_agrees(head.init(seeded(), 10, shape), module, lambda p, x: head(p, x, shape), features)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("head", [head for head in EVERY if isinstance(head, heads.Dueling)])
def test_dueling_separates_the_mean_over_actions_from_what_lies_beside_it(head, shape):
    parameters, features, noise = made(head, shape)
    outputs, stream, width = head(parameters, features, shape, noise), head.stream, features.shape[1]
    count = stream.numbers(width, (1, shape[1]))
    value = stream({k.removeprefix("value."): p for k, p in parameters.items() if "value." in k}, features, (1, shape[1]), noise[:count] if count else None)
    advantage = stream({k.removeprefix("advantage."): p for k, p in parameters.items() if "advantage." in k}, features, shape, noise[count:] if count else None)
    torch.testing.assert_close(outputs.mean(1), value[:, 0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(outputs[:, 1:] - outputs[:, :-1], advantage[:, 1:] - advantage[:, :-1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("inputs", "outputs"), [(10, 6), (6, 10), (9, 9), (30, 2), (2, 30), (1, 1)])
def test_a_noisy_layer_is_the_papers(inputs, outputs):
    head, shape = heads.Noisy(sigma=0.7), (outputs, 1)
    parameters, features, noise = made(head, shape, inputs)
    wide = {name: p.T if p.ndim == 2 and p.shape != (outputs, inputs) else p for name, p in parameters.items()}
    assert (parameters["noise.weight"] == 0.7 / inputs**0.5).all() and (parameters["noise.bias"] == 0.7 / inputs**0.5).all()
    f = noise.sign() * noise.abs() ** 0.5
    weight = wide["weight"] + wide["noise.weight"] * torch.outer(f[inputs:], f[:inputs])
    bias = wide["bias"] + wide["noise.bias"] * f[inputs:]
    torch.testing.assert_close(head(parameters, features, shape, noise)[..., 0], features @ weight.T + bias, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(head(parameters, features, shape)[..., 0], features @ wide["weight"].T + wide["bias"], rtol=1e-4, atol=1e-5)


def test_noise_has_the_mean_and_the_variance_of_its_formula():
    head, shape = heads.Noisy(), (4, 1)
    parameters, features, _ = made(head, shape, 16)
    many = torch.func.vmap(lambda noise: head(parameters, features, shape, noise))(torch.randn(100_000, head.numbers(16, shape)))
    # E f(ε)² = E|ε| = √(2/π), and Σ = σ = σ₀/√inputs.
    share = math.sqrt(2 / math.pi)
    variance = 0.25 / 16 * (share**2 * features.square().sum(1) + share)
    torch.testing.assert_close(many.mean(0), head(parameters, features, shape), rtol=0, atol=0.02)
    torch.testing.assert_close(many.var(0)[..., 0], variance[:, None].expand(6, 4), rtol=0.05, atol=0)


@pytest.mark.parametrize("head", EVERY)
def test_every_head_trains_the_same_alone_and_together(head):
    x = torch.randn(6, 10)
    noise = torch.randn(head.numbers(10, (3, 2))) if head.numbers(10, (3, 2)) else None
    check_everywhere(lambda generator: head.init(generator, 10, (3, 2)), lambda p, x: head(p, x, (3, 2), noise), x, compile=head == heads.Dueling(heads.Noisy()))


@pytest.mark.parametrize(("make", "message"), [(lambda: heads.Linear(-1), "hidden must be at least 0"), (lambda: heads.Noisy(sigma=-1.0), "sigma must be at least 0")])
def test_what_makes_no_sense_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
