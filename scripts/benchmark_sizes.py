"""How fast populations of several sizes train, on one core: what `agents.rates` takes for usual.

    taskset -c 1 python scripts/benchmark_sizes.py dqn         DQN on CartPole, as scripts/benchmark.py has it
    taskset -c 1 python scripts/benchmark_sizes.py ppo         PPO on Gymnasium's CartPole; ppo_envpool on EnvPool's
    taskset -c 1 python scripts/benchmark_sizes.py sac         SAC on Pendulum

A line gives the runs of a population and the environment steps a second of all of them together, each size trained for a few seconds.
"""

import argparse

from benchmark import POOL, PPO, W1

from agents.config import build, compose
from agents.display import quiet
from agents.training import train

SAC = ["agent=sac", "env=pendulum", "agent.replay.capacity=20000", "agent.learning_starts=1"]
W2 = [*PPO, "env=cartpole", "num_envs=8", "agent.rollout=128", "agent.epochs=4", "agent.minibatches=4"]
WORKLOADS = {"dqn": [*W1, "agent.learning_starts=100"], "ppo": W2, "ppo_envpool": [*W2, *POOL], "sac": SAC}
SIZES = (1, 2, 4, 8, 16, 32, 64, 128)


def main() -> None:
    """Print a line for each size."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("workload", choices=WORKLOADS)
    parser.add_argument("--seconds", type=float, default=4.0, help="of training for each size (4)")
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES, help="runs in a population")
    options = parser.parse_args()
    words = WORKLOADS[options.workload]
    speed(words, 1, 2048)  # Compiles.
    fastest = speed(words, 1, 2048)
    for size in options.sizes:
        found = speed(words, size, max(int(options.seconds * fastest / size), 2048 if "ppo" in options.workload else 300))
        fastest = max(fastest, found)
        print(f"{size:4d}  {found:10,.0f}", flush=True)


def speed(words: list[str], size: int, steps: int) -> float:
    """Environment steps a second of a population of so many seeds that train for so many steps."""
    config = ["evaluation.every=0", "evaluation.episodes=1", "evaluation.max_steps=1", f"total_steps={steps}", *words]
    result = train([build(compose([*config, f"seed={seed}"])) for seed in range(size)], display=quiet())[0]
    return size * result.steps / result.wall_seconds


if __name__ == "__main__":
    main()
