"""Convolutional networks as values, for images: one layout inside, [batch, height, width, channels]."""

import math

import torch
from torch import Tensor

from agents.networks import Parameters, linear, named, normalized, uniform, unit_norm
from rlloss.checks import in_range
from rlloss.frozen import frozen

LAYOUTS = ("first", "last")


@frozen
class CNN:
    """Convolutions and one dense layer, ReLU after each, initialised like torch.nn.Conv2d and torch.nn.Linear.

        φ = relu(W · relu(K₂ ∗ relu(K₁ ∗ x + b₁) + b₂) + b),  for two filter banks K

    With `layer_norm` each layer is normalised before its ReLU, those of convolutions over the channels of each pixel.

    Source: LeCun et al., Gradient-based learning applied to document recognition (1998).
    """

    filters: tuple[int, ...]
    kernels: tuple[int, ...]
    strides: tuple[int, ...]
    dense: int
    channels: str
    layer_norm: bool = False

    def __post_init__(self) -> None:
        check_layout(self.channels, self.dense, self.filters)
        if not len(self.filters) == len(self.kernels) == len(self.strides):
            counts = f"{len(self.filters)} filters, {len(self.kernels)} kernels and {len(self.strides)} strides"
            raise ValueError(f"filters must be as many as kernels and strides, got {counts}; give each one number per layer")
        if any(size < 1 for size in (*self.kernels, *self.strides)):
            raise ValueError(f"kernels and strides must be at least 1, got {list(self.kernels)} and {list(self.strides)}")

    def width(self, features: tuple[int, ...]) -> int:
        """That of the dense layer; ValueError for observations that are no images, or too small."""
        self._shapes(features)
        return self.dense

    def _shapes(self, features: tuple[int, ...]) -> list[tuple[int, int, int]]:
        """Height, width and channels before the first layer and after each."""
        shapes = [image_shape(features, self.channels)]
        for filters, kernel, stride in zip(self.filters, self.kernels, self.strides, strict=True):
            height, width, _ = shapes[-1]
            if min(height, width) < kernel:
                raise ValueError(too_small(features, self.channels, f"a layer with kernel {kernel} would get only {height}x{width}"))
            shapes.append(((height - kernel) // stride + 1, (width - kernel) // stride + 1, filters))
        check_channels(features, self.channels)
        return shapes

    def init(self, generator: torch.Generator, features: tuple[int, ...]) -> Parameters:
        """`0.weight` [filters, channels, kernel, kernel], `0.bias` [filters] and so on; `dense.weight`, `dense.bias`; norms as in `unit_norm`."""
        shapes, parameters = self._shapes(features), {}
        for layer, (kernel, (_, _, channels), filters) in enumerate(zip(self.kernels, shapes, self.filters, strict=False)):
            parameters |= named(f"{layer}.", uniform_filters(generator, channels, filters, kernel) | self._norm(filters))
        return parameters | named("dense.", uniform(generator, math.prod(shapes[-1]), self.dense) | self._norm(self.dense))

    def _norm(self, width: int) -> Parameters:
        return unit_norm(width) if self.layer_norm else {}

    def __call__(self, parameters: Parameters, observation: Tensor) -> Tensor:
        """Features [batch, dense] of images [batch, *features]."""
        x = images(observation, self.channels)
        for layer, stride in enumerate(self.strides):
            x = convolution(x, parameters[f"{layer}.weight"], parameters[f"{layer}.bias"], stride)
            x = (normalized(x, parameters, f"{layer}.") if self.layer_norm else x).relu()
        x = linear(x.flatten(1), parameters["dense.weight"], parameters["dense.bias"])
        return (normalized(x, parameters, "dense.") if self.layer_norm else x).relu()


@frozen
class NatureCNN(CNN):
    """The network of DQN for Atari: 32 8x8 filters with stride 4, 64 4x4 with 2, 64 3x3 with 1, and 512 units.

    Source: Mnih et al., Human-level control through deep reinforcement learning (2015).
    """

    filters: tuple[int, ...] = (32, 64, 64)
    kernels: tuple[int, ...] = (8, 4, 3)
    strides: tuple[int, ...] = (4, 2, 1)
    dense: int = 512
    channels: str = "first"


@frozen
class MinAtarCNN(CNN):
    """The network of MinAtar's DQN for small images: 16 3x3 filters and 128 units.

    Source: Young and Tian, MinAtar, arXiv 1903.03176.
    """

    filters: tuple[int, ...] = (16,)
    kernels: tuple[int, ...] = (3,)
    strides: tuple[int, ...] = (1,)
    dense: int = 128
    channels: str = "last"


@frozen
class ImpalaResNet:
    """Sections of a convolution, a maximum over 3x3 with stride 2, and two residual blocks; one dense layer.

        section: x ← maximum(K ∗ x + b), then twice x ← x + K₂ ∗ relu(K₁ ∗ relu(x) + b₁) + b₂;  φ = relu(W relu(x) + b)

    All filters are 3x3 with the borders padded.

    Source: Espeholt et al., IMPALA, arXiv 1802.01561, the large network without its LSTM.
    """

    filters: tuple[int, ...] = (16, 32, 32)
    dense: int = 256
    channels: str = "first"

    def __post_init__(self) -> None:
        check_layout(self.channels, self.dense, self.filters)

    def width(self, features: tuple[int, ...]) -> int:
        """That of the dense layer; ValueError for observations that are no images."""
        self._last_shape(features)
        return self.dense

    def _last_shape(self, features: tuple[int, ...]) -> tuple[int, int, int]:
        """Height, width and channels after the last section."""
        shape = image_shape(features, self.channels)
        if min(shape[:2]) < 3:
            raise ValueError(too_small(features, self.channels, "filters are 3x3"))
        check_channels(features, self.channels)
        for filters in self.filters:
            shape = ((shape[0] + 1) // 2, (shape[1] + 1) // 2, filters)
        return shape

    def init(self, generator: torch.Generator, features: tuple[int, ...]) -> Parameters:
        """`section.convolution.weight` [filters, channels, 3, 3] and `.bias` [filters], sections from 0, five convolutions each; `dense`."""
        parameters, channels = {}, image_shape(features, self.channels)[2]
        for section, filters in enumerate(self.filters):
            for index in range(5):
                parameters |= named(f"{section}.{index}.", uniform_filters(generator, filters if index else channels, filters, 3))
            channels = filters
        return parameters | named("dense.", uniform(generator, math.prod(self._last_shape(features)), self.dense))

    def __call__(self, parameters: Parameters, observation: Tensor) -> Tensor:
        """Features [batch, dense] of images [batch, *features]."""

        def layer(x: Tensor, name: str) -> Tensor:
            return convolution(x, parameters[f"{name}.weight"], parameters[f"{name}.bias"], padding=1)

        x = images(observation, self.channels)
        for section in range(len(self.filters)):
            x = maximum(layer(x, f"{section}.0"))
            for block in (1, 3):
                x = x + layer(layer(x.relu(), f"{section}.{block}").relu(), f"{section}.{block + 1}")
        return linear(x.flatten(1).relu(), parameters["dense.weight"], parameters["dense.bias"]).relu()


def convolution(x: Tensor, weight: Tensor, bias: Tensor, stride: int = 1, padding: int = 0) -> Tensor:
    """A convolution with square filters, as torch.nn.functional.conv2d on another layout.

        y[i, j] = b + Σ over k, l of W[:, :, k, l] x[i·stride + k, j·stride + l]

    Args:
        x: [batch, height, width, channels].
        weight: [filters, channels, kernel, kernel].
        bias: [filters].
        stride: of both directions.
        padding: rows and columns of zeros around the image.

    Returns:
        [batch, height', width', filters].
    """
    # Not conv2d: with weights of its own for each run it is one convolution in groups, which the compiler can
    # only make for a fixed number of runs. Here runs are a batched matrix product, as fast for one and for many.
    filters, channels, kernel, _ = weight.shape
    height, width = ((side + 2 * padding - kernel) // stride + 1 for side in x.shape[1:3])
    # Tiles of stride x stride pixels become channels, so that windows begin at every tile.
    tiles = -(-kernel // stride)
    rows, columns, rest = height + tiles - 1, width + tiles - 1, tiles * stride - kernel
    x = pad(x, padding, rows * stride, columns * stride)
    x = x.unflatten(2, (columns, stride)).unflatten(1, (rows, stride)).transpose(2, 3).flatten(3)
    windows = torch.cat([x[:, i : i + height, j : j + width] for i in range(tiles) for j in range(tiles)], -1)
    if rest:
        weight = torch.nn.functional.pad(weight, (0, rest, 0, rest))
    weight = weight.reshape(filters, channels, tiles, stride, tiles, stride).permute(2, 4, 3, 5, 1, 0).reshape(-1, filters)
    return (windows.reshape(-1, weight.shape[0]) @ weight + bias).reshape(-1, height, width, filters)


def pad(x: Tensor, before: int, height: int, width: int) -> Tensor:
    """Images [batch, …, …, channels] with `before` zeros above and to the left, and as many or few after as make height x width."""
    after = [size - before - side for side, size in ((x.shape[1], height), (x.shape[2], width))]
    return torch.nn.functional.pad(x, (0, 0, before, after[1], before, after[0]))


def maximum(x: Tensor) -> Tensor:
    """The maximum over 3x3 pixels at every second, borders padded: [batch, ⌈height/2⌉, ⌈width/2⌉, channels]."""
    return torch.nn.functional.max_pool2d(x.permute(0, 3, 1, 2), 3, 2, 1).permute(0, 2, 3, 1)


def uniform_filters(generator: torch.Generator, channels: int, filters: int, kernel: int) -> Parameters:
    """`weight` and `bias` of a `convolution`, U(±1/√inputs) as in torch.nn.Conv2d."""
    bound = (channels * kernel * kernel) ** -0.5
    weight = torch.empty(filters, channels, kernel, kernel).uniform_(-bound, bound, generator=generator)
    return {"weight": weight, "bias": torch.empty(filters).uniform_(-bound, bound, generator=generator)}


def images(observation: Tensor, channels: str) -> Tensor:
    """Images [batch, height, width, channels] of observations, the frames of a stack as channels; see `image_shape`."""
    if observation.ndim == 3:
        return observation[..., None]
    if channels == "first":
        return observation.flatten(1, -3).permute(0, 2, 3, 1)
    if observation.ndim == 5:
        return observation.permute(0, 2, 3, 1, 4).flatten(3)
    return observation


def image_shape(features: tuple[int, ...], channels: str) -> tuple[int, int, int]:
    """Height, width and channels of observations [H, W], or with channels first [C, H, W], or last [H, W, C]; frames stand before.

    Raises ValueError for any other number of dimensions.
    """
    if not 2 <= len(features) <= 4:
        raise ValueError(f"observations of shape {features} are no images, which have 2 to 4 dimensions; choose network=mlp")
    if len(features) == 2:
        return *features, 1
    if channels == "first":
        return features[-2], features[-1], math.prod(features[:-2])
    return features[-3], features[-2], math.prod(features[:-3]) * features[-1]


def too_small(features: tuple[int, ...], channels: str, reason: str) -> str:
    """What to say of images that are too small."""
    height, width, _ = image_shape(features, channels)
    other = next(layout for layout in LAYOUTS if layout != channels)
    where = f"set network.channels={other} if that's where the channels are, or " if len(features) > 2 else ""
    said = f"observations of shape {features} are too small: with network.channels={channels} they are {height}x{width}"
    return f"{said}, but {reason}; {where}choose another network"


def check_channels(features: tuple[int, ...], channels: str) -> None:
    """Raise ValueError for images whose channels, at most 4 of them, plainly stand at the other end: as pixels they would be learned from without a word."""
    if len(features) < 3:
        return
    *_, first, middle, last = features
    few, others, other = (last, (first, middle), "last") if channels == "first" else (first, (middle, last), "first")
    if few <= 4 and few < min(others):
        raise ValueError(f"observations of shape {features} have their channels {other}, but network.channels is {channels}; set network.channels={other}")


def check_layout(channels: str, dense: int, filters: tuple[int, ...]) -> None:
    """Raise ValueError unless these are settings of a network for images."""
    if channels not in LAYOUTS:
        raise ValueError(f"channels must be first or last, got {channels}")
    in_range("dense", dense, 1)
    if not filters or any(count < 1 for count in filters):
        raise ValueError(f"filters must be numbers of at least 1, one for each layer, got {list(filters)}")
