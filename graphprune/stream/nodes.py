"""What a tensor will be, written down instead of computed: places in files, what is picked of them, joined, calculated.

Picking, joining, turning and dividing are followed exactly, so that whatever a checkpoint's own layout is converted
into, cut, and converted back comes out as a list of places in files. Any other operation is kept as it was called, and
called when the tensor is wanted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import torch

from graphprune.stream.numbers import Numbers, divisions, raw, taken, tensor_of

Index = torch.Tensor | range | None
"""Which indices of a stored dimension: int64 of the shape of the dimensions it is divided into; None is all of them."""


class Store(Protocol):
    """A tensor in a file."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape."""

    @property
    def dtype(self) -> torch.dtype:
        """Its dtype."""

    def numbers(self) -> Numbers:
        """Its content as unsigned integers of the width of ``dtype``, mapped, not read."""


class Node:
    """What a tensor will be. Immutable; every operation gives another node."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    def pick(self, dim: int, kept: torch.Tensor | range) -> Node:
        """Some indices of one dimension, as ``index_select``."""
        index = kept if isinstance(kept, torch.Tensor) else torch.arange(kept.start, kept.stop, kept.step)
        return Call(torch.ops.aten.index_select.default, (self, dim, index), _resized(self.shape, dim, len(kept)))

    def permute(self, order: Sequence[int]) -> Node:
        """Dimensions in another order."""
        return Call(torch.ops.aten.permute.default, (self, list(order)), tuple(self.shape[d] for d in order))

    def reshape(self, shape: tuple[int, ...]) -> Node:
        """The same numbers in another shape."""
        return Call(torch.ops.aten.reshape.default, (self, list(shape)), shape)

    def value(self) -> torch.Tensor:
        """The tensor, contiguous, on the CPU."""
        raise NotImplementedError

    def pieces(self) -> Iterator[Numbers]:
        """The bytes of the tensor in order, some at a time; each valid until the next."""
        yield raw(self.value())


@dataclass(frozen=True, eq=False)
class Picked(Node):
    """A stored tensor of whose dimensions some indices are picked, divided, and turned.

    Attributes:
        store: the tensor in its file.
        index: of every stored dimension, which indices.
        owned: of every stored dimension, the dimensions of the result that its index has, in the index's order.
        shape: of the result; a dimension that no stored one owns is 1.
    """

    store: Store
    index: tuple[Index, ...]
    owned: tuple[tuple[int, ...], ...]
    shape: tuple[int, ...]

    @classmethod
    def whole(cls, store: Store) -> Picked:
        """All of a stored tensor."""
        return cls(store, (None,) * len(store.shape), tuple((d,) for d in range(len(store.shape))), store.shape)

    @property
    def dtype(self) -> torch.dtype:  # type: ignore[override]
        """The stored one."""
        return self.store.dtype

    def pick(self, dim: int, kept: torch.Tensor | range) -> Node:
        owner = next((s for s, dims in enumerate(self.owned) if dim in dims), None)
        if owner is None:
            return self if len(kept) == 1 else super().pick(dim, kept)
        if isinstance(kept, range) and kept == range(self.shape[dim]):
            return self
        index = self.index[owner]
        if len(self.owned[owner]) > 1:
            chosen: Index = _tensor(index, 0).index_select(self.owned[owner].index(dim), _tensor(kept, 0))
        elif index is None:
            chosen = kept
        elif isinstance(index, range) and isinstance(kept, range):
            chosen = index[kept.start : kept.stop : kept.step]
        else:
            chosen = _tensor(index, 0)[_tensor(kept, 0)]
        indices = (*self.index[:owner], chosen, *self.index[owner + 1 :])
        return replace(self, index=indices, shape=_resized(self.shape, dim, len(kept)))

    def permute(self, order: Sequence[int]) -> Node:
        now = {old: new for new, old in enumerate(order)}
        owned = tuple(tuple(now[d] for d in dims) for dims in self.owned)
        return replace(self, owned=owned, shape=tuple(self.shape[d] for d in order))

    def reshape(self, shape: tuple[int, ...]) -> Node:
        if 0 in shape:
            return super().reshape(shape)
        if 1 in self.shape or 1 in shape:
            wide = [d for d, size in enumerate(shape) if size != 1]
            bare = self._without_ones()
            goal = tuple(shape[d] for d in wide)
            inner = bare if bare.shape == goal else bare.reshape(goal)
            if not isinstance(inner, Picked):
                return super().reshape(shape)
            owned = tuple(tuple(wide[d] for d in dims) for dims in inner.owned)
            return replace(inner, owned=owned, shape=shape)
        owners = {d: s for s, dims in enumerate(self.owned) for d in dims}
        index, owned_now = list(self.index), list(self.owned)
        for old, new in divisions(self.shape, shape):
            source = owners[old[0]]
            if len(old) == len(new) == 1:
                continue
            if sorted(self.owned[source]) != old:
                return super().reshape(shape)
            values = _tensor(index[source], self.store.shape[source])
            values = values.permute([self.owned[source].index(d) for d in old])
            index[source] = values.reshape([shape[d] for d in new])
            owned_now[source] = tuple(new)
        kept = {old[0]: new[0] for old, new in divisions(self.shape, shape) if len(old) == len(new) == 1}
        for source, dims in enumerate(self.owned):
            if all(d in kept for d in dims):
                owned_now[source] = tuple(kept[d] for d in dims)
        return replace(self, index=tuple(index), owned=tuple(owned_now), shape=shape)

    def _without_ones(self) -> Picked:
        wide = [d for d, size in enumerate(self.shape) if size != 1]
        index = list(self.index)
        for source, dims in enumerate(self.owned):
            if any(self.shape[d] == 1 for d in dims):
                values = _tensor(index[source], self.store.shape[source])
                index[source] = values.reshape([self.shape[d] for d in dims if self.shape[d] != 1])
        owned = tuple(tuple(wide.index(d) for d in dims if d in wide) for dims in self.owned)
        return replace(self, index=tuple(index), owned=owned, shape=tuple(self.shape[d] for d in wide))

    def value(self) -> torch.Tensor:
        parts = [part.copy() if _shared(part, self) else part for part in self._parts()]
        joined = parts[0] if len(parts) == 1 else np.concatenate([part.reshape(-1) for part in parts])
        return tensor_of(joined, self.dtype).reshape(self.shape)

    def pieces(self) -> Iterator[Numbers]:
        yield from self._parts()

    def _parts(self) -> Iterator[Numbers]:
        flat = [None if index is None else _tensor(index, 0).reshape(-1).numpy() for index in self.index]
        placed = [d for dims in self.owned for d in dims]
        if placed == sorted(placed):
            yield from taken(self.store.numbers(), flat)
            return
        found = np.concatenate([part.reshape(-1) for part in taken(self.store.numbers(), flat)])
        order = sorted(range(len(placed)), key=placed.__getitem__)
        yield np.ascontiguousarray(found.reshape([self.shape[d] for d in placed]).transpose(order))


@dataclass(frozen=True, eq=False)
class Joined(Node):
    """Tensors one after the other along one dimension."""

    dim: int
    parts: tuple[Node, ...]

    @classmethod
    def of(cls, dim: int, parts: Sequence[Node]) -> Node:
        """``torch.cat``; of a single part that itself."""
        return parts[0] if len(parts) == 1 else cls(dim, tuple(parts))

    @property
    def dtype(self) -> torch.dtype:  # type: ignore[override]
        """That of the parts."""
        return self.parts[0].dtype

    @property
    def shape(self) -> tuple[int, ...]:  # type: ignore[override]
        """The sizes along ``dim`` added."""
        return _resized(self.parts[0].shape, self.dim, sum(part.shape[self.dim] for part in self.parts))

    def pick(self, dim: int, kept: torch.Tensor | range) -> Node:
        if dim != self.dim:
            return Joined(self.dim, tuple(part.pick(dim, kept) for part in self.parts))
        picked, start = [], 0
        wanted = torch.arange(kept.start, kept.stop, kept.step) if isinstance(kept, range) else kept
        if len(wanted) > 1 and not bool((wanted[1:] > wanted[:-1]).all()):
            return super().pick(dim, kept)
        for part in self.parts:
            size = part.shape[dim]
            inside = wanted[(wanted >= start) & (wanted < start + size)] - start
            if len(inside) == size:
                picked.append(part)
            elif len(inside):
                picked.append(part.pick(dim, inside))
            start += size
        return Joined.of(dim, picked) if picked else super().pick(dim, kept)

    def permute(self, order: Sequence[int]) -> Node:
        return Joined(list(order).index(self.dim), tuple(part.permute(order) for part in self.parts))

    def reshape(self, shape: tuple[int, ...]) -> Node:
        for old, new in () if 0 in shape else divisions(self.shape, shape):
            if old == [self.dim] and len(new) == 1:
                resized = [_resized(shape, new[0], part.shape[self.dim]) for part in self.parts]
                pairs = zip(self.parts, resized, strict=True)
                return Joined(new[0], tuple(part.reshape(size) for part, size in pairs))
        return super().reshape(shape)

    def value(self) -> torch.Tensor:
        return torch.cat([part.value() for part in self.parts], dim=self.dim)

    def pieces(self) -> Iterator[Numbers]:
        if any(size != 1 for size in self.shape[: self.dim]):
            yield from super().pieces()
            return
        for part in self.parts:
            yield from part.pieces()


class Call(Node):
    """An operation that was called, to be carried out when its result is wanted; of several results, one."""

    def __init__(
        self,
        function: Callable[..., Any],
        args: tuple[Any, ...],
        shape: tuple[int, ...],
        dtype: torch.dtype | None = None,
        kwargs: dict[str, Any] | None = None,
        *,
        result: int | None = None,
    ) -> None:
        self.shape = shape
        self.dtype = dtype if dtype is not None else next(a.dtype for a in args if isinstance(a, Node))
        self._function, self._args, self._kwargs, self._result = function, args, kwargs or {}, result
        self._readers = 0
        for arg in args:
            if isinstance(arg, Call):
                arg._readers += 1

    @torch.no_grad()
    def value(self) -> torch.Tensor:
        known = _RECENT.get(self)
        if known is not None:
            return known
        mutates = bool(getattr(getattr(self._function, "_schema", None), "is_mutable", False))
        args, kwargs = _valued(self._args), _valued(self._kwargs)
        if mutates:
            args = (args[0].clone(), *args[1:])
        found = self._function(*args, **kwargs)
        found = found if self._result is None else found[self._result]
        return _RECENT.keep(self, found.contiguous()) if self._readers > 1 else found.contiguous()


class Given(Node):
    """A tensor that is there already."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self.shape, self.dtype, self._tensor = tuple(tensor.shape), tensor.dtype, tensor

    def value(self) -> torch.Tensor:
        return self._tensor.detach().contiguous()


class _Recent:
    """The last few results of calls: several tensors of a file may be parts of one."""

    def __init__(self, most: int) -> None:
        self._most, self._held = most, dict[Call, torch.Tensor]()

    def get(self, call: Call) -> torch.Tensor | None:
        return self._held.get(call)

    def keep(self, call: Call, value: torch.Tensor) -> torch.Tensor:
        self._held[call] = value
        while len(self._held) > self._most:
            del self._held[next(iter(self._held))]
        return value

    def clear(self) -> None:
        self._held.clear()


_RECENT = _Recent(3)


def forget() -> None:
    """Lets go of results that were kept for tensors which share them."""
    _RECENT.clear()


def _shared(part: Numbers, node: Picked) -> bool:
    return all(index is None for index in node.index) and part.base is not None


def _tensor(index: Index, length: int) -> torch.Tensor:
    if index is None:
        return torch.arange(length)
    return torch.arange(index.start, index.stop, index.step) if isinstance(index, range) else index


def _resized(shape: Sequence[int], dim: int, size: int) -> tuple[int, ...]:
    return (*shape[:dim], size, *shape[dim + 1 :])


def _valued(args: Any) -> Any:
    if isinstance(args, Node):
        return args.value()
    if isinstance(args, (list, tuple)):
        return type(args)(_valued(a) for a in args)
    return {name: _valued(a) for name, a in args.items()} if isinstance(args, dict) else args
