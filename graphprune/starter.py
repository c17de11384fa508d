"""A commented spec to start from, written from what the graph of a model shows."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from typing import Any

import yaml
from pydantic import BaseModel

from graphprune.errors import SelectionError
from graphprune.graph import DependencyGraph, Group
from graphprune.importance import criteria
from graphprune.inventory import RoleRow, inventory, plural
from graphprune.schema import Export, Lora, PruneSpec, Schedule, Target, Training

#: What most published methods prune; with a single KV head (multi-query attention) its query heads instead.
_USUAL = ("attention.group", "mlp.channel", "moe.channel")
_TARGETS = (
    "What to remove: ratio (a fraction), count (units of every group) or keep (units that stay). Add layers: "
    "'3:-1' to spare the first three layers and the last, which most models need most. Only targets are required."
)
_DATA = (
    "Text to train and calibrate on, here or as --data: one of text (a file), jsonl (a file; field: its field) "
    "and dataset (a hub id or a folder). evaluation: a file whose perplexity is reported."
)
_WIDTH = 100


def starter_spec(graph: DependencyGraph, model_name: str, positions: int | None = None, *, trains: bool = True) -> str:
    """A YAML spec for the model: the usual targets, every other role as a comment, every setting explained.

    :func:`graphprune.load_spec` accepts it and :func:`graphprune.validate.check` passes it for this graph.

    Args:
        graph: of the model.
        model_name: hub id or folder, for the comment at the top.
        positions: the tokens that the model can read at once; training sequences are no longer.
        trains: whether text gives the model a loss. If not, weights alone are judged, and pruning is all.

    Raises:
        SelectionError: if the graph has no group that can be pruned.
    """
    rows = inventory(graph)
    targets = list(_targets(rows))
    if not targets:
        reasons = "; ".join(f"{row.role}: {row.frozen or 'too few units'}" for row in rows) or "no groups at all"
        raise SelectionError(f"'{model_name}' has nothing that can be pruned: {reasons}")
    parts = [
        _head(rows, model_name, trains=trains),
        "\n".join([*_comment(_TARGETS), "targets:", *targets]),
        *(_settings(positions) if trains else _one_shot()),
        _section("export", Export()),
        f"# {_description(PruneSpec, 'seed')}\nseed: 0",
    ]
    return "\n\n".join(parts) + "\n"


def _head(rows: tuple[RoleRow, ...], model_name: str, *, trains: bool) -> str:
    lines = [
        f"# A spec for {' '.join(model_name.split())}, written by `graphprune init`.",
        "#",
        "#     graphprune validate SPEC MODEL",
        f"#     graphprune prune MODEL SPEC {'--data calibration.txt ' if trains else ''}--out FOLDER",
        "#",
        "# What the model has:",
    ]
    for row in rows:
        told = f"#   {row.role}: {plural(row.count, 'group')} of {row.sizes} units, {row.where}"
        lines.append(told + ("" if row.frozen is None else "; must not be pruned"))
        if row.frozen is not None:
            lines += _comment(row.frozen, indent="#     ")
        elif row.inexact is not None:
            lines += _comment(f"removal is not the same as masking: {row.inexact}", indent="#     ")
    return "\n".join(lines)


def _targets(rows: tuple[RoleRow, ...]) -> list[str]:
    """One line per role that can lose units; those that are not usually pruned as comments."""
    roles = dict.fromkeys(row.role for row in rows if row.frozen is None)
    groups = {role: [g for row in rows if row.role == role and not row.frozen for g in row.groups] for role in roles}
    ratios = {role: _ratio(groups[role]) for role in roles}
    usable = [role for role in roles if ratios[role] is not None]
    usual = _USUAL if "attention.group" in usable else ("attention.query", *_USUAL)
    chosen = {role for role in usable if role in usual} or set(usable[:1])
    lines = []
    for role in usable:
        multiple = _multiple(groups[role])
        rounding = f", multiple_of: {multiple}" if multiple > 1 else ""
        lines.append(f"  {'' if role in chosen else '# '}- {{role: {role}, ratio: {ratios[role]}{rounding}}}")
    return lines


def _ratio(groups: list[Group]) -> float | None:
    """A moderate ratio that removes something and respects every group's minimum."""
    for ratio in (0.25, 0.5, 0.125):
        target = Target(role="any", ratio=ratio)
        kept = [(target.kept(g.size), g) for g in groups]
        if all(k >= g.minimum for k, g in kept) and any(k < g.size for k, g in kept):
            return ratio
    return None


def _multiple(groups: list[Group]) -> int:
    """Widths that hardware likes, where all groups are wide enough for it not to matter otherwise."""
    return next((m for m in (64, 32, 16, 8) if all(g.size % m == 0 and g.size >= 16 * m for g in groups)), 1)


def _settings(positions: int | None) -> Iterator[str]:
    yield "\n".join([*_comment(_description(PruneSpec, "scope")), "scope: layer"])
    names = ", ".join(criteria.names())
    lines = _comment(f"How importance is judged: {names}. 'average' is the weight of the past in the scores.")
    yield "\n".join([*lines, "criterion: {name: lora, average: 0.9}"])
    yield _section("schedule", Schedule())
    yield _section("lora", Lora())
    yield "\n".join([*_comment(_description(PruneSpec, "quantization")), "# quantization: nf4"])
    length = min(Training().sequence_length, positions or Training().sequence_length)
    yield _section("training", Training(sequence_length=length))
    yield "\n".join([*_comment(_DATA), "# data: {text: calibration.txt, evaluation: held_out.txt}"])


def _one_shot() -> Iterator[str]:
    yield "\n".join([*_comment(_description(PruneSpec, "scope")), "scope: layer"])
    told = "How importance is judged: by weights alone, because text gives a model of this kind no loss."
    yield "\n".join([*_comment(told), "criterion: {name: magnitude}"])
    yield "\n".join([*_comment("Everything is removed at once, and nothing is tuned."), "training: {mode: none}"])


def _section(name: str, value: BaseModel) -> str:
    """A part of the spec with its defaults, each under its description."""
    lines = [*_comment(_description(PruneSpec, name)), f"{name}:"]
    for key, default in value.model_dump(mode="json").items():
        lines += _comment(_description(type(value), key), indent="  # ")
        lines.append(f"  {key}: {_scalar(default)}")
    return "\n".join(lines)


def _description(model: type[BaseModel], key: str) -> str:
    return model.model_fields[key].description or ""


def _comment(text: str, indent: str = "# ") -> list[str]:
    return textwrap.wrap(" ".join(text.split()), _WIDTH, initial_indent=indent, subsequent_indent=indent)


def _scalar(value: Any) -> str:
    return yaml.safe_dump(value, default_flow_style=True).removesuffix("...\n").strip()
