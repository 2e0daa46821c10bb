"""Observations of every kind of space against gymnasium.spaces.flatten, and environments that have them."""

import warnings

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces

from agents.compilation import bind
from agents.environments import Environment, Episodes
from agents.replay import decode, record
from agents.spaces import encode, features, packing, parts, storage
from agents.training import train

IMAGE = spaces.Box(0, 255, (3, 2), np.uint8)
SIMPLE = [
    spaces.Box(-1, 1, (4,), np.float32),
    spaces.Box(-1, 1, (2, 3), np.float64),
    spaces.Box(-5, 5, (), np.int64),
    IMAGE,
    spaces.Box(0, 1, (2, 3), np.bool_),
    spaces.Discrete(5),
    spaces.Discrete(3, start=-1),
    spaces.MultiDiscrete([2, 3, 1]),
    spaces.MultiDiscrete([[2, 3], [4, 1]], start=[[0, -2], [7, 3]]),
    spaces.MultiBinary(4),
    spaces.MultiBinary([2, 3]),
]
COMPOSITE = [
    spaces.Tuple(SIMPLE),
    spaces.Dict({str(index): space for index, space in enumerate(reversed(SIMPLE))}),
    spaces.Dict({"z": spaces.Tuple([SIMPLE[6], spaces.Dict({"b": SIMPLE[7], "a": SIMPLE[0]})]), "a": spaces.Tuple([SIMPLE[10], spaces.Tuple([IMAGE])])}),
    spaces.Tuple([spaces.Discrete(7)]),
]


def flattened(space, sample):
    """What gymnasium says, bytes as shares of 255."""
    divisors = np.concatenate([np.full(spaces.flatdim(part), 255.0 if part.dtype == np.uint8 else 1.0) for part in parts(space)])
    return torch.from_numpy(spaces.flatten(space, sample) / divisors).float()


def stored(space, samples):
    """Observations as they lie in memory."""
    shape, dtype = storage(space)
    array = np.zeros((len(samples), *shape), str(dtype).removeprefix("torch."))
    for place, sample in enumerate(samples):
        array[place] = packing(space)(sample) if isinstance(space, (spaces.Tuple, spaces.Dict)) else sample
    return torch.from_numpy(array)


@pytest.mark.parametrize("space", SIMPLE + COMPOSITE, ids=str)
def test_what_is_stored_and_encoded_is_what_gymnasium_flattens(space):
    space.seed(0)
    samples = [space.sample() for _ in range(50)]
    encoded = encode(space, stored(space, samples))
    assert encoded.dtype == torch.float32 and encoded.shape == (50, *features(space))
    torch.testing.assert_close(encoded.reshape(50, -1), torch.stack([flattened(space, sample) for sample in samples]))


def test_bytes_and_bits_stay_bytes_within_others():
    """Words of four bytes: 3 × 2 × 3 bytes of an image are 5, five bits are 2, numbers and categories 1 each."""
    image, bits, number = spaces.Box(0, 255, (3, 2, 3), np.uint8), spaces.MultiBinary(5), spaces.Box(-1, 1, (2,), np.float64)
    assert storage(spaces.Dict(a=image, b=image)) == ((10,), torch.int32)
    assert storage(spaces.Tuple([spaces.Dict(a=image, b=bits), number, spaces.Discrete(3)])) == ((5 + 2 + 2 + 1,), torch.int32)


def test_encoding_is_compiled_for_a_population():
    space = COMPOSITE[1]
    space.seed(0)
    observation = torch.stack([stored(space, [space.sample() for _ in range(4)]) for _ in range(3)])
    weight = torch.randn(3, int(np.prod(features(space))))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        program = bind(lambda w, o: encode(space, o).flatten(1) @ w, (weight, observation), donate=False, compile=True, name="encode", say=lambda line: None)
    expected = torch.stack([encode(space, o).flatten(1) @ w for w, o in zip(weight, observation, strict=True)])
    torch.testing.assert_close(program.result(program.run()), expected)


@pytest.mark.parametrize("space", [spaces.Text(3), spaces.Tuple([spaces.Discrete(2), spaces.Text(3)]), spaces.Dict({"a": spaces.Sequence(spaces.Discrete(2))}), spaces.Dict({})], ids=str)
def test_other_spaces_are_refused(space):
    with pytest.raises(ValueError, match="observations must be Box, Discrete, MultiDiscrete, MultiBinary, or a Tuple or Dict of these, got"):
        storage(space)


@pytest.mark.parametrize("order", ["dict", "tuple"])
def test_an_environments_composite_observations_are_recorded(order):
    made = Environment("Nested-v0", {"length": 150, "order": order})
    environment = made.make()
    space = environment.observation_space
    shape, dtype = storage(space)
    assert shape == (1 + 2 + 1 + 2 + 1,)
    episodes = Episodes([made], [0], np.zeros((1, 1, *shape), np.int32), record(shape, dtype))
    episodes.begin()
    for count in range(1, 152):
        episodes.step(np.zeros((1, 1), np.int64), np.ones((1, 1)))
        batch = decode(torch.from_numpy(episodes.words[0].copy()), episodes.records.dtype)
        environment.unwrapped.count = (count - 1) % 150 + 1
        expected = flattened(space, environment.unwrapped._observation())
        torch.testing.assert_close(encode(space, batch.next_observation)[0], expected)
        episodes.advance()


@pytest.mark.parametrize("order", ["dict", "tuple"])
def test_a_run_learns_from_composite_observations(small_run, order):
    run = small_run("env.id=Nested-v0", "+env.arguments.length=5", f"+env.arguments.order={order}", "total_steps=100")
    (result,) = train([run])
    assert result.updates == 50 and result.evaluation_returns == [5.0, 5.0]


@pytest.mark.parametrize("words", [["network=minatar_cnn"], ["network=impala_resnet", "network.channels=last", "network.filters=[4,4]"]], ids=["cnn", "resnet"])
def test_a_run_learns_from_images(small_run, words):
    run = small_run("env.id=Picture-v0", *words, "network.dense=16", "total_steps=100")
    assert storage(run.agent.observation_space) == ((10, 10, 2), torch.uint8)
    (result,) = train([run])
    assert result.updates == 50 and result.evaluation_returns == [3.0, 3.0]


def test_simple_environments_are_not_wrapped():
    assert not isinstance(Environment("CartPole-v1").make(), gymnasium.ObservationWrapper)
