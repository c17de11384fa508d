"""What pruning made of a model, as data: the recipe that the modelling file follows.

The architecture is built without weights and cut, as :func:`graphprune.load` does it; what is different afterwards is
the recipe. So nothing that pruning can do needs a word of its own here, and what cannot be written down is told.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from torch import nn
from transformers import CONFIG_MAPPING, GenerationMixin, PreTrainedModel
from transformers.initialization import no_init_weights

from graphprune.checkpoint.remote import modeling_graphprune
from graphprune.checkpoint.remote.modeling_graphprune import Argument
from graphprune.checkpoint.remote.snapshot import (
    Snapshot,
    UnstatableError,
    attributes,
    config_fields,
    configs,
    distinguish,
    is_plain,
    same,
    tensors,
)
from graphprune.reshape.apply import cut_model
from graphprune.reshape.buffers import cut_buffers
from graphprune.reshape.config import quiet
from graphprune.reshape.constants import ConstantCut
from graphprune.reshape.history import History, config_from
from graphprune.reshape.view import is_view, own_values
from graphprune.tasks import DEFAULT, TASKS, loader_name

KEY = "graphprune"
"""Under which the config has the recipe."""
Values = dict[str, Any]


@dataclass(frozen=True)
class Recipe:
    """What the config of a self-contained folder says.

    Attributes:
        config: all of it, with the recipe under ``graphprune`` and ``auto_map``.
        loader: the auto class that loads the folder.
        constants: names of the cut constants, which the weights must contain.
        shapes: of every tensor that the weights must contain.
    """

    config: Values
    loader: str
    constants: tuple[str, ...]
    shapes: dict[str, tuple[int, ...]]


def find_recipe(history: History) -> Recipe | str:
    """The recipe for what ``history`` made of its model, proved by following it; or why there is none.

    Needs no weights: the model is built on the meta device.
    """
    kind = str(history.base_config.get("model_type", ""))
    base = getattr(transformers, history.architecture, None)
    if not (isinstance(base, type) and issubclass(base, PreTrainedModel)) or kind not in CONFIG_MAPPING:
        return f"transformers {transformers.__version__} has no {history.architecture}"
    loader = _loader(base, kind)
    config_class: Any = CONFIG_MAPPING[kind]
    try:
        pruned, changes = _derive(base, config_class, history)
    except UnstatableError as reason:
        return str(reason)
    names = tuple(n for n in cut_buffers(pruned, history) if n not in pruned.state_dict())
    if whole := changes.constants - set(names):
        return f"the code would make '{min(whole)}' whole again"
    objection = ""
    for config in changes.configs(names):
        config["auto_map"] = {loader: f"{modeling_graphprune.__name__.rpartition('.')[2]}.{history.architecture}"}
        config["architectures"] = [history.architecture]
        try:
            config = json.loads(config_from(config_class, config).to_json_string())  # as transformers writes it
            again = _built(getattr(modeling_graphprune, history.architecture), config_from(config_class, config))
            objection = distinguish(pruned, again)
        except Exception as error:  # noqa: BLE001 - a config class may refuse in any way it likes
            objection = f"{type(error).__name__}: {error}"
        if not objection:
            shapes = {name: tuple(tensor.shape) for name, tensor in again.state_dict().items()}
            return Recipe(config, loader, names, shapes)
    return f"following the recipe gives another model: {objection}"


def _loader(base: type[PreTrainedModel], kind: str) -> str:
    """The auto class of ``base``. Where transformers has none, one can still be told of the file."""
    found = loader_name(base.__name__, kind)
    if found in TASKS.values():
        return found
    return TASKS[DEFAULT] if issubclass(base, GenerationMixin) else "AutoModel"


def _built(model_class: type[PreTrainedModel], config: Any) -> PreTrainedModel:
    with quiet(), torch.device("meta"), no_init_weights():
        return model_class(config)


def _derive(base: type[PreTrainedModel], config_class: Any, history: History) -> tuple[PreTrainedModel, _Changes]:
    """The model without weights after all steps, and what they changed."""
    values = copy.deepcopy(history.base_config)
    former: Values = values.pop(KEY, None) or {}  # the model began as one that had followed a recipe
    for path, value in former.get("build", {}).items():
        _put(values, path, value)
    model = _built(base, config_from(config_class, values))
    before = Snapshot(model)
    modeling_graphprune.cut(model, former)
    for step in history.steps:
        cut_model(model, step.graph, step.plan)
    return model, _Changes(model, before, values)


class _Changes:
    """What is different in a model from what it was.

    Raises:
        UnstatableError: if something of it is not plain data.
    """

    def __init__(self, model: Any, before: Snapshot, values: Values) -> None:
        self._values = values
        self._fields: dict[str, tuple[Any, Any]] = {}
        self._computed: Values = {}
        self._recipe: dict[str, Any] = {n: {} for n in ("entries", "shapes", "attributes", "lookups", "views")}
        self._recipe["arguments"] = []
        self.constants: set[str] = set()
        self._config(model.config, before)
        for path, module in model.named_modules():
            self._module(path, module, before)

    def configs(self, constants: tuple[str, ...]) -> Iterator[Values]:
        """Configs that could go with the model: first one that says what it is now, then one that says what it was."""
        recipe = {name: value for name, value in self._recipe.items() if value}
        if constants:
            recipe["constants"] = dict.fromkeys(constants, "")
        known = {path: pair for path, pair in self._fields.items() if _has(self._values, path)}
        private = {path: now for path, (_, now) in self._fields.items() if path not in known} | self._computed
        was = {path: before for path, (before, _) in known.items()}
        now = {path: after for path, (_, after) in known.items()}
        ways: list[tuple[Values, Values]] = [(now, {"build": was, "live": private})]
        if now:
            ways.append(({}, {"live": {**now, **private}, "stored": was}))
        for written, said in ways:
            config = copy.deepcopy(self._values)
            for path, value in written.items():
                _put(config, path, value)
            config[KEY] = {"version": 1, **{name: value for name, value in said.items() if value}, **recipe}
            yield config

    def _config(self, config: Any, before: Snapshot) -> None:
        for path, value in config_fields(config):
            old = before.config.get(path)
            if not same(old, value):
                self._fields[path] = old, value
        for path, part in configs(config):
            if type(part) is not before.config_kinds.get(path):
                own = {name: value for name, value in vars(type(part)).items() if not name.startswith("_")}
                self._computed |= {
                    f"{path}.{name}".lstrip("."): _plain(value, name, path) for name, value in own.items()
                }

    def _module(self, path: str, module: nn.Module, before: Snapshot) -> None:
        seen = before.seen.get(id(module))
        if seen is None:
            raise UnstatableError(f"'{path}' is a new module")
        children = list(module._modules.values())
        if [id(child) for child in children] != [id(child) for child in seen.children]:
            places = {id(child): i for i, child in enumerate(seen.children)}
            self._recipe["entries"][path] = _text(places[id(child)] for child in children)
        for leaf, tensor in tensors(module):
            if tensor.shape != seen.shapes[leaf]:
                name = f"{path}.{leaf}".lstrip(".")
                self._recipe["shapes"][name] = _text(tensor.shape)
                if leaf in module._non_persistent_buffers_set:
                    self.constants.add(name)
        for name, value in attributes(module):
            old = seen.attributes.get(name)
            if not same(old, value):
                self._attribute(path, name, old, value)
        for hook in module._forward_pre_hooks.values():
            if isinstance(hook, (ConstantCut, Argument)):
                kept = hook.kept.tolist() if isinstance(hook.kept, torch.Tensor) else hook.kept
                said = {"module": path, "argument": hook.argument, "dim": hook.dim, "length": hook.length}
                self._recipe["arguments"].append({**said, "kept": _text(kept)})

    def _attribute(self, path: str, name: str, old: Any, value: Any) -> None:
        if is_view(value):
            kind, said = "views", own_values(value)
        elif isinstance(value, dict) and isinstance(old, dict) and all(isinstance(key, int) for key in value):
            kind, said = "lookups", {str(key): _key_of(item, old, name, path) for key, item in value.items()}
        else:
            kind, said = "attributes", _plain(value, name, path)
        self._recipe[kind].setdefault(path, {})[name] = said


def _key_of(item: Any, table: dict[int, Any], name: str, path: str) -> int:
    for key, old in table.items():
        if same(old, item):
            return key
    raise UnstatableError(f"'{name}' of '{path or 'the model'}' has an entry that is new")


def _plain(value: Any, name: str, path: str) -> Any:
    if not is_plain(value):
        raise UnstatableError(
            f"'{name}' of '{path or 'the model'}' is a {type(value).__name__}, which JSON cannot hold"
        )
    return sorted(value) if isinstance(value, (set, frozenset)) else value


def _text(numbers: Any) -> str:
    """Many numbers on one line of the file."""
    return " ".join(str(int(number)) for number in numbers)


def _has(values: Values, path: str) -> bool:
    *above, name = path.split(".")
    for part in above:
        values = values.get(part, {})
    return name in values


def _put(values: Values, path: str, value: Any) -> None:
    *above, name = path.split(".")
    for part in above:
        values = values[part]
    values[name] = value
