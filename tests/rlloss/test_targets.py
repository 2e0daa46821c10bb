"""Bootstrapped targets against loops written from the papers."""

import numpy as np
import torch

from rlloss import MSE, DoubleQLearning, Huber, QLearning


def _problem(batch=32, actions=5):
    generator = torch.Generator().manual_seed(3)
    reward = torch.randn(batch, generator=generator)
    discount = 0.9 * (torch.rand(batch, generator=generator) > 0.3).float()
    target, online = (torch.randn(batch, actions, 1, generator=generator) for _ in range(2))
    return reward, discount, target, online


def _loop(reward, discount, target, chooser):
    values = []
    for r, d, row, choice in zip(reward.tolist(), discount.tolist(), target[..., 0].tolist(), chooser[..., 0].tolist(), strict=True):
        values.append(r + d * row[int(np.argmax(choice))])
    return torch.tensor(values)


def test_q_learning_is_the_paper():
    reward, discount, target, online = _problem()
    found = QLearning()(MSE(), reward, discount, lambda: target, lambda: online)
    torch.testing.assert_close(found, _loop(reward, discount, target, target))


def test_double_q_learning_is_the_paper():
    reward, discount, target, online = _problem()
    found = DoubleQLearning()(Huber(), reward, discount, lambda: target, lambda: online)
    torch.testing.assert_close(found, _loop(reward, discount, target, online))
    assert not torch.allclose(found, _loop(reward, discount, target, target))


def test_q_learning_never_asks_the_online_network():
    reward, discount, target, _ = _problem()

    def forbidden():
        raise AssertionError

    QLearning()(MSE(), reward, discount, lambda: target, forbidden)


def test_double_q_learning_with_one_network_is_q_learning():
    reward, discount, target, _ = _problem()
    one = QLearning()(MSE(), reward, discount, lambda: target, lambda: target)
    assert torch.equal(one, DoubleQLearning()(MSE(), reward, discount, lambda: target, lambda: target))


def test_targets_have_no_gradient():
    reward, discount, target, online = _problem()
    target.requires_grad_()
    online.requires_grad_()
    for choice in (QLearning(), DoubleQLearning()):
        assert not choice(MSE(), reward, discount, lambda: target * 1, lambda: online * 1).requires_grad
