"""Building one class from changed configs on the meta device: which give which shapes, and read them as meant."""

from __future__ import annotations

import contextlib
import copy
import itertools
from collections.abc import Collection, Iterator
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.initialization import no_init_weights
from transformers.utils import logging

from graphprune.errors import TraceError
from graphprune.names import bare
from graphprune.reshape.candidates import Changes, Path, Shapes, candidates, matching, numbers_of_entries, unset
from graphprune.reshape.cut import cut_shape, plan_cuts
from graphprune.reshape.history import History, Step, config_from
from graphprune.reshape.siblings import siblings_of
from graphprune.reshape.stacks import config_changes, removed_entries, renaming
from graphprune.trace import trace


class Search:
    """Builds one class with many configs, each once.

    Args:
        model_class: the class.
        config_class: of its configs.
        base: the config of the unpruned model, as plain values.
    """

    def __init__(self, model_class: type[PreTrainedModel], config_class: type, base: dict[str, Any]) -> None:
        self.model_class = model_class
        self.config_class: Any = config_class
        self.base = base
        self._built: dict[str, Shapes | None] = {}

    def config(self, changes: Changes) -> Any:
        """The config with some fields changed."""
        values = copy.deepcopy(self.base)
        for path, value in changes.items():
            part = values
            for name in path[:-1]:
                part = part[name]
            part[path[-1]] = value
        return config_from(self.config_class, values)

    def shapes(self, changes: Changes) -> Shapes | None:
        """The shapes of all tensors under a changed config; None where the class refuses it."""
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
        """A model of a changed config, without weights."""
        with quiet(), torch.device("meta"), no_init_weights():
            return self.model_class(self.config(changes))

    def _build(self, changes: Changes) -> Shapes | None:
        try:
            model = self.model(changes)
        except Exception:  # noqa: BLE001 - a config class may refuse in any way it likes
            return None
        return {name: tuple(t.shape) for name, t in model.state_dict().items()}


def searches(model: nn.Module, history: History) -> Iterator[Search]:
    """One search for the class of ``model``, then one for every class that may stand in for it."""
    base = bare(model)
    assert isinstance(base, PreTrainedModel)
    # Of a model that lost layers, the live config may be of a class of its own (reshape/stacks.py).
    yield Search(type(base), type(base).config_class or type(base.config), history.base_config)
    for kind, values in siblings_of(type(base).__name__, history.base_config):
        yield Search(kind, kind.config_class, values)  # type: ignore[arg-type]


def solutions(
    search: Search,
    steps: tuple[Step, ...],
    shapes: Shapes,
    target: Shapes,
    paths: Collection[Path] | None = None,
) -> Iterator[Changes]:
    """Sets of changed fields under which the class has exactly the shapes ``target``, the simplest first.

    Args:
        search: of the class.
        steps: every pruning since the base config.
        shapes: of the unpruned model.
        target: what they have become.
        paths: change no other fields than these, and those that are known to follow.
    """
    forced: Changes = {}
    options: list[tuple[Path, Any]] = []
    for step in steps:
        after = step.plan.sizes_after()
        for rule in step.graph.rules:
            if rule.owner.startswith("config") and rule.value(after) != rule.value(step.plan.sizes):
                forced[(*rule.owner.split(".")[1:], rule.attribute)] = rule.value(after)
        forced.update(config_changes(step.graph, step.plan, search.base))
        options.extend(candidates(search.base, step))
    if paths is not None:
        options = [(path, value) for path, value in options if path in paths]
    for extra in ({}, _explicit_head_size(search)):
        if extra is not None:
            start = _same_tensors(search, steps, {**extra, **forced}, target)
            yield from matching(search.shapes, start, [*options, *_unset(search, steps, start, paths)], shapes, target)


def _unset(
    search: Search, steps: tuple[Step, ...], start: Changes, paths: Collection[Path] | None
) -> Iterator[tuple[Path, Any]]:
    """Fields that have no value and change shapes with one; such as do not may mean anything."""
    begun = search.shapes(start)
    for path, value in (option for step in steps for option in unset(search.base, step)):
        if (paths is None or path in paths) and path not in start and search.shapes({**start, path: value}) != begun:
            yield path, value


def _same_tensors(search: Search, steps: tuple[Step, ...], start: Changes, target: Shapes) -> Changes:
    """``start``, and beside it changes that leave exactly the tensors of ``target``, where layers are not all alike.

    Where layers go, fields that speak of single layers by their numbers have to follow.
    """
    begun = search.shapes(start)
    if begun is not None and begun.keys() == target.keys():
        return start
    found: Changes = {}
    for step in steps:
        for stack, units in removed_entries(step.graph, step.plan):
            kept = [n for n in range(stack.size) if n not in set(units)]
            found.update(numbers_of_entries(search.base, stack.size, kept))
    options = [(path, value) for path, value in found.items() if path not in start]
    for chosen in itertools.chain(itertools.combinations(options, 1), itertools.combinations(options, 2)):
        built = search.shapes({**start, **dict(chosen)})
        if built is not None and built.keys() == target.keys():
            return {**start, **dict(chosen)}
    return start


def _explicit_head_size(search: Search) -> Changes | None:
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


def target_shapes(shapes: Shapes, steps: tuple[Step, ...]) -> Shapes:
    """What ``steps`` make of the ``shapes`` of a model, under the names that are left."""
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
