"""Finding a stock config that describes a pruned model, so that it loads with plain ``from_pretrained``.

No table of field names: a field is a candidate because its value contains the size of a pruned group as a factor. The
class is built with it on the meta device, and only a config that gives every tensor exactly the right shape is taken.
"""

from __future__ import annotations

import contextlib
import copy
import itertools
import json
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.initialization import no_init_weights
from transformers.utils import logging

from graphprune.errors import TraceError
from graphprune.names import bare, plain, resolve_module, resolve_tensor
from graphprune.reshape.candidates import Changes, Path, Shapes, candidates, fields, matching, uneven
from graphprune.reshape.cut import cut_shape, plan_cuts
from graphprune.reshape.epsilons import Epsilons, find_epsilons
from graphprune.reshape.history import History, Step, config_from, history_of, remember
from graphprune.reshape.stacks import config_changes, renaming
from graphprune.reshape.view import take_views
from graphprune.sample import output_of, sample_inputs
from graphprune.stream.tensor import is_deferred
from graphprune.trace import trace

#: No more than this many configs of the right shapes are tried on the model's weights.
_MOST_CHECKS = 16


@dataclass(frozen=True)
class StockConfig:
    """The outcome of the search: a config, or the reason why there is none.

    Attributes:
        config: a config of the model's own class that describes the pruned model, or None.
        changes: the changed fields with their new values, as ``{("text_config", "head_dim"): 64}``.
        epsilons: the epsilons of pruned norms, as (module, attribute), under that config.
        reason: why there is none.
    """

    config: Any = None
    changes: dict[Path, Any] = field(default_factory=dict)
    epsilons: dict[tuple[str, str], float] = field(default_factory=dict)
    reason: str = ""


def find_stock_config(model: nn.Module, history: History) -> StockConfig:
    """Looks for a config with which the class of ``model`` builds exactly what ``history`` made of it.

    Args:
        model: the model after all steps of ``history``. Equal shapes do not prove that heads are counted alike: the
            config's model is traced, or with weights its logits are compared with the model's own.
        history: the base config and every step since.
    """
    reason = _impossible(model, history)
    if reason:
        return StockConfig(reason=reason)
    base = bare(model)
    search = _Search(type(base), type(base.config), history.base_config)  # type: ignore[arg-type]
    shapes = search.shapes({})
    if shapes is None:
        return StockConfig(reason=f"{type(base).__name__} cannot be built from the config of the unpruned model")
    target = _target(shapes, history.steps)
    why = "no config of this class describes the result; the class derives or checks a size that was pruned"
    objections = []
    for changes in itertools.islice(_solutions(search, history, shapes, target), _MOST_CHECKS):
        epsilons = find_epsilons(model, search, changes, history.steps[-1])
        changes = {**changes, **epsilons.changes}
        if _has_weights(model, target):
            objection = _differs(model, search, changes, target, epsilons)
        else:
            objection = search.misread(changes, history.steps[-1])
            if not objection and not epsilons.kept and is_deferred(model):  # only logits could tell whether it matters
                objection = "a config gives the same shapes, but not the pruned norms an epsilon of their own"
        if not objection:
            return StockConfig(search.config(changes), changes, epsilons.built)
        objections.append(objection)
    return StockConfig(reason=f"{why} ({objections[0]})" if objections else why)


def settle_config(model: nn.Module) -> str:
    """Makes the config of a cut model describe it, if one of its class can; returns why not, or an empty text."""
    history = history_of(model)
    found = find_stock_config(model, history)
    if found.config is not None:
        adopt(model, found)
    remember(model, replace(history, stock=found.config is not None, why_not=found.reason))
    return found.reason


def adopt(model: nn.Module, found: StockConfig) -> None:
    """Makes the model's own config say what ``found`` says; every module keeps the same config object."""
    take_views(model)
    base: Any = bare(model)
    for (owner, attribute), value in found.epsilons.items():
        setattr(plain(resolve_module(model, owner)), attribute, value)
    for path, value in found.changes.items():
        part = base.config
        for name in path[:-1]:
            part = getattr(part, name)
        # One field at a time would be refused by configs that check fields against each other.
        object.__setattr__(part, part.attribute_map.get(path[-1], path[-1]), value)


def _impossible(model: nn.Module, history: History) -> str:
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


class _Search:
    """Builds one class with many configs, each once."""

    def __init__(self, model_class: type[PreTrainedModel], config_class: type, base: dict[str, Any]) -> None:
        self._model_class = model_class
        self._config_class: Any = config_class
        self.base = base
        self._built: dict[str, Shapes | None] = {}

    def config(self, changes: Changes) -> Any:
        values = copy.deepcopy(self.base)
        for path, value in changes.items():
            part = values
            for name in path[:-1]:
                part = part[name]
            part[path[-1]] = value
        return config_from(self._config_class, values)

    def shapes(self, changes: Changes) -> Shapes | None:
        key = repr(sorted(changes.items()))
        if key not in self._built:
            self._built[key] = self._build(changes)
        return self._built[key]

    def misread(self, changes: Changes, step: Step) -> str:
        """How a model of the right shapes would divide them otherwise (half the heads, or heads of half the size?)."""
        try:
            sizes = trace(self.model(changes)).sizes()
        except TraceError as error:
            return f"a config gives the same shapes but cannot run: {error}"
        after, renamed = step.plan.sizes_after(), renaming(step.graph, step.plan)
        for group in (g for g in step.graph.groups if g.layer is not None and after[g.name] > 1):
            name = renamed(group.name)
            if name is None or (group.declared and name not in sizes):  # the trace does not know what was declared
                continue
            if sizes.get(name) != after[group.name]:
                got = f"has {sizes[name]} units" if name in sizes else "does not exist"
                return f"a config gives the same shapes, but there '{name}' {got}; {after[group.name]} stayed"
        return ""

    def model(self, changes: Changes) -> PreTrainedModel:
        with quiet(), torch.device("meta"), no_init_weights():
            return self._model_class(self.config(changes))

    def _build(self, changes: Changes) -> Shapes | None:
        try:
            model = self.model(changes)
        except Exception:  # noqa: BLE001 - a config class may refuse in any way it likes
            return None
        return {name: tuple(t.shape) for name, t in model.state_dict().items()}


def _solutions(search: _Search, history: History, shapes: Shapes, target: Shapes) -> Iterator[Changes]:
    forced: Changes = {}
    options: list[tuple[Path, Any]] = []
    for step in history.steps:
        after = step.plan.sizes_after()
        for rule in step.graph.rules:
            if rule.owner.startswith("config") and rule.value(after) != rule.value(step.plan.sizes):
                forced[(*rule.owner.split(".")[1:], rule.attribute)] = rule.value(after)
        forced.update(config_changes(step.graph, step.plan, search.base))
        options.extend(candidates(search.base, step))
    for extra in ({}, _explicit_head_size(search)):
        if extra is not None:
            yield from matching(search.shapes, {**extra, **forced}, options, shapes, target)


def _explicit_head_size(search: _Search) -> Changes | None:
    """A head size written out, for classes that honour it although their config does not list it."""
    config = search.config({})
    text = config.get_text_config()
    path: Path = () if text is config else next(((n,) for n, v in vars(config).items() if v is text), ())
    try:
        hidden, heads, size = (getattr(text, n, None) for n in ("hidden_size", "num_attention_heads", "head_dim"))
    except RuntimeError:
        return None  # the sizes differ between layers, and this config refuses to say one for all
    if not isinstance(hidden, int) or not isinstance(heads, int) or size:
        return None
    return {(*path, "head_dim"): hidden // heads}


def _target(shapes: Shapes, steps: tuple[Step, ...]) -> Shapes:
    shapes = dict(shapes)
    for step in steps:
        aliases: dict[str, list[str]] = {}
        for alias, name in step.graph.tied.items():
            aliases.setdefault(name, []).append(alias)
        for name, dims in plan_cuts(step.graph, step.plan).items():
            for same in (name, *aliases.get(name, ())):
                if same in shapes:
                    shapes[same] = cut_shape(shapes[same], dims)
        renamed = renaming(step.graph, step.plan)
        shapes = {new: shape for name, shape in shapes.items() if (new := renamed(name)) is not None}
    return shapes


def _has_weights(model: nn.Module, target: Shapes) -> bool:
    return not any(resolve_tensor(model, name).is_meta for name in target)


def _differs(model: nn.Module, search: _Search, changes: Changes, target: Shapes, epsilons: Epsilons) -> str:
    """Loads the model's own weights under a config and says how the logits differ; empty if they do not."""
    config = search.config(changes)
    base: Any = bare(model)
    tensors = {name: resolve_tensor(model, name).detach() for name in target}
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
            other, info = type(base).from_pretrained(
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
    training = [m for m in model.modules() if m.training]
    without = model.disable_adapter() if hasattr(model, "disable_adapter") else contextlib.nullcontext()
    model.eval()
    try:
        with without:
            return output_of(model(**inputs)).float()
    finally:
        for module in training:
            module.training = True


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keeps transformers from reporting on models that are built only to look at them."""
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()  # type: ignore[no-untyped-call]


def described(model: PreTrainedModel) -> bool:
    """Whether the model's own config builds tensors of exactly the model's shapes."""
    plain = json.loads(model.config.to_json_string(use_diff=False))
    shapes = _Search(type(model), type(model.config), plain).shapes({})
    if shapes is None:  # remote code that cannot be built on the meta device proves nothing
        return True
    return all(tuple(resolve_tensor(model, name).shape) == shape for name, shape in shapes.items())
