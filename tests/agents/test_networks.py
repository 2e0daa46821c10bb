"""Networks against torch.nn, alone and among others, eager and compiled."""

import itertools
import warnings

import pytest
import torch
from omegaconf import OmegaConf

from agents.command_help import groups
from agents.compilation import bind
from agents.config import Builder, config_directory, locate
from agents.heads import Dueling, Noisy
from agents.networks import MLP
from agents.population import stack
from agents.recurrent import LSTM, Recurrent


def seeded(number=0):
    return torch.Generator().manual_seed(number)


def transfer(parameters, module):
    """Copy our parameters into a module that has as many of the same sizes, in order."""
    with torch.no_grad():
        for theirs, ours in zip(module.parameters(), parameters.values(), strict=True):
            theirs.copy_(ours if ours.shape == theirs.shape else ours.T)
    return module


def check_agrees(parameters, module, ours, x):
    """Same outputs and same gradients as a module to which the parameters were transferred."""
    transfer(parameters, module)
    weighting = torch.randn(module(x).shape, generator=seeded(1))
    torch.testing.assert_close(ours(parameters, x), module(x), rtol=1e-4, atol=1e-5)
    (module(x) * weighting).sum().backward()
    gradient = torch.func.grad(lambda p: (ours(p, x) * weighting).sum())(parameters)
    for mine, theirs in zip(gradient.values(), module.parameters(), strict=True):
        torch.testing.assert_close(mine if mine.shape == theirs.shape else mine.T, theirs.grad, rtol=1e-4, atol=1e-4)


def check_everywhere(init, apply, x, runs=3, compile=False):
    """A gradient step of several runs, eager or compiled ahead of time, is that of each run alone and eager."""

    def step(parameters, x):
        gradient, loss = torch.func.grad_and_value(lambda p: (apply(p, x) - 1).square().mean())(parameters)
        return {name: p - 0.01 * gradient[name] for name, p in parameters.items()}, loss

    everyone = [init(seeded(run)) for run in range(runs)]
    inputs = torch.stack([x * (run + 1) for run in range(runs)])
    stacked = stack(everyone)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        program = bind(step, (stacked, inputs), donate=True, compile=compile, name="step", say=lambda line: None)
    losses = program.result(program.run())
    for run, alone in enumerate(everyone):
        expected, loss = step(alone, inputs[run])
        torch.testing.assert_close(losses[run], loss, rtol=1e-4, atol=1e-6)
        for name, parameter in expected.items():
            torch.testing.assert_close(stacked[name][run], parameter, rtol=1e-4, atol=1e-5)
            assert not torch.equal(parameter, alone[name]), f"{name} has no gradient"


def test_a_perceptron_with_layer_norm_is_torchs():
    network, x = MLP((16, 9), "silu", layer_norm=True), torch.randn(7, 5)
    parameters = network.init(seeded(), (5,))
    assert torch.equal(parameters["1.norm.weight"], torch.ones(9)) and torch.equal(parameters["1.norm.bias"], torch.zeros(9))
    parameters = {name: p + 0.1 * torch.randn(p.shape) for name, p in parameters.items()}
    layers = [[torch.nn.Linear(a, b), torch.nn.LayerNorm(b), torch.nn.SiLU()] for a, b in itertools.pairwise((5, 16, 9))]
    check_agrees(parameters, torch.nn.Sequential(*layers[0], *layers[1]), network, x)


@pytest.mark.parametrize(("network", "compile"), [(MLP((16, 9)), False), (MLP((16, 9), layer_norm=True), True)])
def test_perceptrons_train_the_same_alone_and_together(network, compile):
    check_everywhere(lambda generator: network.init(generator, (5,)), network, torch.randn(7, 5), compile=compile)


@pytest.mark.parametrize(("group", "choice"), [(group, choice) for group in ("network", "head") for choice in groups()[group] if choice != "module"])
def test_every_choice_can_be_made_and_has_pythons_defaults(group, choice):
    node = OmegaConf.to_container(OmegaConf.load(config_directory() / group / f"{choice}.yaml"))
    made = Builder({group: node}).build(group)
    named = {"noisy_dueling": Dueling(Noisy()), "layer_norm_mlp": MLP(layer_norm=True), "wide_mlp": MLP((256, 256))}
    named |= {"tanh_mlp": MLP(activation="tanh"), "lstm": Recurrent(LSTM())}
    assert made == named.get(choice, locate(node["_target_"], group)())
