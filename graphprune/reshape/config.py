"""Finding a stock config that describes a pruned model, so that it loads with plain ``from_pretrained``.

No table of field names: a field is a candidate because its value contains the size of a pruned group as a factor. The
class is built with it on the meta device, and only a config that gives every tensor exactly the right shape is taken.
"""

from __future__ import annotations

import itertools
import json
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from graphprune.evaluating import evaluating
from graphprune.names import bare, plain, resolve_module, resolve_tensor
from graphprune.reshape.adapters import without_deltas
from graphprune.reshape.candidates import Changes, Path, Shapes, fields, uneven
from graphprune.reshape.epsilons import Epsilons, find_epsilons
from graphprune.reshape.history import History, StandIn, history_of, remember
from graphprune.reshape.search import Search, quiet, searches, solutions, target_shapes
from graphprune.reshape.stacks import unpin
from graphprune.reshape.view import take_views
from graphprune.sample import output_of, sample_inputs
from graphprune.stream.tensor import is_deferred
from graphprune.trace.integers import configs_of

__all__ = ["StockConfig", "adopt", "described", "find_stock_config", "impossible", "quiet", "settle_config"]

#: No more than this many configs of the right shapes are tried on the model's weights.
_MOST_CHECKS = 16


@dataclass(frozen=True)
class StockConfig:
    """The outcome of the search: a config, or the reason why there is none.

    Attributes:
        config: a config that describes the pruned model, or None: of the model's own class, or of a sibling.
        changes: the changed fields with their new values, as ``{("text_config", "head_dim"): 64}``.
        epsilons: the epsilons of pruned norms, as (module, attribute), under that config.
        reason: why there is none.
        stand_in: the sibling, where the config is that of one.
        exact: whether the config gives pruned norms the epsilons that they need; otherwise only weights can tell
            whether the difference matters.
    """

    config: Any = None
    changes: dict[Path, Any] = field(default_factory=dict)
    epsilons: dict[tuple[str, str], float] = field(default_factory=dict)
    reason: str = ""
    stand_in: StandIn | None = None
    exact: bool = True


def find_stock_config(model: nn.Module, history: History) -> StockConfig:
    """Looks for a config with which the class of ``model`` builds exactly what ``history`` made of it.

    Where there is none, classes that may stand in for it are tried (:mod:`graphprune.reshape.siblings`).

    Args:
        model: the model after all steps of ``history``. Equal shapes do not prove that heads are counted alike: the
            config's model is traced, or with weights its logits are compared with the model's own.
        history: the base config and every step since.
    """
    reason = impossible(model, history)
    if reason:
        return StockConfig(reason=reason)
    reasons = []
    for search in searches(model, history):
        found = _find(model, history, search)
        if found.config is not None:
            if not isinstance(bare(model), search.model_class):
                stand_in = StandIn(search.model_class.__name__, search.base, found.config)
                found = replace(found, stand_in=stand_in)
            return found
        reasons.append(found.reason)
    return StockConfig(reason=reasons[0])


def _find(model: nn.Module, history: History, search: Search) -> StockConfig:
    shapes = search.shapes({})
    if shapes is None:
        reason = f"{search.model_class.__name__} cannot be built from the config of the unpruned model"
        return StockConfig(reason=reason)
    target = target_shapes(shapes, history.steps)
    why = "no config of this class describes the result; the class derives or checks a size that was pruned"
    objections = []
    for changes in itertools.islice(solutions(search, history.steps, shapes, target), _MOST_CHECKS):
        epsilons = find_epsilons(model, search, changes, history.steps[-1])
        changes = {**changes, **epsilons.changes}
        if _has_weights(model, target):
            objection = _differs(model, search, changes, target, epsilons)
        else:
            objection = search.misread(changes, history.steps[-1])
            if not objection and not epsilons.kept and is_deferred(model):  # only logits could tell whether it matters
                objection = "a config gives the same shapes, but not the pruned norms an epsilon of their own"
        if not objection:
            return StockConfig(search.config(changes), changes, epsilons.built, exact=epsilons.kept)
        objections.append(objection)
    return StockConfig(reason=f"{why} ({objections[0]})" if objections else why)


def settle_config(model: nn.Module) -> str:
    """Makes the config of a cut model describe it, if one of its class can; returns why not, or an empty text.

    Where the model is to be saved as one of another class, its history has that class and its config, and its own
    config says what it can.
    """
    history = history_of(model)
    found = find_stock_config(model, history)
    if found.config is not None:
        adopt(model, found)
    settled = replace(history, stock=found.config is not None, why_not=found.reason, stand_in=found.stand_in)
    remember(model, settled)
    return found.reason


def adopt(model: nn.Module, found: StockConfig) -> None:
    """Makes the model's own config say what ``found`` says; every module keeps the same config object."""
    take_views(model)
    base: Any = bare(model)
    for (owner, attribute), value in found.epsilons.items():
        setattr(plain(resolve_module(model, owner)), attribute, value)
    for _, part in configs_of(base):
        unpin(part)
    for path, value in found.changes.items():
        part = base.config
        for name in path[:-1]:
            part = getattr(part, name)
        # One field at a time would be refused by configs that check fields against each other.
        object.__setattr__(part, part.attribute_map.get(path[-1], path[-1]), value)


def impossible(model: nn.Module, history: History) -> str:
    """Why no stock config can describe a model, whatever its sizes; an empty text where nothing says so."""
    if not isinstance(bare(model), PreTrainedModel):
        return f"{type(bare(model)).__name__} is no transformers model"
    for step in history.steps:
        cut = {c.group for c in step.graph.constants} & {n for n, units in step.plan.removed.items() if units}
        if cut:
            return f"the forward pass computes a constant per unit of '{min(cut)}', and no config can leave units out"
        per_layer = any(isinstance(v, list) and len(v) == step.graph.layers for _, v in fields(history.base_config))
        reason = uneven(step)
        if reason and not per_layer:
            return f"layers differ: {reason}, and the config has one size for all"
    return ""


def _has_weights(model: nn.Module, target: Shapes) -> bool:
    return not any(resolve_tensor(model, name).is_meta for name in target)


def _differs(model: nn.Module, search: Search, changes: Changes, target: Shapes, epsilons: Epsilons) -> str:
    """Loads the model's own weights under a config and says how the logits differ; empty if they do not."""
    config = search.config(changes)
    base: Any = bare(model)
    tensors = {name: resolve_tensor(model, name).detach() for name in target}
    kind: Any = search.model_class
    kernels = {
        "attn_implementation": getattr(base.config, "_attn_implementation", None),
        "experts_implementation": getattr(base.config, "_experts_implementation", None),
    }
    try:
        mine = _logits(model)
    except Exception as error:  # noqa: BLE001 - inputs of its own, and whatever a forward pass raises without them
        return f"it cannot be compared with the pruned model, which cannot answer a simple question: {error}"
    try:
        with quiet():
            other, info = kind.from_pretrained(
                None,
                config=config,
                state_dict=tensors,
                dtype=base.dtype,
                output_loading_info=True,
                **{name: kernel for name, kernel in kernels.items() if kernel is not None},
            )
        theirs = _logits(other.to(base.device))
    except Exception as error:  # noqa: BLE001 - equal shapes, but the forward pass may fail in any way it likes
        return f"a config gives the same shapes but cannot run: {error}"
    if any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys")):
        return f"the pruned weights do not load under the candidate config: {info}"
    distance = (mine - theirs).abs().max().item()
    rounding = (1e-3 if epsilons.kept else 1e-5) if base.dtype == torch.float32 else 5e-2
    if distance <= rounding * mine.abs().max().clamp(min=1e-6).item():
        return ""
    other_norms = "" if epsilons.kept else ": it cannot give the pruned norms an epsilon of their own"
    return f"a config gives the same shapes but other logits (by {distance:.2g}){other_norms}"


@torch.no_grad()
def _logits(model: Any) -> torch.Tensor:
    """Logits of one small sample in evaluation mode, adapters off; float32, for a decoder of (1, 8, vocabulary)."""
    inputs = sample_inputs(bare(model))
    with evaluating(model), without_deltas(model):
        return output_of(model(**inputs)).float()


def described(model: PreTrainedModel) -> bool:
    """Whether the model's own config builds tensors of exactly the model's shapes."""
    plain = json.loads(model.config.to_json_string(use_diff=False))
    shapes = Search(type(model), type(model.config), plain).shapes({})
    if shapes is None:  # remote code that cannot be built on the meta device proves nothing
        return True
    return all(tuple(resolve_tensor(model, name).shape) == shape for name, shape in shapes.items())
