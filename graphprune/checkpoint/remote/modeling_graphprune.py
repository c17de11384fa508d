"""A pruned model: the code of transformers, cut to the sizes that config.json states.

graphprune wrote this file; it is the same for every architecture, and needs torch and transformers alone. The classes
that ``auto_map`` names are made on demand: ``modeling_graphprune.X`` is the class ``X`` of transformers, whose models
are first built in their unpruned sizes (without weights; these come later) and then follow the recipe that the config
has under ``graphprune``. Without a recipe, ``X`` is what it is in transformers. The recipe, in the order in which it is
followed:

    build       fields of the config that the class is built with, where config.json says what they are afterwards
    live        fields of the config that no config.json can state; what is written there instead is in ``stored``
    entries     {module list: entries that stay}
    shapes      {tensor: sizes}; in the checkpoint it has only these
    attributes  {module: {attribute: value}}
    lookups     {module: {attribute: {key: old key}}}, for dictionaries by numbers of layers
    views       {module: {attribute: {field: value}}}: what a module reads in the shared config as if it were alone
    arguments   [{module, argument, dim, length, kept}]: constants that are handed to a module, and what it gets of them
    constants   {buffer: dtype}: cut constants, which are in the checkpoint because the code would make them whole
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from typing import Any

import torch
import transformers
from torch import nn
from transformers import GenerationMixin, PreTrainedModel

BY_LAYER = "per_layer_config"
"""What transformers calls the fields of a config that differ between layers; to be read as data, not as configs."""


def __getattr__(name: str) -> type[PreTrainedModel]:
    base = getattr(transformers, name, None)
    if name.startswith("_") or not (isinstance(base, type) and issubclass(base, PreTrainedModel)):
        raise AttributeError(f"transformers {transformers.__version__} has no model class {name!r}")
    made: type[PreTrainedModel] = globals().setdefault(name, _pruned(base))
    return made


def _pruned(base: type[PreTrainedModel]) -> type[PreTrainedModel]:
    """``base``, whose models follow the recipe in their config."""

    def build(self: Any, config: Any, *args: Any, **kwargs: Any) -> None:
        recipe = getattr(config, "graphprune", None) or {}
        with fields(config, recipe.get("build", {})):
            base.__init__(self, config, *args, **kwargs)
        if recipe:
            cut(self, recipe)

    def initialise(self: Any) -> None:
        for module in self.modules():
            tensors = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
            if tensors and all(getattr(tensor, "_is_hf_initialized", False) for tensor in tensors):
                module._is_hf_initialized = True  # nothing is missing, and it would be filled in by unpruned sizes
        base.initialize_weights(self)  # type: ignore[no-untyped-call]

    def save(self: Any, *args: Any, **kwargs: Any) -> Any:
        recipe = getattr(self.config, "graphprune", None) or {}
        with fields(self.config, recipe.get("stored", {})):
            return base.save_pretrained(self, *args, **kwargs)

    def static_shape(self: Any) -> Any:  # layers differ, and a static cache learns each one's sizes at first use
        pruned = getattr(self.config, "graphprune", None)
        return None if pruned else base._get_static_cache_init_shape(self)  # type: ignore[attr-defined]

    members = {
        "__init__": build,
        "__module__": __name__,
        "__doc__": base.__doc__,
        "initialize_weights": initialise,
        "save_pretrained": save,
        # transformers renames tensors of old checkpoints by the name of the class, and only for classes of its own.
        "is_custom_code": classmethod(lambda _class: False),
    }
    if not issubclass(base, GenerationMixin):
        return type(base.__name__, (base,), members)
    members["_get_static_cache_init_shape"] = static_shape
    # Named among the bases, or transformers would wrap the class in another one.
    return type(base.__name__, (base, GenerationMixin), members)


def cut(model: PreTrainedModel, recipe: dict[str, Any]) -> None:
    """Lets ``model``, built in its unpruned sizes, follow ``recipe``."""
    for path, value in recipe.get("live", {}).items():
        _set_field(model.config, path, value)
    for path, kept in recipe.get("entries", {}).items():
        entries = model.get_submodule(path)
        modules = list(entries.children())
        entries._modules = {str(i): modules[old] for i, old in enumerate(_numbers(kept))}
    _cut_tensors(model, recipe.get("shapes", {}))
    for path, values in recipe.get("attributes", {}).items():
        attributes = vars(model.get_submodule(path))
        attributes.update({name: _like(attributes.get(name), value) for name, value in values.items()})
    for path, lookups in recipe.get("lookups", {}).items():
        for name, keys in lookups.items():
            attributes = vars(model.get_submodule(path))
            attributes[name] = {int(new): attributes[name][old] for new, old in keys.items()}
    for path, views in recipe.get("views", {}).items():
        attributes = vars(model.get_submodule(path))
        attributes.update({name: View(attributes[name], values) for name, values in views.items()})
    for item in recipe.get("arguments", ()):
        module = model.get_submodule(item["module"])
        hook = Argument(item["argument"], item["dim"], item["length"], _numbers(item["kept"]))
        module.register_forward_pre_hook(hook, with_kwargs=True)
    for name, dtype in recipe.get("constants", {}).items():
        path, _, leaf = name.rpartition(".")
        owner = model.get_submodule(path)
        owner._non_persistent_buffers_set.discard(leaf)
        guard = Guard(leaf, tuple(getattr(owner, leaf).shape))
        owner.register_forward_pre_hook(guard)
        owner.register_forward_hook(guard)
        if dtype == "float32" and getattr(owner, leaf).dtype == torch.float32:  # though the weights may be shorter
            model._keep_in_fp32_modules_strict = {*(model._keep_in_fp32_modules_strict or ()), name}


def _cut_tensors(model: nn.Module, shapes: dict[str, str]) -> None:
    made: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}  # tied tensors stay tied; the old ones stay alive
    for name, sizes in shapes.items():
        path, _, leaf = name.rpartition(".")
        owner = model.get_submodule(path)
        old = getattr(owner, leaf)
        new = old.detach()[tuple(slice(0, size) for size in _numbers(sizes))].clone()
        if isinstance(old, nn.Parameter):
            new = nn.Parameter(new, requires_grad=old.requires_grad)
        vars(new).update(vars(old))
        old, new = made.setdefault(id(old), (old, new))
        store: dict[str, Any] = owner._parameters if isinstance(old, nn.Parameter) else owner._buffers
        store[leaf] = new


def _numbers(text: str) -> list[int]:
    return [int(number) for number in text.split()]


def _like(old: Any, new: Any) -> Any:
    """JSON has lists only."""
    return type(old)(new) if isinstance(old, (tuple, set)) else copy.deepcopy(new)


@contextlib.contextmanager
def fields(config: Any, values: dict[str, Any]) -> Iterator[None]:
    """Lets ``config`` say ``values``, as {"sub_config.field": value}, for a while."""
    before = {path: _get_field(config, path) for path in values}
    try:
        for path, value in values.items():
            _set_field(config, path, value)
        yield
    finally:
        for path, value in before.items():
            _set_field(config, path, value)


def _get_field(config: Any, path: str) -> Any:
    for name in path.split("."):
        config = config.to_dict().get(name) if name == BY_LAYER else getattr(config, name)
    return config


def _set_field(config: Any, path: str, value: Any) -> None:
    above, _, name = path.rpartition(".")
    owner = _get_field(config, above) if above else config
    name = owner.attribute_map.get(name, name)
    computed = getattr(type(owner), name, None)
    value = copy.deepcopy(value)
    if isinstance(computed, property) and computed.fset is None:  # no rule gives this value, so it is written down
        kind = type(owner)
        owner.__class__ = type(kind.__name__, (kind,), {name: value, "__module__": kind.__module__})
    else:
        object.__setattr__(owner, name, value)  # configs that check fields against each other would refuse one alone


class View:
    """A config as one module sees it: ``own`` are its own values, everything else is read and set in ``base``."""

    def __init__(self, base: Any, own: dict[str, Any]) -> None:
        vars(self).update(own, _base=base, _own=tuple(own))

    def __getattr__(self, name: str) -> Any:
        if name == "_base" or name.startswith("__"):  # while being copied there is no base yet
            raise AttributeError(name)
        return getattr(self._base, name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in vars(self):
            vars(self)[name] = value
        else:
            setattr(self._base, name, value)

    def __reduce__(self) -> tuple[Any, ...]:
        return View, (self._base, {name: vars(self)[name] for name in self._own})


class Argument:
    """A hook that hands a module, of one argument, the indices ``kept`` of every ``length`` along ``dim``."""

    def __init__(self, argument: str, dim: int, length: int, kept: list[int]) -> None:
        self.argument, self.dim, self.length, self.kept = argument, dim, length, kept

    def __call__(self, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if self.argument in kwargs:
            kwargs = {**kwargs, self.argument: self._cut(kwargs[self.argument])}
        elif self.argument.isdigit() and int(self.argument) < len(args):
            i = int(self.argument)
            args = (*args[:i], self._cut(args[i]), *args[i + 1 :])
        return args, kwargs

    def _cut(self, value: Any) -> Any:
        if not isinstance(value, torch.Tensor) or value.shape[self.dim] == 1:
            return value
        if value.shape[self.dim] % self.length:
            raise ValueError(f"argument {self.argument}: expected a multiple of {self.length}, got {value.shape}")
        kept = torch.tensor(self.kept, device=value.device)
        repeats = torch.arange(0, value.shape[self.dim], self.length, device=value.device)
        return value.index_select(self.dim, (repeats[:, None] + kept).reshape(-1))


class Guard:
    """A hook that notices when a module has made a cut constant anew, for a longer text, say: it would be whole."""

    def __init__(self, leaf: str, shape: tuple[int, ...]) -> None:
        self.leaf, self.shape = leaf, shape
        self.held: torch.Tensor | None = None

    def __call__(self, module: nn.Module, *_: Any) -> None:
        made: torch.Tensor = getattr(module, self.leaf)
        if tuple(made.shape) != self.shape:
            if self.held is not None:
                module._buffers[self.leaf] = self.held  # whoever catches the error can go on with shorter texts
            raise ValueError(
                f"{type(module).__name__} has made '{self.leaf}' anew, which was cut with pruned units. It does so for "
                "texts that are longer than the model was made for; give shorter ones."
            )
        self.held = made
