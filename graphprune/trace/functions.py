"""What the forward calls, with its Python arguments: numbers that set lengths, and calls that masks can change."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten, tree_map_only

from graphprune.trace.axes import Expr, length, regroup
from graphprune.trace.integers import AXIS, TracedFloat, TracedInt, terms_of
from graphprune.trace.places import places
from graphprune.trace.record import Kind
from graphprune.trace.tracer import FunctionCall, Tracer

VIEWS = frozenset({"view", "reshape", "expand", "unflatten"})
FACTORIES = frozenset({"new_zeros", "new_ones", "new_empty", "zeros", "ones", "empty", "full", "new_full"})
SPLITS = frozenset({"split", "split_with_sizes"})
LOGITS = frozenset({"softmax", "topk", "max", "argmax"})
"""Functions whose input is masked with -inf."""
NORMS = frozenset({"layer_norm", "rms_norm"})
AVERAGES = NORMS | {"mean"}
"""Functions that average over their last dimension, out of which masks can leave units."""
MASKABLE = LOGITS | AVERAGES
ARITHMETIC = frozenset("add sub rsub mul div rdiv true_divide pow rpow".split())
"""Functions in which a number is a number, not a length."""
READS_SHAPE = torch.Tensor.shape.__get__  # type: ignore[attr-defined]


class Functions(TorchFunctionMode):
    """Sees calls with their Python arguments: numbers, softmax and top-k, norms and means."""

    def __init__(self, tracer: Tracer) -> None:
        super().__init__()
        self.tracer = tracer

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self.tracer.inside or _transformed():
            return func(*args, **kwargs)
        name = getattr(func, "__name__", "").strip("_")
        if name in MASKABLE:
            self._maskable(name, args, kwargs)
        leaves = tree_flatten((args, kwargs))[0]
        if any(isinstance(leaf, TracedInt) for leaf in leaves):
            # Some fake kernels refuse subclasses of numbers; what comes out of the call cannot remember them anyway.
            result = func(*tree_map_only(TracedInt, int, args), **tree_map_only(TracedInt, int, kwargs))
        else:
            result = func(*args, **kwargs)
        if name == "view_as_complex" and args[0]._base is not None:
            self._paired(args[0]._base)
        if name == "size" or func == READS_SHAPE:
            return self._sizes(args[0], args[1:] or tuple(kwargs.values()), result)
        if name in ARITHMETIC:
            for leaf in leaves:
                if isinstance(leaf, TracedInt):
                    self.tracer.computed_with(leaf)
        if any(isinstance(leaf, TracedFloat) for leaf in leaves):
            self._epsilon(name, leaves)
        for number, axis in _measured(self.tracer, name, args, kwargs, result):
            self.tracer.measured(number, axis)
        return result

    def _sizes(self, tensor: torch.Tensor, dim: tuple[Any, ...], result: Any) -> Any:
        """The shape of a tensor, in numbers that remember which axis they measure."""
        if tensor not in self.tracer.records.infos:
            self.tracer.info(tensor)
        info = self.tracer.records.get(tensor, self.tracer.stack)  # a look at a shape is no use of what is computed
        if info.kind is Kind.CONSTANT and not info.kept:
            return result
        if dim:
            return self.tracer.length_of(info.dims[int(dim[0])], early=info.kept)
        return torch.Size([self.tracer.length_of(e, early=info.kept) for e in info.dims])

    def _paired(self, storage: torch.Tensor) -> None:
        """Pairs of floats in this tensor are read as one number, so that they must begin at even places."""
        for atom, blocks in places(self.tracer.info(storage).dims[-1]).items():
            if sum(math.prod(count for count, _ in block.loops) for block in blocks) % 2:
                self.tracer.aligned((atom,), 2)

    def _epsilon(self, name: str, leaves: list[Any]) -> None:
        """A number that is added to a mean of squares, or handed to a norm, is that norm's epsilon."""
        added = name == "add" and any(isinstance(t, torch.Tensor) and self.tracer.info(t).mean_square for t in leaves)
        if added or name in NORMS:
            numbers = [n.source for n in leaves if isinstance(n, TracedFloat)]
            self.tracer.epsilons[self.tracer.where].update(numbers)

    def _maskable(self, name: str, args: Any, kwargs: Any) -> None:
        tensor = args[0] if args else kwargs.get("input")
        if not isinstance(tensor, torch.Tensor) or not self.tracer.stack:
            return
        frame = self.tracer.stack[-1]
        position = 2 if name == "topk" else 1
        dim = -1 if name in NORMS else kwargs.get("dim", args[position] if len(args) > position else -1)
        dim = dim[0] if isinstance(dim, tuple | list) and len(dim) == 1 else dim
        info = self.tracer.info(tensor)
        if info.kind is Kind.ACTIVATION and isinstance(dim, int):
            self.tracer.functions.append(
                FunctionCall(frame.path, name, frame.calls.get(name, 0), info.dims, dim % max(tensor.ndim, 1))
            )
        for outer in self.tracer.stack:
            outer.calls[name] = outer.calls.get(name, 0) + 1


def _transformed() -> bool:
    """Whether a transform such as vmap runs: its tensors have no storage, and its operations come by one by one."""
    return torch._C._functorch.peek_interpreter_stack() is not None


def _measured(tracer: Tracer, name: str, args: Any, kwargs: Any, result: Any) -> Iterator[tuple[int, Expr]]:
    """Pairs (number, the axis whose length it set) of one call."""
    if name in VIEWS | FACTORIES and isinstance(result, torch.Tensor):
        yield from _shaped(tracer, name, args, result)
    elif name in SPLITS and isinstance(result, tuple | list):
        sizes = args[1] if len(args) > 1 else kwargs.get("split_size_or_sections", kwargs.get("split_size"))
        each = sizes if isinstance(sizes, tuple | list) else [sizes] * len(result)
        dim = kwargs.get("dim", args[2] if len(args) > 2 else 0)
        for n, piece in zip(each, result, strict=False):
            if int(n) == piece.shape[dim]:
                yield n, tracer.info(piece).dims[dim]
    elif name == "getitem" and isinstance(result, torch.Tensor) and isinstance(args[0], torch.Tensor):
        yield from _sliced(tracer, args[0], args[1], result)
    elif name in ("repeat", "repeat_interleave"):
        yield from _repeated(tracer, name, args, kwargs, result)
    elif name in NORMS:
        shape = args[1] if len(args) > 1 else kwargs["normalized_shape"]
        yield from zip(shape, tracer.info(result).dims[-len(shape) :], strict=True)
    elif name.startswith("conv") and isinstance(kwargs.get("groups", args[-1]), int) and result.ndim > 2:
        groups = kwargs.get("groups", args[6] if len(args) > 6 else 1)
        if groups > 1:
            yield groups, regroup([tracer.info(result).dims[1]], [groups, result.shape[1] // groups])[0]


def _shaped(tracer: Tracer, name: str, args: Any, result: torch.Tensor) -> Iterator[tuple[int, Expr]]:
    dims = tracer.info(result).dims
    shape = args[1:] if name not in ("zeros", "ones", "empty", "full") else args
    flat = shape[0] if shape and isinstance(shape[0], tuple | list) else shape
    if name == "unflatten" and len(args) > 2:
        start = int(args[1]) % args[0].ndim
        dims, flat = dims[start : start + len(args[2])], args[2]
    if len(flat) != len(dims):
        return
    for n, expr in zip(flat, dims, strict=True):
        if isinstance(n, int) and n > 1 and (name not in FACTORIES or isinstance(n, TracedInt)):
            yield n, expr


def _repeated(tracer: Tracer, name: str, args: Any, kwargs: Any, result: torch.Tensor) -> Iterator[tuple[int, Expr]]:
    """How often each dimension is repeated: an outer axis of it where it is tiled, an inner one where units are."""
    dims = tracer.info(result).dims
    if name == "repeat":
        times = args[1] if len(args) > 1 and isinstance(args[1], tuple | list) else args[1:]
        for n, expr in zip(times, dims, strict=False):
            if isinstance(n, int) and n > 1:
                yield n, regroup([expr], [int(n), length(expr) // int(n)])[0]
        return
    n = kwargs.get("repeats", args[1] if len(args) > 1 else None)
    dim = kwargs.get("dim", args[2] if len(args) > 2 else None)
    if isinstance(n, int) and n > 1 and isinstance(dim, int):
        yield n, regroup([dims[dim]], [length(dims[dim]) // int(n), int(n)])[1]


def _sliced(tracer: Tracer, tensor: torch.Tensor, key: Any, result: torch.Tensor) -> Iterator[tuple[int, Expr]]:
    items = key if isinstance(key, tuple) else (key,)
    if not all(isinstance(i, slice) or i is Ellipsis for i in items):
        return
    after = items[items.index(Ellipsis) + 1 :] if Ellipsis in items else ()
    before = items[: items.index(Ellipsis)] if Ellipsis in items else items
    placed = [*enumerate(before), *((tensor.ndim - len(after) + i, s) for i, s in enumerate(after))]
    for d, piece in placed:
        start, stop = piece.start or 0, piece.stop
        if piece.step not in (None, 1) or not isinstance(stop, int) or stop <= 0 or start < 0:
            continue
        span = stop - start
        if int(span) == result.shape[d] != tensor.shape[d]:
            yield span, tracer.info(result).dims[d]


@contextmanager
def watching(tracer: Tracer) -> Iterator[None]:
    """Installs the watch on calls, and on comparisons of lengths with attributes."""

    def compared(left: int, right: int) -> None:
        for measured, number in ((left, right), (right, left)):
            terms = terms_of(measured)
            ((monomial, coefficient),) = terms.items() if len(terms) == 1 else (((), 0),)
            if coefficient == 1 and len(monomial) == 1 and monomial[0][0][0] == AXIS and monomial[0][1] == 1:
                if isinstance(number, TracedInt) and number > 1:
                    tracer.measured(number, tracer.axes[int(monomial[0][0][1])])
                return

    with Functions(tracer):
        TracedInt.compared, TracedInt.computed = compared, tracer.computed_with
        try:
            yield
        finally:
            TracedInt.compared = TracedInt.computed = None
