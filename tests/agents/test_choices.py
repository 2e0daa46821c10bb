"""Every choice of every seam that DQN has, composed as a person would, learns on a fixed batch."""

import itertools
import re

import pytest
import torch
from omegaconf import OmegaConf

from agents.batches import Batch
from agents.command_help import groups
from agents.config import Builder, ConfigError, build, compose, config_directory, locate
from agents.training import train as train_population
from rlloss import GAE, MSE
from tests.conftest import small_config

UNUSABLE = {"loss/regularizer": {"entropy", "kl"}, "loss/target": {"v_trace"}}
NAMED = {"matched_mse": MSE(matched_curvature=True), "rollout_return": GAE(1.0)}  # Choices that are another's with other numbers.
TRAJECTORIES = {"gae", "n_step", "peng_q_lambda", "retrace", "rollout_return", "td_lambda", "watkins_q_lambda"}
SEAMS = {group: [choice for choice in groups()[group] if choice not in UNUSABLE.get(group, ())] for group in groups() if group.startswith("loss/")}


def _words(**choices):
    return [f"{group}=[{choice}]" if group == "loss/regularizer" else f"{group}={choice}" for group, choice in choices.items()]


def _batch():
    generator = torch.Generator().manual_seed(0)
    observation, following = (torch.randn(16, 4, generator=generator) for _ in range(2))
    action = torch.randint(2, (16,), generator=generator)
    discount = 0.99 * (torch.rand(16, generator=generator) < 0.5)
    truncated, probability = torch.zeros(16), torch.full((16,), 0.5)
    return Batch(observation, action, torch.ones(16), discount, following, truncated, probability, action.flip(0), mask=torch.arange(16) != 3)


def _choices():
    """Every pair of a value loss with a transform, and every regulariser; see `test_matrix.py` for targets."""
    for value, transform in itertools.product(SEAMS["loss/value"], SEAMS["loss/value/transform"]):
        yield {"loss/value": value, "loss/value/transform": transform}
    yield from ({"loss/value": "c51", "loss/regularizer": choice} for choice in SEAMS["loss/regularizer"])


@pytest.mark.parametrize("choices", list(_choices()), ids=lambda choices: "-".join(choices.values()))
def test_a_fixed_batch_is_learned(choices):
    agent = build(small_config(*_words(**choices), "optimizer.learning_rate=1e-2")).agent
    state, batch, losses = agent.init(torch.Generator().manual_seed(1), 16), _batch(), []
    for _ in range(40):
        state, metrics = agent.learn(state, batch, torch.zeros(()))
        losses.append(metrics["loss/total"].item())
    assert all(torch.isfinite(torch.tensor(losses))) and min(losses[-5:]) < losses[0]
    assert all(parameter.isfinite().all() for parameter in state.parameters.values())


@pytest.mark.parametrize("value", ["mse", "c51", "quantile_huber"])  # For all of them see `test_matrix.py`.
def test_a_run_among_others_is_the_run_alone(value):
    def run(seed, discount, weight):
        words = [*_words(**{"loss/value": value, "loss/regularizer": "l2"}), f"loss.regularizer.l2.weight={weight}", f"agent.discount={discount}"]
        return build(small_config(*words, f"seed={seed}", "network.hidden=[32,32]", "total_steps=90"))

    settings = [(1, 0.9, 0.1), (2, 0.95, 0.0), (3, 0.99, 0.01)]
    together = train_population([run(*each) for each in settings], compile=False)
    alone = train_population([run(*settings[1])], compile=False)[0]
    for name, parameter in alone.learner.parameters.items():
        torch.testing.assert_close(together[1].learner.parameters[name], parameter, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("group", "choice"), [(group, choice) for group, unusable in UNUSABLE.items() for choice in sorted(unusable)])
def test_choices_without_meaning_for_dqn_are_refused(group, choice):
    with pytest.raises(ConfigError, match=r"DQN"):
        build(small_config(*_words(**{group: choice})))


@pytest.mark.parametrize("name", ["value", "total"])
def test_a_regulariser_can_not_take_the_value_losss_place(name):
    with pytest.raises(ConfigError, match=f"regularizers.{name} would take the place of loss/{name}"):
        build(small_config(f"+loss.regularizer.{name}._target_=rlloss.L2"))


def test_regularisers_are_terms_of_the_total():
    agent = build(small_config("loss/regularizer=[l1,l2,value_magnitude]", "loss.regularizer.l2.weight=0.5")).agent
    state = agent.init(torch.Generator().manual_seed(1), 16)
    _, metrics = agent.learn(state, _batch(), torch.zeros(()))
    weights = [parameter for name, parameter in state.parameters.items() if name.endswith("weight")]
    assert metrics["loss/l2"].item() == pytest.approx(0.25 * sum((weight**2).sum() for weight in weights).item(), rel=1e-5)
    terms = [metrics[f"loss/{name}"] for name in ("value", "l1", "l2", "value_magnitude")]
    assert metrics["loss/total"].item() == pytest.approx(sum(terms).item(), rel=1e-6)


def test_every_choice_of_a_loss_can_be_made_and_has_pythons_defaults():
    for group in SEAMS:
        for choice in groups()[group]:
            node = OmegaConf.load(config_directory() / group / f"{choice}.yaml")
            target = locate(node["_target_"], group)
            made = Builder({"node": OmegaConf.to_container(node), "return_range": {"low": -100.0, "high": 100.0}}).build("node")
            assert made == NAMED.get(choice, target()), f"{group}={choice} has other defaults than {target.__name__}"
            assert re.match(r"[a-z0-9_]+$", choice)


@pytest.mark.parametrize("target", sorted(TRAJECTORIES))
def test_targets_over_trajectories_need_sequences(target):
    with pytest.raises(ConfigError, match=r"agent.steps must be at least 2 for \w+"):
        build(small_config(f"loss/target={target}"))


def test_dr3_and_feature_norm_read_what_the_head_reads():
    agent = build(small_config("loss/regularizer=[dr3,feature_norm]", "loss.regularizer.dr3.weight=1", "loss.regularizer.feature_norm.weight=1")).agent
    state, batch = agent.init(torch.Generator().manual_seed(1), 16), _batch()
    _, metrics = agent.learn(state, batch, torch.zeros(()))
    weight, bias = state.parameters["0.weight"], state.parameters["0.bias"]
    here, there = ((x @ weight + bias).relu() for x in (batch.observation, batch.next_observation))
    assert metrics["loss/dr3"].item() == pytest.approx((here * there).sum(-1)[batch.mask].mean().item(), rel=1e-5)


@pytest.mark.parametrize("agent", [choice for choice in groups()["agent"] if choice not in ("pqn", "ppo", "a2c", "sac", "td3", "ddpg", "cloning", "gail")])
def test_every_preset_trains(agent):
    result = train_population([build(small_config(f"agent={agent}", "agent.batch_size=8", "total_steps=70"))])[0]
    assert result.complete and all(parameter.isfinite().all() for parameter in result.learner.parameters.values())


def test_a_choice_on_the_command_line_goes_before_the_presets():
    agent = build(small_config("agent=rainbow", "loss/value=mse")).agent
    assert type(agent.value_loss).__name__ == "MSE" and agent.steps == 3 and type(agent.replay).__name__ == "PrioritizedReplay"


@pytest.mark.parametrize(
    ("words", "temperatures"),
    [
        ([], (0.03, 0.03)),
        (["loss.target.temperature=0.2"], (0.2, 0.2)),
        (["loss.target.temperature=0.2", "agent.exploration.temperature=0.5"], (0.2, 0.5)),
        (["loss/target=q_learning"], (None, 0.03)),
    ],
)
def test_one_temperature_is_said_for_target_and_exploration(words, temperatures):
    agent = build(compose(["agent=munchausen_dqn", *words])).agent
    assert (getattr(agent.target, "temperature", None), agent.exploration.temperature) == temperatures
