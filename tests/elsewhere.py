"""A device that is not there: tensors that say they lie on it, computed on the CPU, which refuse to meet others.

What a GPU would refuse is refused here: an operation between a tensor of the device and one of the host, or of another
device. So code that makes a tensor without a device, and lets it meet a parameter, fails without a GPU.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_flatten, tree_map
from typing_extensions import Self

#: Devices of this kind need no driver to be named; autograd works on them in the calling thread.
KIND = "lazy"
PLACE = torch.device(KIND, 0)
OTHER = torch.device(KIND, 1)

#: Operations that read one device and write another, or that take indices from the host.
_ACROSS = {"copy_", "_to_copy", "index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index"}
_aten = torch.ops.aten


class Elsewhere(torch.Tensor):
    """A tensor on :data:`PLACE` or :data:`OTHER`; ``values`` are its values, on the CPU."""

    values: torch.Tensor

    @staticmethod
    def __new__(cls, values: torch.Tensor, place: torch.device) -> Self:
        made = torch.Tensor._make_wrapper_subclass(
            cls,
            values.size(),
            strides=values.stride(),
            storage_offset=values.storage_offset(),
            dtype=values.dtype,
            device=place,
            requires_grad=values.requires_grad,
        )
        made.values = values
        return made

    def __repr__(self) -> str:
        return f"Elsewhere({self.values}, {self.device})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


@contextmanager
def accelerator() -> Iterator[None]:
    """Inside, tensors can be made on the device, and moved to it and back."""
    setattr(torch, KIND, _Module())
    try:
        with _Operations(), _Constants():
            yield
    finally:
        delattr(torch, KIND)


class _Module:
    """What ``torch.cuda`` is to ``cuda``, as far as random numbers go: they are the host's."""

    def device_count(self) -> int:
        return 2

    def get_rng_state(self, _device: Any) -> torch.Tensor:
        return torch.get_rng_state()

    def set_rng_state(self, state: torch.Tensor, _device: Any) -> None:
        torch.set_rng_state(state)


class _Operations(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


class _Constants(TorchFunctionMode):
    """``torch.tensor``, and indexing by a list, fill memory before any operation can be seen."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.Tensor.__getitem__:
            return func(args[0], tree_map(_of_list, args[1], is_leaf=lambda x: isinstance(x, list)))
        asked = torch.device(kwargs.get("device") or "cpu")
        if func not in (torch.tensor, torch.as_tensor) or asked.type != KIND:
            return func(*args, **kwargs)
        return func(*args, **{**kwargs, "device": "cpu"}).to(asked)


def _run(func: Any, args: Any, kwargs: Any) -> Any:
    tensors = [t for t in tree_flatten((args, kwargs))[0] if isinstance(t, torch.Tensor)]
    places = {t.device for t in tensors if t.device.type == KIND}
    name = func._schema.name.partition("::")[2]
    if places and name not in _ACROSS:
        # Numbers without dimensions may come from the host.
        places |= {t.device for t in tensors if t.device.type != KIND and t.ndim}
        if len(places) > 1:
            raise RuntimeError(f"{name}: expected all tensors on one device, got {sorted(map(str, places))}")
    asked = kwargs.get("device")
    place = asked if asked is not None else _home(name, tensors, places)
    here = {**kwargs, "device": torch.device("cpu")} if asked is not None and asked.type == KIND else kwargs
    here, given = tree_map(_values, here), tree_map(_values, args)
    if name == "histc":  # of integers, on devices alone
        given = (given[0].float(), *given[1:])
    out = func(*given, **here)
    if place is None or place.type != KIND:
        return out
    place = torch.device(KIND, place.index or 0)
    wrapped = tree_map(lambda x: Elsewhere(x, place) if isinstance(x, torch.Tensor) else x, out)
    return return_and_correct_aliasing(func, args, kwargs, wrapped)


def _home(name: str, tensors: list[torch.Tensor], places: set[torch.device]) -> torch.device | None:
    if name in _ACROSS:
        first = tensors[0].device
        if name.startswith(("index", "_index", "_unsafe")) and first.type != KIND and places:
            raise RuntimeError(f"{name}: indices on {places} for a tensor of the host")
        return first
    return next(iter(places), None)


def spread(model: nn.Module, layers: nn.ModuleList, first: int = 1) -> nn.Module:
    """Puts a model on :data:`PLACE` and its layers from ``first`` on on :data:`OTHER`, as ``device_map`` does."""
    model.to(PLACE)
    for layer in layers[first:]:
        layer.to(OTHER)
    for module in model.modules():  # as Accelerate, which moves what any part is given
        if module in [*layers] or module._parameters:
            module.register_forward_pre_hook(_bring, with_kwargs=True)
    return model


def _bring(layer: nn.Module, args: Any, kwargs: Any) -> tuple[Any, Any]:
    place = next(layer.parameters()).device
    return tree_map(lambda x: _moved(x, place), (args, kwargs))


def _moved(thing: Any, place: torch.device) -> Any:
    return thing.to(place) if isinstance(thing, torch.Tensor) else thing


def _of_list(index: Any) -> Any:
    return torch.tensor(index) if isinstance(index, list) else index


def _values(thing: Any) -> Any:
    return thing.values if isinstance(thing, Elsewhere) else thing
