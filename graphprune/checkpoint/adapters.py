"""Adapters on the way out: merged into a copy of the weights, or kept beside them as PEFT reads them again."""

from __future__ import annotations

import copy
import math
import re
import warnings
from collections.abc import Iterator
from collections.abc import Set as AbstractSet
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from graphprune.errors import CheckpointError
from graphprune.names import bare
from graphprune.reshape.adapters import merge_problem, peft_layers, peft_model

ADAPTER = "adapter"
"""The sub-folder that adapters are kept in."""

Size = tuple[int, float]
"""Rank and alpha of an adapter on one layer."""


def merged(model: nn.Module) -> nn.Module:
    """A copy of the bare model with the active adapters in its weights; of a model without adapters itself.

    A copy: merging changes weights for good, and unmerging rounds.

    Raises:
        CheckpointError: if merging would give another model, or the adapters are of a kind that cannot be merged.
    """
    wrapped = _wrapped(model)
    if wrapped is None:
        return bare(model)
    problem = merge_problem(wrapped)
    if problem:
        raise CheckpointError(f"{problem} Keep the adapters beside the weights (merge_lora=False), or untie them.")
    found: nn.Module = _twin(wrapped).merge_and_unload()
    return found


def unmerged(model: nn.Module) -> nn.Module:
    """A copy of the bare model without its adapters; of a model without adapters itself.

    What an adapter keeps whole (``modules_to_save``) is in the weights of the copy.

    Raises:
        CheckpointError: if the adapters are of a kind that has no weights without them.
    """
    wrapped = _wrapped(model)
    if wrapped is None:
        return bare(model)
    twin = _twin(wrapped)
    if any(layer.merged for _, layer in peft_layers(twin)):
        twin.unmerge_adapter()
    found: nn.Module = twin.unload()
    return found


def write_adapters(model: nn.Module, base: nn.Module, folder: Path, base_name: str) -> None:
    """Writes the adapters of ``model``, so that stock ``PeftModel.from_pretrained`` puts them on ``base`` again.

    The active adapter goes into ``folder/adapter``, others into sub-folders of that by their names. Configs that speak
    of layers by number, or of the weights before they were trained, are written so that they speak of ``base``.

    Args:
        model: wrapped by PEFT, pruned or not.
        base: what :func:`unmerged` gave for it; it must not be used afterwards.
        folder: the checkpoint folder.
        base_name: where ``base`` will be found.

    Raises:
        CheckpointError: if several adapters are active, or PEFT makes something else of what was written.
    """
    wrapped: Any = _wrapped(model)
    active = list(wrapped.active_adapters)
    if len(active) != 1:
        raise CheckpointError(
            f"{len(active)} adapters are active at once ({', '.join(active) or 'none'}), and a folder is loaded with "
            "one. Activate one (set_adapter), or merge them (merge_lora=True)."
        )
    for name, config in wrapped.peft_config.items():
        place = folder / ADAPTER if name in active else folder / ADAPTER / name
        place.mkdir(parents=True, exist_ok=True)
        save_file(_tensors(wrapped, name), place / "adapter_model.safetensors", metadata={"format": "pt"})
        told = _described(wrapped, base, name, copy.deepcopy(config))
        told.base_model_name_or_path = base_name
        told.inference_mode = True
        told.save_pretrained(str(place))
    _try(wrapped, base, active[0], folder / ADAPTER)


def _wrapped(model: nn.Module) -> Any:
    """The model in PEFT's wrapper, None where it has no adapters."""
    wrapped = peft_model(model)
    if wrapped is None:
        layers = list(peft_layers(bare(model)))
        if layers:
            raise CheckpointError(
                f"'{layers[0][0]}' carries an adapter, and the model is not in PEFT's wrapper, so nothing says what to "
                "do with it. Put adapters on with peft.get_peft_model, or take them off (delete_adapter) first."
            )
        return None
    if not hasattr(wrapped, "merge_and_unload"):
        kind = wrapped.active_peft_config.peft_type
        raise CheckpointError(
            f"adapters of type {getattr(kind, 'value', kind)} are inputs rather than weights; they cannot be merged "
            "or written beside the weights. Save model.get_base_model() here, and the adapter with "
            "model.save_pretrained."
        )
    return wrapped


def _twin(wrapped: Any) -> Any:
    try:
        return copy.deepcopy(wrapped)
    except RuntimeError as error:  # PEFT computes one adapter from the other where it ties them
        raise CheckpointError(
            f"the adapters cannot be copied: {error}. Does one take its weights from another (ensure_weight_tying)? "
            "Merge such adapters before pruning (merge_and_unload)."
        ) from error


def _tensors(wrapped: Any, name: str) -> dict[str, torch.Tensor]:
    from peft import get_peft_model_state_dict

    # Embeddings are in the weights beside the adapter; PEFT would add them wherever a vocabulary differs.
    found = get_peft_model_state_dict(wrapped, adapter_name=name, save_embedding_layers=False)
    return {key: tensor.detach().cpu().clone().contiguous() for key, tensor in found.items()}


def _described(wrapped: Any, base: nn.Module, name: str, config: Any) -> Any:
    """``config`` so that on ``base`` it means exactly the layers that adapter ``name`` is on."""
    if isinstance(getattr(config, "init_lora_weights", None), str):
        config.init_lora_weights = True  # others start from the weights, and would change those beside the adapter
    layers, copies = _adapted(wrapped, name), sorted(_copies(wrapped, name))
    sizes = {path: _size(layer, name) for path, layer in layers.items() if hasattr(layer, "lora_alpha")}
    if not (_finds(wrapped, base, config, layers.keys(), copies) and _sizes_alike(config, sizes)):
        _spell_out(config, layers, sizes, copies)
    return config


def _adapted(wrapped: Any, name: str) -> dict[str, Any]:
    """The layers with an adapter of that name, by the paths of what they adapt: modules, or bare parameters."""
    own, found = wrapped.base_model.prefix, {}
    for path, layer in peft_layers(wrapped):
        stores = [store for store in layer.adapter_layer_names if store.startswith(own)]
        if any(name in getattr(layer, store, ()) for store in stores):
            parameter = getattr(layer, "parameter_name", None)
            found[path if parameter is None else f"{path}.{parameter}"] = layer
    return found


def _copies(wrapped: Any, name: str) -> Iterator[str]:
    """Paths of modules of which adapter ``name`` has a trained copy."""
    for path, module in bare(wrapped).named_modules():
        copies = module._modules.get("modules_to_save")
        if copies is not None and name in copies._modules:
            yield path


def _finds(wrapped: Any, base: nn.Module, config: Any, layers: AbstractSet[str], copies: list[str]) -> bool:
    """Whether PEFT finds the same layers in ``base`` by that config."""
    if not hasattr(config, "target_modules"):
        return True
    modules = [path for path, _ in base.named_modules() if path]
    wanted = getattr(config, "target_parameters", None) or ()
    check = wrapped.base_model._check_target_module_exists
    found = {path for path in modules if check(config, path)}
    found |= {p for p, _ in base.named_parameters() if any(p == w or p.endswith(f".{w}") for w in wanted)}
    kept = getattr(config, "modules_to_save", None) or ()
    return found == layers and copies == sorted(path for path in modules if any(path.endswith(end) for end in kept))


def _size(layer: Any, name: str) -> Size:
    """Rank, and the alpha with which PEFT computes the scale that the layer has now."""
    rank, stored = layer.r[name], layer.lora_alpha[name]
    alpha = layer.scaling[name] * (math.sqrt(rank) if layer.use_rslora.get(name) else rank)
    return rank, stored if math.isclose(alpha, stored) else alpha


def _sizes_alike(config: Any, sizes: dict[str, Size]) -> bool:
    """Whether a config gives every layer the rank and the alpha that it has."""
    return all(
        (_by_pattern(config.rank_pattern, path, config.r), _by_pattern(config.alpha_pattern, path, config.lora_alpha))
        == size
        for path, size in sizes.items()
    )


def _by_pattern(patterns: dict[str, Any] | None, path: str, otherwise: Any) -> Any:
    """What PEFT takes from ``patterns`` for a module: the first that an ending of its path matches."""
    found = (value for key, value in (patterns or {}).items() if re.match(rf"(.*\.)?({key})$", path))
    return next(found, otherwise)


def _spell_out(config: Any, layers: dict[str, Any], sizes: dict[str, Size], copies: list[str]) -> None:
    """Names every layer by its whole path."""
    parameters = [path for path, layer in layers.items() if hasattr(layer, "parameter_name")]
    modules = [re.escape(path) for path in layers if path not in parameters]
    config.target_modules = "|".join(modules) or []  # an expression: PEFT takes names in a list for endings
    for field in ("layers_to_transform", "layers_pattern", "exclude_modules"):
        if getattr(config, field, None) is not None:
            setattr(config, field, None)
    if getattr(config, "target_parameters", None):
        config.target_parameters = parameters
    if getattr(config, "modules_to_save", None):
        config.modules_to_save = copies or None
    if sizes:
        config.rank_pattern = {re.escape(path): r for path, (r, _) in sizes.items() if r != config.r}
        config.alpha_pattern = {re.escape(path): a for path, (_, a) in sizes.items() if a != config.lora_alpha}


def _try(wrapped: Any, base: nn.Module, name: str, folder: Path) -> None:
    """Loads what was written as others will; whatever PEFT makes of the config, it must be what is in memory."""
    from peft import PeftModel

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what PEFT has to say about the config, it said when the adapter was made
        try:
            again: Any = PeftModel.from_pretrained(base, str(folder), autocast_adapter_dtype=False)
        except (RuntimeError, ValueError) as error:
            raise CheckpointError(f"PEFT cannot load the adapter as it was written: {error}. {_MERGE}") from error
    mine, theirs = _tensors(wrapped, name), _tensors(again, "default")
    other = sorted(mine.keys() ^ theirs.keys()) or [k for k in mine if not torch.equal(mine[k], theirs[k])]
    scales = {path: getattr(layer, "scaling", {}).get(name, 1.0) for path, layer in _adapted(wrapped, name).items()}
    for path, layer in _adapted(again, "default").items():
        scale = getattr(layer, "scaling", {}).get("default", 1.0)
        other.extend([path] if not math.isclose(scale, scales[path]) else [])
    if other:
        raise CheckpointError(f"PEFT loads another adapter than was written: {other[0]} differs. {_MERGE}")


_MERGE = "Merge it (merge_lora=True); and please report this."
