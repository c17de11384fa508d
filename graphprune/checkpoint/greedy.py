"""What a model makes of the beginning of a text: the second question to a folder, which the cache has a part in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from graphprune.names import bare
from graphprune.reshape.config import quiet
from graphprune.trace.substitutes import untouched

NEW_TOKENS = 8
"""How many tokens are generated."""
SETTINGS: dict[str, Any] = {
    "max_new_tokens": NEW_TOKENS,
    "min_new_tokens": NEW_TOKENS,
    "do_sample": False,
    "num_beams": 1,
    "use_cache": True,
    "return_dict_in_generate": True,
    "output_logits": True,
}
"""How they are generated, here and in the fresh process."""
_PROMPT = 16


@dataclass(frozen=True, eq=False)
class Continuation:
    """A greedy continuation, with a cache.

    Attributes:
        prompt: what it continues, as keyword arguments of ``generate``.
        tokens: of shape (batch, length), prompt included.
        logits: behind each new token, of shape (new, batch, vocabulary).
    """

    prompt: dict[str, Tensor]
    tokens: Tensor
    logits: Tensor

    def distance(self, tokens: Tensor, logits: Tensor) -> float:
        """How far other logits are apart, up to the first token in which both continuations part.

        Where the tokens part although the logits agree, two of them were tied.
        """
        if tokens.shape != self.tokens.shape or logits.shape != self.logits.shape:
            return float("inf")
        begins = tokens.shape[1] - len(logits)
        parts = (tokens != self.tokens.to(tokens.device)).any(0)[begins:].nonzero().flatten().tolist()
        common = (parts[0] if parts else len(logits) - 1) + 1
        mine, theirs = self.logits[:common].float().to(logits.device), logits[:common].float()
        return torch.where(mine == theirs, 0.0, (mine - theirs).abs()).max().item()


def continuation(model: nn.Module, inputs: Mapping[str, Any]) -> Continuation | str:
    """How ``model`` continues what is in ``inputs``; or why it does not."""
    base: Any = bare(model)
    ids = inputs.get("input_ids")
    if not isinstance(ids, Tensor) or not hasattr(base, "generate") or not base.can_generate():
        return f"a {type(base).__name__} generates no text"
    given = {n: t for n, t in inputs.items() if isinstance(t, Tensor) and not n.startswith("decoder_")}
    prompt = {"input_ids": ids[:1, :_PROMPT]} if given.keys() <= {"input_ids", "attention_mask"} else given
    try:
        with quiet(), untouched(model):
            made = base.generate(**prompt, **SETTINGS)
    except Exception as error:  # noqa: BLE001 - a model may be unable to in any way it likes
        return f"it does not generate with a cache: {type(error).__name__}: {str(error).strip().split(chr(10))[0]}"
    return Continuation(prompt, made.sequences, torch.stack(made.logits))
