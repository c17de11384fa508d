"""The proof that a folder is what it should be: a fresh process loads it as promised and answers alike."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from graphprune.checkpoint.adapters import ADAPTER, unmerged
from graphprune.checkpoint.fresh import Question, ask
from graphprune.checkpoint.greedy import NEW_TOKENS, Continuation, continuation
from graphprune.errors import CheckpointError
from graphprune.names import bare
from graphprune.reshape.adapters import peft_layers
from graphprune.sample import output_of, sample_inputs


@dataclass(frozen=True, eq=False)
class Answer:
    """What a model in memory answers, and its folder must answer, too.

    Attributes:
        inputs: what it was asked, by name.
        logits: its first output.
        text: its greedy continuation, or why there is none.
    """

    inputs: Mapping[str, Any]
    logits: torch.Tensor
    text: Continuation | str

    @classmethod
    @torch.no_grad()
    def of(cls, model: nn.Module, inputs: Mapping[str, Any]) -> Answer:
        """The answer of ``model``, as it is."""
        return cls(inputs, output_of(model(**inputs)), continuation(model, inputs))

    def check(self) -> None:
        """Raises :class:`CheckpointError` if it is none that another could be compared with."""
        if not self.logits.isfinite().all():
            raise CheckpointError(
                "the logits of the model in memory are NaN or infinite, so nothing can be compared with them. Look for "
                "NaN in the weights it came with, or load it in float32 or bfloat16."
            )

    def told(self, distance: float) -> str:
        """How a folder answered, in words: ``distance`` is what :func:`verify_folder` gave."""
        alike = f"{NEW_TOKENS} greedy tokens are the same"
        said = f"no text was compared: {self.text}" if isinstance(self.text, str) else alike
        return f"logits differ by at most {distance:.2g}; {said}"


def verify_folder(
    folder: str | os.PathLike[str],
    inputs: torch.Tensor | Mapping[str, Any],
    expected_logits: torch.Tensor,
    text: Continuation | str = "",
    *,
    adapter: bool = False,
    tolerance: float | None = None,
    timeout: float = 1800.0,
) -> float:
    """Loads ``folder`` in a new Python process, as its manifest says, and compares logits and text.

    A folder of tier ``hf`` or ``hf-remote-code`` is loaded where graphprune cannot be imported. The process has no
    network.

    Args:
        folder: written by :func:`graphprune.save`.
        inputs: token ids of shape (batch, length), or the tensors that the model takes, by name.
        expected_logits: of the model in memory, for a decoder of shape (batch, length, vocabulary); the first output
            of a model without logits. The fresh process computes on the same kind of device.
        text: what the model in memory generates; nothing is generated where it is a reason why it does not.
        adapter: put the adapter beside the weights on them with stock ``PeftModel.from_pretrained`` first; without, the
            answer is that of the weights alone.
        tolerance: how far logits may be apart; by default 1e-3 of their largest magnitude, 5e-2 for 16-bit weights.
        timeout: seconds until the process is given up.

    Returns:
        the largest absolute difference of a logit, in what is generated too.

    Raises:
        CheckpointError: if the folder does not load, or the logits are further apart.
    """
    path = Path(folder).expanduser().absolute()
    expected = expected_logits.detach().float().cpu()
    named = {"input_ids": inputs} if isinstance(inputs, torch.Tensor) else inputs
    prompt = {} if isinstance(text, str) else text.prompt
    beside = path / ADAPTER if adapter else None
    what = f"{path} with its adapter" if adapter else f"{path}"
    (got,) = ask([Question(path, named, prompt, beside)], expected_logits.device, timeout=timeout)
    if isinstance(got, str):
        raise CheckpointError(f"{what} does not load in a fresh process:\n{got}")
    if got["logits"].shape != expected.shape:
        shape = tuple(got["logits"].shape)
        raise CheckpointError(f"{what} gives logits of shape {shape}, expected {tuple(expected.shape)}")
    distance = (got["logits"] - expected).abs().max().item()
    if tolerance is None:
        tolerance = (1e-3 if expected_logits.dtype == torch.float32 else 5e-2) * expected.abs().max().item()
    apart = 0.0 if isinstance(text, str) else text.distance(got["tokens"], got["steps"])
    for kind, found in (("logits", distance), ("text", apart)):
        if not found <= tolerance:
            raise CheckpointError(
                f"{what} gives other {kind} in a fresh process than the model in memory: logits differ by up to "
                f"{found:.3g}, more than {tolerance:.3g}. The folder must not be used; please report this."
            )
    return max(distance, apart)


def verify_places(folder: str | os.PathLike[str], *, timeout: float = 1800.0) -> None:
    """Loads ``folder`` in a new Python process, as its manifest says, without keeping the weights.

    Every tensor of the files must have its place in the model, by name and shape, and nothing may be missing. It takes
    memory for one weight at a time; what the model computes is not asked.

    Raises:
        CheckpointError: if the folder does not load.
    """
    path = Path(folder).expanduser().absolute()
    (got,) = ask([Question(path)], timeout=timeout)
    if isinstance(got, str):
        raise CheckpointError(f"{path} does not load in a fresh process:\n{got}")


def prove_folder(model: nn.Module, folder: str | os.PathLike[str]) -> float:
    """:func:`verify_folder` with a question made up for ``model``, the one in memory, and its answer.

    Where the folder keeps the adapters of ``model`` beside its weights, both are proved: the weights alone, and with
    their adapter.

    Raises:
        CheckpointError: if the folder does not load, or gives another answer.
        TraceError: if the inputs of the model cannot be told.
    """
    inputs = sample_inputs(bare(model))
    kept = bare(model) is not model and (Path(folder).expanduser() / ADAPTER).is_dir()
    answer = Answer.of(model, inputs)
    far = verify_folder(folder, inputs, answer.logits, answer.text, adapter=kept)
    if kept:
        with without_adapter(model) as base:
            answer = Answer.of(base, inputs)
        far = max(far, verify_folder(folder, inputs, answer.logits, answer.text))
    return far


@contextmanager
def without_adapter(model: nn.Module) -> Iterator[nn.Module]:
    """A model that computes as the weights beside a kept adapter do; ``model`` itself where it has no adapters."""
    if bare(model) is model:
        yield model
    elif any("modules_to_save" in module._modules for module in model.modules()) or _any_merged(model):
        yield unmerged(model)  # trained copies are among those weights
    else:
        with cast(Any, model).disable_adapter():
            yield model


def _any_merged(model: nn.Module) -> bool:
    return any(layer.merged for _, layer in peft_layers(model))
