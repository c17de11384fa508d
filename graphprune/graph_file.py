"""Dependency graphs as JSON files: one group a line, checked when they are read."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from graphprune.errors import GraphError
from graphprune.files import write_whole

if TYPE_CHECKING:
    from graphprune.graph import Axis, DependencyGraph, Member

FORMAT = 1
"""Of the file. A later one says so, and is refused instead of misread."""

_MOST = 10  # problems that are listed


def text_of(graph: DependencyGraph) -> str:
    """The graph as JSON, with one group, rule, shape, … a line."""
    head = {"format": FORMAT, "fingerprint": graph.fingerprint}
    fields = {**head, **graph.model_dump(mode="json")}
    return "{\n" + ",\n".join(f"{json.dumps(name)}: {_lines(value)}" for name, value in fields.items()) + "\n}\n"


def save_graph(graph: DependencyGraph, file: str | os.PathLike[str]) -> None:
    """Writes the graph, whole or not at all; see :meth:`graphprune.DependencyGraph.save`."""
    try:
        write_whole(Path(file), text_of(graph))
    except OSError as error:
        raise GraphError(f"cannot write the graph to {file}: {error.strerror}. Does the folder exist?") from None


def load_graph(kind: type[DependencyGraph], file: str | os.PathLike[str]) -> DependencyGraph:
    """Reads a graph; see :meth:`graphprune.DependencyGraph.load`."""
    path = Path(file)
    fields = _read(path)
    found, stated = fields.pop("format", FORMAT), fields.pop("fingerprint", None)
    if found != FORMAT:
        raise GraphError(
            f"{path}: expected a graph of format {FORMAT}, got format {found!r}. It was written by another version of "
            "graphprune: trace the model again, or read it with that version."
        )
    try:
        # Through JSON: only there does pydantic take the lists of a file for the tuples of a value.
        graph = kind.model_validate_json(json.dumps(fields))
    except ValidationError as error:
        faults = [": ".join([".".join(map(str, e["loc"])), e["msg"]]) for e in error.errors()]
        raise GraphError(_told(path, "it is no dependency graph", faults)) from None
    faults = list(problems(graph))
    if faults:
        raise GraphError(_told(path, "it contradicts itself", faults))
    if stated is not None and stated != graph.fingerprint:
        raise GraphError(
            f"{path}: expected a graph with the fingerprint {stated} that the file states, got {graph.fingerprint}. "
            "It was edited, or written by another version of graphprune: trace the model again, or delete the "
            "'fingerprint' in the file if the changes are wanted."
        )
    return graph


def problems(graph: DependencyGraph) -> Iterator[str]:
    """What contradicts itself: slices outside of their tensors, names of nothing."""
    names = graph.by_name
    if len(names) != len(graph.groups):
        yield f"groups: expected distinct names, got {len(graph.groups)} groups with {len(names)} names"
    for group in graph.groups:
        for member in group.members:
            fault = _misplaced(member, group.size, graph.shapes.get(member.tensor))
            if fault is not None:
                yield f"group '{group.name}', tensor '{member.tensor}': {fault}"
    for rule in graph.rules:
        for missing in {name for _, factors in rule.terms for name in factors} - set(names):
            yield f"rule of {rule.owner}.{rule.attribute}: no group '{missing}'"
    for constant in graph.constants:
        if constant.group not in names:
            yield f"constant of {constant.module}: no group '{constant.group}'"


def _misplaced(member: Member, size: int, shape: tuple[int, ...] | None) -> str | None:
    """Why a slice is none of a tensor of that shape, by a group of that size; None if it is."""
    if shape is None:
        return "'shapes' does not list this tensor"
    shape = shape or (1,)  # a scalar is a vector of length 1
    if not 0 <= member.dim < len(shape):
        return f"expected a dimension in 0..{len(shape) - 1}, got {member.dim}"
    if member.length != shape[member.dim]:
        return f"expected length {shape[member.dim]} of dimension {member.dim}, got {member.length}"
    if member.size != size:
        return f"expected the group's {size} units, got {member.size}"
    return None if _inside(member) else f"its blocks lie outside of 0..{member.length - 1}"


def _inside(axis: Axis) -> bool:
    """Whether the first and the last index of every block are indices of the dimension."""
    units = 1 if axis.only is not None else axis.size
    spans = [
        (
            min(0, b.unit_stride * (units - 1)) + b.start + sum(min(0, (n - 1) * step) for n, step in b.loops),
            max(0, b.unit_stride * (units - 1)) + b.start + sum(max(0, (n - 1) * step) for n, step in b.loops),
        )
        for b in axis.blocks
    ]
    return all(low >= 0 and high < axis.length for low, high in spans)


def _read(path: Path) -> dict[str, Any]:
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise GraphError(f"no graph file at {path}; graphs are written by DependencyGraph.save") from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise GraphError(_told(path, "it cannot be read as JSON", [str(error)])) from None
    if not isinstance(fields, dict):
        raise GraphError(_told(path, "it is no dependency graph", [f"expected an object, got {type(fields).__name__}"]))
    return fields


def _told(path: Path, what: str, faults: list[str]) -> str:
    more = f"; and {len(faults) - _MOST} more" if len(faults) > _MOST else ""
    return f"{path}: {what}: {'; '.join(faults[:_MOST])}{more}. Trace the model again and save its graph."


def _lines(value: Any) -> str:
    """JSON with the items of an outermost list or object a line each."""
    if isinstance(value, list) and value:
        return "[\n" + ",\n".join(_compact(item) for item in value) + "\n]"
    if isinstance(value, dict) and value:
        return "{\n" + ",\n".join(f"{json.dumps(k)}: {_compact(v)}" for k, v in value.items()) + "\n}"
    return json.dumps(value)


def _compact(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
