"""The recipes of actor and critic: each is composed as a person would, and its first rollout is learned."""

import pytest

from agents.command_help import groups
from agents.config import build, compose
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
