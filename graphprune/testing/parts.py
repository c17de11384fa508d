"""What ought to be prunable, told by module names: a second opinion, independent of the tracer.

A tracer that overlooks something reports nothing. The names of modules say what is there: every attention, MLP, set of
experts and mixer that runs must have groups of its roles.
"""

from __future__ import annotations

import fnmatch
import functools
import re
from collections.abc import Iterator, Mapping
from importlib import resources
from typing import Any

import torch
import yaml
from pydantic import BaseModel, ConfigDict
from torch import nn

from graphprune.graph import DependencyGraph, Group, Value
from graphprune.prove.subject import logits_of


class Part(BaseModel):
    """How modules of one kind are recognised, and the roles that they must have; see ``expected.yaml``."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)

    part: str
    class_: str = ""
    name: str = ""
    has: tuple[str, ...] = ()
    without: tuple[str, ...] = ()
    roles: tuple[str, ...]

    def fits(self, path: str, module: nn.Module) -> bool:
        """Whether the module at ``path`` is such a part."""
        children = [name for name, _ in module.named_children()]
        return (
            re.search(self.class_, type(module).__name__) is not None
            and re.search(self.name, path.rpartition(".")[2]) is not None
            and all(any(re.search(wanted, child) for child in children) for wanted in self.has)
            and not any(re.search(unwanted, child) for child in children for unwanted in self.without)
        )


class Expected(BaseModel):
    """The shipped data; see ``specs/architectures/expected.yaml``."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    parts: tuple[Part, ...]
    model: tuple[str, ...]


class PartRow(Value):
    """The parts of one kind in a model, and what the graph has of one of their roles.

    Attributes:
        part: the kind of part, in words.
        role: as expected; may have wildcards.
        count: how many parts run.
        prunable: how many of them have a group of that role that is not frozen.
        frozen: how many have only frozen ones.
        missing: paths of those that have none.
        reasons: why groups are frozen.
    """

    part: str
    role: str
    count: int
    prunable: int
    frozen: int
    missing: tuple[str, ...] = ()
    reasons: tuple[str, ...] = ()


@functools.cache
def expected() -> Expected:
    """The shipped data."""
    file = resources.files("graphprune.specs") / "architectures" / "expected.yaml"
    read: dict[str, Any] = yaml.safe_load(file.read_text(encoding="utf-8"))
    for part in read["parts"]:
        part["class_"] = part.pop("class", "")
    return Expected.model_validate(read)


def parts_of(model: nn.Module, graph: DependencyGraph, inputs: Mapping[str, Any]) -> tuple[PartRow, ...]:
    """What the modules of ``model`` lead one to expect, and what ``graph`` has of it."""
    running = _running(model, inputs)
    rows: dict[tuple[str, str], list[tuple[str, list[Group]]]] = {}
    for path, part in _parts(model):
        if path in running:
            for role in part.roles:
                rows.setdefault((part.part, role), []).append((path, _below(model, graph, role, path)))
    for role in expected().model:
        rows["model", role] = [("", _below(model, graph, role, ""))]
    return tuple(_row(part, role, found) for (part, role), found in rows.items())


def _parts(model: nn.Module) -> Iterator[tuple[str, Part]]:
    """The innermost module of every kind, with what it is."""
    found: dict[str, Part] = {}
    for path, module in model.named_modules():
        part = next((p for p in expected().parts if p.fits(path, module)), None)
        if part is not None:
            found[path] = part
    for path, part in found.items():
        inner = (other for other, kind in found.items() if other.startswith(f"{path}.") and kind.part == part.part)
        if next(inner, None) is None:
            yield path, part


def _below(model: nn.Module, graph: DependencyGraph, role: str, path: str) -> list[Group]:
    """The groups of a role that run through a tensor of the module at ``path``."""
    module = model.get_submodule(path)
    names = [name for name, _ in (*module.named_parameters(), *module.named_buffers())]
    full = {f"{path}.{name}" if path else name for name in names}
    tensors = {graph.tied.get(name, name) for name in full}
    wanted = [g for g in graph.groups if any(fnmatch.fnmatch(g.role, one) for one in role.split("|"))]
    return [g for g in wanted if any(graph.tied.get(m.tensor, m.tensor) in tensors for m in g.members)]


def _row(part: str, role: str, found: list[tuple[str, list[Group]]]) -> PartRow:
    prunable = [path for path, groups in found if any(g.frozen is None for g in groups)]
    missing = [path for path, groups in found if not groups]
    reasons = {g.frozen for path, groups in found if path not in prunable for g in groups if g.frozen}
    return PartRow(
        part=part,
        role=role,
        count=len(found),
        prunable=len(prunable),
        frozen=len(found) - len(prunable) - len(missing),
        missing=tuple(missing),
        reasons=tuple(sorted(reasons)),
    )


@torch.no_grad()
def _running(model: nn.Module, inputs: Mapping[str, Any]) -> set[str]:
    """Paths of the modules that a forward pass runs, or inside which it runs one."""
    seen: set[str] = set()

    def note(path: str) -> None:
        while path not in seen:
            seen.add(path)
            path = path.rpartition(".")[0]

    handles = [
        module.register_forward_pre_hook(lambda *_, path=path: note(path)) for path, module in model.named_modules()
    ]
    try:
        logits_of(model, inputs)
    finally:
        for handle in handles:
            handle.remove()
    return seen
