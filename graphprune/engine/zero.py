"""DeepSpeed, whose engine takes gradients away and steps in one go, inside the backward pass of a Trainer's loop."""

from __future__ import annotations

import gc
import math
import sys
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from graphprune import processes
from graphprune.engine.gradients import Gradients
from graphprune.names import bare

#: Added to a norm that is divided by, as DeepSpeed does.
_EPSILON = 1e-6


def engine_of(model: nn.Module, optimizer: Any) -> Any | None:
    """The DeepSpeed engine that trains ``model``, which callbacks are not given; None where there is none.

    Args:
        model: as the Trainer hands it to callbacks.
        optimizer: the same; it tells this engine from one of an earlier training.
    """
    if "deepspeed" not in sys.modules:
        return None
    from deepspeed import DeepSpeedEngine

    used = getattr(optimizer, "optimizer", None)  # below Accelerate's wrapper
    engines = (thing for thing in gc.get_objects() if issubclass(type(thing), DeepSpeedEngine))
    mine = (engine for engine in engines if bare(engine.module) is bare(model) and engine.optimizer is used)
    return next(mine, None)


class BeforeSteps:
    """Calls ``act`` with the gradients before every optimizer step of a DeepSpeed engine.

    A Trainer's own event comes too late: when it is told of a step, DeepSpeed has done it, and the gradients are gone.

    Stage 3 keeps the last gradient of a parameter that no backward pass has reached since, such as one of a silenced
    layer, counts it where it clips, and lets the optimizer go on with it. So these are set to zero here.

    Args:
        engine: the engine of the training; what requires a gradient now is what it trains.
        act: is called in every process.
    """

    def __init__(self, engine: Any, act: Callable[[Gradients], None]) -> None:
        self._engine, self._act = engine, act
        self._trained = {name: p for name, p in engine.module.named_parameters() if p.requires_grad}
        self._reached: set[int] = set()
        self._handles: list[RemovableHandle] = []
        self._step: Callable[..., Any] = engine.step

    def open(self) -> None:
        """Begins; the engine is the same one afterwards, with another ``step``."""
        self._engine.step = self._before_step
        for parameter in self._trained.values():
            self._handles.append(parameter.register_post_accumulate_grad_hook(self._note))

    def close(self) -> None:
        """Gives the engine its own ``step`` back."""
        del self._engine.step
        while self._handles:
            self._handles.pop().remove()

    def _note(self, parameter: Tensor) -> None:
        self._reached.add(id(parameter))

    def _before_step(self, *args: Any, **kwargs: Any) -> Any:
        if self._engine.is_gradient_accumulation_boundary():
            for parameter in self._trained.values():
                if id(parameter) not in self._reached:
                    _clear(parameter)
            self._reached.clear()
            self._act(ZeroGradients(self._engine, self._trained))
        return self._step(*args, **kwargs)


class ZeroGradients(Gradients):
    """The gradients before a step of DeepSpeed, as its optimizer is going to see them: unscaled and clipped.

    They are divided among processes in stages 2 and 3, so every process has to ask for the same ones.

    Args:
        engine: after the backward pass and before the step.
        trained: the parameters that its optimizer changes, by name; an observer makes others take gradients too.
    """

    def __init__(self, engine: Any, trained: Mapping[str, nn.Parameter]) -> None:
        self.loss_scale, self.of = _loss_scale(engine), self._of
        self._trained = {id(parameter) for parameter in trained.values()}
        self._squares = {name: float(_squares(p)) for name, p in trained.items()}
        scale, largest = self.loss_scale or 1.0, float(engine.gradient_clipping() or 0.0)
        norm = sum(self._squares.values()) ** 0.5 / scale
        too_large = (norm + _EPSILON) / largest if largest > 0 else 0.0
        self._factor = 1.0 / max(too_large, 1.0) / scale

    def nonfinite(self, model: nn.Module) -> list[str]:
        # A sum over all processes is finite only where each of them is.
        return [name for name, squares in self._squares.items() if not math.isfinite(squares)]

    def _of(self, parameter: nn.Parameter) -> Tensor | None:
        found = _gradient(parameter) if id(parameter) in self._trained else None
        return None if found is None else found * self._factor


def _loss_scale(engine: Any) -> float | None:
    scaler = getattr(engine, "torch_autocast_z0_gradscaler", None)
    if scaler is not None:
        return float(scaler.get_scale())
    if not engine.fp16_enabled():
        return None
    found = getattr(engine.optimizer, "loss_scale", None)
    return float(engine.optimizer.cur_scale if found is None else found)


def _clear(parameter: nn.Parameter) -> None:
    from deepspeed.utils import safe_get_local_grad, safe_set_local_grad

    if hasattr(parameter, "ds_id"):
        safe_set_local_grad(parameter, torch.zeros_like(safe_get_local_grad(parameter)))


def _gradient(parameter: nn.Parameter) -> Tensor | None:
    from deepspeed.utils import safe_get_full_grad

    found: Tensor | None = safe_get_full_grad(parameter)
    return found


def _squares(parameter: nn.Parameter) -> Tensor:
    """The sum of squares of a parameter's gradient over all processes, for which none of it is gathered in stage 3."""
    from deepspeed.utils import safe_get_local_grad

    if hasattr(parameter, "ds_id") and parameter.grad is None:
        return processes.total([safe_get_local_grad(parameter).double().square().sum()])[0].cpu()
    found = _gradient(parameter)
    return torch.zeros((), dtype=torch.float64) if found is None else found.double().square().sum().cpu()
