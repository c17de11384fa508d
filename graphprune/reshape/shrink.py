"""The graph of a model that has been cut: what :func:`graphprune.trace` would find there, without tracing.

Cut tensors close up, so the units that stay get new numbers and lie at new places. What follows from other things than
places (roles, reasons, minimums, integers as polynomials of sizes) stays what it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import torch

from graphprune.errors import GraphError
from graphprune.graph import Axis, ConstantSlice, DependencyGraph, Group, MaskSite, Member, SizeRule, Stack
from graphprune.plan import PrunePlan
from graphprune.reshape.cut import plan_cuts
from graphprune.reshape.refit import refit
from graphprune.reshape.stacks import removed_entries, renaming

Rename = Callable[[str], "str | None"]
Place = tuple[object, ...]
"""A dimension of something that several groups may cut: a tensor, a module's input, a call, a constant."""


def shrunk(graph: DependencyGraph, plan: PrunePlan) -> DependencyGraph:
    """The dependency graph of the model of ``graph`` after :func:`graphprune.reshape` with ``plan``.

    Groups keep their names, but for what layers that go take along: later layers move up. A group of which one unit is
    left stays in the graph; tracing the smaller model would not find it. What was declared by hand is part of the
    groups, and no longer listed.

    Raises:
        PlanError: if the plan was made for another graph.
        GraphError: if the units that stay of a group that may be pruned cannot be described by blocks any more, or the
            layers that stay depend on those that go.
    """
    return _Shrinking(graph, plan).graph()


def left_of(
    graph: DependencyGraph, done: PrunePlan, total: PrunePlan, small: DependencyGraph | None = None
) -> tuple[DependencyGraph, PrunePlan]:
    """What is left to do of ``total`` on a model from which ``done`` is gone: its graph, and a plan for that.

    Where the graph of that model is known already, it is ``small``.

    Raises:
        PlanError: if a plan was made for another graph.
        GraphError: as :func:`shrunk` does.
    """
    done.check(graph)
    total.check(graph)
    small, renamed = small or shrunk(graph, done), renaming(graph, done)
    removed: dict[str, list[int]] = {}
    for name, units in total.removed.items():
        now = renamed(name)
        if now in small.by_name:
            going = set(units)
            removed[now] = [new for new, old in enumerate(done.kept(name)) if old in going]
    plan = PrunePlan.remove(small, {name: units for name, units in removed.items() if units})
    return small, plan.model_copy(update={"notes": total.notes})


class _Shrinking:
    """The parts of :func:`shrunk`."""

    def __init__(self, graph: DependencyGraph, plan: PrunePlan) -> None:
        self._graph, self._plan = graph, plan
        self._renamed: Rename = renaming(graph, plan)
        self._cuts = plan_cuts(graph, plan)
        self._sizes = plan.sizes_after()
        self._kept = {g.name: plan.kept(g.name) for g in graph.groups}
        self._stays = self._places()
        depth = next((g.name for g in graph.groups if g.role == "layer"), None)
        self._layers_left = None if depth is None else self._kept[depth]

    def graph(self) -> DependencyGraph:
        """The new graph."""
        old = self._graph
        self._check_layers()
        groups = tuple(g for group in old.groups if (g := self._group(group)) is not None)
        names = {g.name for g in groups}
        return old.model_copy(
            update={
                "groups": groups,
                "rules": tuple(r for rule in old.rules if (r := self._rule(rule, names)) is not None),
                "constants": tuple(c for constant in old.constants for c in self._constant(constant)),
                "shapes": dict(self._shapes()),
                "tied": {new: first for a, b in old.tied.items() if (new := self._now(a)) and (first := self._now(b))},
                "untraced": tuple(self._renamed_all(old.untraced)),
                "readers": {n: tuple(self._renamed_all(r)) for t, r in old.readers.items() if (n := self._now(t))},
                "layers": old.layers if self._layers_left is None else len(self._layers_left),
                "declared": (),
            }
        )

    def _check_layers(self) -> None:
        """Refuses layers to go whose absence changes more than the names and numbers of what stays.

        Raises:
            GraphError: if a layer that stays computes with weights that are known by the name of one that goes, or if a
                module counts calls over all of its layers.
        """
        lists = [stack.path for stack, _ in removed_entries(self._graph, self._plan)]
        if not lists:
            return
        problem = ""
        for other, first in self._graph.tied.items():
            if self._now(first) is None and self._now(other) is not None:
                problem = f"'{other}' is '{first}', which goes with its layer"
        for group in self._graph.groups:
            for site in group.sites if group.frozen is None else ():
                if site.call and any(path.startswith(f"{site.module}.") for path in lists):
                    problem = f"'{site.module}' counts its calls of {site.function} over all layers, also those that go"
        if problem:
            raise GraphError(f"the smaller model has no graph by arithmetic: {problem}. Trace it anew.")

    def _now(self, name: str) -> str | None:
        return self._renamed(name)

    def _renamed_all(self, names: Iterable[str]) -> Iterator[str]:
        yield from (new for name in names if (new := self._renamed(name)) is not None)

    def _removed(self, group: str) -> tuple[int, ...]:
        return self._plan.removed.get(group, ())

    def _places(self) -> dict[Place, torch.Tensor]:
        """Of every dimension that is cut, which indices stay: of tensors, and of what masks and constants speak of."""
        stays: dict[Place, torch.Tensor] = {}
        for tensor, dims in self._cuts.items():
            for dim, kept in dims.items():
                stays["weight", tensor, dim] = _flags(kept, self._graph.shapes[tensor][dim])
        for group in self._graph.groups:
            for site in group.sites:
                if site.kind not in ("weight", "skip"):
                    self._narrow(stays, _place(site), site.axis, self._removed(group.name))
        for constant in self._graph.constants:
            self._narrow(stays, _place(constant), constant.axis, self._removed(constant.group))
        return stays

    def _narrow(self, stays: dict[Place, torch.Tensor], place: Place, axis: Axis, removed: tuple[int, ...]) -> None:
        if removed:
            mine = ~torch.isin(axis.unit_of(), torch.tensor(removed))
            stays[place] = stays[place] & mine if place in stays else mine

    def _tensor_stays(self, tensor: str, dim: int) -> torch.Tensor | None:
        tensor = self._graph.tied.get(tensor, tensor)
        ndim = max(1, len(self._graph.shapes.get(tensor, ())))
        return self._stays.get(("weight", tensor, dim % ndim))

    def _site_stays(self, group: Group, site: MaskSite) -> torch.Tensor | None:
        """What stays of a site's dimension.

        What all groups masked there keep, and all groups that cut the same axis of a tensor of that module.
        """
        if site.kind == "weight":
            return self._tensor_stays(site.module, site.dim)
        stays = self._stays.get(_place(site))
        for member in group.members if site.kind == "input" else ():
            if member.tensor.rpartition(".")[0] == site.module and _same_axis(member, site.axis):
                other = self._tensor_stays(member.tensor, member.dim)
                if other is not None:
                    stays = other if stays is None else stays & other
        return stays

    def _group(self, group: Group) -> Group | None:
        name = self._now(group.name)
        members = tuple(m for member in group.members for m in self._member(group, member))
        if name is None or (group.members and not members):
            return None
        return group.model_copy(
            update={
                "name": name,
                "size": self._sizes[group.name],
                "layer": self._layer(group.layer),
                "members": members,
                "sites": tuple(s for site in group.sites for s in self._site(group, site)),
                "essential": self._essential(group),
                "norms": tuple(
                    norm.model_copy(update={"tensor": tensor, "owner": self._now(norm.owner) or ""})
                    for norm in group.norms
                    if (tensor := self._now(norm.tensor)) is not None
                ),
                "stacks": tuple(self._stack(group, stack) for stack in group.stacks),
            }
        )

    def _member(self, group: Group, member: Member) -> Iterator[Member]:
        tensor = self._now(member.tensor)
        axis = self._axis(group, member, self._tensor_stays(member.tensor, member.dim), member.tensor)
        if tensor is not None and axis is not None:
            yield member.model_copy(update={"tensor": tensor, **_fields(axis)})

    def _site(self, group: Group, site: MaskSite) -> Iterator[MaskSite]:
        module, reader = self._now(site.module), self._now(site.reader)
        axis = self._axis(group, site.axis, self._site_stays(group, site), site.module)
        if module is not None and reader is not None and axis is not None:
            yield site.model_copy(update={"module": module, "reader": reader, "axis": axis})

    def _constant(self, constant: ConstantSlice) -> Iterator[ConstantSlice]:
        group, module = self._now(constant.group), self._now(constant.module)
        old = self._graph.by_name[constant.group]
        axis = self._axis(old, constant.axis, self._stays.get(_place(constant)), constant.module)
        if group is not None and module is not None and axis is not None:
            yield constant.model_copy(update={"group": group, "module": module, "axis": axis})

    def _axis(self, group: Group, axis: Axis, stays: torch.Tensor | None, where: str) -> Axis | None:
        """Where the units that stay lie now; None where they have no part in it."""
        removed = self._removed(group.name)
        if axis.only is not None and axis.only in removed:
            return None
        if stays is None:
            if not removed:
                return axis
            stays = torch.ones(axis.length, dtype=torch.bool)
            if axis.only is None:
                stays = ~torch.isin(axis.unit_of(), torch.tensor(removed))
        found = refit(axis, self._kept[group.name], stays)
        if found is None and group.frozen is None:
            raise GraphError(
                f"group '{group.name}': the units that stay do not lie evenly in '{where}' once the others are gone, "
                "so the smaller model has no graph by arithmetic. Trace it anew."
            )
        return found

    def _essential(self, group: Group) -> tuple[tuple[int, ...], ...]:
        new = {old: i for i, old in enumerate(self._kept[group.name])}
        sets = (tuple(new[u] for u in units if u in new) for units in group.essential)
        return tuple(units for units in sets if units)

    def _stack(self, group: Group, stack: Stack) -> Stack:
        path = self._now(stack.path)
        return stack.model_copy(update={"path": path, "size": stack.size - len(self._removed(group.name))})

    def _layer(self, layer: int | None) -> int | None:
        left = self._layers_left
        if layer is None or left is None:
            return layer
        return left.index(layer) if layer in left else None

    def _rule(self, rule: SizeRule, names: set[str]) -> SizeRule | None:
        """Groups that went with a layer become numbers; a rule about nothing else says nothing any more."""
        owner, reader = self._now(rule.owner), self._now(rule.reader)
        if owner is None or reader is None:
            return None
        constant, terms = rule.constant, []
        for coefficient, groups in rule.terms:
            left = []
            for group in groups:
                now = self._now(group)
                if now in names:
                    left.append(now)
                else:
                    coefficient *= self._sizes[group]
            if left:
                terms.append((coefficient, tuple(left)))
            else:
                constant += coefficient
        if not terms:
            return None
        return rule.model_copy(update={"owner": owner, "reader": reader, "constant": constant, "terms": tuple(terms)})

    def _shapes(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        for name, shape in self._graph.shapes.items():
            now = self._now(name)
            if now is not None:
                dims = self._cuts.get(self._graph.tied.get(name, name), {})
                yield now, tuple(len(dims[d]) if d in dims else n for d, n in enumerate(shape))


def _place(thing: MaskSite | ConstantSlice) -> Place:
    if isinstance(thing, ConstantSlice):
        return "constant", thing.module, thing.argument, thing.dim
    return thing.kind, thing.module, thing.function, thing.call, thing.dim


def _same_axis(left: Axis, right: Axis) -> bool:
    return left.length == right.length and left.size == right.size and left.blocks == right.blocks


def _fields(axis: Axis) -> dict[str, object]:
    return {"size": axis.size, "length": axis.length, "blocks": axis.blocks, "only": axis.only}


def _flags(kept: torch.Tensor, length: int) -> torch.Tensor:
    flags = torch.zeros(length, dtype=torch.bool)
    flags[kept] = True
    return flags
