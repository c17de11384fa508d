"""The dependency graph in the DOT language of Graphviz: boxes for tensors, rounded for groups, a frame per layer."""

from __future__ import annotations

import textwrap
from dataclasses import dataclass, field

from graphprune.graph import DependencyGraph, Group, Member
from graphprune.inventory import layers_text
from graphprune.views.fold import LAYER, Fold, fold_of, kinds

# Blue, orange and grey are told apart by everybody, and line styles say the same again.
_FATES = {
    "exact": 'color="#0072b2", fillcolor="#d6e9f5"',
    "inexact": 'color="#b35900", fillcolor="#fde8cf"',
    "frozen": 'color="#777777", fillcolor="#eeeeee", style="rounded,filled,dashed"',
}

_HEAD = """digraph graphprune {
  graph [rankdir=LR, compound=true, fontname="Helvetica", labelloc=t, nodesep=0.15, ranksep=1.1, label=%s];
  node [fontname="Helvetica", fontsize=11, shape=box, margin="0.12,0.05"];
  edge [fontname="Helvetica", fontsize=9, color="#555555"];"""


def dot(graph: DependencyGraph, *, each_layer: bool = False) -> str:
    """The graph as DOT text, for ``dot -Tsvg``.

    An edge leads from a group to each tensor that it cuts and names the dimension; it is drawn with a hollow head where
    the tensor sums over that dimension.

    Args:
        graph: any graph.
        each_layer: draw every layer, instead of one layer for all that are alike.
    """
    shown = kinds(graph)
    if each_layer:
        shown = tuple((layer,) for alike in shown for layer in alike)
    drawing = _Drawing(graph, fold_of(graph), shown)
    title = f"{graph}\nfingerprint {graph.fingerprint}"
    return "\n".join([_HEAD % quoted(title), *drawing.frames(), *drawing.edges(), "}"]) + "\n"


def quoted(text: str) -> str:
    """A DOT string that is shown as ``text``: quotes and backslashes escaped, line ends kept."""
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") + '"'


@dataclass
class _Drawing:
    """What is drawn of a graph: everything outside of the layers, and the first layer of each kind."""

    graph: DependencyGraph
    fold: Fold
    shown: tuple[tuple[int, ...], ...]
    _tensors: dict[str, str] = field(default_factory=dict)
    _groups: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        firsts = {None, *(alike[0] for alike in self.shown)}
        drawn = [t for t in self._all_tensors() if self._layer(t) in firsts]
        self._tensors = {t: f"t{i}" for i, t in enumerate(drawn)}
        self._groups = {g.name: f"g{i}" for i, g in enumerate(self.graph.groups) if g.layer in firsts}

    def frames(self) -> list[str]:
        """The nodes: those outside of the layers, then one frame per kind of layer."""
        lines = ["", *(f"  {line}" for line in self._nodes(None))]
        for index, alike in enumerate(self.shown):
            count = f"  ({len(alike)} alike)" if len(alike) > 1 else ""
            frame = f'label={quoted(layers_text(alike) + count)}; style="rounded"; color="#999999"; fontsize=14;'
            lines += ["", f"  subgraph cluster_{index} {{", f"    {frame}"]
            lines += [*(f"    {line}" for line in self._nodes(alike[0])), "  }"]
        return lines

    def edges(self) -> list[str]:
        """From every drawn group to the drawn tensors that it cuts, and to the integers that follow it."""
        lines = [""]
        for group in self.graph.groups:
            if group.name not in self._groups:
                continue
            if group.members and any(m.only is not None for m in group.members):
                lines += self._frame_edges(group)
            else:
                lines += [self._edge(group, m) for m in group.members if m.tensor in self._tensors]
        for index, rule in enumerate(self.graph.rules):
            if self._drawn_rule(rule.reader):
                for name in dict.fromkeys(n for _, factors in rule.terms for n in factors):
                    if name in self._groups:
                        lines.append(f"  {self._groups[name]} -> r{index} [style=dotted, arrowhead=none];")
        return lines

    def _nodes(self, layer: int | None) -> list[str]:
        lines = [_group_node(g, self._groups[g.name]) for g in self.graph.groups if g.layer == layer and self._has(g)]
        lines += [self._tensor_node(t) for t in self._tensors if self._layer(t) == layer]
        for index, rule in enumerate(self.graph.rules):
            if self._drawn_rule(rule.reader) and self.fold.split(rule.reader)[1] == layer:
                name = f"{self._short(rule.owner)}.{rule.attribute}".lstrip(".")
                label = quoted(f"{name} = {rule.value(self.graph.sizes())}")
                lines.append(f'r{index} [shape=note, fontsize=9, color="#999999", label={label}];')
        return lines

    def _tensor_node(self, tensor: str) -> str:
        shape = " × ".join(map(str, self.graph.shapes.get(tensor, ()))) or "scalar"
        unused = tensor in self.graph.untraced
        label = quoted(f"{self._short(tensor)}\n{shape}" + ("\nnever used by the traced forward" if unused else ""))
        return f"{self._tensors[tensor]} [label={label}{', style=dashed' if unused else ''}];"

    def _edge(self, group: Group, member: Member) -> str:
        head = "empty" if member.consumes else "normal"
        style = f'label="dim {member.dim}", arrowhead={head}'
        if group.layer is None:
            style += ', color="#bbbbbb", fontcolor="#888888"'
        return f"  {self._groups[group.name]} -> {self._tensors[member.tensor]} [{style}];"

    def _frame_edges(self, group: Group) -> list[str]:
        """Where a unit is a whole layer: one edge to each frame instead of one to everything in it."""
        lines: list[str] = []
        ends: dict[int | None, str] = {}
        for member in group.members:
            if member.tensor in self._tensors:
                ends.setdefault(self._layer(member.tensor), self._tensors[member.tensor])
        frames = {alike[0]: f"cluster_{index}" for index, alike in enumerate(self.shown)}
        for layer, tensor in ends.items():
            head = f", lhead={frames[layer]}" if layer in frames else ""
            lines.append(f'  {self._groups[group.name]} -> {tensor} [label="whole", style=bold{head}];')
        return lines

    def _all_tensors(self) -> list[str]:
        members = (m.tensor for g in self.graph.groups for m in g.members)
        return list(dict.fromkeys((*self.graph.shapes, *members)))

    def _layer(self, tensor: str) -> int | None:
        layer = self.fold.split(tensor)[1]
        return layer if layer is None or layer < self.graph.layers else None

    def _has(self, group: Group) -> bool:
        return group.name in self._groups

    def _drawn_rule(self, reader: str) -> bool:
        return self.fold.split(reader)[1] in {None, *(alike[0] for alike in self.shown)}

    def _short(self, name: str) -> str:
        """The name inside its layer's frame."""
        return self.fold.split(name)[0].removeprefix(f"{self.fold.stack}.{LAYER}").lstrip(".")


def _group_node(group: Group, node: str) -> str:
    fate = "frozen" if group.frozen is not None else "exact" if group.exact else "inexact"
    reason = group.frozen or group.inexact_reason or ""
    label = quoted(f"{group.role}\n{group.size} units, {fate}")
    style = _FATES[fate] if fate == "frozen" else f'{_FATES[fate]}, style="rounded,filled"'
    tooltip = quoted("\n".join([group.name, *textwrap.wrap(reason, 60)]))
    return f"{node} [{style}, label={label}, tooltip={tooltip}];"
