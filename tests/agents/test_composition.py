"""Jobs composed from one another are what Hydra composes of each."""

import itertools

import pytest
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra

from agents.composition import compose_all
from agents.config import build, build_all, compose, config_directory


def composed(jobs):
    """All jobs composed together, and what Hydra was asked to compose for it."""
    asked = []

    def load(words):
        asked.append(words)
        return hydra_compose("train", words, return_hydra_config=True)

    with initialize_config_dir(str(config_directory()), version_base="1.3"):
        loader = GlobalHydra.instance().config_loader()
        return compose_all(jobs, load, lambda key: bool(loader.get_group_options(key))), asked


def product(*words):
    return [list(job) for job in itertools.product(*([f"{key}={value}" for value in values] for key, values in words))]


SWEEPS = {
    "values": (product(("seed", range(3)), ("optimizer.learning_rate", ["1e-4", "3e-4", "1"]), ("compile", ["true", "false"])), 1),
    "choices": (product(("loss/value", ["mse", "huber"]), ("optimizer.learning_rate", [0.1, 0.2]), ("seed", [0, 1])), 2),
    "whole parts": (product(("agent", ["dqn", "ppo"]), ("env", ["cartpole", "acrobot"]), ("seed", [0, 1])), 4),
    "recipes that choose": (product(("experiment", ["ppo_cartpole", "dqn_acrobot", "study/cartpole"]), ("seed", [0, 1]), ("agent.discount", [0.5, 0.9])), 3),
    "recipes over values": ([["optimizer.learning_rate=0.5", f"experiment={name}"] for name in ("ppo_cartpole", "dqn_acrobot")], 2),
    "added": (product(("+env.arguments.gravity", [9.8, 10.0]), ("seed", [0, 1])), 2),
    "forced": (product(("++agent.discount", [0.5, 0.6]), ("seed", [0, 1])), 2),
    "deleted": ([["~network.layer_norm", f"seed={seed}"] for seed in (0, 1)], 1),
    "quoted": (product(("env.id", ["'CartPole-v1'", '"A b"', "'1'", "'1e-3'", "x"]), ("seed", [0, 1])), 1),
    "null": (product(("resume", ["null", "x", "1", "1.0", "true"])), 1),
    "references": (product(("agent.discount", ["${return_range.high}", 0.5]), ("seed", [0, 1])), 2),
    "references inside": (product(("env.id", ["a${seed}", "b"]), ("seed", [0, 1])), 2),
    "missing": (product(("env.id", ["???", "b"]), ("seed", [0, 1])), 2),
    "lists": (product(("network.hidden", ["[64]", "[64,64]"]), ("seed", [0, 1])), 2),
    "parts within parts": (product(("+env.arguments", ["{gravity:1}"]), ("seed", [0, 1])), 1),
    "a key within another's": ([["optimizer={_target_:a.b,learning_rate:1}", f"optimizer.learning_rate={rate}"] for rate in (0.1, 0.2)], 2),
    "a key around another's": ([[f"optimizer.learning_rate={rate}", "optimizer={_target_:a.b,learning_rate:1}"] for rate in (0.1, 0.2)], 2),
    "a key twice": ([["seed=1", f"seed={seed}"] for seed in (2, 3)], 2),
    "packages": (product(("+loss/value@other", ["mse", "huber"]), ("seed", [0, 1])), 2),
    "a list of choices": (product(("loss/regularizer", ["[l2]", "[l2,cql]"]), ("seed", [0, 1])), 2),
    "values of a list's choices": (product(("loss/regularizer", ["[l2]"]), ("loss.regularizer.l2.weight", [0.1, 0.2])), 1),
    "through a reference": (product(("agent.optimizer", ["${optimizer}"]), ("seed", [0, 1])), 1),
    "words in another order": ([["seed=1", "agent.discount=0.5"], ["agent.discount=0.6", "seed=2"]], 2),
}


@pytest.mark.parametrize("name", SWEEPS)
def test_a_job_is_what_hydra_composes_of_it(name):
    jobs, compositions = SWEEPS[name]
    found, asked = composed(jobs)
    assert len(asked) == compositions
    for job, each in zip(jobs, found, strict=True):
        whole = compose(job)
        assert each.values == whole and repr(each.values) == repr(whole)  # 1 is 1.0, and is True


def test_no_two_jobs_share_what_can_be_changed():
    found, _ = composed(product(("seed", [0, 1])))
    found[0].values["network"]["hidden"].append(3)
    assert found[1].values["network"]["hidden"] == [64, 64]


def test_a_thousand_seeds_are_built_as_one_by_one():
    configs = [each.values for each in composed(product(("agent.discount", [0.5, 0.6]), ("seed", range(3)), ("env", ["cartpole", "acrobot"])))[0]]
    for config, run in zip(configs, build_all(configs, [None] * len(configs)), strict=True):
        assert run == build(config)


def test_a_seed_that_is_referred_to_is_no_mere_seed():
    configs = [compose(["agent.discount=${seed}", f"seed={seed}"]) for seed in (0, 1)]
    assert [run.agent.discount for run in build_all(configs, [None, None])] == [0.0, 1.0]
