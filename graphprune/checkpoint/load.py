"""Reading back what :func:`graphprune.save` wrote, whatever its tier."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
import transformers
from pydantic import ValidationError
from transformers import AutoConfig, GenerationMixin, PreTrainedModel

from graphprune.checkpoint.constants import put_constants, read_constants
from graphprune.checkpoint.manifest import Manifest
from graphprune.checkpoint.remote import KEY, modeling_graphprune
from graphprune.errors import CheckpointError
from graphprune.graph import DependencyGraph
from graphprune.names import resolve_owner
from graphprune.plan import PrunePlan
from graphprune.reshape.apply import cut_model
from graphprune.reshape.config import quiet
from graphprune.reshape.history import History, Step, config_from, remember
from graphprune.tasks import loader_name

NOTHING: Mapping[str, str] = MappingProxyType({})
_CUT_BUFFERS = "_graphprune_cut_buffers"
"""Where a model that is being loaded keeps the names of buffers that were cut and that its weights do not have."""


def load(
    folder: str | os.PathLike[str],
    *,
    dtype: str | torch.dtype = "auto",
    device: str | torch.device | None = None,
    verify: bool = True,
) -> PreTrainedModel:
    """Loads a folder written by :func:`graphprune.save`, in evaluation mode.

    Args:
        folder: the checkpoint folder.
        dtype: of the weights; as they were saved by default.
        device: where to put the model; the CPU by default. For ``meta`` every weight is read, and none is kept.
        verify: compare all files with the manifest first (reads them once more).

    Raises:
        CheckpointError: if the folder is no such checkpoint, is damaged, or its weights do not fit its plan.
    """
    path = Path(folder).expanduser()
    hollow = device is not None and torch.device(device).type == "meta"
    options: dict[str, Any] = {"device_map": {"": "meta"}} if hollow else {}

    def read(kind: Any, config: Any) -> tuple[Any, dict[str, Any]]:
        found: tuple[Any, dict[str, Any]] = kind.from_pretrained(
            path, config=config, dtype=dtype, use_safetensors=True, output_loading_info=True, **options
        )
        return found

    model: Any = load_by(read, path, dtype=dtype, verify=verify)
    loaded: PreTrainedModel = model if device is None else model.to(device)
    return loaded


def load_by(
    read: Callable[[Any, Any], tuple[Any, dict[str, Any]]], path: Path, *, dtype: str | torch.dtype, verify: bool
) -> PreTrainedModel:
    """:func:`load` with another way to fill a model: ``read(class, config)`` gives it, and transformers' report."""
    manifest = Manifest.read(path)
    if verify:
        manifest.check(path)
    steps = tuple(_step(path / files.plan, path / files.graph) for files in manifest.steps)
    try:
        config = AutoConfig.from_pretrained(path)
        constants: dict[str, str] = (getattr(config, KEY, None) or {}).get("constants", {})
        model_class = _loader(manifest, config.model_type, steps, constants)
        if manifest.tier == "hf-remote-code":
            config = _unpruned(config, manifest)
        with quiet():
            model, info = read(model_class, config)
    except (OSError, RuntimeError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be loaded: {error}") from error
    problems = {key: sorted(map(str, found)) for key, found in info.items() if found}
    if problems:
        raise CheckpointError(f"the weights in {path} do not fit the model that its plan describes: {problems}")
    wanted = vars(model).pop(_CUT_BUFFERS, frozenset())
    if manifest.tier == "hf-remote-code":
        _into_weights(model, constants, undo=True)
    elif wanted:
        saved = read_constants(path / manifest.constants) if manifest.constants else {}
        put_constants(model, wanted, saved, as_saved=dtype == "auto")
    if manifest.tier != "hf":
        model.__class__ = _stock_class(manifest)  # the cut class was only needed to be built
    history = History(
        architecture=manifest.architecture,
        base_name=manifest.base_name,
        base_config=manifest.base_config,
        steps=steps,
        stock=manifest.tier == "hf",
        why_not=manifest.why_not_hf,
    )
    remember(model, history)
    loaded: PreTrainedModel = model
    return loaded


def cut_class(
    base: type[PreTrainedModel], steps: tuple[Step, ...], constants: Mapping[str, str] = NOTHING
) -> type[PreTrainedModel]:
    """A class that builds ``base`` from the unpruned config and cuts it, so that stock loading code can fill it.

    It keeps the stock name and calls itself stock code, because transformers looks up weight conversions by both; and
    it lists :class:`GenerationMixin` directly, or transformers would wrap it in yet another class. ``constants`` are
    the dtypes of cut constants that the weights contain.
    """

    def build(self: Any, config: Any, *args: Any, **kwargs: Any) -> None:
        base.__init__(self, config, *args, **kwargs)
        cut = [edit.new for step in steps for edit in cut_model(self, step.graph, step.plan)]
        own = {id(tensor) for tensor in cut}
        kept = {name: b for name, b in self.named_buffers(remove_duplicate=False) if id(b) in own}
        vars(self)[_CUT_BUFFERS] = frozenset(kept.keys() - self.state_dict(keep_vars=True).keys())
        _into_weights(self, constants)

    def initialise(self: Any) -> None:
        for name in vars(self).get(_CUT_BUFFERS, ()):  # none yet while the stock class is built
            self.get_buffer(name)._is_hf_initialized = True  # the stock class would fill in the uncut constant
        for module in self.modules():
            own = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
            if own and all(getattr(tensor, "_is_hf_initialized", False) for tensor in own):
                module._is_hf_initialized = True  # stock code would compute what to fill in, by the uncut config
        base.initialize_weights(self)  # type: ignore[no-untyped-call]

    members = {
        "__init__": build,
        "initialize_weights": initialise,
        "__module__": base.__module__,
        "__qualname__": base.__qualname__,
        "is_custom_code": classmethod(lambda _class: False),
    }
    generates = issubclass(base, GenerationMixin)
    return type(base.__name__, (base, GenerationMixin) if generates else (base,), members)


def _into_weights(model: Any, constants: Mapping[str, str], *, undo: bool = False) -> None:
    """Lets cut constants be loaded with the weights, those of 32 bits as such, or makes them constants again."""
    for name, dtype in constants.items():
        owner, leaf = resolve_owner(model, name)
        (owner._non_persistent_buffers_set.add if undo else owner._non_persistent_buffers_set.discard)(leaf)
        exact = {name} if dtype == "float32" and owner.get_buffer(leaf).dtype == torch.float32 else set()
        known = set(model._keep_in_fp32_modules_strict)
        model._keep_in_fp32_modules_strict = known - {name} if undo else known | exact


def _loader(manifest: Manifest, kind: str, steps: tuple[Step, ...], constants: Mapping[str, str]) -> Any:
    """The class whose ``from_pretrained`` reads the folder; ``kind`` is the model type of its config."""
    if manifest.tier == "hf":
        return getattr(transformers, loader_name(manifest.architecture, kind))
    return cut_class(_stock_class(manifest), steps, constants)


def _unpruned(config: Any, manifest: Manifest) -> Any:
    """The config of the unpruned model; plan and graph say what became of it, and not the folder's own recipe."""
    unpruned = config_from(type(config), manifest.base_config)
    unpruned.dtype, unpruned.architectures = config.dtype, config.architectures
    return unpruned


def _stock_class(manifest: Manifest) -> type[PreTrainedModel]:
    home = modeling_graphprune if KEY in manifest.base_config else transformers
    found = getattr(home, manifest.architecture, None)
    if not (isinstance(found, type) and issubclass(found, PreTrainedModel)):
        raise CheckpointError(
            f"this version of transformers ({transformers.__version__}) has no model class "
            f"'{manifest.architecture}'; the checkpoint was written with {manifest.libraries.get('transformers')}"
        )
    return found


def _step(plan: Path, graph: Path) -> Step:
    try:
        return Step(DependencyGraph.model_validate_json(graph.read_text(encoding="utf-8")), PrunePlan.load(plan))
    except (OSError, ValidationError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{graph} is no dependency graph: {error}") from None
