"""Perplexity by the protocol of the pruning literature."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from graphprune.errors import DataError, NonFiniteError
from graphprune.evaluating import evaluating
from graphprune.names import bare
from graphprune.tasks import predicts_next_token


@dataclass(frozen=True)
class SegmentLosses:
    """How well a model predicts each segment of a text.

    Attributes:
        values: the mean negative log-likelihood per predicted token of every segment, in order.
    """

    values: tuple[float, ...]

    @property
    def perplexity(self) -> float:
        """Of the whole text: all segments have equally many tokens."""
        mean = math.fsum(self.values) / len(self.values)
        return math.exp(mean) if mean < 700 else math.inf


def perplexity(
    model: nn.Module,
    tokenizer: Any | None,
    text: str | os.PathLike[str] | torch.Tensor,
    *,
    length: int = 128,
    batch_size: int = 1,
) -> float:
    """Perplexity of ``text`` in segments that do not overlap.

    The text is tokenised once, as a whole, and cut into segments of ``length`` tokens; what is left over at the end is
    dropped. With N segments, the perplexity is ``exp(mean of -log p(x_t | x_<t))`` over the N·(length - 1) tokens that
    have a predecessor in their segment. So LLM-Pruner (https://arxiv.org/abs/2305.11627) and LoRAPrune
    (https://arxiv.org/abs/2305.18403) evaluate WikiText-2 and PTB, with ``length`` 128; Wanda
    (https://arxiv.org/abs/2306.11695) uses 2048.

    Args:
        model: a causal language model; evaluated in evaluation mode and left in the mode it was in.
        tokenizer: not needed where ``text`` is already token ids.
        text: a text, the path of a UTF-8 text file (a :class:`pathlib.Path`), or token ids of any shape.
        length: tokens per segment, at least 2.
        batch_size: segments per forward pass; does not change the result but for rounding.

    Raises:
        DataError: if the model does not predict tokens or cannot read ``length`` of them, or if the text is missing,
            empty, or shorter than one segment. NonFiniteError: if the loss of a segment is NaN or infinite.
    """
    return segment_losses(model, tokenizer, text, length=length, batch_size=batch_size).perplexity


@torch.no_grad()
def segment_losses(
    model: nn.Module,
    tokenizer: Any | None,
    text: str | os.PathLike[str] | torch.Tensor,
    *,
    length: int = 128,
    batch_size: int = 1,
) -> SegmentLosses:
    """What :func:`perplexity` is the mean of, segment by segment; arguments and errors as there."""
    base: Any = bare(model)
    if not predicts_next_token(base):
        raise DataError(f"perplexity needs a model that predicts the next token; {type(base).__name__} does not")
    segments = _segments(base, tokenizer, text, length)
    device = base.get_input_embeddings().weight.device
    found: list[float] = []
    with evaluating(model):
        for first in range(0, len(segments), batch_size):
            found += _negative_log_likelihoods(model, segments[first : first + batch_size].to(device), first)
    return SegmentLosses(tuple(found))


def _negative_log_likelihoods(model: nn.Module, ids: torch.Tensor, first: int) -> list[float]:
    """The mean over the predicted tokens of each row of ``ids``, shape (batch, length)."""
    logits = model(input_ids=ids, use_cache=False).logits[:, :-1].float()
    losses = F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none").reshape(len(ids), -1)
    broken = (~torch.isfinite(losses)).any(dim=1).nonzero().flatten().tolist()
    if broken:
        raise NonFiniteError(
            f"the loss of segment {first + broken[0]} is not finite, so there is no perplexity. "
            "Load the model in float32 or bfloat16 (float16 overflows), or look for NaN in its weights."
        )
    means: list[float] = losses.cpu().double().mean(dim=1).tolist()  # some accelerators have no float64
    return means


def _segments(model: Any, tokenizer: Any, text: str | os.PathLike[str] | torch.Tensor, length: int) -> torch.Tensor:
    """Token ids of shape (segments, length)."""
    ids, name = _token_ids(tokenizer, text)
    if length < 2:
        raise DataError(f"a segment needs at least 2 tokens, one to predict from and one to predict; got {length}")
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if isinstance(limit, int) and length > limit:
        raise DataError(f"the model reads at most {limit} tokens at once, segments have {length}. Lower the length.")
    count = len(ids) // length
    if count == 0:
        raise DataError(
            f"{name} has {len(ids)} tokens, fewer than one segment of {length}. Give more text, or lower the length."
        )
    return ids[: count * length].reshape(count, length)


def _token_ids(tokenizer: Any, text: str | os.PathLike[str] | torch.Tensor) -> tuple[torch.Tensor, str]:
    if isinstance(text, torch.Tensor):
        return text.flatten().cpu(), "the evaluation text"
    name = "the evaluation text"
    if not isinstance(text, str):
        name = f"evaluation text {Path(text)}"
        try:
            text = Path(text).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"{name} cannot be read: {error}") from None
    if not text.strip():
        raise DataError(f"{name} is empty")
    if tokenizer is None:
        raise DataError(f"{name} has to be tokenised, but the model comes without a tokenizer. Give one, or token ids.")
    # verbose=False: a whole text is always longer than the model's context, and is cut below.
    return torch.tensor(tokenizer(text, verbose=False)["input_ids"], dtype=torch.long), name
