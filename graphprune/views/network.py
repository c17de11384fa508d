"""The dependency graph as a :class:`networkx.MultiDiGraph`, and as GraphML.

``docs/graph.md`` lists the nodes, the edges, and their attributes. Nothing of the graph is left out: whatever fields
groups and slices have are attributes here.
"""

from __future__ import annotations

import io
import json
import re
from math import prod
from typing import TYPE_CHECKING, Any

import networkx as nx
from pydantic import BaseModel

if TYPE_CHECKING:
    from graphprune.graph import Axis, DependencyGraph

# What XML cannot hold, not even escaped.
_NO_XML = re.compile("[^\t\n\r -\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")

UNTRACED = "the traced forward pass never used it"


def to_networkx(graph: DependencyGraph) -> nx.MultiDiGraph:
    """Nodes for groups, tensors, integers and constants; edges from each group to what it cuts or determines.

    Attributes are plain JSON values, so that ``networkx.node_link_data`` of the result can be dumped.
    """
    view = nx.MultiDiGraph(
        fingerprint=graph.fingerprint,
        layers=graph.layers,
        notes=list(graph.notes),
        declared=[d.model_dump(mode="json") for d in graph.declared],
    )
    for group in graph.groups:
        view.add_node(group.name, kind="group", **_fields(group, "members"))
    keys = _tensor_nodes(view, graph)
    for group in graph.groups:
        scales = {norm.tensor for norm in group.norms}
        for m in group.members:
            edge = {**_fields(m, "tensor"), "elements": elements(m), "rescaled": m.tensor in scales}
            view.add_edge(group.name, keys[m.tensor], relation="slice", **edge)
    _integer_nodes(view, graph)
    _constant_nodes(view, graph)
    return view


def graphml(graph: DependencyGraph) -> str:
    r"""The same nodes and edges as GraphML, for Gephi, yEd, Cytoscape or :func:`networkx.read_graphml`.

    Attributes are scalars there: lists and objects become JSON texts, and an attribute that is None is left out.
    Characters that XML cannot hold are written as in JSON, ``\u0001`` for example.
    """
    plain = nx.MultiDiGraph(**_scalars(graph.nx.graph))
    for node, attributes in graph.nx.nodes(data=True):
        plain.add_node(_text(node), **_scalars(attributes))
    for source, target, attributes in graph.nx.edges(data=True):
        plain.add_edge(_text(source), _text(target), **_scalars(attributes))
    buffer = io.BytesIO()
    nx.write_graphml(plain, buffer)
    return buffer.getvalue().decode("utf-8")


def elements(axis: Axis) -> int:
    """How many indices of the dimension one unit has."""
    return sum(prod(count for count, _ in block.loops) for block in axis.blocks)


def _tensor_nodes(view: nx.MultiDiGraph, graph: DependencyGraph) -> dict[str, str]:
    """Adds a node per tensor; returns their keys, which differ from the names where a group has the same name."""
    aliases: dict[str, list[str]] = {}
    for alias, name in graph.tied.items():
        aliases.setdefault(name, []).append(alias)
    untraced = set(graph.untraced)
    keys = {}
    for name in dict.fromkeys((*graph.shapes, *graph.untraced, *aliases)):
        shape = graph.shapes.get(name)
        keys[name] = f"{name} (tensor)" if name in graph.by_name else name
        view.add_node(
            keys[name],
            kind="tensor",
            name=name,
            shape=None if shape is None else list(shape),
            numel=None if shape is None else prod(shape),
            aliases=aliases.get(name, []),
            readers=list(graph.readers.get(name, ())),
            frozen=UNTRACED if name in untraced else None,
        )
    return keys


def _integer_nodes(view: nx.MultiDiGraph, graph: DependencyGraph) -> None:
    sizes = graph.sizes()
    for rule in graph.rules:
        node = f"integer {rule.owner}.{rule.attribute}, read by {rule.reader}"
        node += f", {rule.constant} {rule.terms}" if node in view else ""  # its readers disagree
        name = f"{rule.owner}.{rule.attribute}"
        view.add_node(node, kind="integer", name=name, value=rule.value(sizes), **_fields(rule))
        for group in dict.fromkeys(name for _, factors in rule.terms for name in factors):
            view.add_edge(group, node, relation="integer")


def _constant_nodes(view: nx.MultiDiGraph, graph: DependencyGraph) -> None:
    for constant in graph.constants:
        node = f"constant {constant.argument} of {constant.module}"
        name = f"{constant.module}.{constant.argument}".lstrip(".") if constant.buffer else None
        name = name or f"{constant.module}({constant.argument})"
        view.add_node(node, kind="constant", name=name, **_fields(constant, "group", "dim", "axis"))
        edge = {**_fields(constant.axis), "dim": constant.dim, "elements": elements(constant.axis)}
        view.add_edge(constant.group, node, relation="constant", **edge)


def _fields(value: BaseModel, *without: str) -> dict[str, Any]:
    return value.model_dump(mode="json", exclude=set(without))


def _scalars(attributes: dict[str, Any]) -> dict[str, Any]:
    packed = {k: json.dumps(v) if isinstance(v, list | dict) else v for k, v in attributes.items()}
    return {k: _text(v) if isinstance(v, str) else v for k, v in packed.items() if v is not None}


def _text(text: str) -> str:
    return _NO_XML.sub(lambda match: f"\\u{ord(match[0]):04x}", text)
