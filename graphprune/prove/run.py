"""``prove``: every kind of group a model has, tried on the model itself."""

from __future__ import annotations

import fnmatch
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from graphprune.evaluating import evaluating
from graphprune.graph import DependencyGraph
from graphprune.inventory import RoleRow, inventory
from graphprune.prove import subject
from graphprune.prove.plans import together, trials
from graphprune.prove.proof import Proof, ProofRow
from graphprune.prove.steps import Findings, Subject
from graphprune.trace import trace


def prove(
    model: nn.Module,
    graph: DependencyGraph | None = None,
    *,
    inputs: Mapping[str, Any] | None = None,
    seed: int = 0,
    share: float = 0.25,
    tolerance: float = 1e-5,
    roles: str | None = None,
    generate: bool = False,
    reload: bool | Collection[str] = False,
) -> Proof:
    """Proves on ``model`` that removing units is what silencing them is; the model is left as it was.

    Every kind of group (role and fate) that is not frozen is pruned at random: one unit and a share, in one layer and
    in all, and then all kinds together. The masked model and a reshaped copy must give the same logits, and under the
    mask no removed slice may have a gradient. Kinds that the graph calls inexact may differ; by how much is reported.
    A step that raises disproves its kind only.

    Args:
        model: any model the graph belongs to, with weights; 16-bit weights are proved on a copy in float32.
        graph: its dependency graph; traced where it is not given.
        inputs: keyword arguments of its forward; by default two random sequences of token ids.
        seed: of inputs and plans.
        share: of the units that the larger plans remove, above 0 and below 1.
        tolerance: how far logits may be apart, as a fraction of the largest one. Where a model amplifies rounding
            beyond that, ten times what one unit in the last place of its weights changes is allowed.
        roles: prove only kinds of these roles (shell wildcards), each by itself.
        generate: also generate eight greedy tokens with a cache, after a prompt longer than any sliding window.
        reload: also save the reshaped copy into a temporary folder and load it again; every kind, or those of the given
            roles (``"together"``: all kinds at once).

    Raises:
        TraceError: if the model has to be traced and cannot be.
        GraphPruneError: if no inputs are given and none can be made, or the forward gives no logits.
    """
    graph = trace(model, example_inputs=inputs) if graph is None else graph
    model = subject.in_float32(model)
    with evaluating(model), torch.no_grad():
        length = _length(model, _SHORT)
        given = dict(inputs) if inputs is not None else subject.random_inputs(model, seed, length=length)
        prompt = (given if inputs is not None else _prompt(model, seed)) if generate else None
        asked = Subject(
            model=model,
            graph=graph,
            inputs=given,
            dense=subject.logits_of(model, given),
            seed=seed,
            tolerance=tolerance,
            prompt=prompt,
            cache=True if prompt is None else _caches(model, prompt),
            reload=reload,
        )
        kinds = [k for k in inventory(graph) if roles is None or fnmatch.fnmatch(k.role, roles)]
        rows = [_row(asked, kind, share) for kind in kinds]
        if roles is None:
            rows += _together(asked, kinds, share)
    return Proof(rows=tuple(rows), tolerance=tolerance, seed=seed)


def _row(asked: Subject, kind: RoleRow, share: float) -> ProofRow:
    if kind.frozen:
        return Findings(asked, kind.role, kind.groups).row("frozen", kind.frozen)
    generator = torch.Generator().manual_seed(asked.seed)
    for _ in range(_DRAWS):
        found = Findings(asked, kind.role, kind.groups)
        found.attempt(found.step("planning", lambda: trials(asked.graph, kind.groups, share, generator)) or ())
        if not found.vacuous:
            break
    return found.row("inexact" if kind.inexact else "exact", kind.inexact)


def _together(asked: Subject, kinds: Sequence[RoleRow], share: float) -> list[ProofRow]:
    """The row of all kinds at once; none where there is only one. Inexact ones would hide what is wrong elsewhere."""
    kinds = [kind for kind in kinds if not kind.frozen and not kind.inexact]
    if len(kinds) < 2:
        return []
    found = Findings(asked, "together", tuple(group for kind in kinds for group in kind.groups))
    generator = torch.Generator().manual_seed(asked.seed)
    found.attempt(found.step("planning", lambda: together(asked.graph, found.groups, share, generator)) or ())
    return [found.row("exact", None)]


#: How often a kind is tried where the units drawn (experts that no token chose, say) change nothing.
_DRAWS = 4
#: The forward passes are no longer than this, also where a window is.
_SHORT = 64


def _length(model: nn.Module, most: int) -> int:
    window = subject.window(model)
    return max(subject.LENGTH, window + 3) if window + 3 <= most else subject.LENGTH


def _prompt(model: nn.Module, seed: int) -> dict[str, Any]:
    return subject.random_inputs(model, seed, batch=1, length=_length(model, subject.LONGEST_WINDOW))


def _caches(model: nn.Module, prompt: Mapping[str, Any]) -> bool | str:
    """Whether the unpruned model generates with a cache, or without one, or why it does not."""
    if not subject.can_generate(model):
        return "this class cannot generate"
    problem = _fails(model, prompt, cache=True)
    if problem is None:
        return True
    problem = _fails(model, prompt, cache=False)
    return False if problem is None else f"the unpruned model does not generate: {problem}"


def _fails(model: nn.Module, prompt: Mapping[str, Any], *, cache: bool) -> str | None:
    try:
        subject.generated(model, prompt, cache=cache)
    except Exception as error:  # noqa: BLE001 - the unpruned model itself fails, in any way it likes
        return subject.told(error)
    return None
