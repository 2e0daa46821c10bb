"""Make rliable.json: what rliable computes of fixed scores, for tests/agents/test_statistics.py. rliable needs older packages than rlloss, so:

    python3.11 -m venv rliable-venv
    rliable-venv/bin/pip install 'rliable==1.2.0' 'numpy<2' 'pandas<2.2' 'arch<7'
    rliable-venv/bin/python tests/references/make_rliable.py tests/references/rliable.json      a few minutes
"""

import json
import sys
from importlib import metadata

import numpy as np
from rliable import library, metrics

RUNS, TASKS = 10, 3
LEVELS = np.linspace(0, 1, 11)


def main() -> None:
    """Compute and write."""
    generator = np.random.default_rng(7)
    np.random.seed(0)  # rliable draws from NumPy's global generator.
    centre = np.array([0.3, 0.5, 0.7])
    # Two decimals, so that scores tie.
    scores = {name: np.round(np.clip(centre + shift + 0.2 * generator.standard_normal((RUNS, TASKS)), 0, 1), 2) for name, shift in (("x", 0.1), ("y", 0.0))}

    def aggregates(found: np.ndarray) -> np.ndarray:
        return np.array([metrics.aggregate_iqm(found), found.mean(), np.median(found)])

    points, intervals = library.get_interval_estimates(scores, aggregates, reps=300_000)
    improvement, improvement_interval = library.get_interval_estimates({"xy": [scores["x"], scores["y"]]}, lambda x, y: np.array([metrics.probability_of_improvement(x, y)]), reps=50_000)
    profiles, profile_intervals = library.create_performance_profile(scores, LEVELS, reps=50_000)
    reference = {
        "versions": {name: metadata.version(name) for name in ("rliable", "arch", "numpy", "scipy", "pandas")},
        "scores": {name: found.T.tolist() for name, found in scores.items()},
        "statistics": ["iqm", "mean", "median"],
        "estimates": {name: np.stack([points[name], *intervals[name]], -1).tolist() for name in scores},
        "improvement": [float(improvement["xy"][0]), *improvement_interval["xy"][:, 0].tolist()],
        "levels": LEVELS.tolist(),
        "profiles": {name: np.stack([profiles[name], *profile_intervals[name]], -1).tolist() for name in scores},
    }
    with open(sys.argv[1], "w") as file:
        json.dump(reference, file, indent=1)
        file.write("\n")


if __name__ == "__main__":
    main()
