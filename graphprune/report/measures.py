"""Size and cost of a model, measured on fake tensors: exact, the same on every machine, and free."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from graphprune.evaluating import evaluating
from graphprune.names import bare
from graphprune.tasks import predicts_next_token
from graphprune.trace.inputs import default_call

#: Outputs of a forward pass that are no state kept for the next token.
_NO_CACHE = frozenset({"logits", "loss", "aux_loss", "hidden_states", "attentions", "router_logits"})


class Measures(BaseModel):
    """What a model weighs and what it costs to run.

    Attributes:
        parameters: number of scalar parameters, shared ones once.
        weight_bytes: bytes of parameters and persistent buffers, shared ones once.
        sequence_length: tokens of the one sequence that ``macs`` and ``cache_bytes`` are for; 1 for a model that reads
            something else, such as one image.
        macs: multiply-accumulate operations of one forward pass over it. Matrix products and convolutions count, of
            experts those that a token is sent to; attention counts in full, without the saving of a causal kernel.
        cache_bytes: what the forward pass keeps for the next token (keys and values, states), after that sequence.
        notes: why a number is missing.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    parameters: int
    weight_bytes: int
    sequence_length: int
    macs: int | None = None
    cache_bytes: int | None = None
    notes: tuple[str, ...] = ()

    @property
    def cache_bytes_per_token(self) -> float | None:
        """Cache bytes per token of the sequence."""
        return None if self.cache_bytes is None else self.cache_bytes / self.sequence_length


def measure(model: nn.Module, sequence_length: int = 512) -> Measures:
    """Measures ``model`` as it is; on real, fake and meta-device models alike, without computing anything.

    Args:
        model: a model whose inputs can be told (:func:`graphprune.trace.inputs.default_call`).
        sequence_length: tokens of the sequence that costs are counted for; lowered to what the model can read.
    """
    config: Any = getattr(bare(model), "config", None)
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    limit = getattr(text, "max_position_embeddings", None)
    if isinstance(limit, int) and limit > 0:
        sequence_length = min(sequence_length, limit)
    if getattr(bare(model), "main_input_name", "input_ids") != "input_ids":
        sequence_length = 1
    weights = {id(t): t for t in model.state_dict(keep_vars=True).values() if isinstance(t, torch.Tensor)}
    macs, cache, notes = None, None, []
    try:
        macs = _macs(model, sequence_length)
    except Exception as error:  # noqa: BLE001 - a number in a report must not end a run
        notes.append(f"operations were not counted: {error}")
    try:
        cache = _cache_bytes(model, sequence_length)
    except Exception as error:  # noqa: BLE001 - see above
        notes.append(f"the cache was not measured: {error}")
    return Measures(
        parameters=sum(p.numel() for p in model.parameters()),
        weight_bytes=sum(t.numel() * t.element_size() for t in weights.values()),
        sequence_length=sequence_length,
        macs=macs,
        cache_bytes=cache,
        notes=tuple(notes),
    )


def _macs(model: nn.Module, length: int) -> int:
    # The CPU's fused attention is missing in torch's table.
    fused = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention_flops}
    counter = FlopCounterMode(display=False, custom_mapping=fused)
    with _fake(model) as run, counter:
        run(length, use_cache=False)
    return int(counter.get_total_flops()) // 2


def _attention_flops(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    """Two operations per element of Q·Kᵀ and of P·V; shapes are (batch, heads, length, head size)."""
    batch, heads, length, _size = query
    return int(2 * batch * heads * length * key[2] * (query[3] + value[3]))


def _cache_bytes(model: nn.Module, length: int) -> int:
    if not predicts_next_token(bare(model)):
        return 0
    with _fake(model) as run:
        outputs = run(length, use_cache=True)
    kept = [value for name, value in outputs.items() if name not in _NO_CACHE]
    return sum(t.numel() * t.element_size() for t in _tensors(kept, set()))


def _tensors(thing: Any, seen: set[int]) -> Iterator[torch.Tensor]:
    """Every tensor that can be reached from a cache object, whatever its class."""
    if id(thing) in seen:
        return
    seen.add(id(thing))
    if isinstance(thing, torch.Tensor):
        yield thing
    elif isinstance(thing, dict):
        for value in thing.values():
            yield from _tensors(value, seen)
    elif isinstance(thing, (list, tuple)):
        for value in thing:
            yield from _tensors(value, seen)
    elif hasattr(thing, "__dict__") and not isinstance(thing, (nn.Module, type)):
        yield from _tensors({k: v for k, v in vars(thing).items() if "config" not in k}, seen)


@contextmanager
def _fake(model: nn.Module) -> Iterator[Any]:
    """A function that runs the model on fake copies of its tensors, with kernels whose operations can be counted."""
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    call = default_call(bare(model))
    with evaluating(model), _countable(model), FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
        fakes = {name: torch.empty(t.shape, dtype=t.dtype) for name, t in tensors.items()}

        def run(length: int, *, use_cache: bool) -> Any:
            inputs = call.map(lambda t: torch.empty(t.shape, dtype=t.dtype)).kwargs
            if "input_ids" in inputs:
                inputs["input_ids"] = torch.zeros(1, length, dtype=torch.long)
            if "use_cache" in inputs:
                inputs["use_cache"] = use_cache
            return torch.func.functional_call(model, fakes, (), inputs)

        yield run


@contextmanager
def _countable(model: nn.Module) -> Iterator[None]:
    """Kernels that torch's counter knows: it cannot see into flash or flex attention, nor into grouped experts."""
    configs = {id(c): c for m in model.modules() if hasattr(c := getattr(m, "config", None), "to_dict")}
    before: list[tuple[dict[str, Any], str, Any]] = []
    for values in map(vars, configs.values()):
        attention, experts = "_attn_implementation_internal", "_experts_implementation_internal"
        if values.get(attention) not in (None, "eager", "sdpa"):
            before.append((values, attention, values[attention]))
            values[attention] = "sdpa"
        if experts in values:
            before.append((values, experts, values[experts]))
            values[experts] = "batched_mm"
    try:
        yield
    finally:
        for values, name, value in before:
            values[name] = value
