"""Policies against torch.distributions: probabilities, entropies, draws."""

import pytest
import torch
from gymnasium import spaces
from torch import distributions

from agents.policies import Categories, Gaussian, fitting
from agents.streams import normal_rows

BATCH, WIDTH = 5, 4
ONE, ZERO = torch.tensor(1.0), torch.tensor(0.0)


def said(chosen, seed=0):
    generator = torch.Generator().manual_seed(seed)
    parameters = {name: p + torch.randn(p.shape, generator=generator) for name, p in chosen.init(generator, WIDTH).items()}
    return chosen(parameters, torch.randn(BATCH, WIDTH, generator=generator))


def normal(outputs):
    mean, log_deviation = outputs.chunk(2, -1)
    return distributions.Normal(mean, log_deviation.exp())


def test_categories_are_torchs():
    chosen = fitting(spaces.MultiDiscrete([2, 3]), Gaussian())
    outputs = said(chosen)
    theirs = [distributions.Categorical(logits=logits) for logits in outputs.split([2, 3], -1)]
    action = torch.stack([torch.tensor([0, 1, 0, 1, 1]), torch.tensor([2, 1, 0, 0, 2])], -1)
    torch.testing.assert_close(chosen.log_probability(outputs, action), sum(each.log_prob(part) for each, part in zip(theirs, action.T, strict=True)))
    torch.testing.assert_close(chosen.entropy(outputs), sum(each.entropy() for each in theirs))
    many = outputs[:1].expand(40_000, -1)
    drawn = chosen.draw(many, torch.rand(len(many), chosen.numbers), ONE)
    torch.testing.assert_close(torch.bincount(drawn[:, 0] * 3 + drawn[:, 1], minlength=6) / len(many), (theirs[0].probs[0][:, None] * theirs[1].probs[0]).flatten(), atol=0.01, rtol=0)
    best = torch.stack([logits.argmax(-1) for logits in outputs.split([2, 3], -1)], -1)
    assert torch.equal(chosen.draw(outputs, torch.rand(BATCH, chosen.numbers), ZERO), best)


def test_single_actions_and_bits_have_their_shapes():
    for space, shape in ((spaces.Discrete(3), (BATCH,)), (spaces.MultiBinary(4), (BATCH, 4)), (spaces.MultiDiscrete([[2, 3], [4, 5]]), (BATCH, 2, 2))):
        chosen = fitting(space, Gaussian())
        assert isinstance(chosen, Categories)
        action = chosen.draw(said(chosen), torch.rand(BATCH, chosen.numbers), ONE)
        assert action.shape == shape and chosen.log_probability(said(chosen), action).shape == (BATCH,)


@pytest.mark.parametrize("state_dependent", [False, True])
@pytest.mark.parametrize("squashed", [False, True])
def test_normal_numbers_are_torchs(state_dependent, squashed):
    chosen = Gaussian(0.7, state_dependent, squashed)((3,))
    outputs = said(chosen)
    theirs = normal(outputs)
    if squashed:
        theirs = distributions.TransformedDistribution(theirs, [distributions.TanhTransform()])
    action = torch.tanh(torch.randn(BATCH, 3, generator=torch.Generator().manual_seed(1)))
    torch.testing.assert_close(chosen.log_probability(outputs, action), theirs.log_prob(action).sum(-1), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(chosen.entropy(outputs), normal(outputs).entropy().sum(-1))
    mean = outputs.chunk(2, -1)[0]
    torch.testing.assert_close(chosen.draw(outputs, torch.rand(BATCH, chosen.numbers), ZERO), torch.tanh(mean) if squashed else mean)
    many = outputs[:1].expand(40_000, -1)
    drawn = chosen.draw(many, torch.rand(len(many), chosen.numbers), ONE)
    drawn = torch.atanh(drawn.clamp(-1 + 1e-7, 1 - 1e-7)) if squashed else drawn
    deviation = normal(outputs).stddev[0]
    if not squashed:  # Where tanh is flat in float32, going back loses too much to compare tails.
        torch.testing.assert_close(drawn.mean(0), mean[0], atol=0.05 * deviation.max().item(), rtol=0)
        torch.testing.assert_close(drawn.std(0), deviation, rtol=0.03, atol=0)
        assert torch.corrcoef(drawn.T).fill_diagonal_(0).abs().max() < 0.03
    else:
        torch.testing.assert_close(drawn.median(0).values, mean[0], atol=0.1 * deviation.max().item(), rtol=0)


def test_the_deviation_at_first_is_the_one_asked_for():
    for state_dependent in (False, True):
        chosen = Gaussian(0.5, state_dependent)((2,))
        outputs = chosen(chosen.init(torch.Generator().manual_seed(0), WIDTH), torch.zeros(1, WIDTH))
        torch.testing.assert_close(outputs.chunk(2, -1)[1].exp(), torch.full((1, 2), 0.5), rtol=0.01, atol=0)


@pytest.mark.parametrize("squashed", [False, True])
def test_samples_are_torchs_reparameterised_ones(squashed):
    """The same draw as acting makes, its log-probability and the gradient of both; also where tanh is flat in float32."""
    chosen = Gaussian(0.7, True, squashed)((3,))
    outputs, uniforms = said(chosen), torch.rand(BATCH, chosen.numbers)
    with torch.no_grad():
        outputs[0] = torch.tensor([9.0, -9.0, 0.0, 0.0, 0.0, 0.0])
    weighting = torch.randn(BATCH, 4)

    def ours(outputs):
        action, log_probability = chosen.sample(outputs, uniforms)
        return (torch.cat([action, log_probability[:, None]], 1) * weighting).sum(), (action, log_probability)

    gradient, (action, log_probability) = torch.func.grad(ours, has_aux=True)(outputs)
    torch.testing.assert_close(action, chosen.draw(outputs, uniforms, ONE))
    precise = outputs.double().requires_grad_()
    plain = normal(precise)
    noise = normal_rows(uniforms, 3).double()
    drawn = plain.mean + plain.stddev * noise
    if squashed:
        plain = distributions.TransformedDistribution(plain, [distributions.TanhTransform(cache_size=1)])
        drawn = plain.transforms[0](drawn)
    expected = plain.log_prob(drawn).sum(-1)
    torch.testing.assert_close(log_probability.double(), expected, rtol=1e-5, atol=1e-4)
    (torch.cat([drawn, expected[:, None]], 1) * weighting).sum().backward()
    torch.testing.assert_close(gradient.double(), precise.grad, rtol=1e-4, atol=1e-4)
