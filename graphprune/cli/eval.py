"""``graphprune eval``: the perplexity of a model, pruned or not."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from graphprune.cli.console import out, working
from graphprune.cli.options import Device, DType, Model, Precision, Trust


def command(
    model: Model,
    text: Annotated[Path, typer.Option("--text", help="A UTF-8 text file that the model was not trained on.")],
    length: Annotated[int, typer.Option("--length", min=2, help="Tokens per segment.")] = 128,
    batch_size: Annotated[int, typer.Option("--batch-size", min=1, help="Segments per forward pass.")] = 8,
    dtype: Precision = DType.AUTO,
    device: Device = None,
    trust_remote_code: Trust = False,
) -> None:
    """Print the perplexity of MODEL on a text, by the protocol of the pruning literature."""
    from graphprune.checkpoint import load_model
    from graphprune.cli.models import check_file, device_of
    from graphprune.evaluate import perplexity

    check_file(text)
    place = device_of(device)
    with working(f"loading {model}"):
        loaded, tokenizer = load_model(model, dtype=dtype.value, device=place, trust_remote_code=trust_remote_code)
    with working(f"reading {text}"):
        value = perplexity(loaded, tokenizer, text, length=length, batch_size=batch_size)
    out().print(
        f"perplexity {value:.4f} on {text} in segments of {length} tokens; {loaded.num_parameters():,} parameters"
    )
