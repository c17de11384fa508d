"""The model under proof: its inputs, its logits, its generated tokens, and copies of it that may be cut."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from graphprune.errors import GraphPruneError
from graphprune.names import bare
from graphprune.placement import input_device
from graphprune.reshape.config import quiet
from graphprune.trace.inputs import default_call
from graphprune.trace.integers import configs_of
from graphprune.trace.substitutes import untouched

#: Tokens per sequence where no sliding window asks for more.
LENGTH = 13
#: Windows longer than this are not reached: a prompt beyond them would take too long.
LONGEST_WINDOW = 512
#: How many tokens are generated.
NEW_TOKENS = 8


def random_inputs(model: nn.Module, seed: int, *, batch: int = 2, length: int = LENGTH) -> dict[str, Any]:
    """Random inputs on the model's device: token ids of shape (batch, length), or what else the model asks for.

    Raises:
        GraphPruneError: if it cannot be told what the model takes (:func:`graphprune.trace.inputs.default_call`).
    """
    base = bare(model)
    device = input_device(base)
    generator = torch.Generator().manual_seed(seed)
    asked = {name: value for name, value in default_call(base).kwargs.items() if isinstance(value, Tensor)}
    if set(asked) == {"input_ids"}:
        asked = {"input_ids": torch.zeros(batch, length, dtype=torch.long)}
    made = {}
    for name, value in asked.items():
        if name.endswith("input_ids"):
            size = _vocabulary(base)
            value = torch.randint(min(3, size - 1), size, value.shape, generator=generator)
        elif value.is_floating_point():
            value = torch.randn(value.shape, generator=generator).to(value.dtype)
        made[name] = value.to(device)
    return made


def _vocabulary(base: Any) -> int:
    configs = [config for _, config in configs_of(base)]
    if hasattr(base.config, "get_text_config"):
        configs.insert(0, base.config.get_text_config(decoder=True))
    sizes = [size for config in configs if isinstance(size := getattr(config, "vocab_size", None), int)]
    if not sizes:
        raise GraphPruneError(f"no config of {type(base).__name__} has a vocab_size; pass its inputs to the proof")
    return sizes[0]


def window(model: nn.Module) -> int:
    """The longest sliding window (or chunk) that a config of the model speaks of; 0 without one."""
    found = [0]
    for _, config in configs_of(bare(model)):
        for name, value in vars(config).items():
            if type(value) is int and ("window" in name or "chunk" in name):
                found.append(value)
    return max(found)


def logits_of(model: nn.Module, inputs: Mapping[str, Any]) -> Tensor:
    """The model's logits for ``inputs``, without a cache where it has a config; the model keeps no state of the pass.

    Raises:
        GraphPruneError: if the forward returns no tensor that could be the logits.
    """
    cache = {"use_cache": False} if hasattr(bare(model), "config") else {}
    with untouched(model):
        output = model(**{**cache, **inputs})
    found = getattr(output, "logits", output)
    if isinstance(found, tuple):
        found = found[0]
    if not isinstance(found, Tensor):
        raise GraphPruneError(f"expected logits from {type(bare(model)).__name__}, got {type(output).__name__}")
    return found


def distance(left: Tensor, right: Tensor) -> float:
    """The largest absolute difference; equal infinities do not differ, NaN is infinitely far.

    Raises:
        GraphPruneError: if the shapes differ.
    """
    if left.shape != right.shape:
        raise GraphPruneError(f"expected logits of shape {tuple(left.shape)}, got {tuple(right.shape)}")
    apart = torch.where(left == right, 0.0, (left.float() - right.float()).abs())
    return torch.nan_to_num(apart, nan=float("inf"), posinf=float("inf")).max().item()


def magnitude(logits: Tensor) -> float:
    """The largest finite |logit|."""
    return torch.nan_to_num(logits.detach().float(), nan=0.0, posinf=0.0, neginf=0.0).abs().max().item()


def twin(model: nn.Module) -> nn.Module:
    """A copy that may be cut: modules and configs of its own, the same tensors until they are replaced."""
    shared = {id(t): t for t in (*model.parameters(), *model.buffers())}
    return copy.deepcopy(model, shared)


def rounding(model: nn.Module, inputs: Mapping[str, Any], dense: Tensor, seed: int) -> float:
    """How far the logits move when every weight moves by one unit in the last place: the model's own rounding.

    Some architectures (recurrent ones, routers near a tie) amplify rounding far beyond that of a sum.
    """
    jittered = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(seed)
    for parameter in jittered.parameters():
        if parameter.is_floating_point():
            signs = torch.randint(0, 2, parameter.shape, generator=generator).to(parameter) * 2 - 1
            parameter.data.mul_(1 + signs * torch.finfo(parameter.dtype).eps)
    return distance(logits_of(jittered, inputs), dense)


def in_float32(model: nn.Module) -> nn.Module:
    """The model itself, or a copy in float32 where it has shorter floats, in which rounding hides mistakes."""
    short = any(p.dtype in (torch.float16, torch.bfloat16) for p in model.parameters())
    return copy.deepcopy(model).float() if short else model


def can_generate(model: nn.Module) -> bool:
    """Whether the class has a ``generate``."""
    base: Any = bare(model)
    return hasattr(base, "generate") and (not hasattr(base, "can_generate") or bool(base.can_generate()))


@dataclass(frozen=True, eq=False)
class Generated:
    """Tokens of shape (batch, length), prompt included; the logits behind each new one, (new, batch, vocabulary)."""

    tokens: Tensor
    logits: Tensor


def generated(model: nn.Module, prompt: Mapping[str, Any], *, cache: bool) -> Generated:
    """The greedy continuation of ``prompt``.

    The states that some models keep in their modules are taken back: a copy that is cut next would start with them.
    """
    base: Any = model
    with quiet(), untouched(model):
        given = base.generate(
            **prompt,
            max_new_tokens=NEW_TOKENS,
            do_sample=False,
            use_cache=cache,
            return_dict_in_generate=True,
            output_logits=True,
        )
    return Generated(given.sequences, torch.stack(given.logits))


def told(error: Exception) -> str:
    """An error in one line: its first, with the second where the first only announces it."""
    lines = str(error).strip().splitlines() or [""]
    said = " ".join(line.strip() for line in lines[: 2 if lines[0].endswith(":") else 1])[:300]
    return f"{type(error).__name__}: {said}" if said else type(error).__name__
