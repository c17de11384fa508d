"""Applying cuts to a live model: everything is checked first, then everything is changed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn

from graphprune.errors import ReshapeError
from graphprune.graph import DependencyGraph
from graphprune.names import plain, resolve_module
from graphprune.packed import Packed, packed_in
from graphprune.placement import absent
from graphprune.plan import PrunePlan
from graphprune.reshape.adapters import Slot, adapter_layers, adapter_slots, find_slot, update_features
from graphprune.reshape.buffers import buffer_cuts, watch
from graphprune.reshape.codes import cut_codes, uncuttable
from graphprune.reshape.constants import constant_cuts, install
from graphprune.reshape.cut import Cuts, Rescale, cut_tensor, norm_epsilons, norm_scales, plan_cuts
from graphprune.reshape.history import NOT_SETTLED, Step, history_of, remember
from graphprune.reshape.rules import all_changes, rule_edits
from graphprune.reshape.sizes import follow_sizes
from graphprune.reshape.stacks import renaming, stack_edits


@dataclass(frozen=True, eq=False)
class Replacement:
    """A tensor that took the place of another: what an optimizer needs to cut its state alike.

    ``new`` keeps, of each dimension in ``dims``, the indices given there (:func:`cut_tensor`).
    """

    old: torch.Tensor
    new: torch.Tensor
    dims: dict[int, torch.Tensor]


@dataclass(eq=False)
class _Edit:
    """One tensor to cut, and every place that holds it."""

    name: str
    tensor: torch.Tensor
    slots: list[Slot]
    codes: Packed | None = None
    dims: dict[int, torch.Tensor] = field(default_factory=dict)
    rescale: Rescale = field(default_factory=Rescale)

    def narrow(self, dim: int, kept: torch.Tensor) -> None:
        self.dims[dim] = kept if dim not in self.dims else kept[torch.isin(kept, self.dims[dim])]


def cut_model(
    model: nn.Module,
    graph: DependencyGraph,
    plan: PrunePlan,
    follow: Callable[[Replacement], None] | None = None,
    anew: Callable[[nn.Module], None] | None = None,
) -> list[Replacement]:
    """Removes the units of ``plan`` from ``model`` in place: tensors, adapters, sizes, constants, layers.

    Parameters are replaced by new :class:`torch.nn.Parameter` objects (assigning ``.data`` would leave
    stale gradient accumulators); dtype, device and ``requires_grad`` stay, gradients are cut alike, tied
    parameters stay tied. The model remembers the step; :func:`settle_config` makes its config follow.

    Args:
        model: bare or wrapped.
        graph: the graph the plan was made for.
        plan: the units to remove.
        follow: is told of every replaced tensor, base and adapter, once. Old tensors are let go one by one then;
            otherwise they are kept until all are replaced, beside the new ones.
        anew: is told of every 4-bit layer whose codes could not be cut exactly, so that the values in them were coded a
            second time. Where it is None, such a cut is refused.

    Returns:
        Every replaced tensor; nothing where ``follow`` is given.

    Raises:
        PlanError: if the plan belongs to another graph.
        ReshapeError: if the model is not the one that was traced, or not all of it is here (offloaded, or divided among
            processes); it is untouched then.
    """
    replaced: list[Replacement] = []
    with torch.device("cpu"):  # indices are real even where the model is being built on the meta device
        _cut_model(model, graph, plan, follow or replaced.append, anew)
    return replaced


def _cut_model(
    model: nn.Module,
    graph: DependencyGraph,
    plan: PrunePlan,
    follow: Callable[[Replacement], None],
    anew: Callable[[nn.Module], None] | None,
) -> None:
    plan.check(graph)
    problem = absent(model, model.parameters())
    if problem is not None:
        raise ReshapeError(f"the model cannot be cut: {problem}.")
    stays = renaming(graph, plan)
    aliases = _aliases(graph)
    cuts = {  # what a layer that goes shares with one that stays is cut all the same
        name: dims
        for name, dims in plan_cuts(graph, plan).items()
        if any(stays(same) is not None for same in (name, *aliases.get(name, ())))
    }
    step, before = Step(graph, plan), history_of(model)
    history = before.then(step)
    edits = _collect(model, graph, cuts, aliases)
    _check_codes(edits, anew)
    cut_in_place = _buffer_edits(model, graph, plan)
    scales = norm_scales(graph, plan)
    for edit in edits:
        edit.rescale = scales.get(edit.name, Rescale())
    edit_rules = rule_edits(model, all_changes(before, history, step))
    constants = constant_cuts(graph, plan)
    for path, _ in constants:
        resolve_module(model, path)
    features = [
        (layer, name, dim, len(kept), find_slot(model, name).tensor.ndim)
        for name, dims in cuts.items()
        for layer in adapter_layers(model, name)
        for dim, kept in dims.items()
    ]
    epsilons = [
        (plain(resolve_module(model, owner)), attribute, factor)
        for (owner, attribute), factor in norm_epsilons(graph, plan).items()
    ]
    stacks = stack_edits(model, graph, plan)
    edits = [*edits, *cut_in_place][::-1]
    while edits:
        follow(_apply(edits.pop()))
    for layer, name, dim, kept, ndim in features:
        update_features(layer, name, dim, kept, ndim)
    for edit_rule in edit_rules:
        edit_rule()
    for owner, attribute, factor in epsilons:
        setattr(owner, attribute, getattr(owner, attribute) * factor)
    install(model, constants)
    for slot in (slot for edit in cut_in_place for slot in edit.slots):
        watch(slot.module, slot.leaf, tuple(slot.tensor.shape))
    for stack_edit in stacks:
        stack_edit()
    remember(model, replace(history, stock=False, why_not=NOT_SETTLED))


def _aliases(graph: DependencyGraph) -> dict[str, list[str]]:
    """The other names of every tied tensor."""
    found: dict[str, list[str]] = {}
    for alias, name in graph.tied.items():
        found.setdefault(name, []).append(alias)
    return found


def _collect(model: nn.Module, graph: DependencyGraph, cuts: Cuts, aliases: dict[str, list[str]]) -> list[_Edit]:
    """What to cut, checked against the shapes that were traced; changes nothing."""
    held = _places(model)
    edits: dict[int, _Edit] = {}
    problems: list[str] = []
    for name, dims in cuts.items():
        for same in (name, *aliases.get(name, ())):
            try:
                slot = find_slot(model, same)
            except ReshapeError as error:
                if same == name:
                    problems.append(str(error))
                continue
            tensor, codes = slot.tensor, packed_in(slot.module, slot.leaf)
            problem = _misfit(name, tensor, codes, graph.shapes.get(name))
            if problem:
                problems.append(problem)
                continue
            edit = edits.setdefault(id(tensor), _Edit(same, tensor, held[id(tensor)], codes))
            edit.dims.update(dims)
        if not problems:
            _collect_adapters(model, name, dims, held, edits)
    if problems:
        raise ReshapeError("the model cannot be cut:\n" + "\n".join(f"  - {p}" for p in problems))
    return list(edits.values())


def _check_codes(edits: list[_Edit], anew: Callable[[nn.Module], None] | None) -> None:
    """Refuses 4-bit codes that cannot be cut exactly, or says which layers they are of."""
    packed = [(edit.name, edit.codes, uncuttable(edit.codes, edit.dims)) for edit in edits if edit.codes is not None]
    inexact = [(name, codes, why) for name, codes, why in packed if why]
    if inexact and anew is None:
        problems = (f"  - {_quantised(name, why)}" for name, _, why in inexact)
        raise ReshapeError("the model cannot be cut:\n" + "\n".join(problems))
    for _, codes, _ in inexact:
        assert anew is not None
        anew(codes.layer)


def _quantised(name: str, why: str) -> str:
    return f"'{name}' {why}. Load the model in its own precision, prune it, and quantise the result."


def _buffer_edits(model: nn.Module, graph: DependencyGraph, plan: PrunePlan) -> list[_Edit]:
    held = _places(model)
    cuts = buffer_cuts(model, graph, plan)
    tensors = {name: find_slot(model, name).tensor for name in cuts}
    return [_Edit(name, tensors[name], held[id(tensors[name])], dims=dims) for name, dims in cuts.items()]


def _collect_adapters(
    model: nn.Module,
    name: str,
    dims: dict[int, torch.Tensor],
    held: dict[int, list[Slot]],
    edits: dict[int, _Edit],
) -> None:
    slot = find_slot(model, name)
    codes = packed_in(slot.module, slot.leaf)
    shape = slot.tensor.shape if codes is None else codes.shape
    for dim, kept in dims.items():
        for follower in adapter_slots(model, name, dim):
            tensor = follower.slot.tensor
            edit = edits.setdefault(id(tensor), _Edit(f"adapter of {name}", tensor, held[id(tensor)]))
            edit.narrow(follower.dim, follower.spread(kept, shape[dim]))


def _misfit(name: str, tensor: torch.Tensor, codes: Packed | None, shape: tuple[int, ...] | None) -> str | None:
    if codes is None and isinstance(tensor, nn.Parameter) and not tensor.is_floating_point():
        return _quantised(name, f"is quantised ({tensor.dtype}); its codes cannot be cut exactly")
    found = tuple(tensor.shape if codes is None else codes.shape)
    if shape is not None and found != tuple(shape):
        return f"'{name}': expected shape {tuple(shape)}, which was traced, got {found}"
    return None


def _places(model: nn.Module) -> dict[int, list[Slot]]:
    """Every place in the model that holds a tensor, by the tensor's identity."""
    found: dict[int, list[Slot]] = {}
    for module in model.modules():
        for store in (module._parameters, module._buffers):
            for leaf, tensor in store.items():
                if tensor is not None:
                    found.setdefault(id(tensor), []).append(Slot(module, leaf))
    return found


@torch.no_grad()
def _apply(edit: _Edit) -> Replacement:
    old = edit.tensor
    new: Any = cut_tensor(old.detach(), edit.dims) if edit.codes is None else cut_codes(edit.codes, edit.dims)
    if edit.rescale.factor != 1.0:
        new = edit.rescale(new)
    if isinstance(old, nn.Parameter) and edit.codes is None:
        new = nn.Parameter(new, requires_grad=old.requires_grad)
        if old.grad is not None:
            new.grad = cut_tensor(old.grad, edit.dims)
    # Marks that frameworks leave on parameters; what a quantised one knows of its codes is new.
    new.__dict__.update({key: value for key, value in vars(old).items() if key not in vars(new)})
    for slot in edit.slots:
        slot.put(new)
        follow_sizes(slot.module, slot.leaf, tuple(old.shape), edit.dims)
    return Replacement(old, new, edit.dims)
