"""What a gradient step costs with other value losses and with prioritized replay, as multiples of squared error's.

    python scripts/benchmark_updates.py              one run
    python scripts/benchmark_updates.py --runs 64    in a population

DQN of W1 (see benchmark.py): MLP 64-64, batch 64, Q-learning, Adam, compiled, one pinned core. The variants take turns,
and the median of their ratios is printed. Replay of 100,000 transitions is full where it says so.
"""

import argparse
import os
import statistics
import time

import numpy as np
import torch
from benchmark import W1

from agents import priorities
from agents.config import build, compose
from agents.display import quiet
from agents.machine import raise_malloc_thresholds
from agents.training import Training

VARIANTS = {
    "mse": ["loss/value=mse"],
    "huber": ["loss/value=huber"],
    "hl_gauss, 51 bins": ["loss/value=hl_gauss", "loss.value.bins=51"],
    "two_hot, 51 bins": ["loss/value=two_hot", "loss.value.bins=51"],
    "c51, 51 bins": ["loss/value=c51", "loss.value.bins=51"],
    "quantile_huber, 51 quantiles": ["loss/value=quantile_huber", "loss.value.quantiles=51"],
    "mse, uniform, 100,000": ["loss/value=mse", "agent.replay.capacity=100000"],
    "mse, prioritized, 100,000": ["loss/value=mse", "agent/replay=prioritized", "agent.replay.capacity=100000"],
}


def main() -> None:
    """Time the variants in turns and print their medians."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=1, help="runs in a population (1)")
    parser.add_argument("--rounds", type=int, default=7, help="how often the variants take turns (7)")
    options = parser.parse_args()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    torch.set_num_threads(1)
    raise_malloc_thresholds()
    trainings = {name: filled(words, options.runs) for name, words in VARIANTS.items()}
    seconds = {name: [] for name in trainings}
    for _ in range(options.rounds):
        for name, training in trainings.items():
            seconds[name].append(updates(training, max(20, 2000 // options.runs)) / options.runs)
    for name, each in seconds.items():
        base = seconds["mse, uniform, 100,000" if "100,000" in name else "mse"]
        ratio = statistics.median(mine / its for mine, its in zip(each, base, strict=True))
        print(f"{name:<30}{1e6 * statistics.median(each):7.1f} µs a run and step{ratio:8.2f} times mse")


def filled(words: list[str], runs: int) -> Training:
    """A training whose memory is full of random transitions."""
    chosen = [word for word in W1 if not any(word.partition("=")[0] == other.partition("=")[0] for other in words)]
    settings = [build(compose([*chosen, *words, f"seed={seed}"])) for seed in range(runs)]
    training = Training(settings, True, quiet())
    training.begin()
    training.compile()
    population, length = training.population, training.population.memory.shape[2]
    for run in range(runs):
        records = population.words[run].view(population.layout)[..., 0]
        for field in ("observation", "next_observation"):
            records[field] = torch.randn(records[field].shape)
        records["action"], records["reward"] = torch.randint(2, records["action"].shape), 1
        records["terminated"] = torch.rand(records["terminated"].shape) < 0.01
    if population.learner.replay:
        priorities.write(population.learner.replay.priorities, np.arange(settings[0].agent.replay.capacity), np.ones(runs))
    training.step = length
    return training


def updates(training: Training, count: int) -> float:
    """Seconds of one update of the whole population."""
    population = training.population
    started = time.perf_counter()
    for _ in range(count):
        population.sample(training.updates, training.step)
        population.update(0.5)
        training.updates += 1
    return (time.perf_counter() - started) / count


if __name__ == "__main__":
    main()
