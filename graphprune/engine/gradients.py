"""What a Trainer's optimizer is about to see: the gradients of trained parameters, without a loss scale."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from torch import nn

from graphprune.engine.finite import nonfinite_gradients
from graphprune.observe.factors import GradientOf, own_gradient


class Gradients:
    """The gradients before one optimizer step, where they hang on the parameters.

    Args:
        optimizer: the Trainer's. Its scaler, if it has one, is made to unscale now.

    Attributes:
        loss_scale: the factor that losses carry, in half precision, where overflow is part of the method; else None.
        of: tells all of the gradient of a parameter; None where it has none.
    """

    loss_scale: float | None
    of: GradientOf

    def __init__(self, optimizer: Any) -> None:
        self.loss_scale, self.of = _unscale(optimizer), own_gradient

    def nonfinite(self, model: nn.Module) -> list[str]:
        """The names of the parameters whose gradients are not finite, as far as this process knows."""
        return nonfinite_gradients(model)


def _unscale(optimizer: Any) -> float | None:
    """Unscales the gradients of what is trained; the factor that the loss carried, None where there is no scaler.

    Scores must not carry the loss scale. Clipping has unscaled the gradients already, and a second time is refused.
    Overflow is part of the method there (fp16).
    """
    scaler = getattr(optimizer, "scaler", None)
    if scaler is None:
        return None
    with suppress(RuntimeError):
        scaler.unscale_(optimizer.optimizer)
    return float(scaler.get_scale())
