"""Rules of exploration draw what they say, with the probabilities they say; noise is normal."""

import pytest
import torch
from scipy import stats

from agents.exploration import Greedy, Softmax
from agents.streams import normal, paired

VALUES = torch.tensor([[0.1, 0.3, -0.2]]).expand(30_000, 3)
ZERO, ONE = torch.zeros(()), torch.ones(())


def test_softmax_draws_from_the_softmax_of_the_values():
    rule = Softmax(0.2)
    action, probability = rule(VALUES, torch.rand(30_000, rule.numbers(3)), ZERO, ONE)
    wanted = torch.tensor([0.1, 0.3, -0.2], dtype=torch.float64).div(0.2).exp()
    wanted /= wanted.sum()
    torch.testing.assert_close(probability, wanted.float()[action])
    assert stats.chisquare(torch.bincount(action, minlength=3), 30_000 * wanted).pvalue > 0.001
    greedy, certain = rule(VALUES, torch.rand(30_000, 3), ZERO, ZERO)
    assert (greedy == 1).all() and (certain == 1).all()


def test_greedy_takes_the_best():
    action, probability = Greedy()(VALUES, torch.zeros(30_000, 0), ZERO, ONE)
    assert (action == 1).all() and (probability == 1).all() and Greedy().numbers(3) == 0


@pytest.mark.parametrize("count", [1, 2, 7])
def test_noise_is_normal(count):
    assert paired(count) in (count, count + 1) and paired(count) % 2 == 0
    numbers = normal(torch.rand(paired(count), 5_000, dtype=torch.float64))
    assert stats.kstest(numbers[0].numpy(), "norm").pvalue > 0.001
    assert abs(torch.corrcoef(numbers)[0, -1].item()) < 0.05
    assert normal(torch.tensor([0.0, 1 - 2**-24])).isfinite().all() and normal(torch.tensor([1 - 2**-24, 0.0])).isfinite().all()
