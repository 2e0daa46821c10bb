"""Train recipes with several seeds each as one population, and print their rows of the results table.

    python scripts/results.py dqn_cartpole --seeds 10
    python scripts/results.py study/cartpole,study/acrobot loss/value=mse,huber --seeds 30     each with each

Each seed's score is the mean return of its greedy evaluation after training, over 50 episodes. A row gives their
mean, their interquartile mean and its 95 % bootstrap interval over seeds.
"""

import argparse
import time
from collections.abc import Sequence

import numpy as np
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser

from agents.config import build, compose
from agents.display import quiet
from agents.run import Result
from agents.statistics import estimate
from agents.training import train


def main() -> None:
    """Train, and print a line of Markdown for each combination of what is said."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("experiment", help="files of conf/experiment, without .yaml")
    parser.add_argument("words", nargs="*", help="further settings, such as loss/value=mse,huber")
    parser.add_argument("--seeds", type=int, default=10, help="how many seeds (10)")
    options = parser.parse_args()
    words = OverridesParser.create().parse_overrides([f"experiment={options.experiment}", *options.words])
    for job in BasicSweeper.split_arguments(words, max_batch_size=None)[0]:
        results, minutes = trained(job, options.seeds)
        print("scores by seed:", " ".join(f"{score:.1f}" for score in scores(results)))
        print(row(" ".join(job).removeprefix("experiment="), results, minutes), flush=True)


def trained(words: Sequence[str], seeds: int) -> tuple[list[Result], float]:
    """What came of a config with so many seeds, trained as one population, and the minutes that it took."""
    started = time.perf_counter()
    runs = [build(compose([*words, "evaluation.every=0", "evaluation.episodes=50", "checkpoint_every=0", f"seed={seed}"])) for seed in range(seeds)]
    return train(runs, display=quiet()), (time.perf_counter() - started) / 60


def scores(results: Sequence[Result]) -> np.ndarray:
    """The mean return of each seed's greedy evaluation."""
    return np.array([np.mean(result.evaluation_returns) for result in results])


def row(name: str, results: Sequence[Result], minutes: float) -> str:
    """A row of the table: name, steps, seeds, mean, interquartile mean, its interval, minutes."""
    found = scores(results)
    middle = estimate([found])
    return f"| {name} | {results[0].steps:,} | {len(found)} | {found.mean():.1f} | {middle.value:.1f} | {middle.low:.1f} to {middle.high:.1f} | {minutes:.1f} |"


if __name__ == "__main__":
    main()
