"""How long a model takes: reading a prompt, and writing tokens one by one."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict
from torch import nn

from graphprune.errors import DataError
from graphprune.evaluating import evaluating
from graphprune.names import bare
from graphprune.placement import input_device
from graphprune.tasks import predicts_next_token


class Timing(BaseModel):
    """Seconds of repeated trials: their median, smallest and largest."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    median: float
    smallest: float
    largest: float

    @classmethod
    def of(cls, seconds: list[float]) -> Timing:
        """From the seconds of every trial."""
        return cls(median=statistics.median(seconds), smallest=min(seconds), largest=max(seconds))


class Latency(BaseModel):
    """What :func:`latency` measured.

    Attributes:
        prompt_tokens: length of each sequence that is read at once.
        new_tokens: how many tokens are then decoded one by one.
        batch_size: sequences at a time.
        trials: how often it was measured, after a warm-up that does not count.
        prefill: seconds of reading the prompts.
        decode: seconds per decoded token, the mean within each trial; None for a model without a cache.
        device: the kind of device.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    prompt_tokens: int
    new_tokens: int
    batch_size: int
    trials: int
    prefill: Timing
    decode: Timing | None
    device: str


@torch.no_grad()
def latency(
    model: nn.Module,
    *,
    prompt_tokens: int = 2048,
    new_tokens: int = 32,
    batch_size: int = 1,
    trials: int = 5,
    warmup: int = 1,
    progress: Callable[[], object] = lambda: None,
) -> Latency:
    """Measures a decoder as it is, in evaluation mode and without gradients; LoRA adapters included, merged or not.

    The prompt has random tokens: time does not depend on which. LoRAPrune (https://arxiv.org/abs/2305.18403, Table 3)
    gives the time of 2048 tokens.

    Args:
        model: a causal language model, bare or with adapters.
        prompt_tokens: lowered so that prompt and new tokens fit into what the model reads.
        new_tokens: tokens to decode after the prompt, at least 1.
        batch_size: sequences at a time.
        trials: measurements that count.
        warmup: measurements before them that do not.
        progress: called after each of both kinds.

    Raises:
        DataError: if the model does not predict tokens, or cannot read that many.
    """
    base: Any = bare(model)
    if not predicts_next_token(base):
        raise DataError(f"latency needs a model that predicts the next token; {type(base).__name__} does not")
    limit = getattr(base.config.get_text_config(), "max_position_embeddings", None)
    if isinstance(limit, int) and limit > 0:
        prompt_tokens = min(prompt_tokens, limit - new_tokens)
    if prompt_tokens < 1 or new_tokens < 1:
        raise DataError(
            f"expected room for a prompt and at least one new token, got {new_tokens} new tokens and a model that "
            f"reads {limit}. Lower the number of new tokens."
        )
    device = input_device(model)
    vocabulary = base.get_input_embeddings().weight.shape[0]
    ids = torch.randint(0, vocabulary, (batch_size, prompt_tokens), generator=torch.Generator().manual_seed(0))
    prefill, decode = [], []
    with evaluating(model):
        for trial in range(warmup + trials):
            read, written = _trial(model, ids.to(device), new_tokens)
            progress()
            if trial >= warmup:
                prefill.append(read)
                decode.append(written)
    known = [seconds for seconds in decode if seconds is not None]
    return Latency(
        prompt_tokens=prompt_tokens,
        new_tokens=new_tokens,
        batch_size=batch_size,
        trials=trials,
        prefill=Timing.of(prefill),
        decode=Timing.of(known) if known else None,
        device=device.type,
    )


def _trial(model: nn.Module, ids: torch.Tensor, new_tokens: int) -> tuple[float, float | None]:
    """Seconds of the prompt, and per new token."""
    start = _now(ids.device)
    outputs = model(input_ids=ids, use_cache=True)
    read = _now(ids.device) - start
    cache = getattr(outputs, "past_key_values", None)
    if cache is None:
        return read, None
    start = _now(ids.device)
    for _ in range(new_tokens):
        token = outputs.logits[:, -1:].argmax(dim=-1)
        outputs = model(input_ids=token, past_key_values=cache, use_cache=True)
        cache = outputs.past_key_values
    return read, (_now(ids.device) - start) / new_tokens


def _now(device: torch.device) -> float:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
    return time.perf_counter()
