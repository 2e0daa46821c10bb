"""Loss functions of deep reinforcement learning: pure, exact, torch only.

Start with `value_losses.py`: one interface serves every value head.
"""

from rlloss.empirical import empirical_loss
from rlloss.frozen import frozen, register
from rlloss.pointwise import huber, squared_error
from rlloss.targets import DoubleQLearning, QLearning, Target, greedy_outputs
from rlloss.value_losses import MSE, Huber, ValueLoss

__all__ = [
    "MSE",
    "DoubleQLearning",
    "Huber",
    "QLearning",
    "Target",
    "ValueLoss",
    "empirical_loss",
    "frozen",
    "greedy_outputs",
    "huber",
    "register",
    "squared_error",
]
