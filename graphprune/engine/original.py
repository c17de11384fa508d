"""What a run on a quantised base ends with: the original weights, cut, with what was learned on the quantised ones."""

from __future__ import annotations

import copy
import os
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from graphprune.checkpoint import load_model
from graphprune.checkpoint.config import read_config
from graphprune.checkpoint.source import check_weights
from graphprune.engine.adapters import attach
from graphprune.engine.quantise import quantisable, quantised, release
from graphprune.errors import CheckpointError, SpecError
from graphprune.graph import DependencyGraph, Group
from graphprune.names import bare
from graphprune.plan import PrunePlan
from graphprune.reshape import reshape
from graphprune.reshape.further import cut_further
from graphprune.reshape.history import history_of
from graphprune.reshape.stacks import called_after
from graphprune.schema import Lora, Quantization
from graphprune.trace.substitutes import unpacked

#: Of a device's free memory, what the weights of a model may take to be evaluated there.
_SHARE = 0.8


@dataclass(frozen=True)
class Source:
    """A checkpoint, and how it is to be loaded; the arguments are those of :func:`graphprune.checkpoint.load_model`."""

    name: str
    dtype: str = "auto"
    device: torch.device | None = None
    task: str | None = None
    trust_remote_code: bool = False

    def load(self, device: torch.device | None = None) -> tuple[Any, Any]:
        """The model, on the CPU unless told otherwise, and its tokenizer."""
        return load_model(
            self.name, dtype=self.dtype, device=device, task=self.task, trust_remote_code=self.trust_remote_code
        )


def as_source(model: str | os.PathLike[str] | Source) -> Source:
    """A checkpoint by its folder or Hub id."""
    return model if isinstance(model, Source) else Source(os.fspath(model))


@dataclass
class Original:
    """The full-precision model of which the base is a quantised copy.

    Attributes:
        settings: how the base is quantised.
        graph: the dependency graph of both.
        device: where the base is, and where models are evaluated that fit.
        source: where the original is read from, each time it is needed, so that there is one model in memory at a
            time; None where :attr:`held` is it.
        held: the original itself, for a caller's own model.
        owned: whether the base was made by the run, which may then let go of it. A caller's gets rid of its adapters.
        trainable: names of parameters that required a gradient in a caller's base.
        seen: called once with the original as it came.
    """

    settings: Quantization
    graph: DependencyGraph
    device: torch.device
    source: Source | None = None
    held: nn.Module | None = None
    owned: bool = True
    trainable: frozenset[str] = frozenset()
    seen: Callable[[nn.Module], None] | None = None
    _cut: bool = field(default=False, init=False)

    def quantised(self, model: nn.Module, graph: DependencyGraph) -> nn.Module:
        """A quantised copy of a model, which is kept only where it is :attr:`held`, and on the CPU then.

        Args:
            model: the original, or what is left of it after :meth:`cut`.
            graph: that names its tensors as they are called in it.
        """
        layers = quantisable(model, graph, self.settings, self.device)
        if model is self.held:
            model.cpu()
        return quantised(model, layers, self.settings, self.device, consume=model is not self.held)

    def cut(self, base: nn.Module, plan: PrunePlan) -> nn.Module:
        """The original without the units of ``plan``, on the device if it fits; lets go of ``base``."""
        return placed(self._reshaped(self._open(base), plan), self.device)

    def adapted(self, wrapped: nn.Module, plan: PrunePlan, groups: Sequence[Group], lora: Lora) -> nn.Module:
        """The original, cut by ``plan``, with the adapters of ``wrapped``; lets go of ``wrapped``.

        Args:
            wrapped: the quantised base with adapters: masked and of full size, or cut already.
            plan: the units to remove.
            groups: for which the adapters are, by the names from before the cut.
            lora: what the adapters are like.
        """
        if history_of(wrapped).underway is not None:  # cut while it was trained; some groups may be masked still
            cut_further(wrapped, self.graph, plan, anew=_of_no_use)
        learned, past = _learned(wrapped), history_of(wrapped).steps
        model = self._open(wrapped)
        if past == history_of(model).steps and not self._cut:
            whole = _taught(attach(model, self.graph, groups, lora), learned)
            return placed(reshape(whole, plan, self.graph), self.device)
        after = called_after(self.graph, plan)
        own = attach(self._reshaped(model, plan), after, [after.by_name[g.name] for g in groups], lora)
        return placed(_taught(own, learned), self.device)

    def _reshaped(self, model: nn.Module, plan: PrunePlan) -> nn.Module:
        if not self._cut:
            reshape(model, plan, self.graph)
            self._cut = self.held is not None
        return model

    def _open(self, base: nn.Module) -> nn.Module:
        if self.owned:
            release(base)
        elif bare(base) is not base:
            own: nn.Module = cast(Any, base).unload()
            for name, parameter in own.named_parameters():
                parameter.requires_grad_(name in self.trainable)
        if self.held is not None:
            return self.held
        assert self.source is not None
        model: nn.Module = self.source.load()[0]
        if self.seen is not None:
            self.seen(model)
            self.seen = None
        return model


def find_original(
    model: nn.Module, given: str | os.PathLike[str] | Source | None, like: Source | None = None
) -> Source:
    """Where the full-precision weights of a quantised model are: as given, or where its config says it came from.

    Args:
        model: the quantised model.
        given: what the caller says.
        like: how the model itself was loaded, for what ``given`` leaves open.

    Raises:
        SpecError: if nothing says so, or what is there is quantised itself or another model.
        CheckpointError: if there is no such checkpoint.
    """
    config: Any = getattr(model, "config", None)
    source = as_source(given if given is not None else getattr(config, "_name_or_path", "") or "")
    if like is not None and not isinstance(given, Source):
        source = replace(like, name=source.name, dtype="auto")
    name = source.name
    ask = "Pass the original's folder or Hub id as original=."
    why = f"model: this {type(model).__name__} is quantised, and the result is cut from its full-precision weights"
    if not name:
        raise SpecError(f"{why}, but its config does not say where they are (_name_or_path). {ask}")
    try:
        found = read_config(name, trust_remote_code=source.trust_remote_code)
        if Path(name).expanduser().is_dir():
            check_weights(Path(name).expanduser())
    except CheckpointError:
        raise
    except Exception as error:  # whatever transformers raises where there is no such config
        raise CheckpointError(f"{why}, but '{name}' cannot be read: {' '.join(str(error).split())}. {ask}") from error
    if getattr(found, "quantization_config", None) is not None:
        raise SpecError(
            f"{why}, but those in '{name}' are quantised themselves. {ask} Or prune that one, with quantization in the "
            "spec."
        )
    if not history_of(model).steps:  # of one that was cut, reshaping the original compares every shape
        _check_same(model, found, name, ask)
    return source


def full_precision(
    wrapped: nn.Module,
    plan: PrunePlan,
    graph: DependencyGraph,
    original: str | os.PathLike[str] | Source | None = None,
) -> nn.Module:
    """The end of a training of one's own: the original weights on the CPU, cut, with the adapters of a quantised base.

    For a base that bitsandbytes has quantised, tuned under a :class:`~graphprune.engine.callback.PruneCallback` in any
    Trainer. ``merge_and_unload()`` of the result gives the bare model.

    Args:
        wrapped: the quantised model in PEFT's wrapper, with one adapter. It is left as it is, but for units that are
            still masked in a model that was made smaller while it was trained: these go, and 4-bit codes with them
            only nearly so.
        plan: the units to remove, such as the callback's.
        graph: the dependency graph that the plan was made for, such as the callback's.
        original: the folder or Hub id of the full-precision weights; by default where ``wrapped`` was loaded from.

    Raises:
        SpecError: if the original cannot be found, or is another model.
        CheckpointError: if its checkpoint cannot be read.
    """
    from peft import get_peft_model

    base: Any = bare(wrapped)
    configs = list(getattr(wrapped, "peft_config", {}).values())
    if len(configs) != 1:
        raise SpecError(f"expected a model with one adapter, got a {type(wrapped).__name__} with {len(configs)}")
    source = find_original(base, original)
    if history_of(base).underway is not None:
        cut_further(wrapped, graph, plan, anew=_of_no_use)
    model, learned = source.load()[0], _learned(wrapped)
    cut = history_of(wrapped).steps != history_of(model).steps
    if cut:  # in flight, adapters and all
        reshape(model, plan, graph)
    with warnings.catch_warnings():
        # Quantised layers are never transposed; PEFT says so where the original's are, and does what is right.
        warnings.filterwarnings("ignore", message="fan_in_fan_out is set to")
        twin: Any = get_peft_model(model, copy.deepcopy(configs[0]))
    found = _taught(twin, learned).eval()
    return found if cut else reshape(found, plan, graph)


def placed(model: nn.Module, device: torch.device) -> nn.Module:
    """The model on ``device`` if its weights fit there with room to compute, else where it is."""
    size = sum(t.numel() * t.element_size() for t in (*model.parameters(), *model.buffers()))
    if device.type == "cpu" or size > _SHARE * torch.accelerator.get_memory_info(device)[0]:
        return model
    return model.to(device)


def _of_no_use(layer: nn.Module) -> None:
    """Codes need not be exact any more: the adapters beside them are what is wanted."""


def _check_same(model: nn.Module, config: Any, name: str, ask: str) -> None:
    expected = {n: tuple(p.shape) for n, p in unpacked(model).named_parameters()}
    kind: Any = type(bare(model))
    try:
        with torch.device("meta"):
            shapes = {n: tuple(p.shape) for n, p in kind(config).named_parameters()}
    except Exception as error:  # a config of another model may make it fail in any way
        raise SpecError(f"original: '{name}' is not the original of this {kind.__name__}: {error}. {ask}") from error
    other = next((n for n in expected if expected[n] != shapes.get(n)), None)
    if other is not None:
        raise SpecError(
            f"original: '{name}' is not the original of this {kind.__name__}: expected '{other}' of shape "
            f"{expected[other]}, got {shapes.get(other, 'none')}. {ask}"
        )


def _learned(wrapped: nn.Module) -> dict[str, torch.Tensor]:
    """The adapters' tensors by name, on the CPU."""
    return {n: p.detach().cpu().clone() for n, p in wrapped.named_parameters() if p.requires_grad}


@torch.no_grad()
def _taught(wrapped: nn.Module, learned: dict[str, torch.Tensor]) -> nn.Module:
    """Gives the adapters of ``wrapped`` the values of their namesakes."""
    own = {n: p for n, p in wrapped.named_parameters() if p.requires_grad}
    if {n: p.shape for n, p in own.items()} != {n: v.shape for n, v in learned.items()}:
        other = sorted(own.keys() ^ learned.keys()) or [n for n, v in learned.items() if own[n].shape != v.shape]
        raise SpecError(
            "expected that nothing was trained but the adapters, which the original has alike; other trainable "
            f"parameters are {', '.join(other[:3])}. Train adapters alone."
        )
    for name, value in learned.items():
        own[name].copy_(value)
    return wrapped
