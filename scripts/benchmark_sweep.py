"""A sweep from its start to its report, against stable-baselines3 training the same runs, as many at a time as there are cores.

    python scripts/benchmark_sweep.py                 64 runs of DQN on CartPole, 30,000 steps each; eight of stable-baselines3's, scaled
    python scripts/benchmark_sweep.py --theirs 0      ours alone, then the same on one core

The runs are four values of Huber's δ with 16 seeds each, settings as in benchmark.py. Greedy evaluation comes at the
end only. Programs are compiled before the clock starts, once per machine.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from benchmark import W1, WORKLOADS, theirs
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
from tensorboard.util.tensor_util import make_ndarray

STEPS = 30_000
RUNS = ["loss.value.delta=0.25,0.5,1,2", "seed=range(16)", "evaluation.every=0"]


def main() -> None:
    """Time both, and print what came out."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--theirs", type=int, default=8, help="runs of stable-baselines3, of which the time of all is scaled (8)")
    parser.add_argument("--steps", type=int, default=STEPS, help="environment steps of a run (30,000)")
    options = parser.parse_args()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    with tempfile.TemporaryDirectory() as directory:
        sweep(Path(directory) / "first", 1500, cores, report=False)  # Compiles.
        seconds = sweep(Path(directory) / "all", options.steps, cores, report=True)
        print(f"rlloss, {cores} workers, start to report: {seconds:.0f} s, {64 * options.steps / seconds:,.0f} steps/s; logging took {log_share(Path(directory) / 'all'):.1%} of training")
        alone = sweep(Path(directory) / "alone", options.steps, 1, report=True)
        print(f"rlloss, 1 worker: {alone:.0f} s; {cores} workers are {alone / seconds:.2f} times as fast")
    if options.theirs:
        started = time.perf_counter()
        with ProcessPoolExecutor(cores) as pool:
            list(pool.map(train_theirs, [options.steps] * options.theirs))
        other = (time.perf_counter() - started) * 64 / options.theirs
        print(f"stable-baselines3, {cores} at a time: {options.theirs} runs, scaled to 64: {other:.0f} s, {64 * options.steps / other:,.0f} steps/s; {other / seconds:.1f} times ours")


def sweep(directory: Path, steps: int, workers: int, *, report: bool) -> float:
    """Seconds of the two commands, from the shell's point of view."""
    words = [*(word for word in W1 if not word.startswith("loss.value.delta")), *RUNS, f"total_steps={steps}", f"hydra.sweep.dir={directory}", f"hydra.launcher.workers={workers}"]
    started = time.perf_counter()
    run("train", "-m", *words)
    if report:
        run("report", str(directory), "--by", "loss.value.delta", "--baseline", "1")
    return time.perf_counter() - started


def run(command: str, *words: str) -> None:
    """One of our commands, in a process of its own."""
    subprocess.run([sys.executable, "-c", f"from agents.start import {command}; {command}()", *words], check=True, stdout=subprocess.DEVNULL)


def log_share(directory: Path) -> float:
    """The share of training time, on average over runs, that logs and checkpoints took, as the runs say."""
    shares = []
    for path in sorted(directory.glob("*seed=*/events.out.tfevents.*")):
        last = [make_ndarray(value.tensor).item() for event in EventFileLoader(str(path)).Load() for value in event.summary.value if value.tag == "time/log_share"]
        shares.append(last[-1])
    return sum(shares) / len(shares)


def train_theirs(steps: int) -> float:
    """A run of stable-baselines3 in a process of its own."""
    return theirs(WORKLOADS["dqn"], steps)


if __name__ == "__main__":
    main()
