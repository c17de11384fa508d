"""The dependency graph: which slices of which tensors disappear together.

A *group* is one prunable axis of the network (the channels of one MLP, the key/value heads of one attention, …); a
*unit* is one position along it. A *member* is one dimension of one tensor that the axis runs through. Everything here
is a frozen value: printable, comparable, and dumpable to JSON.
"""

from __future__ import annotations

import hashlib
import itertools
import os
from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property
from operator import itemgetter
from typing import TYPE_CHECKING, Any, Literal

import torch
from pydantic import BaseModel, ConfigDict
from typing_extensions import Self

from graphprune.declared import DeclaredGroup
from graphprune.graph_file import load_graph, save_graph
from graphprune.selection import Selection

if TYPE_CHECKING:
    import networkx as nx


class Value(BaseModel):
    """Base of the graph's values: immutable, no unknown fields."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Block(Value):
    """Where an axis lies inside one tensor dimension, as nested strides.

    Unit ``u`` occupies ``start + u·unit_stride + Σ_k i_k·stride_k`` for every ``i_k`` in ``range(count_k)``.
    """

    start: int
    unit_stride: int
    loops: tuple[tuple[int, int], ...] = ()

    def offsets(self) -> torch.Tensor:
        """The indices of unit 0, sorted; int64, one per element of a unit in this block."""
        offsets = torch.tensor([self.start])
        for count, stride in self.loops:
            offsets = (offsets[:, None] + torch.arange(count) * stride).reshape(-1)
        return offsets.sort().values

    @property
    def run(self) -> int:
        """How many elements of a unit lie side by side from ``start`` on, or 0 where there are gaps between them."""
        length = 1
        for count, stride in sorted(self.loops, key=itemgetter(1)):
            if stride != length:
                return 0
            length *= count
        return length


class Axis(Value):
    """A dimension of length ``length`` that a group of ``size`` units runs through.

    All units lie in it, unless ``only`` names the one that has this tensor to itself (a layer, say).
    """

    size: int
    length: int
    blocks: tuple[Block, ...]
    only: int | None = None

    def indices(self, unit: int) -> torch.Tensor:
        """Sorted int64 indices of ``unit`` along this dimension; empty where the unit is not in it."""
        if not 0 <= unit < self.size:
            raise IndexError(f"unit {unit} is outside 0..{self.size - 1}")
        if self.only not in (None, unit):
            return torch.empty(0, dtype=torch.int64)
        step = 0 if self.only is not None else unit
        return torch.cat([b.offsets() + step * b.unit_stride for b in self.blocks]).sort().values

    def unit_of(self) -> torch.Tensor:
        """For every index of the dimension the unit that owns it, or -1; int64 of shape ``(length,)``."""
        owner = torch.full((self.length,), -1, dtype=torch.int64)
        units = torch.arange(self.size) if self.only is None else torch.tensor([0])
        for block in self.blocks:
            where = block.offsets()[:, None] + units * block.unit_stride
            owner[where] = (units if self.only is None else torch.tensor([self.only])).expand_as(where)
        return owner


class Member(Axis):
    """One dimension of one parameter or persistent buffer through which a group runs.

    ``consumes`` is true where the operation that reads the tensor sums over this dimension (the input side of a
    linear map): zeroing that slice alone already silences the unit.
    """

    tensor: str
    dim: int
    consumes: bool = False

    def reduce(self, saliency: torch.Tensor) -> torch.Tensor:
        """Sums an element-wise saliency of the tensor's shape to units: float32 of shape ``(size,)``."""
        saliency = saliency.reshape(1) if saliency.ndim == 0 else saliency
        rest = [d for d in range(saliency.ndim) if d != self.dim]
        return self.gather(saliency.sum(dim=rest) if rest else saliency)

    def gather(self, per_index: torch.Tensor) -> torch.Tensor:
        """Sums a vector of shape ``(length,)`` along this dimension to units: shape ``(size,)``."""
        if self._consecutive():
            return per_index.reshape(self.size, -1).sum(dim=1)
        owner = self.unit_of().to(per_index.device)
        inside = owner >= 0
        out = torch.zeros(self.size, dtype=per_index.dtype, device=per_index.device)
        return out.index_add_(0, owner[inside], per_index[inside])

    def _consecutive(self) -> bool:
        """Whether the units fill the dimension one after the other, as they nearly always do."""
        if self.only is not None or len(self.blocks) != 1:
            return False
        (block,) = self.blocks
        return block.start == 0 and block.unit_stride == block.run and block.run * self.size == self.length


class MaskSite(Value):
    """Where a unit can be silenced without changing a shape.

    ``input``: multiply the last dimension of the first argument of module ``module``.
    ``weight``: multiply dimension ``dim`` of the tensor named ``module``, while module ``reader`` runs (by default the
    one that has the tensor).
    ``logits``: set to -inf, along ``dim``, the input of the ``call``-th call of ``function`` inside ``module``.
    ``norm``: leave them out of what that call of a norm or mean averages; a norm's output is zero there.
    ``skip``: let entry u of the module list ``module`` hand on its argument ``argument`` as its output ``output``; that
    of entry u of the list ``reader``, where a layer begins there.
    """

    kind: Literal["input", "weight", "logits", "norm", "skip"]
    module: str
    axis: Axis
    dim: int = -1
    function: str = ""
    call: int = 0
    argument: str = ""
    output: str = ""
    reader: str = ""


class Numbering(Value):
    """An attribute by which the entries of a module list know their place: ``scale·index + start``.

    ``owner`` is the path of the module that has it, inside the entry (empty for the entry itself).
    """

    owner: str
    attribute: str
    scale: int
    start: int


class Stack(Value):
    """A module list whose entries are units: entry u disappears with unit u, and later ones move up.

    Attributes:
        path: of the module list.
        size: how many entries it has.
        numbering: the attributes that must follow when entries move up.
        lists: lists on the config, as (owner, attribute), with one item per entry; they lose the same items.
        counts: integers on the config, as (owner, attribute), that say how many entries there are.
        lookups: dictionaries of modules, as (path, attribute), whose keys are indices of entries; they follow.
    """

    path: str
    size: int
    numbering: tuple[Numbering, ...] = ()
    lists: tuple[tuple[str, str], ...] = ()
    counts: tuple[tuple[str, str], ...] = ()
    lookups: tuple[tuple[str, str], ...] = ()


class NormScale(Value):
    """The scale γ of a norm over a pruned axis, and the epsilon that the norm adds to the mean of squares.

    Attributes:
        tensor: the scale's name.
        offset: the norm multiplies by ``offset + γ``.
        owner: path of the module that keeps the epsilon, where it is known.
        epsilon: the epsilon's attribute there; empty where it is not known.
    """

    tensor: str
    offset: float = 0.0
    owner: str = ""
    epsilon: str = ""


class Group(Value):
    """Units that can be removed: what goes when a unit goes, and how to silence it instead.

    Attributes:
        name: ``<common module path>/<role>``; unique in the graph.
        role: what the axis is (``attention.group``, ``mlp.channel``, ``moe.expert``, …), derived from the operations.
        layer: index in the main stack of layers, or None outside of it.
        size: number of units.
        exact: whether removing a unit gives the same outputs as silencing it.
        inexact_reason: why not, where ``exact`` is False.
        frozen: None, or the reason why the group must not be pruned.
        minimum: how many units must stay at least.
        multiple_of: kernels want the number of units that stay to be a multiple of this; ranking sees to it.
        essential: sets of units of each of which one must stay (the layers of every kind).
        norms: scales of norms over the axis, which are multiplied by √(all/kept) when units go, while epsilons are
            multiplied by all/kept (the mean of squares is taken over fewer entries; the removed ones were zero).
        stacks: module lists whose entries are the units, where a unit is a whole module.
        declared: whether a person declared it, instead of the tracer finding it.
    """

    name: str
    role: str
    layer: int | None
    size: int
    members: tuple[Member, ...]
    sites: tuple[MaskSite, ...] = ()
    exact: bool = True
    inexact_reason: str | None = None
    frozen: str | None = None
    minimum: int = 1
    multiple_of: int = 1
    essential: tuple[tuple[int, ...], ...] = ()
    norms: tuple[NormScale, ...] = ()
    stacks: tuple[Stack, ...] = ()
    declared: bool = False

    @property
    def consumers(self) -> tuple[Member, ...]:
        """The members on the input side of a linear map."""
        return tuple(m for m in self.members if m.consumes)

    def __str__(self) -> str:
        return f"{self.name} ({self.size} units, {len(self.members)} tensor slices)"


class SizeRule(Value):
    """A Python integer that the forward pass reads and that must follow the removed units.

    The attribute ``attribute`` (``name``, or ``name[i]`` for an item of a tuple) of module ``owner`` (or of the config,
    where ``owner`` is ``"config"`` or
    ``"config.<sub-config>"``) equals ``constant + Σ coefficient·Π size(group)`` over ``terms``. ``reader`` is the
    module whose forward read it: a config attribute has one rule per reader, and readers may come to disagree.
    """

    owner: str
    attribute: str
    reader: str
    constant: int
    terms: tuple[tuple[int, tuple[str, ...]], ...]

    def value(self, sizes: dict[str, int]) -> int:
        """The integer for the given group sizes."""
        total = self.constant
        for coefficient, groups in self.terms:
            product = coefficient
            for group in groups:
                product *= sizes[group]
            total += product
        return total


class ConstantSlice(Value):
    """A tensor that is computed without any parameter and handed to a module, and that a group runs through.

    Such a constant (a positional bias per head, say) is not stored in the checkpoint, so it is cut when it enters
    module ``module`` as argument ``argument`` (a keyword, or the position as a string), along ``dim``. Where ``buffer``
    says so, ``argument`` is a buffer that ``module`` keeps (a table of positions, say), which is cut in its place.
    """

    group: str
    module: str
    argument: str
    dim: int
    axis: Axis
    buffer: bool = False


class DependencyGraph(Value):
    """All groups of a model, and what else has to follow when units are removed.

    Attributes:
        groups: every axis that runs through a parameter, prunable or frozen.
        rules: integers on modules and config that depend on group sizes.
        constants: parameter-free tensors that a group runs through.
        shapes: the shape of every parameter and persistent buffer that was seen.
        untraced: parameters that the traced forward never touched.
        notes: what the tracer could not follow, in words.
        readers: of tensors that other modules read than the one that has them, the paths of those that do.
        declared: what :func:`graphprune.declare` added to the trace.
    """

    groups: tuple[Group, ...]
    rules: tuple[SizeRule, ...] = ()
    constants: tuple[ConstantSlice, ...] = ()
    shapes: dict[str, tuple[int, ...]]
    tied: dict[str, str] = {}
    untraced: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    layers: int = 0
    readers: dict[str, tuple[str, ...]] = {}
    declared: tuple[DeclaredGroup, ...] = ()

    @cached_property
    def by_name(self) -> dict[str, Group]:
        """Groups by name."""
        return {g.name: g for g in self.groups}

    @cached_property
    def fingerprint(self) -> str:
        """A hash of the structure (not of weights): equal for equal architectures and sizes."""
        return hashlib.sha256(self.model_dump_json(exclude={"notes", "declared"}).encode()).hexdigest()[:16]

    @cached_property
    def nx(self) -> nx.MultiDiGraph:
        """Group, tensor, integer and constant nodes, and an edge for every slice; ``docs/graph.md`` has them all."""
        from graphprune.views.network import to_networkx

        return to_networkx(self)

    def save(self, file: str | os.PathLike[str]) -> None:
        """Writes the graph as JSON, whole or not at all; an existing file is replaced.

        Raises:
            GraphError: if the file cannot be written.
        """
        save_graph(self, file)

    @classmethod
    def load(cls, file: str | os.PathLike[str]) -> DependencyGraph:
        """Reads a graph written by :meth:`save`: equal to it, with the same fingerprint.

        Raises:
            GraphError: if the file is missing, is no graph, contradicts itself, or was edited.
        """
        return load_graph(cls, file)

    def select(
        self,
        *,
        role: str | Iterable[str] | None = None,
        layers: Any = None,
        name: str | None = None,
        frozen: bool | None = False,
    ) -> Selection:
        """The groups that match every given condition, as an immutable :class:`Selection`.

        Args:
            role: one role or several; shell wildcards allowed (``"attention.*"``).
            layers: an index, a list of indices, or a slice as text (``"3:-1"``), counted on the main stack.
            name: shell wildcards or a regular expression (``re:…``) on the group's name.
            frozen: False leaves frozen groups out, True keeps only them, None takes both.
        """
        everything = Selection(groups=self.groups, layers=self.layers)
        return everything.where(role=role, layers=layers, name=name, frozen=frozen)

    def cut(self, tensor: str) -> tuple[tuple[Group, Member], ...]:
        """Every group that cuts ``tensor``, with the member that does."""
        return tuple((g, m) for g in self.groups for m in g.members if m.tensor == tensor)

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """A changed copy; what is derived from the fields is derived anew."""
        copied = super().model_copy(update=update, deep=deep)
        for derived in ("by_name", "fingerprint", "nx"):
            copied.__dict__.pop(derived, None)
        return copied

    def sizes(self) -> dict[str, int]:
        """Group sizes by name."""
        return {g.name: g.size for g in self.groups}

    def __iter__(self) -> Iterator[Group]:  # type: ignore[override]
        return iter(self.groups)

    def __str__(self) -> str:
        roles = itertools.groupby(sorted(g.role for g in self.groups if g.frozen is None))
        counts = ", ".join(f"{len(list(items))} {role}" for role, items in roles)
        frozen = sum(g.frozen is not None for g in self.groups)
        return f"DependencyGraph({counts}; {frozen} frozen; {self.layers} layers)"
