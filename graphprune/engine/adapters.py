"""LoRA adapters on what pruning touches, put on and merged with PEFT."""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from graphprune.divided import is_divided
from graphprune.errors import CriterionError, SpecError
from graphprune.graph import DependencyGraph, Group
from graphprune.importance import Criterion, Signal
from graphprune.names import bare, plain, resolve_module, resolve_tensor
from graphprune.reshape.adapters import adapter_layers
from graphprune.schema import Lora
from graphprune.trace import trace

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Adaptable:
    """What can carry adapters, in graph order.

    Attributes:
        modules: paths of linear layers.
        stacks: names of three-dimensional parameters, one matrix per expert, that no layer of their own applies.
        left: names of other pruned matrices, which cannot be adapted.
    """

    modules: tuple[str, ...]
    stacks: tuple[str, ...] = ()
    left: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.modules or self.stacks)


def adaptable(model: nn.Module, graph: DependencyGraph, groups: Iterable[Group], lora: Lora) -> Adaptable:
    """What to adapt so that tuning reaches everything that ``groups`` cut.

    Adapted are linear maps (``nn.Linear``, quantised ones included, and the transposed ``Conv1D``) and stacks of
    expert matrices. Biases, norms and convolutions need no adapter. Left out are embeddings, router weights without a
    layer, and weights tied to another tensor, into which an update cannot be merged.

    With ``lora.target_modules`` the linear layers whose names end in one of these are adapted instead, whether
    pruned or not.
    """
    if lora.target_modules is not None:
        endings = tuple(lora.target_modules)
        named = [name for name, module in model.named_modules() if _is_linear(module)]
        return Adaptable(tuple(n for n in named if any(n == e or n.endswith(f".{e}") for e in endings)))
    tied = {*graph.tied, *graph.tied.values()}
    modules: dict[str, None] = {}
    stacks: dict[str, None] = {}
    left: dict[str, None] = {}
    for tensor in (m.tensor for g in groups for m in g.members):
        path, _, leaf = tensor.rpartition(".")
        ndim = len(graph.shapes.get(tensor, ()))
        if tensor not in tied and leaf == "weight" and _is_linear(resolve_module(model, path)):
            modules[path] = None
        elif tensor not in tied and ndim == 3 and isinstance(resolve_tensor(model, tensor), nn.Parameter):
            stacks[tensor] = None
        elif ndim > 1:
            left[tensor] = None
    return Adaptable(tuple(modules), tuple(stacks), tuple(left))


def attach(model: nn.Module, graph: DependencyGraph, groups: Iterable[Group], lora: Lora) -> nn.Module:
    """``model`` wrapped by PEFT with a fresh adapter on everything that :func:`adaptable` names.

    Base parameters are frozen by PEFT; B starts at zero, so the outputs do not change. PEFT adapts bare parameters
    without dropout only, so where there are stacks of expert matrices, no adapter has dropout.

    Raises:
        SpecError: if there is nothing to adapt, or a layer is named whose weight is tied to another's.
    """
    from peft import LoraConfig, get_peft_model

    found = adaptable(model, graph, tuple(groups), lora)
    if not found:
        raise SpecError(_nothing(lora, found.left))
    tied = {*graph.tied, *graph.tied.values()}
    shared = next((name for name in found.modules if f"{name}.weight" in tied), None)
    if shared is not None:
        raise SpecError(
            f"lora.target_modules: expected layers with weights of their own, got '{shared}', whose weight is tied to "
            "another's: merged, its adapter would change both. Leave it out."
        )
    if found.left:
        log.info("no adapters on %d pruned weights without a linear layer, such as %s", len(found.left), found.left[0])
    if found.stacks and lora.dropout:
        log.info("lora.dropout %g is left out: adapters on stacked expert weights have none", lora.dropout)
    config = LoraConfig(
        r=lora.r,
        lora_alpha=cast(Any, lora.alpha),
        lora_dropout=0.0 if found.stacks else lora.dropout,
        use_rslora=lora.use_rslora,
        # A regular expression of whole paths: PEFT takes names in a list for endings.
        target_modules="|".join(re.escape(name) for name in found.modules) if found.modules else [],
        target_parameters=list(found.stacks) or None,
        fan_in_fan_out=any(isinstance(plain(resolve_module(model, m)), Conv1D) for m in found.modules),
        task_type="CAUSAL_LM",
    )
    with warnings.catch_warnings():
        # Set for all layers, PEFT takes the flag back for each layer that is not transposed, and says so.
        warnings.filterwarnings("ignore", message="fan_in_fan_out is set to")
        return cast(nn.Module, get_peft_model(cast(Any, model), config))


@contextmanager
def attached(model: nn.Module, graph: DependencyGraph, groups: Iterable[Group], lora: Lora) -> Iterator[nn.Module]:
    """:func:`attach` for a ``with`` block; if that is left by an error or Ctrl-C, the adapters come off again."""
    trainable = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    wrapped = attach(model, graph, groups, lora)
    try:
        yield wrapped
    except BaseException:
        base = cast(Any, wrapped).unload()
        for name, parameter in base.named_parameters():
            parameter.requires_grad_(name in trainable)
        raise


def check_adapters(model: nn.Module, groups: Iterable[Group], criterion: Criterion) -> None:
    """Refuses adapters with which a training could only fail later, at its first score or at its end.

    Raises:
        ReshapeError: an adapter on something that ``groups`` cut is no plain LoRA (DoRA, for example).
        CriterionError: the criterion reads adapters, and there is none on anything that ``groups`` cut.
    """
    tensors = dict.fromkeys(m.tensor for g in groups for m in g.members)
    found = [layer for tensor in tensors for layer in adapter_layers(model, tensor)]
    if not found and Signal.LORA in criterion.signals:
        raise CriterionError(
            f"criterion '{criterion.name}' reads adapters, and this {type(model).__name__} has none on any of the "
            f"{len(tensors)} tensors that the targets cut, such as {next(iter(tensors))}. Adapt some of these modules "
            "(target_modules of peft.LoraConfig, or graphprune.engine.adapters.attach), or choose another criterion."
        )


def trace_without_adapters(model: nn.Module) -> DependencyGraph:
    """The dependency graph of the bare model below any wrapper.

    Adapters would be traced as parts of the network, and of a model that is divided among processes each has a part:
    such a model is traced as a twin, built from its config without weights. One that was pruned before and whose
    config does not tell needs its graph given.
    """
    base = bare(model)
    divided = any(is_divided(parameter) for parameter in base.parameters())
    if divided or any(plain(module) is not module for module in base.modules()):
        with torch.device("meta"):
            base = type(base)(cast(Any, base).config)
    return trace(base)


def merge(model: nn.Module) -> nn.Module:
    """The bare model with ``W + s·BA`` in place of every adapted weight, no adapters, and nothing frozen."""
    merged = cast(Any, model).merge_and_unload()
    for parameter in merged.parameters():
        if parameter.is_floating_point():  # packed integers of quantised layers take no gradient
            parameter.requires_grad_(True)
    return cast(nn.Module, merged)


def _is_linear(module: nn.Module) -> bool:
    # Quantised layers derive from nn.Linear.
    return isinstance(plain(module), (nn.Linear, Conv1D))


def _nothing(lora: Lora, left: tuple[str, ...]) -> str:
    if lora.target_modules is not None:
        return (
            f"lora.target_modules: expected endings of linear layers' names, got "
            f"{', '.join(lora.target_modules)}, which end none. "
            "Leave it out to adapt every linear layer that a pruned group cuts."
        )
    found = f"only weights without a linear layer of their own ({left[0]}, …)" if left else "none"
    return (
        f"lora: the targets cut no linear layer that could be adapted; found {found}. "
        "Name layers in lora.target_modules, or prune without training (training.mode: none)."
    )
