"""Compare value losses, everything else equal, with many seeds each, and print a table of the results.

    python scripts/study.py --seeds 30                         all environments and losses
    python scripts/study.py --seeds 30 cartpole acrobot        some environments

A squared error is steeper than Huber's by a factor of two, which for an optimiser is another learning rate; with
matched curvature only the shape differs. Adam's ε is tiny, so that the size of a loss's gradients hardly matters. Scores are
those of `scripts/results.py`.
"""

import argparse

from results import row, trained

# MountainCar needs the settings of its recipe, or no loss finds the hill.
ENVIRONMENTS = {
    "cartpole": ["experiment=loss_study", "env=cartpole"],
    "acrobot": ["experiment=loss_study", "env=acrobot"],
    "lunar_lander": ["experiment=loss_study", "env=lunar_lander", "env.backend=envpool"],
    "mountain_car": ["experiment=dqn_mountain_car", "network.hidden=[64,64]"],
}
# Categorical heads need to hold the returns that there can be.
SUPPORTS = {"cartpole": (0, 100), "acrobot": (-100, 0), "lunar_lander": (-300, 300), "mountain_car": (-100, 0)}
LOSSES = {
    "e²": ["loss/value=mse"],
    "½e² (matched)": ["loss/value=mse", "loss.value.matched_curvature=true"],
    "Huber, δ = 1": ["loss/value=huber"],
    "HL-Gauss": ["loss/value=hl_gauss"],
}


def main() -> None:
    """Train and print one line of Markdown for each environment and loss."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("environments", nargs="*", help=f"some of {', '.join(ENVIRONMENTS)}; all if none is named")
    parser.add_argument("--seeds", type=int, default=30, help="how many seeds (30)")
    options = parser.parse_args()
    for environment in options.environments or ENVIRONMENTS:
        for loss, words in LOSSES.items():
            low, high = SUPPORTS[environment]
            support = [f"loss.value.vmin={low}", f"loss.value.vmax={high}"] if loss == "HL-Gauss" else []
            results, minutes = trained([*ENVIRONMENTS[environment], *words, *support], options.seeds)
            print(row(f"{environment}, {loss}", results, minutes), flush=True)


if __name__ == "__main__":
    main()
