"""What stands for a model's tensors while it is traced, and for a model that cannot be traced as it is."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.initialization import no_init_weights

from graphprune.errors import TraceError
from graphprune.packed import packed, packed_kinds
from graphprune.trace.integers import configs_of

MOST_MADE_UP = 2 << 30
"""Bytes of weights that are made up, at most, where a forward pass needs values."""


def fake(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor of the same shape, dtype and device; under a fake-tensor mode one without values.

    Tensors of the meta device stand for tensors of the CPU.
    """
    device = "cpu" if tensor.device.type == "meta" else tensor.device
    return torch.empty_strided(tuple(tensor.shape), tensor.stride(), dtype=tensor.dtype, device=device)


def real(tensor: torch.Tensor) -> torch.Tensor:
    """A copy of an input; one without values is filled with zeros, or small random numbers."""
    if tensor.device.type != "meta":
        return tensor.detach().clone()
    return _filled(torch.empty_like(tensor, device="cpu"))


def with_values(model: nn.Module) -> nn.Module | None:
    """A model of the same structure whose tensors have values: itself, or a small one made up; else None."""
    tensors = [*model.parameters(), *model.buffers()]
    if not any(t.is_meta for t in tensors):
        return model
    if weight_bytes(model) > MOST_MADE_UP:
        return None
    with torch.random.fork_rng(devices=[]):
        made = _rebuilt(model)
        if made is not None:
            return made.train(model.training)
        made = copy.deepcopy(model).to_empty(device="cpu")
        for tensor in (*made.parameters(), *made.buffers()):
            _filled(tensor)
        return made


def weight_bytes(model: nn.Module) -> int:
    """Bytes of all parameters and buffers."""
    return sum(t.numel() * t.element_size() for t in (*model.parameters(), *model.buffers()))


def unpacked(model: nn.Module) -> nn.Module:
    """The model, or its empty twin on the meta device where quantisation has packed its weights.

    The twin is of the same class and config; its parameters have the names and the shapes from before quantisation.

    Raises:
        TraceError: if the twin is not the same model, or cannot be built.
    """
    if not _is_packed(model):
        return model
    if not isinstance(model, PreTrainedModel):
        raise TraceError(
            f"the weights of {type(model).__name__} are quantised, and only a transformers model says in its config "
            "what shapes they had. Trace it before it is quantised; the graph speaks of both."
        )
    config = _plain(model.config)
    try:
        with torch.device("meta"), no_init_weights():
            twin: Any = type(model)(config)
            twin.tie_weights()  # left out with the initial values
    except Exception as error:  # a config class may refuse in any way it likes
        raise TraceError(
            f"{type(model).__name__} is quantised, and its twin without quantisation cannot be built from its config: "
            f"{error}. Trace it before it is quantised; the graph speaks of both."
        ) from error
    shapes = {name: tuple(p.shape) for name, p in twin.named_parameters()}
    for name, parameter in model.named_parameters():
        codes = not parameter.is_floating_point() or packed(model, name) is not None
        if not codes and shapes.get(name, tuple(parameter.shape)) != tuple(parameter.shape):
            raise TraceError(
                f"{type(model).__name__} is quantised, and its config does not describe it: '{name}' should have shape "
                f"{shapes[name]}, has {tuple(parameter.shape)}. Trace it before it is quantised."
            )
    twin.train(model.training)
    found: nn.Module = twin
    return found


def _is_packed(model: nn.Module) -> bool:
    if getattr(model, "hf_quantizer", None) is not None:
        return True
    if packed_kinds(model):
        return True
    integers = any(not (p.is_floating_point() or p.is_complex()) for p in model.parameters())
    return integers and bool(getattr(model, "is_quantized", False) or _quantised(getattr(model, "config", None)))


def _quantised(config: Any) -> bool:
    return getattr(config, "quantization_config", None) is not None


def _plain(config: Any) -> Any:
    """A copy of a config that does not ask for quantisation."""
    config = copy.deepcopy(config)
    for part in (config, *vars(config).values()):
        if hasattr(part, "to_dict") and "quantization_config" in vars(part):
            del part.quantization_config
    return config


def _rebuilt(model: nn.Module) -> nn.Module | None:
    """Another instance of the same class and config on the CPU, if it has the same tensors."""
    if not isinstance(model, PreTrainedModel):
        return None
    default = torch.get_default_dtype()
    try:
        torch.set_default_dtype(model.dtype)
        made: nn.Module = type(model)(copy.deepcopy(model.config))
    except Exception:  # noqa: BLE001 - a class may refuse in any way it likes
        return None
    finally:
        torch.set_default_dtype(default)
    shapes = [{n: tuple(t.shape) for n, t in m.state_dict().items()} for m in (model, made)]
    return made if shapes[0] == shapes[1] else None


@torch.no_grad()
def _filled(tensor: torch.Tensor) -> torch.Tensor:
    if tensor.is_floating_point():
        return tensor.normal_(std=0.02)
    return tensor.zero_()


@contextmanager
def experts_in_batches(model: nn.Module) -> Iterator[None]:
    """Inside, experts are computed by batched products, which any dtype and a tensor without values can go through."""
    setting = "_experts_implementation_internal"
    before = [(config, vars(config)[setting]) for _, config in configs_of(model) if setting in vars(config)]
    for config, _ in before:
        vars(config)[setting] = "batched_mm"
    try:
        yield
    finally:
        for config, value in before:
            vars(config)[setting] = value


@contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    """Takes back what a forward pass writes into its modules: caches, counters, new buffers, hooks."""
    before = [(m, dict(vars(m)), _contents(m)) for m in model.modules()]
    try:
        yield
    finally:
        for module, attributes, contents in before:
            vars(module).clear()
            vars(module).update(attributes)
            for store, content in contents:
                store.clear()
                getattr(store, "extend" if isinstance(store, list) else "update")(content)


def _contents(module: nn.Module) -> list[tuple[Any, Any]]:
    """The containers that a module holds, each with a copy."""
    return [(store, copy.copy(store)) for store in vars(module).values() if isinstance(store, dict | set | list)]
