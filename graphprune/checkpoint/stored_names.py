"""The names of weights in files: whether transformers finds its way back from them."""

from __future__ import annotations

from typing import Any

import torch
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    WeightConverter,
    WeightRenaming,
    rename_source_key,
    revert_weight_conversion,
)
from transformers.modeling_utils import remove_tied_weights_from_state_dict

from graphprune.errors import CheckpointError
from graphprune.stream.tensor import DeferredTensor


def in_original_format(model: Any) -> bool:
    """Whether the weights of ``model`` are to be written by the names and in the layout of the original checkpoint.

    transformers writes them so by default, with rules that it undoes when loading. Rules that count layers may have no
    name for what is left when layers go (one layer before the first, say), and then the name in the file leads nowhere.
    The model's own names are an alternative that transformers reads as well.

    Args:
        model: a bare transformers model; nothing is computed from its weights.

    Raises:
        CheckpointError: if transformers would not find the weights by their own names either.
    """
    kept = kept_tensors(model)
    own = {name: torch.empty(tensor.shape, dtype=tensor.dtype, device="meta") for name, tensor in kept.items()}
    lost = _lost(model, own, revert_weight_conversion(model, dict(own)))
    if not lost:
        return True
    if _lost(model, own, own):
        raise CheckpointError(
            f"'{lost[0]}' of this {type(model).__name__} cannot be written, because transformers would not find it "
            "again, neither by its name in the original checkpoint nor by its own. Please report this."
        )
    return False


def kept_tensors(model: Any) -> dict[str, torch.Tensor]:
    """The tensors of a model that a checkpoint has, by their own names: tied ones once.

    Two names are of one weight where their storage, or what stands for it, is the same.
    """
    state: dict[str, torch.Tensor] = model.state_dict()
    for name in model._keys_to_ignore_on_save or ():
        state.pop(name, None)
    places = {name: _place(tensor) for name, tensor in state.items()}
    stand_ins = {place: torch.empty(1) for place in places.values()}
    kept = remove_tied_weights_from_state_dict({n: stand_ins[place] for n, place in places.items()}, model)
    return {name: state[name] for name in kept}


def _lost(model: Any, own: dict[str, torch.Tensor], written: dict[str, torch.Tensor]) -> list[str]:
    """Tensors that transformers would not find in files with the names of ``written``, and names that lead nowhere."""
    rules = get_model_conversion_mapping(model, hf_quantizer=getattr(model, "hf_quantizer", None))
    renamings = [rule for rule in rules if isinstance(rule, WeightRenaming)]
    converters = [rule for rule in rules if isinstance(rule, WeightConverter)]
    targets = {source: rule.target_patterns for rule in converters for source in rule.source_patterns}
    state, prefix = model.state_dict(), model.base_model_prefix
    found, nowhere = set(), []
    for name in written:
        renamed, source = rename_source_key(name, renamings, converters, prefix, state)
        if renamed not in state and name in state:  # as the loader does: it was in the model's own format already
            renamed, source = name, None
        if renamed not in state:
            nowhere.append(renamed)
        patterns = [""] if source is None else targets[source]
        found |= {renamed.replace(patterns[0], other) for other in patterns}
    return [*sorted(own.keys() - found), *nowhere]


def _place(tensor: torch.Tensor) -> Any:
    """The same for two names of one weight alone."""
    if isinstance(tensor, DeferredTensor):
        return id(tensor._cell)
    return (tensor.untyped_storage().data_ptr(), tensor.storage_offset(), tuple(tensor.shape))
