"""A person's own torch.nn.Module as a network: pure, seeded, trained as any other, refused where it can't be."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from gymnasium import spaces

from agents.compilation import bind
from agents.config import Builder, ConfigError
from agents.dqn import DQN
from agents.modules import Convolutions, Module
from agents.networks import MLP
from agents.training import train
from tests.agents.test_networks import check_everywhere, seeded
from tests.conftest import SMALL


class Sized(torch.nn.Module):
    """Two layers; knows its inputs, has a constant, and a parameter that isn't trained."""

    def __init__(self, features, hidden=8):
        super().__init__()
        self.head = torch.nn.Linear(features[0], hidden)
        self.frozen = torch.nn.Parameter(torch.ones(hidden), requires_grad=False)
        self.register_buffer("constant", torch.arange(float(hidden)))

    def forward(self, x):
        return torch.tanh(self.head(x)) * self.frozen + self.constant


class Image(torch.nn.Module):
    def __init__(self, features, padding=1, bias=True, dilation=1):
        super().__init__()
        self.first = torch.nn.Conv2d(features[0], 5, 3, 2, padding, dilation=dilation, bias=bias)
        self.last = torch.nn.LazyLinear(7)
        self(torch.zeros(1, *features))

    def forward(self, x):
        return self.last(self.first(x).relu().flatten(1))


class With(torch.nn.Module):
    """A layer by name, in front of a dense one."""

    def __init__(self, features, layer="BatchNorm1d", **arguments):
        super().__init__()
        self.layers = torch.nn.Sequential(getattr(torch.nn, layer)(**arguments), torch.nn.Linear(features[0], 3))

    def forward(self, x):
        return self.layers(x)


class Wrong(torch.nn.Module):
    def __init__(self, returns):
        super().__init__()
        self.returns = returns

    def forward(self, x):
        return {"flat": x.sum(1), "pair": (x, x), "fails": None}[self.returns] if self.returns != "fails" else x @ torch.zeros(99, 3)


def test_a_module_is_what_it_was_with_its_parameters_from_outside():
    network, x = Module(Sized, {"hidden": 6}), torch.randn(5, 4)
    parameters = network.init(seeded(), (4,))
    assert network.width((4,)) == 6 and set(parameters) == {"module.head.weight", "module.head.bias"}
    module = Sized((4,), 6)
    module.load_state_dict({name.removeprefix("module."): p for name, p in parameters.items()}, strict=False)
    torch.testing.assert_close(network(parameters, x), module(x))


def test_parameters_come_from_the_generator_alone():
    network = Module(Sized, {})
    before = torch.get_rng_state()
    first = network.init(seeded(), (4,))
    torch.manual_seed(5)
    again, other = network.init(seeded(), (4,)), network.init(seeded(1), (4,))
    torch.manual_seed(0)
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(first["module.head.weight"], again["module.head.weight"]) and not torch.equal(first["module.head.weight"], other["module.head.weight"])


@pytest.mark.parametrize(
    ("network", "features"),
    [(Module(Sized, {}), (4,)), (Module(Image, {}), (2, 9, 9)), (Module(With, {"layer": "LayerNorm", "normalized_shape": [4]}), (4,))],
    ids=["sized", "image", "layer norm"],
)
@pytest.mark.parametrize("compile", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["eager", "compiled"])
def test_modules_train_the_same_alone_and_together(network, features, compile):
    check_everywhere(lambda generator: network.init(generator, features), network, torch.randn(4, *features), compile=compile)


@pytest.mark.parametrize("settings", [{}, {"padding": 0, "bias": False}, {"dilation": 2}, {"padding": (1, 0)}, {"padding": "valid"}])
def test_convolutions_of_modules_stay_what_they_are(settings, monkeypatch):
    torch.manual_seed(1)
    module, x = Image((2, 9, 9), **settings), torch.randn(3, 2, 9, 9)
    expected = module(x)
    with Convolutions():
        torch.testing.assert_close(module(x), expected, rtol=1e-4, atol=1e-5)


def test_what_can_not_be_compiled_for_any_number_of_runs_goes_on_without():
    network, x = Module(Image, {"dilation": 2}), torch.randn(1, 3, 2, 9, 9)
    parameters = {name: p[None].clone() for name, p in network.init(seeded(), (2, 9, 9)).items()}
    with pytest.warns(UserWarning, match="torch's convolutions, with weights of each run's own, can't be compiled for any number of runs"):
        program = bind(network, (parameters, x), donate=False, compile=True, name="f", say=lambda line: None)
    torch.testing.assert_close(program.result(program.run())[0], network({name: p[0] for name, p in parameters.items()}, x[0]))


def test_equal_modules_are_equal_values():
    assert Module(Sized, {"hidden": 6}) == Module(Sized, {"hidden": 6}) != Module(Sized, {"hidden": 7})


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (lambda: Module(With, {"num_features": 4}), r"With changes its buffers layers.0.running_var, .* LayerNorm could stand for BatchNorm"),
        (lambda: Module(With, {"layer": "Dropout"}), "With draws random numbers when it is called, so it is no pure function; leave out Dropout"),
        (lambda: Module(With, {"layer": "Nothing"}), "With can't be made: AttributeError"),
        (lambda: Module(Wrong, {}), "Wrong can't be made of {}: missing a required argument: 'returns'"),
        (lambda: Module(Wrong, {"returns": "flat"}), r"Wrong must map \[batch, 4\] to \[batch, width\]; for a batch of 2 it gave \[2\]"),
        (lambda: Module(Wrong, {"returns": "pair"}), "for a batch of 2 it gave tuple"),
        (lambda: Module(Wrong, {"returns": "fails"}), r"Wrong can't read observations of shape \(4,\): RuntimeError"),
        (lambda: Module(Sized, {"hidden": torch.ones(1)}), "Sized can't be made of"),
    ],
)
def test_modules_that_are_no_networks_are_refused_in_one_line(module, message):
    with pytest.raises(ValueError, match=message) as caught:
        DQN(spaces.Box(-1, 1, (4,)), spaces.Discrete(2), network=module())
    assert "\n" not in str(caught.value)


def test_arguments_are_checked_by_name():
    def build(**arguments):
        return Builder({"network": {"_target_": f"{__name__}.Sized", **arguments}}).build("network")

    assert build(hidden=5) == Module(Sized, {"hidden": 5})
    with pytest.raises(ConfigError, match=r"network.activation is no argument of Sized, it has features, hidden; say network=module"):
        build(activation="relu")
    with pytest.raises(ConfigError, match=r"network._target_ must be given: the dotted name of a class"):
        Builder({"network": {"_target_": "???"}}).build("network")
    assert isinstance(Builder({"network": {"_target_": "agents.networks.MLP"}}).build("network"), MLP)


def test_runs_with_a_module_train_together_as_alone(small_run):
    def run(seed):
        return small_run("network=module", f"network._target_={__name__}.Sized", "+network.hidden=9", f"seed={seed}", "total_steps=90")

    together, alone = train([run(1), run(2), run(3)], compile=False), train([run(2)], compile=False)[0]
    for name, parameter in alone.learner.parameters.items():
        torch.testing.assert_close(together[1].learner.parameters[name], parameter, rtol=1e-4, atol=1e-6)


MINE = """
import torch

class MyNet(torch.nn.Module):
    def __init__(self, features, hidden):
        super().__init__()
        self.layers = torch.nn.Sequential(torch.nn.Linear(features[0], hidden), torch.nn.ReLU())

    def forward(self, x):
        return self.layers(x)
"""


def test_a_module_in_a_file_of_ones_own_is_trained_from_the_command_line(tmp_path):
    (tmp_path / "my_module.py").write_text(MINE)
    words = [*(word for word in SMALL if "network.hidden" not in word), "network=module", "network._target_=my_module.MyNet", "+network.hidden=12", "hydra.run.dir=run"]
    source = "from agents.start import train; train()"
    done = subprocess.run([sys.executable, "-c", source, *words], cwd=tmp_path, env={"PYTHONPATH": str(Path(__file__).parents[2])}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "run/result.json").read_text())
    assert result["steps"] == 300 and result["updates"] == 250
