"""Draw the README's picture: two value losses on CartPole, many seeds each, trained as one population a loss.

    python scripts/learning_curves.py learning_curves.png      about 5 minutes on one core
"""

import sys
import tempfile
from pathlib import Path

import matplotlib
import numpy as np

from agents.config import build, compose
from agents.run_records import scalars
from agents.training import train

SEEDS = 16
LOSSES = {"mse": "squared error", "huber": "Huber, δ = 1"}
BINS = np.linspace(0, 50_000, 51)


def main() -> None:
    """Train, read the event files, draw."""
    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 3.6), layout="constrained")
    with tempfile.TemporaryDirectory() as directory:
        for loss, label in LOSSES.items():
            runs = [build(compose([f"loss/value={loss}", f"seed={seed}", "evaluation.every=0"]), Path(directory) / loss / str(seed)) for seed in range(SEEDS)]
            results = train(runs)
            final = np.array([np.mean(result.evaluation_returns) for result in results])
            print(f"{loss}: greedy evaluation, mean over {SEEDS} seeds {final.mean():.1f}, worst {final.min():.1f}, at least 475: {(final >= 475).sum()}")
            curves = np.stack([curve(run.directory) for run in runs])
            middle = (BINS[1:] + BINS[:-1]) / 2
            low, median, high = np.nanpercentile(curves, (25, 50, 75), axis=0)
            axes.plot(middle, median, label=label)
            axes.fill_between(middle, low, high, alpha=0.2)
    axes.set(xlabel="environment steps", ylabel="return of training episodes", title=f"DQN on CartPole-v1: median and quartiles of {SEEDS} seeds")
    axes.legend(frameon=False)
    figure.savefig(sys.argv[1], dpi=130)


def curve(directory: Path) -> np.ndarray:
    """The mean episode return in each bin of environment steps."""
    steps, returns = scalars(directory)["rollout/episode_return"]
    place = np.digitize(steps, BINS) - 1
    return np.array([returns[place == number].mean() if (place == number).any() else np.nan for number in range(len(BINS) - 1)])


if __name__ == "__main__":
    main()
