"""Convolutional networks against torch.nn, in every layout, alone and among others."""

import numpy as np
import pytest
import torch
from gymnasium import spaces

from agents.convolutions import CNN, ImpalaResNet, MinAtarCNN, NatureCNN, convolution
from agents.dqn import DQN
from agents.networks import MLP
from tests.agents.test_networks import check_agrees, check_everywhere, seeded


class Dense(torch.nn.Module):
    """Flatten [channels, height, width] as ours does, height first, and a linear layer."""

    def __init__(self, inputs, outputs):
        super().__init__()
        self.linear = torch.nn.Linear(inputs, outputs)

    def forward(self, x):
        return self.linear(x.permute(0, 2, 3, 1).flatten(1)).relu()


class Residual(torch.nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.layers = torch.nn.Sequential(
            torch.nn.ReLU(), torch.nn.Conv2d(channels, channels, 3, padding=1), torch.nn.ReLU(), torch.nn.Conv2d(channels, channels, 3, padding=1)
        )

    def forward(self, x):
        return x + self.layers(x)


def _section(inputs, channels):
    return torch.nn.Conv2d(inputs, channels, 3, padding=1), torch.nn.MaxPool2d(3, 2, 1), Residual(channels), Residual(channels)


@pytest.mark.parametrize(("kernel", "stride", "padding", "size"), [(8, 4, 0, 84), (4, 2, 0, 20), (3, 1, 0, 9), (3, 1, 1, 7), (3, 2, 1, 8), (5, 3, 2, 11), (1, 2, 0, 6), (2, 3, 0, 9)])
def test_convolutions_are_torchs(kernel, stride, padding, size):
    x, weight, bias = torch.randn(2, 3, size, size + 1), torch.randn(5, 3, kernel, kernel), torch.randn(5)
    ours = convolution(x.permute(0, 2, 3, 1), weight, bias, stride, padding).permute(0, 3, 1, 2)
    torch.testing.assert_close(ours, torch.nn.functional.conv2d(x, weight, bias, stride, padding), rtol=1e-4, atol=1e-3)


def _nature(channels=4):
    layers = torch.nn.Conv2d(channels, 32, 8, 4), torch.nn.ReLU(), torch.nn.Conv2d(32, 64, 4, 2), torch.nn.ReLU(), torch.nn.Conv2d(64, 64, 3), torch.nn.ReLU()
    return torch.nn.Sequential(*layers, Dense(3136, 512))


def test_the_nature_network_is_the_papers():
    network = NatureCNN()
    parameters = network.init(seeded(), (4, 84, 84))
    assert network.width((4, 84, 84)) == 512 and sum(p.numel() for p in parameters.values()) == 1_684_128
    check_agrees(parameters, _nature(), network, torch.rand(2, 4, 84, 84))


def test_the_minatar_network_is_the_papers():
    network, x = MinAtarCNN(), torch.rand(3, 10, 10, 6)
    module = torch.nn.Sequential(torch.nn.Conv2d(6, 16, 3), torch.nn.ReLU(), Dense(1024, 128))
    check_agrees(network.init(seeded(), (10, 10, 6)), module, lambda p, x: network(p, x.permute(0, 2, 3, 1)), x.permute(0, 3, 1, 2))


class ChannelNorm(torch.nn.LayerNorm):
    """Layer normalisation over the channels of each pixel of [batch, channels, height, width]."""

    def forward(self, x):
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def test_layers_are_normalised_before_their_relu():
    network, x = MinAtarCNN((8, 16), (3, 2), (1, 2), 20, layer_norm=True), torch.rand(3, 6, 10, 10)
    layers = torch.nn.Conv2d(6, 8, 3), ChannelNorm(8), torch.nn.ReLU(), torch.nn.Conv2d(8, 16, 2, 2), ChannelNorm(16), torch.nn.ReLU()
    dense = Dense(256, 20)
    dense.norm = torch.nn.LayerNorm(20)
    dense.forward = lambda x: dense.norm(dense.linear(x.permute(0, 2, 3, 1).flatten(1))).relu()
    parameters = network.init(seeded(), (10, 10, 6))
    parameters |= {name: p + 0.1 * torch.randn(p.shape, generator=seeded(2)) for name, p in parameters.items() if "norm" in name}
    check_agrees(parameters, torch.nn.Sequential(*layers, dense), lambda p, x: network(p, x.permute(0, 2, 3, 1)), x)


def test_the_impala_network_is_the_papers():
    network, x = ImpalaResNet((4, 6), 20), torch.rand(2, 3, 21, 16)
    module = torch.nn.Sequential(*_section(3, 4), *_section(4, 6), torch.nn.ReLU(), Dense(6 * 6 * 4, 20))
    check_agrees(network.init(seeded(), (3, 21, 16)), module, network, x)
    # The paper's network of 15 convolutions, counted by hand: 3·3·inputs·filters + filters each, and the dense layer.
    ours = ImpalaResNet().init(seeded(), (4, 84, 84))
    count = sum(9 * a * b + b for first, b in ((4, 16), (16, 32), (32, 32)) for a in (first, b, b, b, b)) + 11 * 11 * 32 * 256 + 256
    assert sum(p.numel() for p in ours.values()) == count


@pytest.mark.parametrize("network", [NatureCNN((3, 4), (4, 2), (2, 1), 8), ImpalaResNet((3, 4), 8)], ids=["cnn", "resnet"])
def test_layouts_are_read_as_they_are_said(network):
    def outputs(channels, observation):
        made = type(network)(**{**vars(network), "channels": channels})
        return made(made.init(seeded(), observation.shape[1:]), observation)

    first = torch.rand(2, 5, 12, 13)
    torch.testing.assert_close(outputs("first", first), outputs("last", first.permute(0, 2, 3, 1)))
    gray = torch.rand(2, 12, 13)
    torch.testing.assert_close(outputs("first", gray), outputs("last", gray[..., None]))
    torch.testing.assert_close(outputs("last", gray), outputs("first", gray[:, None]))
    frames = torch.rand(2, 4, 12, 13, 3)  # of colour images
    merged = torch.cat(list(frames.unbind(1)), -1)
    torch.testing.assert_close(outputs("last", frames), outputs("last", merged))
    torch.testing.assert_close(outputs("first", frames.movedim(-1, 2)), outputs("last", merged))


@pytest.mark.parametrize(
    ("network", "features"),
    [(NatureCNN((3, 4), (4, 2), (2, 1), 8), (2, 8, 8)), (MinAtarCNN(), (10, 10, 4)), (ImpalaResNet((3,), 8), (2, 5, 6))],
    ids=["nature", "minatar", "impala"],
)
@pytest.mark.parametrize("compile", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["eager", "compiled"])
def test_convolutional_networks_train_the_same_alone_and_together(network, features, compile):
    check_everywhere(lambda generator: network.init(generator, features), network, torch.rand(4, *features), compile=compile)


def test_initial_filters_are_torchs():
    parameters = CNN((50,), (5,), (1,), 8, "first").init(seeded(), (4, 9, 9))
    assert parameters["0.weight"].abs().max() <= 0.1 and parameters["0.weight"].std().item() == pytest.approx(0.1 / 3**0.5, rel=0.02)


@pytest.mark.parametrize(
    ("network", "shape", "message"),
    [
        (NatureCNN(), (4,), r"observations of shape \(4,\) are no images, which have 2 to 4 dimensions; choose network=mlp"),
        (NatureCNN(), (84, 84, 3), "too small: with network.channels=first they are 84x3, but a layer with kernel 8 would get only 84x3; set network.channels=last"),
        (NatureCNN(), (4, 30, 30), "a layer with kernel 3 would get only 2x2"),
        (NatureCNN(), (7, 84), "with network.channels=first they are 7x84, but a layer with kernel 8 would get only 7x84; choose another network"),
        (MinAtarCNN(), (2, 10, 10), "with network.channels=last they are 2x10, .* set network.channels=first"),
        (ImpalaResNet(), (84, 84, 2), "filters are 3x3; set network.channels=last"),
        (ImpalaResNet(), (84, 84, 3), r"observations of shape \(84, 84, 3\) have their channels last, but network.channels is first; set network.channels=last"),
        (ImpalaResNet(), (4, 84, 84, 3), "have their channels last, but network.channels is first; set network.channels=last"),
        (MinAtarCNN(), (4, 10, 10), "have their channels first, but network.channels is last; set network.channels=first"),
    ],
)
def test_observations_that_are_no_images_are_refused_before_training(network, shape, message):
    with pytest.raises(ValueError, match=message) as caught:
        DQN(spaces.Box(0, 255, shape, np.uint8), spaces.Discrete(2), network=network)
    assert "\n" not in str(caught.value)
    DQN(spaces.Box(0, 255, shape, np.uint8), spaces.Discrete(2), network=MLP())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"channels": "middle"}, "channels must be first or last, got middle"),
        ({"kernels": (3,)}, "filters must be as many as kernels and strides, got 3 filters, 1 kernels and 3 strides"),
        ({"filters": ()}, "filters must be numbers of at least 1"),
        ({"strides": (4, 0, 1)}, "kernels and strides must be at least 1"),
        ({"dense": 0}, "dense must be at least 1"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        NatureCNN(**settings)
