"""Where a model's tensors are: on one device or on several, and whether their values are here at all."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from graphprune.divided import is_divided
from graphprune.names import bare


def input_device(model: nn.Module) -> torch.device:
    """Where a model wants its inputs: the device of what reads them first, where layers are on several."""
    base = bare(model)
    find = getattr(base, "get_input_embeddings", None)
    try:
        first = find() if find is not None else None
    except NotImplementedError:  # models without any
        first = None
    places = [t.device for module in (first, base) if isinstance(module, nn.Module) for t in module.parameters()]
    places = [place for place in places if place.type != "meta"] or places  # offloaded, or all of it without values
    return places[0] if places else torch.device("cpu")


def absent(model: nn.Module, tensors: Iterable[Tensor]) -> str | None:
    """Why some of ``tensors``, which belong to ``model``, cannot be read or cut; None if all can.

    Accelerate offloads what does not fit to the host's memory or to disk, and brings it for the moment of a forward
    pass; in between the parameters have no values. FSDP2 and DeepSpeed leave every process a part of each.
    """
    found = list(tensors)
    empty = sum(t.device.type == "meta" for t in found)
    if empty and any(hasattr(module, "_hf_hook") for module in model.modules()):
        return (
            f"{empty} of its {len(found)} tensors are offloaded, and have values during forward passes alone. Load it "
            "so that all of it fits the devices: on more of them, or quantised"
        )
    if any(is_divided(tensor) for tensor in found):
        return (
            "its tensors are divided among processes. Save it (trainer.save_model()), load it in one process, "
            "and go on there with the same plan"
        )
    return None
