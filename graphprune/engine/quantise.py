"""Quantising a model in memory with bitsandbytes: which layers, one after another, without two whole models."""

from __future__ import annotations

import copy
import importlib.util
import logging
from typing import Any

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from graphprune.errors import MissingExtraError, SpecError
from graphprune.graph import DependencyGraph
from graphprune.packed import keep_trainable, packed_in
from graphprune.schema import Quantization

#: Values that share a scale in 4 bits.
_BLOCK = 64
#: Inputs beyond this are multiplied in half precision, the others in 8 bits (LLM.int8, section 3.2).
_OUTLIERS = 6.0


def check_available(settings: Quantization, device: torch.device) -> None:
    """Refuses quantisation where it cannot be done, before a model is loaded for it.

    Raises:
        MissingExtraError: bitsandbytes is not installed.
        SpecError: the installed version does not run on ``device``.
    """
    if importlib.util.find_spec("bitsandbytes") is None:
        raise MissingExtraError("bitsandbytes", "bitsandbytes", f"quantization: {settings.kind}")
    import bitsandbytes

    # Every 8-bit product says that it casts its inputs, which is how 8-bit products are.
    logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
    runs_on = getattr(bitsandbytes, "supported_torch_devices", {"cuda"})
    if device.type not in runs_on:
        raise SpecError(
            f"quantization: {settings.kind} on '{device.type}': bitsandbytes {bitsandbytes.__version__} runs on "
            f"{', '.join(sorted(runs_on))}. Use such a device, a newer bitsandbytes, or leave quantization out."
        )


def quantisable(
    model: nn.Module, graph: DependencyGraph, settings: Quantization, device: torch.device
) -> tuple[str, ...]:
    """Paths of the layers that are quantised: linear maps, but for those that decide much or would break.

    Left as they are: output layers and tied weights (as usual); routers, where a small error sends a token to other
    experts; weights that another module reads than the one that has them; what the model class keeps in float32; what
    ``skip_modules`` names; and on the CPU 4-bit layers whose inputs are no multiple of 64, for which bitsandbytes takes
    wrong scales there.
    """
    base: Any = model
    output = base.get_output_embeddings() if hasattr(base, "get_output_embeddings") else None
    tied = {*graph.tied, *graph.tied.values()}
    routers = _routers(graph)
    wide = set(getattr(base, "_keep_in_fp32_modules", None) or ())
    found = []
    for path, module in model.named_modules():
        weight = f"{path}.weight"
        left = (
            type(module) not in (nn.Linear, Conv1D)
            or module is output
            or weight in tied
            or weight in routers
            or graph.readers.get(weight, (path,)) != (path,)
            or bool(wide & set(path.split(".")))
            or any(path == name or path.endswith(f".{name}") for name in settings.skip_modules or ())
            or (settings.kind != "int8" and device.type == "cpu" and _matrix(module).shape[1] % _BLOCK != 0)
        )
        if not left:
            found.append(path)
    return tuple(found)


@torch.no_grad()
def quantised(
    model: nn.Module, layers: tuple[str, ...], settings: Quantization, device: torch.device, *, consume: bool
) -> nn.Module:
    """A model on ``device`` with the given layers quantised and copies of everything else, in its own dtype.

    Args:
        model: a bare transformers model on any device.
        layers: paths of ``nn.Linear`` and ``Conv1D`` layers.
        settings: how.
        device: where to put the model.
        consume: empty the layers of ``model`` on the way, so that there are never two models; it is of no use then.
    """
    tensors = (*model.parameters(), *model.buffers())
    twin: Any = copy.deepcopy(model, {id(tensor): tensor for tensor in tensors})  # which share every tensor
    del tensors
    for path in layers:
        twin.set_submodule(path, _packed(twin.get_submodule(path), settings, device))
        if consume:
            _empty(model.get_submodule(path))
    copies: dict[int, torch.Tensor] = {}
    for module in twin.modules():
        codes = packed_in(module) is not None
        for store in (module._parameters, module._buffers):
            for leaf, tensor in store.items():
                if tensor is not None and not (codes and leaf == "weight"):
                    store[leaf] = copies.setdefault(id(tensor), _copied(tensor, device))
    if consume:
        release(model)
    # By these PEFT and the Trainer know such a model.
    twin.is_loaded_in_8bit, twin.is_loaded_in_4bit = settings.kind == "int8", settings.kind != "int8"
    twin.quantization_method = "bitsandbytes"
    keep_trainable(twin)
    found: nn.Module = twin
    return found


def settings_of(model: nn.Module) -> Quantization | None:
    """How a model was quantised by bitsandbytes, by its first quantised layer; None for one that was not."""
    for module in model.modules():
        codes = packed_in(module)
        if codes is not None:
            weight: Any = module._parameters["weight"]
            double = codes.kind != "int8" and bool(weight.quant_state.nested)
            return Quantization.model_validate({"kind": codes.kind, "double": double})
    return None


def release(model: nn.Module) -> None:
    """Lets go of every tensor of a model that is of no use any more, whoever still holds the model itself."""
    for module in model.modules():
        _empty(module)


def _empty(module: nn.Module) -> None:
    for store in (module._parameters, module._buffers):
        store.update(dict.fromkeys(store))
    state = vars(module).get("state")
    if hasattr(state, "reset_grads"):  # of an 8-bit layer, which holds its codes a second time
        state.reset_grads()  # type: ignore[union-attr]
    vars(module).pop("quant_state", None)


def _packed(layer: nn.Module, settings: Quantization, device: torch.device) -> nn.Module:
    import bitsandbytes

    weight = _matrix(layer)
    rows, columns = weight.shape
    bias = layer._parameters["bias"]
    with torch.device("meta"):
        if settings.kind == "int8":
            made: Any = bitsandbytes.nn.Linear8bitLt(
                columns, rows, bias is not None, has_fp16_weights=False, threshold=_OUTLIERS
            )
        else:
            made = bitsandbytes.nn.Linear4bit(columns, rows, bias is not None, compute_dtype=weight.dtype)
    values = weight.detach().contiguous()
    if settings.kind == "int8":
        made.weight = bitsandbytes.nn.Int8Params(values.cpu(), requires_grad=False, has_fp16_weights=False)
    else:
        made.weight = bitsandbytes.nn.Params4bit(
            values,
            requires_grad=False,
            blocksize=_BLOCK,
            compress_statistics=settings.double,
            quant_type=settings.kind,
            module=made,
        )
    made._parameters["bias"] = None if bias is None else _copied(bias, device)
    made.source_cls = type(layer)
    made.train(layer.training)
    packed: nn.Module = made.to(device)
    return packed


def _copied(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    made = tensor.detach().to(device, copy=True)
    return nn.Parameter(made, requires_grad=tensor.requires_grad) if isinstance(tensor, nn.Parameter) else made


def _matrix(layer: nn.Module) -> torch.Tensor:
    """The weight as (outputs, inputs)."""
    weight: torch.Tensor = layer.get_parameter("weight")
    return weight.t() if isinstance(layer, Conv1D) else weight


def _routers(graph: DependencyGraph) -> set[str]:
    """Matrices that give one number per unit of a group which is chosen from."""
    chosen = (g for g in graph.groups if any(site.kind == "logits" for site in g.sites))
    return {
        member.tensor
        for group in chosen
        for member in group.members
        if len(graph.shapes.get(member.tensor, ())) == 2 and member.length == group.size and not member.consumes
    }
