"""Speed side by side with stable-baselines3, on one pinned core with one thread each, alternately in one call.

    python scripts/benchmark.py            W1: one run against stable-baselines3, then 64 runs in one population,
                                           and 64 again on EnvPool's CartPole-v1 where EnvPool is installed
    python scripts/benchmark.py --rounds 1 --runs 16    shorter

W1: DQN on Gymnasium's CartPole-v1, one environment, MLP 64-64 ReLU, batch 64, memory of 10,000, one
gradient step per environment step after 1,000, target copied every 500, Huber, Adam, 20,000 steps.
"""

import argparse
import importlib.util
import os
import statistics
import subprocess
import sys
import tempfile
import time

STEPS = 20_000


def main() -> None:
    """Run the benchmark and print what it measured."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3, help="how often the two take turns (3)")
    parser.add_argument("--runs", type=int, default=64, help="runs in the population (64)")
    parser.add_argument("--core", type=int, default=None, help="the core to pin everything to (the last one allowed)")
    options = parser.parse_args()
    if hasattr(os, "sched_setaffinity"):
        core = max(os.sched_getaffinity(0)) if options.core is None else options.core
        os.sched_setaffinity(0, {core})
        print(f"pinned to core {core}, one thread")

    theirs(1500)  # Warms it up.
    rounds(options.rounds, 1, STEPS)
    rounds(options.rounds, options.runs, STEPS // 2)
    if importlib.util.find_spec("envpool"):
        rounds(options.rounds, options.runs, STEPS // 2, "env.backend=envpool")
    print(f"start to first step, warm cache: {statistics.median(start() for _ in range(options.rounds)):.1f} s")


def rounds(number: int, runs: int, steps: int, *words: str) -> None:
    """Take turns with stable-baselines3, which trains one run at a time, and say who was how fast; ours with these words added."""
    ours(runs, 1100, *words)  # Compiles.
    ratios, speeds = [], []
    for turn in range(number):
        other, result = theirs(steps), ours(runs, steps, *words)
        speeds.append(runs * result.steps / result.wall_seconds)
        ratios.append(speeds[-1] / other)
        print(f"round {turn + 1}: {runs} of rlloss {speeds[-1]:,.0f} steps/s, stable-baselines3 {other:,.0f} steps/s, ratio {ratios[-1]:.1f}; {shares(result)}")
    print(f"runs: {' '.join([str(runs), *words])}; {statistics.median(speeds):,.0f} steps/s, {statistics.median(ratios):.1f} times stable-baselines3 (median of {number})")


def ours(runs: int, steps: int, *words: str):
    """Train W1 with so many seeds in one population, with these words added; the first one's result."""
    from agents.config import build, compose
    from agents.display import quiet
    from agents.training import train

    config = ["evaluation.every=0", "evaluation.episodes=1", "evaluation.max_steps=1", *W1, *words, f"total_steps={steps}"]
    result = train([build(compose([*config, f"seed={seed}"])) for seed in range(runs)], display=quiet())[0]
    if result.compile_seconds > 3:
        print(f"compiling for {runs} run{'s' if runs > 1 else ''}: {result.compile_seconds:.1f} s, once per machine")
    return result


W1 = [
    "agent=dqn", "env=cartpole", "num_envs=1", "network.hidden=[64,64]", "network.activation=relu", "agent.batch_size=64",
    "agent.replay.capacity=10000", "agent.learning_starts=1000", "agent.update_every=1", "agent.updates_per_step=1",
    "agent.target_network.every=500", "loss/value=huber", "loss/target=q_learning", "agent.exploration.epsilon.end=0.05", "agent.exploration.epsilon.until=0.1",
    "agent.discount=0.99", "agent.max_gradient_norm=10", "optimizer.learning_rate=1e-4", "optimizer.eps=1e-8", "optimizer.schedule.end=1",
]  # fmt: skip


def theirs(steps: int) -> float:
    """Steps per second of stable-baselines3 at W1."""
    import torch
    from stable_baselines3 import DQN

    torch.set_num_threads(1)
    agent = DQN(
        "MlpPolicy", "CartPole-v1", learning_starts=1000, buffer_size=10_000, batch_size=64, train_freq=1, gradient_steps=1,
        target_update_interval=500, device="cpu", policy_kwargs={"net_arch": [64, 64]}, seed=0,
    )  # fmt: skip
    started = time.perf_counter()
    agent.learn(steps)
    return steps / (time.perf_counter() - started)


def shares(result) -> str:
    """The shares of our time."""
    return "time in " + ", ".join(f"{phase} {share:.0%}" for phase, share in result.phases.items())


def start() -> float:
    """Seconds of a whole process that trains one step, from the shell's point of view."""
    command = "from agents.start import train; train()"
    words = [*W1, "total_steps=1", "evaluation.every=0", "evaluation.episodes=1", "evaluation.max_steps=1"]
    with tempfile.TemporaryDirectory() as directory:
        began = time.perf_counter()
        subprocess.run([sys.executable, "-c", command, *words], cwd=directory, check=True, capture_output=True)
        return time.perf_counter() - began


if __name__ == "__main__":
    main()
