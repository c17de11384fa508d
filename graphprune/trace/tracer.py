"""Runs one forward pass and follows every axis through it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from graphprune.trace.axes import UNIT, AxisConflict, Expr, atoms, fresh, length, matters
from graphprune.trace.choices import Choices
from graphprune.trace.integers import AXIS, Monomial, Source, TracedInt, terms_of
from graphprune.trace.lookups import Place, Watched
from graphprune.trace.passages import Passages, named_leaves
from graphprune.trace.portions import Portions
from graphprune.trace.record import Info, Kind, ModuleFrame, Norm, Records
from graphprune.trace.rules import POINTWISE, RULES, Call, rule_of
from graphprune.trace.stack import LayerStack

SILENT = frozenset(
    "_assert_async _assert_scalar _is_all_true _is_any_true _local_scalar_dense allclose equal is_nonzero "
    "record_stream resize_ set_".split()
)
"""Operations that move no axis."""


@dataclass(frozen=True)
class Consumption:
    """A weight was multiplied into an activation and summed over ``inner``."""

    params: frozenset[str]
    inner: Expr
    module: str | None  # the module whose first argument is the activation, if it is
    last: bool = False  # the activation is summed over its last dimension


@dataclass(frozen=True)
class FunctionCall:
    """A softmax, top-k or norm of an activation, which can be masked inside module ``module``."""

    module: str
    function: str
    call: int
    dims: tuple[Expr, ...]
    dim: int


@dataclass(frozen=True)
class IntegerUse:
    """A number (a polynomial of attributes and of lengths of other axes) that set the length of an axis."""

    terms: tuple[tuple[Monomial, Fraction], ...]
    axis: Expr
    reader: str


@dataclass
class Tracer:
    """Everything learned from one forward pass; the rules write, :mod:`graphprune.trace.groups` reads."""

    passages: Passages = field(default_factory=lambda: Passages(LayerStack(nn.Module())))
    portions: Portions = field(default_factory=Portions)
    records: Records = field(default_factory=Records)
    parameters: dict[str, tuple[Expr, ...]] = field(default_factory=dict)
    buffers: dict[str, tuple[Expr, ...]] = field(default_factory=dict)
    touched: set[str] = field(default_factory=set)
    itemsizes: dict[str, int] = field(default_factory=dict)
    readers: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    consumptions: list[Consumption] = field(default_factory=list)
    functions: list[FunctionCall] = field(default_factory=list)
    uses: dict[tuple[Any, ...], IntegerUse] = field(default_factory=dict)
    axes: list[Expr] = field(default_factory=list)
    arithmetic: dict[tuple[Any, ...], tuple[Monomial, ...]] = field(default_factory=dict)
    frozen: list[tuple[Expr, str]] = field(default_factory=list)
    minimums: list[tuple[Expr, int]] = field(default_factory=list)
    alignments: list[tuple[Expr, int]] = field(default_factory=list)
    valued: list[tuple[Expr, str]] = field(default_factory=list)
    norms: list[Norm] = field(default_factory=list)
    averages: list[Expr] = field(default_factory=list)
    lookups: dict[Place, list[Watched]] = field(default_factory=dict)
    looked_up: set[str] = field(default_factory=set)
    epsilons: dict[str, set[Source]] = field(default_factory=lambda: defaultdict(set))
    shifts: dict[str, float | None] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    stack: list[ModuleFrame] = field(default_factory=list)
    inside: int = 0

    @property
    def where(self) -> str:
        """The path of the innermost running module."""
        return self.stack[-1].path if self.stack else ""

    def info(self, tensor: torch.Tensor) -> Info:
        """Axes and provenance of a tensor as the running module sees it."""
        new = tensor not in self.records.infos
        info = self.records.get(tensor, self.stack)
        if new:
            self.found(info)
        self.touched |= info.params
        if info.kind is Kind.WEIGHT and len(info.params) == 1:
            self.readers[min(info.params)].add(self.where)
        self.passages.used(info)
        self.portions.used(info, self.passages.current, self.where or "the model")
        return info

    def found(self, info: Info) -> None:
        """A tensor that is no parameter, no buffer, and not made by the forward: a module's attribute, say."""
        where = self.where or "the model"
        for expr in info.dims:
            self.valued.append(
                (expr, f"a constant that is not in the checkpoint has a value per unit, used in {where}")
            )

    def put(self, tensor: torch.Tensor, dims: tuple[Expr, ...], **fields: Any) -> None:
        """Records a new tensor; lengths are checked so that a wrong rule cannot pass unnoticed."""
        if tuple(map(length, dims)) != tuple(tensor.shape):
            found = tuple(map(length, dims))
            raise AxisConflict(f"a rule produced lengths {found} for a result of shape {tuple(tensor.shape)}")
        self.records.put(tensor, Info(dims=dims, scope=self.where, entry=self.passages.current, **fields))

    def values_differ(self, expr: Expr) -> None:
        """A constant made here has another value at every position of ``expr``."""
        where = self.where or "the model"
        self.valued.append((expr, f"a constant with different values per unit is computed inside {where}"))

    def freeze(self, expr: Expr, reason: str) -> None:
        """No unit of this axis may go."""
        self.frozen.append((expr, f"{reason} in {self.where or 'the model'}"))

    def at_least(self, expr: Expr, count: int) -> None:
        """At least ``count`` units of this axis must stay."""
        self.minimums.append((expr, count))

    def remember_values(self, index: torch.Tensor, axis: Expr) -> None:
        """From now on the values of a constant index are known to point along ``axis``."""
        info: Info | None = self.records.infos.get(index)  # type: ignore[no-untyped-call]
        if info is not None:
            self.records.infos[index] = replace(info, values=axis)

    def norm_of(self, squares: Info, dim: int) -> None:
        """A module takes the mean of ``squares`` along ``dim``."""
        first = self.stack[-1].first if self.stack else None
        entered = first is not None and first == squares.squared and dim == len(squares.dims) - 1
        self.norms.append(Norm(squares.dims[dim], self.where, entered))

    def aligned(self, expr: Expr, multiple: int) -> None:
        """Kernels want the length of this axis to be a multiple."""
        self.alignments.append((expr, multiple))

    def consumed(self, params: frozenset[str], inner: Expr, other: Info) -> None:
        """A weight is summed over ``inner`` with an activation."""
        frame = self.stack[-1] if self.stack else None
        entered = frame is not None and frame.first is not None and frame.first == other.source
        last = bool(other.dims) and length(other.dims[-1]) == length(inner) and other.dims[-1] is not UNIT
        self.consumptions.append(Consumption(params, inner, frame.path if frame and entered else None, last))

    def measured(self, number: int, axis: Expr) -> None:
        """The forward gives ``axis`` the length ``number``."""
        if matters(axis) or isinstance(number, TracedInt):
            terms = tuple(sorted(terms_of(number).items()))
            atoms_of = tuple(id(a) for a in atoms(axis))
            self.uses[terms, atoms_of, self.where] = IntegerUse(terms, axis, self.where)
            self.portions.measured(terms, axis)

    def computed_with(self, number: int) -> None:
        """The forward computes with a number, beyond setting lengths by it."""
        monomials = tuple(sorted(terms_of(number)))
        self.arithmetic[self.where, monomials] = monomials

    def length_of(self, axis: Expr, *, early: bool = False) -> int:
        """The length of an axis, as a number that remembers it; ``early`` where it may matter only later on."""
        if not early and not matters(axis):
            return length(axis)
        self.axes.append(axis)
        return TracedInt(length(axis), {(((AXIS, str(len(self.axes) - 1)), 1),): Fraction(1)})

    def unknown(self, call: Call) -> None:
        """An operation without a rule: every axis of its activations and weights is frozen, and of what it made."""
        reason = f"no rule for the operation '{call.name}'"
        followed = [t for t in call.tensors if self.info(t).kind is not Kind.CONSTANT]
        for tensor in followed:
            for expr in self.info(tensor).dims:
                self.freeze(expr, reason)
        if followed:
            self.notes.append(f"{reason} (called in {self.where or 'the model'})")
        self._begin_anew(call, cut=not followed)

    def conflict(self, call: Call, error: AxisConflict) -> None:
        """Axes that contradict each other are frozen; the trace goes on with new ones."""
        reason = f"'{call.name}': {error}"
        for tensor in call.tensors:
            if self.info(tensor).kind is not Kind.CONSTANT:
                for expr in self.info(tensor).dims:
                    self.freeze(expr, reason)
        self.notes.append(f"axis conflict in '{call.name}' in {self.where or 'the model'}: {error}")
        self._begin_anew(call)

    def _begin_anew(self, call: Call, *, cut: bool = False) -> None:
        """Gives results axes of their own; unless ``cut``, they stay whole, as what they were computed from does."""
        for i, output in enumerate(call.outputs):
            dims = [fresh(n) for n in output.shape]
            for expr in () if cut else dims:
                self.freeze(expr, f"it comes out of '{call.name}', which could not be followed,")
            call.put(dims, output=i)

    def explain(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
        """Applies the rule of one executed operation."""
        outputs = tuple(t for t in tree_flatten(result)[0] if isinstance(t, torch.Tensor))
        name = func._schema.name.split("::")[-1]
        if not outputs or name in SILENT:
            return
        names = [a.name for a in func._schema.arguments]
        defaults = {a.name: a.default_value for a in func._schema.arguments if a.has_default_value()}
        arguments = {**defaults, **dict(zip(names, args, strict=False)), **kwargs}
        name, handler = rule_of(func)
        call = Call(self, name, arguments, outputs)
        try:
            (handler or self.unknown)(call)
        except AxisConflict as error:
            self.conflict(call, error)
        pointwise = torch.Tag.pointwise in func.tags or handler is RULES[POINTWISE]
        self.portions.follow(call, self.records, self.where or "the model", pointwise=pointwise)


class Operations(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Feeds every ATen operation to the tracer after it ran."""

    def __init__(self, tracer: Tracer) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.tracer = tracer
        self._choices = Choices()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        self.tracer.inside += 1  # what the operation does inside is none of the forward's business
        try:
            result = self._choices.run(func, args, kwargs)
            self.tracer.explain(func, args, kwargs, result)
        finally:
            self.tracer.inside -= 1
        return result


@contextmanager
def following(tracer: Tracer, model: nn.Module) -> Iterator[None]:
    """Installs the tracer on ``model``: module frames, operations and functions."""
    with ExitStack() as stack:
        for path, module in model.named_modules():
            before = module.register_forward_pre_hook(_enter(tracer, path), with_kwargs=True, prepend=True)
            after = module.register_forward_hook(_leave(tracer, path))
            stack.callback(before.remove)
            stack.callback(after.remove)
        stack.enter_context(Operations(tracer))
        yield


def _enter(tracer: Tracer, path: str) -> Callable[..., None]:
    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        arguments: dict[int, str] = {}
        for name, leaf in (*named_leaves(args), *named_leaves(kwargs)):
            arguments.setdefault(id(leaf), name)
        given = next((v for v in (*args, *kwargs.values()) if isinstance(v, torch.Tensor)), None)
        first = None if given is None else tracer.records.get(given).source
        tracer.stack.append(ModuleFrame(path, module, arguments, first))
        tracer.passages.enter(path, (*named_leaves(args), *named_leaves(kwargs)), tracer.records)

    return hook


def _leave(tracer: Tracer, path: str) -> Callable[..., None]:
    def hook(module: nn.Module, _args: Any, outputs: Any) -> None:
        tracer.passages.leave(path, outputs, tracer.records)
        while tracer.stack and tracer.stack.pop().module is not module:
            pass

    return hook


def register_parameters(tracer: Tracer, tensors: Mapping[str, torch.Tensor]) -> None:
    """Gives every parameter and persistent buffer fresh axes, one per dimension."""
    for name, tensor in tensors.items():
        dims = tuple(fresh(n, "stored") for n in tensor.shape)
        tracer.parameters[name] = dims
        tracer.itemsizes[name] = tensor.element_size()
        info = Info(dims, Kind.WEIGHT, params=frozenset({name}))
        tracer.records.put(tensor, info)
        tracer.records.alive.append(tensor)


def frozen_reasons(tracer: Tracer) -> dict[int, list[str]]:
    """Reasons by identity of the frozen atom."""
    reasons: dict[int, list[str]] = {}
    for expr, reason in tracer.frozen:
        for atom in atoms(expr):
            known = reasons.setdefault(id(atom), [])
            if reason not in known:
                known.append(reason)
    return reasons
