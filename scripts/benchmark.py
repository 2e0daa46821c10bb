"""Speed side by side with stable-baselines3, on one pinned core with one thread each, alternately in one call.

    python scripts/benchmark.py                  DQN: one run, then 64 in one population, and 64 on EnvPool's CartPole
    python scripts/benchmark.py ppo              PPO on CartPole: one run, one on EnvPool, 16 on EnvPool
    python scripts/benchmark.py half_cheetah     PPO on HalfCheetah-v5 (needs the extra mujoco)
    python scripts/benchmark.py --rounds 1       shorter

EnvPool is left out where it isn't installed. Environments are Gymnasium's CartPole-v1 and HalfCheetah-v5.
"""

import argparse
import importlib.util
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import NamedTuple


class Workload(NamedTuple):
    """One training in both libraries: our words, theirs by their name, and the steps of one turn; what else of ours is timed beside theirs."""

    words: list[str]
    theirs: Callable
    steps: int
    variants: list[tuple[int, list[str]]]


def dqn():
    """MLP 64-64 ReLU, batch 64, memory of 10,000, one gradient step per environment step after 1,000, target copied every 500, Huber, Adam."""
    from stable_baselines3 import DQN

    return DQN(
        "MlpPolicy", "CartPole-v1", learning_starts=1000, buffer_size=10_000, batch_size=64, train_freq=1, gradient_steps=1,
        target_update_interval=500, device="cpu", policy_kwargs={"net_arch": [64, 64]}, seed=0,
    )  # fmt: skip


def ppo():
    """8 environments × 128 steps, 4 epochs × 4 minibatches, an actor and a critic of MLP 64-64 tanh."""
    from stable_baselines3 import PPO
    from stable_baselines3.common.env_util import make_vec_env

    return PPO("MlpPolicy", make_vec_env("CartPole-v1", 8), n_steps=128, batch_size=256, n_epochs=4, ent_coef=0.01, device="cpu", seed=0)


def half_cheetah():
    """One environment, 2048 steps, 10 epochs × 32 minibatches, an actor and a critic of MLP 64-64 tanh."""
    from stable_baselines3 import PPO

    return PPO("MlpPolicy", "HalfCheetah-v5", n_steps=2048, batch_size=64, n_epochs=10, device="cpu", seed=0)


W1 = [
    "agent=dqn", "env=cartpole", "num_envs=1", "network.hidden=[64,64]", "network.activation=relu", "agent.batch_size=64",
    "agent.replay.capacity=10000", "agent.learning_starts=1000", "agent.update_every=1", "agent.updates_per_step=1",
    "agent.target_network.every=500", "loss/value=huber", "loss/target=q_learning", "agent.exploration.epsilon.end=0.05", "agent.exploration.epsilon.until=0.1",
    "agent.discount=0.99", "agent.max_gradient_norm=10", "optimizer.learning_rate=1e-4", "optimizer.eps=1e-8", "optimizer.schedule.end=1",
]  # fmt: skip
PPO = ["agent=ppo", "network.hidden=[64,64]", "optimizer.learning_rate=3e-4", "optimizer.eps=1e-5", "optimizer.schedule.end=1"]
W2 = [*PPO, "env=cartpole", "num_envs=8", "agent.rollout=128", "agent.epochs=4", "agent.minibatches=4"]
W3 = [*PPO, "env=half_cheetah", "num_envs=1", "agent.rollout=2048", "agent.epochs=10", "agent.minibatches=32", "loss.regularizer.entropy.weight=0"]
POOL = ["env.backend=envpool"]
WORKLOADS = {
    "dqn": Workload(W1, dqn, 20_000, [(1, []), (64, []), (64, POOL)]),
    "ppo": Workload(W2, ppo, 102_400, [(1, []), (1, POOL), (16, POOL)]),
    "half_cheetah": Workload(W3, half_cheetah, 20_480, [(1, []), (1, POOL)]),
}


def main() -> None:
    """Run the benchmark and print what it measured."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("workload", nargs="?", choices=WORKLOADS, default="dqn", help="what is trained (dqn)")
    parser.add_argument("--rounds", type=int, default=3, help="how often the two take turns (3)")
    parser.add_argument("--core", type=int, default=None, help="the core to pin everything to (the last one allowed)")
    options = parser.parse_args()
    if hasattr(os, "sched_setaffinity"):
        core = max(os.sched_getaffinity(0)) if options.core is None else options.core
        os.sched_setaffinity(0, {core})
        print(f"pinned to core {core}, one thread")
    workload = WORKLOADS[options.workload]
    print(f"{options.workload}: {workload.theirs.__doc__}")
    theirs(workload, 1500)  # Warms it up.
    for runs, words in workload.variants:
        if words != POOL or importlib.util.find_spec("envpool"):
            rounds(options.rounds, workload, runs, words)
    print(f"start to first step, warm cache: {statistics.median(start(workload) for _ in range(options.rounds)):.1f} s")


def rounds(number: int, workload: Workload, runs: int, words: list[str]) -> None:
    """Take turns with stable-baselines3, which trains one run at a time, and say who was how fast; ours with these words added."""
    steps = workload.steps if runs == 1 else workload.steps // 2
    ours(workload, runs, 2100, words)  # Compiles.
    ratios, speeds = [], []
    for turn in range(number):
        other, result = theirs(workload, steps), ours(workload, runs, steps, words)
        speeds.append(runs * result.steps / result.wall_seconds)
        ratios.append(speeds[-1] / other)
        print(f"round {turn + 1}: {runs} of rlloss {speeds[-1]:,.0f} steps/s, stable-baselines3 {other:,.0f} steps/s, ratio {ratios[-1]:.1f}; {shares(result)}")
    print(f"runs: {' '.join([str(runs), *words])}; {statistics.median(speeds):,.0f} steps/s, {statistics.median(ratios):.1f} times stable-baselines3 (median of {number})")


def ours(workload: Workload, runs: int, steps: int, words: list[str]):
    """Train so many seeds in one population, with these words added; the first one's result."""
    from agents.config import build, compose
    from agents.display import quiet
    from agents.training import train

    config = ["evaluation.every=0", "evaluation.episodes=1", "evaluation.max_steps=1", *workload.words, *words, f"total_steps={steps}"]
    result = train([build(compose([*config, f"seed={seed}"])) for seed in range(runs)], display=quiet())[0]
    if result.compile_seconds > 3:
        print(f"compiling for {runs} run{'s' if runs > 1 else ''}: {result.compile_seconds:.1f} s, once per machine")
    return result


def theirs(workload: Workload, steps: int) -> float:
    """Steps per second of stable-baselines3."""
    import torch

    torch.set_num_threads(1)
    agent = workload.theirs()
    started = time.perf_counter()
    agent.learn(steps)
    return agent.num_timesteps / (time.perf_counter() - started)


def shares(result) -> str:
    """The shares of our time."""
    return "time in " + ", ".join(f"{phase} {share:.0%}" for phase, share in result.phases.items())


def start(workload: Workload) -> float:
    """Seconds of a whole process that trains one step, from the shell's point of view."""
    command = "from agents.start import train; train()"
    words = [*workload.words, "total_steps=1", "evaluation.every=0", "evaluation.episodes=1", "evaluation.max_steps=1"]
    with tempfile.TemporaryDirectory() as directory:
        began = time.perf_counter()
        subprocess.run([sys.executable, "-c", command, *words], cwd=directory, check=True, capture_output=True)
        return time.perf_counter() - began


if __name__ == "__main__":
    main()
