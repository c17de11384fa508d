"""What the traced forward passes are called with: the caller's examples, or what the model says about its inputs."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_map_only
from transformers import PreTrainedModel

from graphprune.errors import TraceError
from graphprune.trace.passages import named_leaves

Example = Mapping[str, Any] | tuple[Any, ...]
"""Keyword arguments, or positional ones."""

SEQUENCE, TARGET = 11, 7
"""Lengths of traced sequences, of what is read and of what is written: primes, unlike numbers of heads."""
_IMAGE, _CHANNELS = 224, 3
_SHOWN = 12


@dataclass(frozen=True)
class Call:
    """The arguments of one forward pass; an ``optional`` one is left out where it fails."""

    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)
    optional: bool = False

    def map(self, change: Callable[[torch.Tensor], torch.Tensor]) -> Call:
        """The same call with every tensor changed, nested ones too."""
        args, kwargs = tree_map_only(torch.Tensor, change, (self.args, self.kwargs))
        return Call(args, kwargs, self.optional)

    def tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Every tensor with its keyword or position."""
        yield from named_leaves(self.args)
        yield from named_leaves(self.kwargs)

    def __str__(self) -> str:
        shown = [f"{name} {tuple(t.shape)}" for name, t in self.tensors()]
        shown += [f"{n}={v!r}" for n, v in self.kwargs.items() if isinstance(v, bool | int | float | str)]
        return ", ".join(shown) or "nothing"


def calls_of(model: nn.Module, examples: Example | list[Example] | None) -> list[Call]:
    """One call per forward pass to trace.

    Args:
        model: the model to be called.
        examples: keyword or positional arguments, or a list of these, one for each pass; by default what
            :func:`default_call` makes.

    Raises:
        TraceError: if an example is neither, or lacks an argument without a default.
    """
    if examples is None:
        call = default_call(model)
        calls = [call]
        if "use_cache" in call.kwargs:
            # With a cache other branches run: states are set up, and masks are left to the attention kernel.
            calls.append(Call(kwargs={**call.kwargs, "use_cache": True}, optional=True))
        return [*calls, *_generating(model, call)]
    calls = [_call(example) for example in (examples if isinstance(examples, list) else [examples])]
    if not calls:
        raise TraceError("example_inputs: expected at least one example, got an empty list")
    return [_bound(model, call) for call in calls]


def _generating(model: nn.Module, call: Call) -> Iterator[Call]:
    """The call with which generation begins, where the model adds to its token ids what other branches ask for."""
    prepare = getattr(model, "prepare_inputs_for_generation", None)
    ids = call.kwargs.get("input_ids")
    if prepare is None or ids is None:
        return
    try:
        made = dict(prepare(input_ids=ids))
    except Exception:  # noqa: BLE001 - it may ask for anything that generation itself keeps
        return
    tensors = {name: value for name, value in made.items() if isinstance(value, torch.Tensor)}
    if set(tensors) - set(call.kwargs):
        yield Call(kwargs={**call.kwargs, **tensors}, optional=True)


def _bound(model: nn.Module, call: Call) -> Call:
    """The same call by keywords, where the forward has names for all of its arguments."""
    signature = inspect.signature(model.forward)
    try:
        bound = signature.bind(*call.args, **call.kwargs)
    except TypeError as error:
        takes = ", ".join(_named(signature)[:_SHOWN])
        raise TraceError(
            f"example_inputs do not fit the forward of {type(model).__name__}: {error}. Given were {call}; "
            f"it takes {takes}"
        ) from None
    plain = all(signature.parameters[name].kind is inspect.Parameter.POSITIONAL_OR_KEYWORD for name in bound.arguments)
    return Call(kwargs=dict(bound.arguments)) if plain else call


def _call(example: Any) -> Call:
    if isinstance(example, Mapping):
        return Call(kwargs=dict(example))
    if isinstance(example, tuple):
        return Call(args=example)
    raise TraceError(
        "example_inputs: expected keyword arguments as a mapping, positional ones as a tuple, or a list of these, "
        f"one for each forward pass; got {type(example).__name__}"
    )


def default_call(model: nn.Module) -> Call:
    """The inputs that a model asks for by its ``main_input_name`` and by what its forward cannot do without.

    Token ids, and images of the size that the config states, are made; so are the inputs that a transformers class
    offers as its own ``dummy_inputs``.

    Raises:
        TraceError: naming the inputs whose shape is not known; pass those as ``example_inputs``.
    """
    signature = inspect.signature(model.forward)
    names = _named(signature)
    made: dict[str, Any] = {}
    unknown = []
    for name in _asked(model, signature):
        value = _made(name, model)
        value = _offered(model).get(name) if value is None else value
        if value is None:
            unknown.append(name)
        else:
            made[name] = value
    if unknown or not made:
        takes = f"its forward takes {', '.join(names[:_SHOWN])}" if names else "its forward names no arguments"
        raise TraceError(
            f"the inputs of {type(model).__name__} cannot be made up: {takes}, and "
            f"{'the shape of ' + ', '.join(unknown) if unknown else 'which of them it needs'} is not known. "
            f"Pass example_inputs, such as {{'{(unknown or names or ['x'])[0]}': tensor}}; its shape and type matter."
        )
    config = getattr(model, "config", None)
    if "use_cache" in names or (_takes_any(signature) and hasattr(config, "use_cache")):
        made["use_cache"] = False
    return Call(kwargs=made)


def others(model: nn.Module, call: Call) -> list[str]:
    """Arguments of the forward that a call leaves at their default, for error messages."""
    signature = inspect.signature(model.forward)
    try:
        bound = signature.bind(*call.args, **call.kwargs).arguments
    except TypeError:
        bound = call.kwargs
    return [name for name in _named(signature) if name not in bound][:_SHOWN]


def _named(signature: inspect.Signature) -> list[str]:
    variable = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
    return [name for name, p in signature.parameters.items() if p.kind not in variable]


def _takes_any(signature: inspect.Signature) -> bool:
    return any(p.kind is inspect.Parameter.VAR_KEYWORD for p in signature.parameters.values())


def _asked(model: nn.Module, signature: inspect.Signature) -> list[str]:
    """Names of the inputs without which the forward cannot run, the main one first."""
    names = _named(signature)
    main = getattr(model, "main_input_name", "input_ids") if isinstance(model, PreTrainedModel) else "input_ids"
    asked = [main] if main in names or (isinstance(main, str) and _takes_any(signature)) else []
    asked += [n for n in names if signature.parameters[n].default is inspect.Parameter.empty]
    decodes = bool(getattr(getattr(model, "config", None), "is_encoder_decoder", False))
    if decodes and "decoder_input_ids" in names:
        asked.append("decoder_input_ids")
    return list(dict.fromkeys(asked))


def _made(name: str, model: nn.Module) -> torch.Tensor | None:
    config: Any = getattr(model, "config", None)
    if name in ("input_ids", "decoder_input_ids"):
        return torch.zeros(1, SEQUENCE if name == "input_ids" else TARGET, dtype=torch.long)
    if name in ("attention_mask", "token_type_ids", "position_ids"):
        return torch.full((1, SEQUENCE), int(name == "attention_mask"))
    if name == "pixel_values" and config is not None:
        return torch.zeros(1, *_image(config), dtype=_dtype(model))
    return None


def _image(config: Any) -> tuple[int, int, int]:
    """Channels, height and width of the images that a config, or its vision part, describes."""
    parts = [config, *(v for v in vars(config).values() if hasattr(v, "to_dict") and hasattr(v, "__dict__"))]
    size = next((s for part in parts if (s := getattr(part, "image_size", None))), _IMAGE)
    channels = next((c for part in parts if isinstance(c := getattr(part, "num_channels", None), int)), _CHANNELS)
    if isinstance(size, Mapping):
        size = tuple(size.get(key, _IMAGE) for key in ("height", "width"))
    height, width = size if isinstance(size, tuple | list) else (size, size)
    return int(channels), int(height), int(width)


def _offered(model: nn.Module) -> Mapping[str, Any]:
    """What a class says about its own inputs; nothing where it only inherits the general ones."""
    if not isinstance(model, PreTrainedModel) or type(model).dummy_inputs is PreTrainedModel.dummy_inputs:
        return {}
    try:
        offered: Mapping[str, Any] = model.dummy_inputs
    except (RuntimeError, TypeError, ValueError):  # made from settings that this config may lack, such as a padding id
        return {}
    return offered


def _dtype(model: nn.Module) -> torch.dtype:
    return next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
