"""A tensor that knows what it will be: code that converts, merges, cuts or ties weights works on it unchanged."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten
from typing_extensions import Self

from graphprune.errors import StreamError
from graphprune.stream.nodes import Call, Given, Joined, Node

aten = torch.ops.aten


class _Cell:
    """What a tensor and its detached twins share: an operation in place on one is seen by all.

    It is not seen by tensors that share their numbers in part, so these are of no use any more.
    """

    def __init__(self, node: Node, base: _Cell | None = None) -> None:
        self._node, self._base, self._stale = node, base, False
        self._views = weakref.WeakSet[_Cell]()
        if base is not None:
            base._views.add(self)

    @property
    def node(self) -> Node:
        if self._stale:
            raise StreamError("a weight was changed of which this one is a part")
        return self._node

    @node.setter
    def node(self, node: Node) -> None:
        above, below = self._base, list(self._views)
        while above is not None:
            above._stale, above = True, above._base
        while below:
            view = below.pop()
            view._stale = True
            below.extend(view._views)
        self._node = node


class DeferredTensor(torch.Tensor):
    """Has a shape and a dtype and no numbers; operations are written down as :class:`graphprune.stream.nodes.Node`.

    It says to be on the CPU, where the numbers will be computed, and to be a meta tensor for whoever asks whether they
    are here. Whatever needs one now (a comparison, ``item``) raises :class:`graphprune.errors.StreamError`.
    """

    _cell: _Cell

    def __new__(cls, node: Node, cell: _Cell | None = None) -> Self:
        cpu = torch.device("cpu")
        made: Self = torch.Tensor._make_wrapper_subclass(cls, node.shape, dtype=node.dtype, device=cpu)
        made._cell = cell if cell is not None else _Cell(node)
        return made

    def __init__(self, *_: Any, **__: Any) -> None:
        super().__init__()

    @property
    def node(self) -> Node:
        """What the tensor will be."""
        return self._cell.node

    @property
    def is_meta(self) -> bool:  # type: ignore[override]
        """True: the numbers are not here."""
        return True

    @property
    def data(self) -> DeferredTensor:
        """The same weight for whoever changes it past autograd."""
        return DeferredTensor(self.node, self._cell)

    @data.setter
    def data(self, new: torch.Tensor) -> None:
        if new.shape != self.shape or new.dtype != self.dtype:
            raise StreamError(f"a weight of shape {tuple(self.shape)} cannot become one of {tuple(new.shape)}")
        node = node_of(new)
        if node is not self._cell.node:
            self._cell.node = node

    def __repr__(self, **_: Any) -> str:  # type: ignore[override]
        return f"DeferredTensor(shape={tuple(self.shape)}, dtype={self.dtype})"

    def __deepcopy__(self, memo: dict[int, Any]) -> DeferredTensor:
        made: Any = DeferredTensor(self.node)
        made = nn.Parameter(made, requires_grad=self.requires_grad) if isinstance(self, nn.Parameter) else made
        memo[id(self)] = made
        found: DeferredTensor = made
        return found

    @classmethod
    def __torch_dispatch__(cls, function: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        """Writes an operation down."""
        kwargs = kwargs or {}
        first = args[0] if args and isinstance(args[0], DeferredTensor) else None
        if function in _SAME and first is not None:
            return DeferredTensor(first.node, first._cell)
        if function in _COPIES and first is not None and kwargs.get("dtype") in (None, first.dtype):
            return DeferredTensor(first.node)
        rule = _RULES.get(function)
        found = rule(*args, **kwargs) if rule is not None else NotImplemented
        if found is NotImplemented:
            return _called(function, args, kwargs)
        base = first._cell if first is not None and function not in _FRESH else None
        return tree_map(lambda item: _wrapped(item, base), found, is_leaf=lambda item: isinstance(item, Node))


def deferred(tensor: torch.Tensor) -> torch.Tensor:
    """A deferred tensor that will be ``tensor``; a parameter where that is one."""
    made = DeferredTensor(Given(tensor.detach()))
    return nn.Parameter(made, requires_grad=tensor.requires_grad) if isinstance(tensor, nn.Parameter) else made


def node_of(tensor: torch.Tensor) -> Node:
    """What a tensor, deferred or not, will be."""
    return tensor.node if isinstance(tensor, DeferredTensor) else Given(tensor.detach().cpu())


def is_deferred(model: nn.Module) -> bool:
    """Whether any weight of ``model`` is still to come."""
    return any(isinstance(tensor, DeferredTensor) for tensor in model.parameters())


def _wrapped(item: Any, base: _Cell | None) -> Any:
    return DeferredTensor(item, _Cell(item, base)) if isinstance(item, Node) else item


def _called(function: Any, args: Any, kwargs: Any) -> Any:
    """Any other operation: its result's shape is found on the meta device, its numbers are computed later."""
    flat, form = tree_flatten((args, kwargs))
    hollow = tree_unflatten([_hollow(item) for item in flat], form)
    nodes, named = tree_unflatten([i.node if isinstance(i, DeferredTensor) else i for i in flat], form)
    try:
        shown = function(*hollow[0], **{**hollow[1], **({"device": "meta"} if "device" in hollow[1] else {})})
    except (RuntimeError, NotImplementedError) as error:
        raise StreamError(f"{function} needs the numbers of a weight that is not read yet: {error}") from error
    if not isinstance(shown, (torch.Tensor, list, tuple)):
        raise StreamError(f"{function} needs the numbers of a weight that is not read yet")
    if isinstance(shown, torch.Tensor):
        call = Call(function, nodes, tuple(shown.shape), shown.dtype, named)
        if not function._schema.is_mutable:
            return DeferredTensor(call)
        target = args[0]
        if not isinstance(target, DeferredTensor) or call.shape != tuple(target.shape):
            raise StreamError(f"{function} changes a part of a weight that is not read yet")
        target._cell.node = call
        return target
    return type(shown)(
        DeferredTensor(Call(function, nodes, tuple(one.shape), one.dtype, named, result=i))
        for i, one in enumerate(shown)
    )


def _hollow(item: Any) -> Any:
    if not isinstance(item, torch.Tensor):
        return item
    return torch.empty(item.shape, dtype=item.dtype, device="meta")


def _select(tensor: DeferredTensor, dim: int, index: int) -> Node:
    dim, index = dim % tensor.ndim, index % tensor.shape[dim]
    one = tensor.node.pick(dim, range(index, index + 1))
    return one.reshape((*tensor.shape[:dim], *tensor.shape[dim + 1 :]))


def _slice(
    tensor: DeferredTensor, dim: int = 0, start: int | None = None, end: int | None = None, step: int = 1
) -> Node:
    dim %= tensor.ndim
    return tensor.node.pick(dim, range(*slice(start, end, step).indices(tensor.shape[dim])))


def _split(tensor: DeferredTensor, size: int, dim: int = 0) -> list[Node]:
    length = tensor.shape[dim]
    return _split_sizes(tensor, [min(size, length - start) for start in range(0, length, size)], dim)


def _split_sizes(tensor: DeferredTensor, sizes: list[int], dim: int = 0) -> list[Node]:
    found, start = [], 0
    for size in sizes:
        found.append(tensor.node.pick(dim % tensor.ndim, range(start, start + size)))
        start += size
    return found


def _index_select(tensor: DeferredTensor, dim: int, index: torch.Tensor) -> Any:
    plain = index.ndim == 1 and not isinstance(index, DeferredTensor) and tensor.ndim > 0
    return tensor.node.pick(dim % tensor.ndim, index) if plain else NotImplemented


def _cat(tensors: list[torch.Tensor], dim: int = 0) -> Any:
    if len({(t.dtype, t.ndim) for t in tensors}) > 1 or tensors[0].ndim == 0:
        return NotImplemented
    return Joined.of(dim % tensors[0].ndim, [node_of(t) for t in tensors])


def _stack(tensors: list[torch.Tensor], dim: int = 0) -> Any:
    if len({t.dtype for t in tensors}) > 1:
        return NotImplemented
    shape = tensors[0].shape
    dim %= len(shape) + 1
    return Joined.of(dim, [node_of(t).reshape((*shape[:dim], 1, *shape[dim:])) for t in tensors])


def _transpose(tensor: DeferredTensor, one: int, other: int) -> Node:
    order = list(range(tensor.ndim))
    order[one], order[other] = order[other], order[one]
    return tensor.node.permute(order)


def _view(tensor: DeferredTensor, shape: list[int]) -> Node:
    known = torch.empty(tuple(tensor.shape), device="meta").reshape(shape)
    return tensor.node.reshape(tuple(known.shape))


def _squeeze(tensor: DeferredTensor, dim: int | list[int]) -> Node:
    dims = {d % tensor.ndim for d in ([dim] if isinstance(dim, int) else dim)}
    return tensor.node.reshape(tuple(n for d, n in enumerate(tensor.shape) if d not in dims or n != 1))


def _unsqueeze(tensor: DeferredTensor, dim: int) -> Node:
    dim %= tensor.ndim + 1
    return tensor.node.reshape((*tensor.shape[:dim], 1, *tensor.shape[dim:]))


_SAME = {aten.detach.default, aten.alias.default, aten.lift_fresh.default}
_FRESH = {aten.index_select.default, aten.cat.default, aten.stack.default}
_COPIES = {aten.clone.default, aten._to_copy.default, aten.contiguous.default}
_RULES: dict[Any, Callable[..., Any]] = {
    aten.select.int: _select,
    aten.slice.Tensor: _slice,
    aten.split.Tensor: _split,
    aten.split_with_sizes.default: _split_sizes,
    aten.unbind.int: lambda t, dim=0: [_select(t, dim, i) for i in range(t.shape[dim])],
    aten.index_select.default: _index_select,
    aten.cat.default: _cat,
    aten.stack.default: _stack,
    aten.t.default: lambda t: _transpose(t, 0, 1) if t.ndim == 2 else t.node,
    aten.transpose.int: _transpose,
    aten.permute.default: lambda t, dims: t.node.permute([d % t.ndim for d in dims]),
    aten.view.default: _view,
    aten._unsafe_view.default: _view,
    aten.reshape.default: _view,
    aten.squeeze.dim: _squeeze,
    aten.squeeze.dims: _squeeze,
    aten.unsqueeze.default: _unsqueeze,
}
