"""Clone an expert who does something rare that matters, with cross entropy and with focal losses, and print a table.

    python scripts/imbalance.py                        the setting `plain`, 10 seeds
    python scripts/imbalance.py long fast --seeds 20   others, see SETTINGS

In Sentry-v0 the expert stops the machine in 2 % of all states, those within a ball in four dimensions; whoever misses one
such state loses the rest of the episode. So accuracy hardly says anything: doing nothing is right in 98 %. What counts
was chosen before anything was run: the return of greedy episodes (200 at most) as interquartile mean over seeds with its 95 %
bootstrap interval, and beside it the balanced accuracy, the mean share of states of each kind that are handled rightly, over fresh states.

A seed is a set of demonstrations, initial weights and an order of batches of its own; all losses see the same. They are one family,
−(1 − p)^γ·log p, of which cross entropy is γ = 0, and so all runs of a setting are one population. The optimiser is Adam, whose steps hardly
depend on a loss's scale.
"""

import argparse
import math
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import gymnasium
import numpy as np
import torch
from gymnasium import spaces

from agents.config import build, compose
from agents.demonstrations import Recording
from agents.display import quiet
from agents.environments import Environment
from agents.evaluation import Evaluation, evaluate
from agents.run import Result, Run
from agents.statistics import estimate
from agents.training import train

GAMMAS = (0.0, 1.0, 2.0, 5.0)
STATES = 50_000

# Episodes of 200 steps that are demonstrated; gradient steps; hidden layers; learning rate.
SETTINGS = {
    "plain": (20, 2000, [64, 64], 1e-3),  # nothing special
    "short": (20, 500, [64, 64], 1e-3),  # too short for any loss to learn to stop
    "long": (20, 8000, [64, 64], 1e-3),  # near convergence
    "fast": (20, 2000, [64, 64], 3e-3),
    "scarce": (5, 2000, [64, 64], 1e-3),  # about 20 states in which to stop
    "small": (20, 2000, [4], 1e-3),  # too small for any
}


class Sentry(gymnasium.Env):
    """Stop (1) when four gauges are near a point, in `share` of all states, else don't (0). Each right action earns 1, a missed stop ends the episode."""

    def __init__(self, share: float = 0.02) -> None:
        self.observation_space, self.action_space = spaces.Box(-1.0, 1.0, (4,), np.float32), spaces.Discrete(2)
        self.radius = (32 * share / math.pi**2) ** 0.25  # The volume of a ball in four dimensions is π²/2·r⁴, that of all states 16.

    def expert(self, observation: np.ndarray) -> np.ndarray:
        """What to do for observations [..., 4]. The ball lies off the middle, and within the bounds for shares up to 4 %."""
        return (np.linalg.norm(observation - np.float32([0.4, -0.4, 0.2, 0.0]), axis=-1) < self.radius).astype(np.int64)

    def states(self, count: int) -> np.ndarray:
        """Random observations [count, 4]."""
        return self.np_random.uniform(-1, 1, (count, 4)).astype(np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.seen = self.states(1)[0]
        return self.seen, {}

    def step(self, action):
        right = self.expert(self.seen)
        self.seen = self.states(1)[0]
        return self.seen, float(action == right), bool(right > action), False, {}


gymnasium.register("Sentry-v0", entry_point=Sentry, max_episode_steps=200)


def main() -> None:
    """Train and print lines of Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("settings", nargs="*", help=f"some of {', '.join(SETTINGS)} (plain)")
    parser.add_argument("--seeds", type=int, default=10, help="how many seeds (10)")
    options = parser.parse_args()
    print("| setting | loss | return: mean | IQM | 95 % interval | balanced accuracy | recall | false alarms | minutes |\n|---|---|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as directory:
        for setting in options.settings or ["plain"]:
            started = time.perf_counter()
            runs = [run(setting, gamma, seed, Path(directory)) for gamma in GAMMAS for seed in range(options.seeds)]
            results = train(runs, display=quiet())
            minutes = (time.perf_counter() - started) / 60
            for index, gamma in enumerate(GAMMAS):
                mine = slice(index * options.seeds, (index + 1) * options.seeds)
                print(row(setting, gamma, runs[mine], results[mine], minutes), flush=True)


def run(setting: str, gamma: float, seed: int, directory: Path) -> Run:
    """The run of one seed with one loss."""
    episodes, updates, hidden, rate = SETTINGS[setting]
    file = directory / f"{episodes}-{seed}"
    if not file.exists():
        demonstrate(file, episodes, seed)
    steps = episodes * 200
    words = ["agent=cloning", "env.id=Sentry-v0", f"env.recording={file}", "loss/classification=focal", f"loss.classification.gamma={gamma}", f"seed={seed}"]
    words += ["num_envs=5", "agent.update_every=5", f"agent.learning_starts={steps}", f"total_steps={steps + 5 * updates}", f"agent.replay.capacity={steps}"]
    words += [f"network.hidden={hidden}", f"optimizer.learning_rate={rate}", "optimizer.eps=1e-8", "evaluation.every=0", "evaluation.episodes=50", "checkpoint_every=0", "log_every=10000"]
    return build(compose(words))


def demonstrate(file: Path, episodes: int, seed: int) -> None:
    """Record the expert."""
    made, observation = Sentry(), np.zeros((1, 1, 4), np.float32)
    told = Recording("Sentry-v0", made.observation_space, made.action_space)
    evaluate(lambda: made.expert(observation), [Environment("Sentry-v0")], observation, [seed], 0, Evaluation(episodes=episodes), [told])
    told.write(file)


def row(setting: str, gamma: float, runs: Sequence[Run], results: Sequence[Result], minutes: float) -> str:
    """A row of the table: what came of all seeds with one loss."""
    returns = np.array([np.mean(result.evaluation_returns) for result in results])
    recall, alarms = np.mean([shares(*pair) for pair in zip(runs, results, strict=True)], 0)
    middle = estimate([returns])
    loss = "cross entropy" if gamma == 0 else f"focal, γ = {gamma:g}"
    numbers = f"{returns.mean():.1f} | {middle.value:.1f} | {middle.low:.1f} to {middle.high:.1f} | {(recall + 1 - alarms) / 2:.3f} | {recall:.3f} | {alarms:.4f}"
    return f"| {setting} | {loss} | {numbers} | {minutes:.1f} |"


def shares(run: Run, result: Result) -> tuple[float, float]:
    """The share of states to stop in where a cloned policy does, and that of all others where it does too."""
    made = Sentry()
    made.reset(seed=0)
    states = made.states(STATES)
    nothing = torch.zeros(())
    action = run.agent.act(result.learner, torch.from_numpy(states), torch.zeros(0), nothing, nothing)[0].numpy()
    stop = made.expert(states) == 1
    return action[stop].mean(), action[~stop].mean()


if __name__ == "__main__":
    main()
