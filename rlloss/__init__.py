"""Loss functions of deep reinforcement learning: pure, exact, torch only.

Start with `value_losses.py`: one interface serves every value head.
"""

from rlloss.distributional import C51, Categorical, HLGauss, QuantileHuber, TwoHot, two_hot
from rlloss.empirical import Objective, empirical_loss, gradient_cosines, gradient_norms, term_gradients, total
from rlloss.frozen import frozen, register
from rlloss.pointwise import (
    absolute_error,
    expectile,
    gaussian_nll,
    huber,
    log_cosh,
    pseudo_huber,
    quantile,
    robust,
    smooth_l1,
    squared_error,
)
from rlloss.targets import (
    SARSA,
    AdvantageLearning,
    ClippedDoubleQLearning,
    DoubleQLearning,
    ExpectedSARSA,
    MunchausenQLearning,
    PersistentAdvantageLearning,
    QLearning,
    SoftQLearning,
    Step,
    Target,
    action_gap,
    action_outputs,
    greedy_outputs,
    lowest_outputs,
    mixed_target,
)
from rlloss.transforms import Affine, Identity, Moments, PopArt, SignedHyperbolic, SignedLog, Transform
from rlloss.value_losses import (
    MSE,
    AbsoluteError,
    Expectile,
    GaussianNLL,
    Huber,
    LogCosh,
    PseudoHuber,
    Quantile,
    Robust,
    ScalarHead,
    ScalarTarget,
    SmoothL1,
    ValueLoss,
)

__all__ = [name for name in dir() if not name.startswith("_") and name not in ("checks", "empirical", "pointwise", "targets", "transforms", "value_losses", "distributional")]
