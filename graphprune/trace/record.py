"""What the tracer knows about each tensor, and the constants it forks at module boundaries."""

from __future__ import annotations

import enum
import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils.weak import WeakIdKeyDictionary

from graphprune.trace.axes import Expr, fresh


class Kind(enum.IntEnum):
    """What a tensor is computed from; the larger one wins when tensors meet."""

    CONSTANT = 0  # neither parameters nor activations: masks, rotary tables, positions
    WEIGHT = 1  # parameters and constants only
    ACTIVATION = 2  # depends on embedded inputs


@dataclass(frozen=True)
class Info:
    """Axes and provenance of one tensor.

    Attributes:
        dims: one axis expression per dimension.
        kind: constant, weight or activation.
        values: for integer tensors, the axis that the values index, if known.
        params: names of the parameters that a WEIGHT comes from.
        scope: path of the module in whose forward the tensor was made.
        uniform: a constant whose elements are all alike (zeros, ones, full), so that any slice of it is right.
        source: serial number of the tensor this one is a view of with the same last dimension.
        squared: serial number of what this is the square of, so that its mean is a mean square.
        mean_square: whether this is a mean of squares, to which a norm adds its epsilon.
        selected: whether an integer tensor results from choosing positions by activation (top-k, arg-max).
        kept: whether this is a buffer that is not in the checkpoint: it is cut in its place, and its shape follows.
        entry: index of the layer in which it was computed; None outside of the stack, and for the stream itself.
        portion: of which layer it is the portion of an axis that is divided among layers; None for all else.
    """

    dims: tuple[Expr, ...]
    kind: Kind = Kind.CONSTANT
    values: Expr | None = None
    params: frozenset[str] = frozenset()
    scope: str = ""
    uniform: bool = False
    source: int | None = None
    squared: int | None = None
    mean_square: bool = False
    selected: bool = False
    kept: bool = False
    entry: int | None = None
    portion: int | None = None


@dataclass(frozen=True)
class Norm:
    """A mean of squares over ``axis`` that module ``module`` computes by itself.

    ``entered`` says that what is squared is the module's first argument, and ``axis`` its last dimension.
    """

    axis: Expr
    module: str
    entered: bool = False


@dataclass
class Fork:
    """A constant as one module sees it: own axes, so that layers are not tied through a shared table."""

    info: Info
    module: str
    argument: str | None


@dataclass
class Records:
    """Per-tensor information, with constants forked where they enter a module."""

    infos: WeakIdKeyDictionary = field(default_factory=WeakIdKeyDictionary)
    forks: dict[tuple[int, str], Fork] = field(default_factory=dict)
    storages: dict[StorageWeakRef, tuple[Kind, frozenset[str]]] = field(default_factory=dict)
    serials: Iterator[int] = field(default_factory=itertools.count)
    alive: list[torch.Tensor] = field(default_factory=list)

    def put(self, tensor: torch.Tensor, info: Info) -> None:
        """Remembers ``info`` for ``tensor`` and what its storage is computed from."""
        if info.source is None:
            info = replace(info, source=next(self.serials))
        self.infos[tensor] = info
        key = StorageWeakRef(tensor.untyped_storage())  # type: ignore[no-untyped-call]
        kind, params = self.storages.get(key, (Kind.CONSTANT, frozenset()))
        self.storages[key] = (max(kind, info.kind), params | info.params)

    def get(self, tensor: torch.Tensor, stack: Iterable[ModuleFrame] = ()) -> Info:
        """The info of ``tensor`` as seen from the innermost module of ``stack``."""
        info: Info | None = self.infos.get(tensor)  # type: ignore[no-untyped-call]
        if info is None:
            info = Info(tuple(fresh(n) for n in tensor.shape), source=next(self.serials))
            self.alive.append(tensor)
            self.infos[tensor] = info
        stored = self.storages.get(StorageWeakRef(tensor.untyped_storage()))  # type: ignore[no-untyped-call]
        if stored is not None and stored[0] > info.kind:
            info = replace(info, kind=stored[0], params=info.params | stored[1])
        if info.kind is not Kind.CONSTANT:
            return info
        return self._forked(tensor, info, list(stack))

    def _forked(self, tensor: torch.Tensor, info: Info, stack: list[ModuleFrame]) -> Info:
        frame = next((f for f in stack if id(tensor) in f.arguments), None)
        if frame is None or frame.path == info.scope or info.uniform:
            return info
        key = (id(tensor), frame.path)
        if key not in self.forks:
            own = replace(info, dims=tuple(fresh(n) for n in tensor.shape), scope=frame.path)
            self.forks[key] = Fork(own, frame.path, frame.arguments[id(tensor)])
            self.alive.append(tensor)
        return self.forks[key].info


@dataclass
class ModuleFrame:
    """One module whose forward is running.

    ``arguments`` maps the identity of every tensor argument to its keyword or position (nested ones with dots);
    ``first`` is the source number of the first one.
    ``calls`` counts calls per function name, for mask sites inside the forward.
    """

    path: str
    module: torch.nn.Module
    arguments: dict[int, str]
    first: int | None
    calls: dict[str, int] = field(default_factory=dict)
