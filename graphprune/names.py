"""From the graph's names to the live objects of a model that may be wrapped.

A graph is traced on the bare model. Training wraps it: PEFT puts the model under ``base_model.model`` and
each adapted layer under ``base_layer``, distributed and compiled models put it under ``module`` or
``_orig_mod``. The functions here walk to a graph name through any of these, so that nobody else has to know
them.
"""

from __future__ import annotations

import sys
from typing import cast

import torch
from torch import nn

from graphprune.errors import ReshapeError

#: Attributes under which wrappers keep the layer that they stand for.
_INSIDE = (
    "base_layer",
    "token_adapter",
    "original_module",
    "_orig_mod",
    "_fsdp_wrapped_module",
    "_checkpoint_wrapped_module",
)


def bare(model: nn.Module) -> nn.Module:
    """The model as it was traced: without PEFT's, the compiler's and data parallelism's outer layers."""
    while True:
        inner = outer_layer(model)
        if inner is None:
            return model
        model = inner


def inside(module: nn.Module) -> nn.Module | None:
    """The layer that a wrapper stands for, one wrapper down, or None for a plain layer.

    Of a layer that PEFT trains as a copy (``modules_to_save``) it is the copy in use, not the unused
    original.
    """
    copies = module._modules.get("modules_to_save")
    active = getattr(module, "active_adapters", ())
    if copies is not None and active and active[0] in copies._modules:
        return copies._modules[active[0]]
    return next((inner for name in _INSIDE if (inner := module._modules.get(name)) is not None), None)


def plain(module: nn.Module) -> nn.Module:
    """The layer itself, below all its wrappers."""
    while (inner := inside(module)) is not None:
        module = inner
    return module


def resolve_module(model: nn.Module, path: str) -> nn.Module:
    """The module that stands at the graph's path ``path``; for an adapted layer the outermost wrapper.

    What the layer receives passes through the wrapper's forward, so hooks on it see and can change the input
    of the layer and of its adapters alike.

    Raises:
        ReshapeError: if there is no such module.
    """
    module = bare(model)
    for name in path.split(".") if path else ():
        holder: nn.Module | None = module
        while holder is not None and holder._modules.get(name) is None:
            holder = inside(holder)
        found = None if holder is None else holder._modules[name]
        if found is None:
            raise ReshapeError(_missing("module", path, module, name, list(plain(module)._modules)))
        module = found
    return module


def resolve_owner(model: nn.Module, tensor: str) -> tuple[nn.Module, str]:
    """The bare module that holds the graph's tensor, and the tensor's attribute name in it.

    Raises:
        ReshapeError: if there is no such parameter or buffer.
    """
    path, _, leaf = tensor.rpartition(".")
    top = resolve_module(model, path)
    holder: nn.Module | None = top
    while holder is not None:
        if holder._parameters.get(leaf) is not None or holder._buffers.get(leaf) is not None:
            return holder, leaf
        holder = inside(holder)
    bottom = plain(top)
    raise ReshapeError(_missing("tensor", tensor, top, leaf, [*bottom._parameters, *bottom._buffers]))


def resolve_tensor(model: nn.Module, tensor: str) -> torch.Tensor:
    """The parameter or buffer that the graph calls ``tensor``.

    Raises:
        ReshapeError: if there is no such parameter or buffer.
    """
    owner, leaf = resolve_owner(model, tensor)
    value = owner._parameters.get(leaf)
    return value if value is not None else getattr(owner, leaf)


def resolve_parameter(model: nn.Module, tensor: str) -> nn.Parameter:
    """The parameter that the graph calls ``tensor``.

    Raises:
        ReshapeError: if there is no such tensor, or if it is a buffer.
    """
    value = resolve_tensor(model, tensor)
    if not isinstance(value, nn.Parameter):
        raise ReshapeError(f"expected '{tensor}' to be a parameter, found a buffer of shape {tuple(value.shape)}")
    return value


def outer_layer(model: nn.Module) -> nn.Module | None:
    """What a wrapper around a whole model stands for, one wrapper down, or None for the bare model."""
    # A model can only be wrapped by a class of a module that has been imported, so nothing is imported to
    # find out.
    peft = sys.modules.get("peft")
    if peft is not None and isinstance(model, peft.PeftModel):
        return cast(nn.Module, model.get_base_model())
    if peft is not None and isinstance(model, peft.tuners.tuners_utils.BaseTuner):
        return cast(nn.Module, model.model)
    if isinstance(model, (nn.parallel.DistributedDataParallel, nn.DataParallel)):
        return cast(nn.Module, model.module)
    return inside(model)


def _missing(kind: str, wanted: str, at: nn.Module, name: str, have: list[str]) -> str:
    listed = ", ".join(have[:8]) + (", …" if len(have) > 8 else "")
    return (
        f"the model has no {kind} '{wanted}': expected '{name}' in a {type(plain(at)).__name__}, "
        f"which has {listed or 'nothing of the kind'}. "
        "Is this the model that the graph was traced on? Trace it again after changing it."
    )
