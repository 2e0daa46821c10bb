"""Replay memory: what goes in comes out, the oldest goes first, draws are uniform."""

import numpy as np
import pytest
import torch
from torch.utils._pytree import tree_leaves

from agents import priorities
from agents.batches import sequences, transitions
from agents.population import Population, stack, unstack
from agents.priorities import Priorities
from agents.replay import Drawn, PrioritizedReplay, UniformReplay, decode, memory, record


@pytest.mark.parametrize(("shape", "dtype"), [((4,), torch.float32), ((), torch.int32), ((5, 3), torch.uint8), ((), torch.float32), ((2, 2), torch.float32)])
@pytest.mark.parametrize("remembers", [0, 3])
def test_records_come_back_bit_by_bit(shape, dtype, remembers):
    layout = record(shape, dtype, remembers=remembers)
    replay, rng = UniformReplay(6), np.random.default_rng(0)
    kept = memory(2, 3, replay.capacity // 3, layout)
    records = np.zeros((2, 3), layout)
    for name in layout.names:
        records[name] = rng.integers(0, 200, records[name].shape) if name != "reward" else rng.normal(size=(2, 3))
    replay.write(kept.numpy(), 1, records.view(np.int32).reshape(2, 3, -1), ())
    for run in range(2):
        batch = decode(kept[run, torch.tensor([2, 0, 0]), 1], layout)
        for name in layout.names:
            assert np.array_equal(getattr(batch, name).numpy(), records[name][run][[2, 0, 0]]), name
        assert batch.observation.dtype == dtype and batch.action.dtype == torch.int64


def filled(replay, environments, times, ends=(), cuts=(), terminals=True):
    """One run's memory in which a row's reward is 100·environment + time, its observation the reward, its action the time."""
    layout = record((1,), torch.float32)
    kept = memory(1, environments, replay.capacity // environments, layout)
    state = replay.init(kept.shape[1] * kept.shape[2])
    state = stack([state])
    for time in range(times):
        records = np.zeros((1, environments), layout)
        records["reward"] = 100 * np.arange(environments) + time
        records["observation"][..., 0], records["next_observation"][..., 0] = records["reward"], records["reward"] + 0.5
        records["action"], records["terminated"], records["truncated"], records["probability"] = time, time in ends, time in cuts, 0.25
        replay.write(kept.numpy(), time, records.view(np.int32).reshape(1, environments, -1), state)
    return kept[0], layout, state


def drawn(environment, slot):
    return Drawn(torch.tensor(environment), torch.tensor(slot))


def count(number):
    return torch.tensor(float(number), dtype=torch.float64)


def test_every_environment_keeps_its_newest():
    kept, layout, _ = filled(UniformReplay(10), 2, 7)
    rewards = decode(kept, layout).reward
    assert sorted(rewards[0].tolist()) == [2, 3, 4, 5, 6] and sorted(rewards[1].tolist()) == [102, 103, 104, 105, 106]


def test_draws_are_uniform_over_what_was_added():
    replay, counts, rng = UniformReplay(100), np.zeros((2, 50)), np.random.default_rng(0)
    for _ in range(500):
        found = replay.draw((), torch.from_numpy(rng.random(64)), (2, 50), count(20), torch.zeros(()))
        np.add.at(counts, (found.environment.numpy(), found.slot.numpy()), 1)
    assert counts[:, 20:].sum() == 0
    assert ((counts[:, :20] - 800) ** 2 / 800).sum() < 72  # chi-squared, 39 degrees of freedom, p = 0.001
    last = replay.draw((), torch.full((1,), np.nextafter(1.0, 0), dtype=torch.float64), (2, 50), count(1e6), torch.zeros(()))
    assert (last.environment.item(), last.slot.item()) == (1, 49)


@pytest.mark.parametrize("steps", [1, 2, 3, 5])
@pytest.mark.parametrize("slot", range(8))
def test_n_step_transitions_are_a_loop_over_the_ring(steps, slot):
    ends, cuts, times, length, discount = {9}, {6}, 11, 8, 0.9
    kept, layout, _ = filled(UniformReplay(16), 2, times, ends, cuts)
    time = slot + length if slot + length < times else slot
    batch = transitions(kept, drawn([1], [slot]), count(times), layout, discount, steps, False)
    reward, factor = 0.0, 1.0
    for now in range(time, min(time + steps, times)):
        reward, factor, last = reward + factor * (100 + now), factor * (0 if now in ends else discount), now
        if now in ends | cuts:
            break
    assert batch.reward.item() == pytest.approx(reward) and batch.discount.item() == pytest.approx(factor)
    assert batch.observation.item() == 100 + time and batch.next_observation.item() == 100 + last + 0.5


def test_next_actions_are_those_of_the_next_row_or_masked():
    kept, layout, _ = filled(UniformReplay(8), 1, 11, ends={9}, cuts={6})
    batch = transitions(kept, drawn([0] * 5, [5, 6, 7, 1, 2]), count(11), layout, 0.9, 1, True)
    assert batch.mask.tolist() == [True, False, True, True, False]  # a cut, and the newest, have no next action; an end needs none
    assert batch.next_action[0].item() == 6 and batch.next_action[2].item() == 8
    longer = transitions(kept, drawn([0], [3]), count(11), layout, 0.9, 2, True)
    assert longer.next_action.item() == 5 and longer.mask.item() and longer.reward.item() == pytest.approx(3 + 0.9 * 4)


def test_sequences_stop_at_what_is_newest():
    kept, layout, _ = filled(UniformReplay(8), 1, 11, cuts={6})
    batch = sequences(kept, drawn([0, 0], [5, 1]), count(11), layout, 0.9, 3)
    assert batch.reward.reshape(3, 2).T.tolist()[0] == [5, 6, 7] and batch.reward[1].item() == 9 and batch.reward[3].item() == 10
    assert batch.mask.reshape(3, 2).T.tolist() == [[True, True, True], [True, True, False]]
    assert batch.truncated.reshape(3, 2).T.tolist() == [[0, 1, 1], [0, 1, 1]] and (batch.probability[batch.mask] == 0.25).all()
    young, layout, _ = filled(UniformReplay(8), 1, 2)  # What was never written says nothing.
    batch = sequences(young, drawn([0], [1]), count(2), layout, 0.9, 3)
    assert batch.mask.tolist() == [True, False, False] and batch.probability.tolist() == [0.25, 1, 1]


@pytest.mark.parametrize("n", [1, 255, 256, 1000, 70_000])
def test_priorities_are_drawn_in_proportion(n):
    generator = torch.Generator().manual_seed(n)
    priority = torch.rand(n, generator=generator) * (torch.rand(n, generator=generator) < 0.5)
    priority[n // 2] = 3.0
    kept = priorities.renewed(priorities.none(n), torch.arange(n), priority)
    priority = torch.nn.functional.pad(priority, (0, len(kept.priority) - n))
    assert torch.equal(kept.priority, priority)
    shares = (torch.arange(2**19, dtype=torch.float64) + 0.5) / 2**19
    index, of_drawn = priorities.draw(kept, shares)
    # What each share of the whole falls on is one stretch for every index, so that rounding to shares costs one at most.
    expected = priority.double() / priority.double().sum() * len(shares)
    assert (torch.bincount(index, minlength=len(priority)) - expected).abs().max() < 1 + 1e-6 * len(shares)
    assert torch.equal(of_drawn, priority[index])
    ends, _ = priorities.draw(kept, torch.tensor([0.0, np.nextafter(1.0, 0)], dtype=torch.float64))
    assert (priority[ends] > 0).all() and (n == 1 or ends[0] != ends[1])


def test_sums_are_those_of_the_priorities_whoever_wrote_them():
    kept, rng = Priorities(*(tensor[None] for tensor in priorities.none(1000))), np.random.default_rng(0)
    told = np.zeros(1000, np.float32)
    for turn in range(200):
        index = rng.integers(0, 1000, 8)
        value = rng.random(8 if turn % 2 else 1).astype(np.float32)
        told[index] = value
        if turn % 2:
            index, first = np.unique(index, return_index=True)
            value = told[index] = value[first]
            kept = Priorities(*(tensor[None] for tensor in priorities.renewed(Priorities(*(tensor[0] for tensor in kept)), torch.from_numpy(index), torch.from_numpy(value))))
        else:
            priorities.write(kept, index, value)
    assert np.array_equal(kept.priority[0, :1000].numpy(), told)
    torch.testing.assert_close(kept.sums[0], kept.priority.reshape(-1, priorities.BLOCK).sum(-1), rtol=1e-6, atol=0)


def test_prioritized_replay_follows_its_paper():
    replay = PrioritizedReplay(16, alpha=0.5)
    _, _, state = filled(replay, 2, 11)
    state = unstack(state, 0)
    assert state.priorities.priority[:16].tolist() == [1] * 16 and state.priorities.priority[16:].sum() == 0
    errors = torch.tensor([4.0, -9.0])
    state = replay.learned(state, drawn([0, 1], [3, 2]), 8, errors)
    priority = state.priorities.priority[:16]
    assert priority[3].item() == pytest.approx(2) and priority[10].item() == pytest.approx(3) and state.highest.item() == pytest.approx(3)
    found = replay.draw(state, torch.rand(4096, dtype=torch.float64), (2, 8), count(11), torch.tensor(0.5))
    place = found.environment * 8 + found.slot
    share = priority / 19
    counts = torch.bincount(place, minlength=16) / 4096
    torch.testing.assert_close(counts, share, atol=0.001, rtol=0)  # stratified: hardly any noise
    weights = (16 * share) ** -0.7
    torch.testing.assert_close(found.weight, (weights / weights.max())[place], rtol=1e-4, atol=1e-6)


def test_a_transition_that_waits_for_its_successor_keeps_its_priority(small_run):
    """SARSA can't learn from the newest record before the next one: it must not be forgotten for that."""
    agent = small_run("agent/replay=prioritized", "loss/target=sarsa", "agent.batch_size=64").agent
    memory = torch.zeros(1, 200, agent.layout.itemsize // 4, dtype=torch.int32)
    state = agent.init(torch.Generator().manual_seed(0), 200)
    write(state.replay.priorities, 5)
    state, metrics = agent.update(state, memory, torch.rand(agent.plan(1).update_uniforms, dtype=torch.float64), count(5), torch.tensor(0.5))
    assert not metrics["mask"].all()  # The newest was drawn.
    priority = state.replay.priorities.priority[:5]
    assert priority[4] == 1 and (priority[:4] != 1).any()


def write(kept, written):
    priorities.write(Priorities(*(tensor[None] for tensor in kept)), np.arange(written), np.ones(1, np.float32))


@pytest.mark.parametrize("kept", ["uniform", "prioritized"])
def test_the_memory_that_is_said_is_what_is_allocated(small_run, kept):
    run = small_run(f"agent/replay={kept}", "agent.replay.capacity=3000", "num_envs=2")
    population = Population([run.agent], [0], 2, compile=False, say=print)
    assert run.memory_bytes == sum(tensor.nbytes for tensor in (population.memory, *tree_leaves(population.learner.replay)))
