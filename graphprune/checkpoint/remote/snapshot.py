"""What a model is built of, to be compared with what it is built of later, or with another model."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig

from graphprune.checkpoint.remote.modeling_graphprune import BY_LAYER
from graphprune.reshape.view import is_view, own_values

_TORCH = frozenset(vars(nn.Module()))
"""What torch keeps on every module: parameters, sub-modules, hooks."""


class UnstatableError(Exception):
    """Something of a model cannot be written down as plain data; the message says what."""


class Seen:
    """One module as it was: its attributes, and what it held."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module  # kept alive, so that identities stay unique
        self.attributes = {name: _held(value) for name, value in attributes(module)}
        self.children = list(module._modules.values())
        self.shapes = {leaf: tensor.shape for leaf, tensor in tensors(module)}


class Snapshot:
    """All modules of a model by identity, and the fields of its config."""

    def __init__(self, model: Any) -> None:
        self.seen = {id(module): Seen(module) for module in model.modules()}
        self.config = dict(config_fields(model.config))
        self.config_kinds = {path: type(config) for path, config in configs(model.config)}


def attributes(module: nn.Module) -> Iterator[tuple[str, Any]]:
    """The attributes of a module that are its own, rather than torch's or ours."""
    for name, value in vars(module).items():
        if name not in _TORCH and not name.startswith("_graphprune"):
            yield name, value


def tensors(module: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """The parameters and buffers of one module."""
    for leaf, tensor in (*module._parameters.items(), *module._buffers.items()):
        if tensor is not None:
            yield leaf, tensor


def configs(config: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """A config and its sub-configs, by their paths; that of the whole is empty."""
    yield path, config
    for name, value in vars(config).items():
        if isinstance(value, PreTrainedConfig):
            yield from configs(value, f"{path}.{name}".lstrip("."))


def config_fields(config: Any) -> Iterator[tuple[str, Any]]:
    """The fields with plain values of a config and its sub-configs, by their paths."""
    for path, part in configs(config):
        for name, value in vars(part).items():
            if is_plain(value):
                yield f"{path}.{name}".lstrip("."), copy.deepcopy(value)
        if getattr(part, "is_heterogeneous", False):
            yield f"{path}.{BY_LAYER}".lstrip("."), {str(i): said for i, said in part.to_dict()[BY_LAYER].items()}


def is_plain(value: Any) -> bool:
    """Whether JSON can hold a value (tuples and sets as lists)."""
    if isinstance(value, (list, tuple, set, frozenset)):
        return all(is_plain(item) for item in value)
    if isinstance(value, dict):
        return all(isinstance(key, str) and is_plain(item) for key, item in value.items())
    return value is None or isinstance(value, (bool, int, float, str))


def same(left: Any, right: Any) -> bool:
    """Whether two values are the same thing, or the same plain data."""
    if left is right:
        return True
    if type(left) is not type(right):
        return False
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(same(value, right[key]) for key, value in left.items())
    if isinstance(left, (list, tuple)):
        return len(left) == len(right) and all(map(same, left, right))
    return is_plain(left) and is_plain(right) and bool(left == right)


def distinguish(left: Any, right: Any) -> str:
    """The first thing in which two models of one architecture are not built alike, or an empty text."""
    mine, theirs = dict(left.named_modules()), dict(right.named_modules())
    if odd := sorted(mine.keys() ^ theirs.keys()):
        return f"only one has a module '{odd[0]}'"
    for path, module in mine.items():
        other = theirs[path]
        where = path or "the model"
        shapes, others = ({n: tuple(t.shape) for n, t in tensors(m)} for m in (module, other))
        if shapes != others:
            name = next(n for n in {**shapes, **others} if shapes.get(n) != others.get(n))
            return f"'{where}.{name}' has shape {shapes.get(name)} in one and {others.get(name)} in the other"
        ours, known = dict(attributes(module)), dict(attributes(other))
        for name, value in ours.items():
            one, two = _data(value), _data(known.get(name))
            if one != two and name not in _MAY_DIFFER:
                return f"'{name}' of '{where}' is {one!r} in one and {two!r} in the other"
    ours, known = (dict(config_fields(model.config)) for model in (left, right))
    for name in ours.keys() & known.keys():
        last = name.rpartition(".")[2]
        if ours[name] != known[name] and last not in _MAY_DIFFER and not last.startswith("_"):
            return f"'{name}' of the config is {ours[name]!r} in one and {known[name]!r} in the other"
    return ""


_MAY_DIFFER = {"graphprune", "auto_map", "architectures", "dtype", "name_or_path", "_keep_in_fp32_modules_strict"}


def _data(value: Any) -> Any:
    """What of an attribute can be compared between two models; None where nothing can."""
    if is_plain(value):
        return value
    if is_view(value):
        return own_values(value)
    if isinstance(value, dict) and all(isinstance(key, int) for key in value):
        return sorted(value)
    return None


def _held(value: Any) -> Any:
    """A container may be changed in its place."""
    return copy.copy(value) if isinstance(value, (list, dict, set)) else value
