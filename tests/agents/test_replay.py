"""Replay memory: what goes in comes out, the oldest goes first, draws are uniform."""

import numpy as np
import pytest
import torch

from agents.replay import UniformReplay, decode, record


@pytest.mark.parametrize(("shape", "dtype"), [((4,), torch.float32), ((), torch.int32), ((5, 3), torch.uint8), ((), torch.float32), ((2, 2), torch.float32)])
def test_records_come_back_bit_by_bit(shape, dtype):
    layout = record(shape, dtype)
    replay, rng = UniformReplay(6), np.random.default_rng(0)
    memory = replay.init(2, layout)
    records = np.zeros((2, 5), layout)
    for name in layout.names:
        records[name] = rng.integers(0, 200, records[name].shape) if name != "reward" else rng.normal(size=(2, 5))
    replay.write(memory.numpy(), 0, records.view(np.int32).reshape(2, 5, -1))
    for run in range(2):
        batch = decode(memory[run][torch.tensor([4, 0, 0])], layout)
        for name, field in batch._asdict().items():
            assert np.array_equal(field.numpy(), records[name][run][[4, 0, 0]]), name
        assert batch.observation.dtype == dtype and batch.action.dtype == torch.int64


def test_the_oldest_are_written_over_in_every_run():
    layout, replay = record((1,), torch.float32), UniformReplay(5)
    memory = replay.init(2, layout)
    view = memory.numpy().view(layout)[..., 0]
    for step in range(4):
        records = np.zeros((2, 3), layout)
        records["reward"] = [[100 * run + 3 * step + env for env in range(3)] for run in range(2)]
        replay.write(memory.numpy(), 3 * step, records.view(np.int32).reshape(2, 3, -1))
    assert sorted(view["reward"][0]) == [7, 8, 9, 10, 11]
    assert sorted(view["reward"][1]) == [107, 108, 109, 110, 111]


def test_draws_are_uniform_over_what_was_added():
    memory, replay, counts = torch.arange(100)[:, None], UniformReplay(100), np.zeros(100)
    rng = np.random.default_rng(0)
    for _ in range(500):
        drawn = replay.sample(memory, torch.from_numpy(rng.random(64)), torch.tensor(40.0, dtype=torch.float64))
        counts += np.bincount(drawn[:, 0], minlength=100)
    assert counts[40:].sum() == 0
    assert ((counts[:40] - 800) ** 2 / 800).sum() < 72  # chi-squared, 39 degrees of freedom, p = 0.001
    last = torch.full((64,), np.nextafter(1.0, 0), dtype=torch.float64)
    assert (replay.sample(memory, last, torch.tensor(1e6, dtype=torch.float64)) == 99).all()
