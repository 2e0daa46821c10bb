"""Recipes: those of actor and critic learn their first rollout, composed as a person would; choices that their numbers have no place in are refused."""

import pytest

from agents.command_help import groups
from agents.config import ConfigError, build, compose
from agents.training import train

RECIPES = [recipe for recipe in groups()["experiment"] if recipe.startswith(("ppo_", "a2c_"))]
MODULES = {"lunar_lander": "Box2D", "half_cheetah": "envpool", "hopper": "envpool", "walker2d": "envpool"}


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_learns_its_first_rollout(recipe):
    env = recipe.partition("_")[2]
    if env in MODULES:
        pytest.importorskip(MODULES[env])
    words = [f"experiment={recipe}", *(["env.backend=envpool"] if MODULES.get(env) == "envpool" else [])]
    full = build(compose(words))
    steps = 32 * full.num_envs
    assert full.total_steps >= full.plan.update_every and full.plan.update_every % full.agent.minibatches == 0
    small = ["agent.rollout=32", "agent.epochs=1", "agent.minibatches=2", f"total_steps={steps}", "evaluation.episodes=1", "evaluation.max_steps=20", "compile=false"]
    (result,) = train([build(compose([*words, *small]))])
    assert result.complete and result.updates == 2
    assert all(parameter.isfinite().all() for parameter in result.learner.parameters.values())
    if full.agent.normalize_observations:
        assert result.learner.moments.count == steps and result.learner.transform.seen > 0


@pytest.mark.parametrize(
    ("recipe", "words", "message"),
    [
        ("pqn_minatar_breakout", ["agent=dqn"], "experiment=pqn_minatar_breakout sets loss.target.lambda_, which there isn't with agent=dqn: its numbers are for its own choices"),
        ("dqn_acrobot", ["agent=pqn", "total_steps=5"], "experiment=dqn_acrobot sets agent.update_every, which there isn't with agent=pqn"),
        ("dqn_acrobot", ["seed=1", "agent/exploration=softmax", "loss/value=mse"], "sets agent.exploration.epsilon, which there isn't with agent/exploration=softmax, loss/value=mse"),
    ],
)
def test_choices_that_a_recipe_is_not_for_are_refused(recipe, words, message):
    with pytest.raises(ConfigError, match=message):
        compose([f"experiment={recipe}", *words])


@pytest.mark.parametrize("recipe", groups()["experiment"])
def test_a_recipe_takes_other_choices_that_its_numbers_are_for(recipe):
    config = compose([f"experiment={recipe}", "loss/value=c51", "env=cartpole"])
    assert config["env"]["id"] == "CartPole-v1" and config["loss"]["value"]["_target_"] == "rlloss.C51"
