"""What every agent asks of its value loss and its regularisers: checks, and the running scale of returns."""

from collections.abc import Collection, Mapping

from torch import Tensor

from rlloss import Regularizer, RunningTransform, ValueLoss, missing


def check(agent: str, value_loss: ValueLoss, regularizers: Mapping[str, Regularizer], observed: Collection[str], taken: Collection[str]) -> None:
    """Raise ValueError where an agent of this name can't use them: it shows regularisers what is `observed`, and logs terms of names that are `taken`."""
    if running(value_loss) and not hasattr(value_loss, "moved"):
        raise ValueError(f"value_loss {type(value_loss).__name__} can't take a running transform, since it doesn't say how outputs are moved; choose another")
    for name, regularizer in regularizers.items():
        if name in taken:
            raise ValueError(f"regularizers.{name} would take the place of loss/{name} in the logs; give it another name")
        if lacking := missing(regularizer, observed):
            raise ValueError(f"regularizers.{name} needs {', '.join(lacking)}, which {agent} doesn't have; leave it out")


def running(value_loss: ValueLoss) -> RunningTransform | None:
    """The value loss's running transform, if it has one."""
    transform = getattr(value_loss, "transform", None)
    return transform if isinstance(transform, RunningTransform) else None


def init_transform(value_loss: ValueLoss) -> tuple:
    """The state of the running transform before any return was seen; () for any other transform."""
    transform = running(value_loss)
    return transform.init() if transform else ()


def followed(value_loss: ValueLoss, state: tuple, returns: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor, tuple]:
    """The scale [outputs] and shift [outputs] of a head's outputs when the running transform has seen returns [batch], and its state then."""
    transform = running(value_loss)
    fresh = transform.update(state, returns, mask)
    return *value_loss.moved(*transform.kept(state, fresh)), fresh
