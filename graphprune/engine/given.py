"""Scores that a run is given instead of computing them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import torch

from graphprune.errors import PlanError, SpecError
from graphprune.graph import DependencyGraph
from graphprune.inventory import plural
from graphprune.schema import PruneSpec
from graphprune.score import check_finite
from graphprune.validate import resolve_targets


def check_mode(spec: PruneSpec) -> None:
    """Refuses given scores where a run looks at the model more than once.

    Raises:
        SpecError: in a joint run, with several rounds, and where every module is judged apart.
    """
    training = spec.training
    if training.mode == "joint":
        raise SpecError(
            "scores: expected training.mode none or separate, where units are judged once, got joint, which scores "
            "every optimizer step anew. Leave the scores out."
        )
    if not spec.coupled:
        raise SpecError(
            "scores: expected coupled: true, got false, which judges the modules of a group apart. Leave the scores "
            "out."
        )
    if training.rounds > 1:
        raise SpecError(
            f"scores: expected training.rounds 1, got {training.rounds}: every round scores what is left. Leave the "
            "scores out."
        )


def checked(scores: Mapping[str, torch.Tensor], spec: PruneSpec, graph: DependencyGraph) -> dict[str, torch.Tensor]:
    """The scores of the groups that the targets select, float32 on the CPU; others are left aside.

    Raises:
        PlanError: if a group has none, or of another shape.
        NonFiniteError: if one is NaN or infinite.
    """
    groups = [g for target in resolve_targets(spec, graph) for g in target.groups]
    missing = [g.name for g in groups if g.name not in scores]
    if missing:
        raise PlanError(
            f"scores: expected those of {plural(len(groups), 'group')}, which the targets select; {len(missing)} are "
            f"missing, '{missing[0]}' first. Give what gp.score computes with the same targets."
        )
    found = {}
    for group in groups:
        value = scores[group.name].detach().to("cpu", torch.float32)
        if value.shape != (group.size,):
            raise PlanError(
                f"scores: expected {group.size} for group '{group.name}', got a tensor of shape {tuple(value.shape)}"
            )
        check_finite(group, value)
        found[group.name] = value
    return found


def fingerprint(scores: Mapping[str, torch.Tensor] | None) -> str:
    """sha256 of scores; empty where there are none."""
    if scores is None:
        return ""
    digest = hashlib.sha256()
    for name, value in scores.items():
        digest.update(name.encode() + value.contiguous().numpy().tobytes())
    return digest.hexdigest()
