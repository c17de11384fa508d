"""``graphprune eval``: what a model is worth and what it costs, pruned or not, several side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from graphprune.cli.console import out, working, write_text
from graphprune.cli.options import Device, DType, Precision, Trust


def command(
    models: Annotated[
        list[str], typer.Argument(metavar="MODEL...", help="Hub ids or local folders; the first is compared with.")
    ],
    text: Annotated[
        list[str] | None,
        typer.Option("--text", help="For perplexity: a text file, .jsonl rows, wikitext2 or ptb; may be repeated."),
    ] = None,
    length: Annotated[
        int | None,
        typer.Option("--length", min=2, help="Tokens per segment; by default 2048, or what the model reads."),
    ] = None,
    task: Annotated[
        list[str] | None,
        typer.Option(
            "--task",
            help="A task of lm-eval, 'common-sense', a task file, or NAME=FILE.jsonl with local rows; may be repeated.",
        ),
    ] = None,
    few_shot: Annotated[int | None, typer.Option("--few-shot", min=0, help="Examples in the prompts of tasks.")] = None,
    limit: Annotated[int | None, typer.Option("--limit", min=1, help="Questions per task.")] = None,
    latency: Annotated[bool, typer.Option("--latency", help="Time reading a prompt and writing tokens.")] = False,
    prompt: Annotated[int, typer.Option("--prompt", min=1, help="Tokens of the prompt that is timed.")] = 2048,
    new_tokens: Annotated[int, typer.Option("--new-tokens", min=1, help="Tokens that are written then.")] = 32,
    trials: Annotated[int, typer.Option("--trials", min=1, help="Timed trials.")] = 5,
    adapter: Annotated[
        Path | None, typer.Option("--adapter", help="A PEFT adapter to put on MODEL; time is that of both forms.")
    ] = None,
    batch_size: Annotated[int, typer.Option("--batch-size", min=1, help="Segments per forward pass.")] = 8,
    dtype: Precision = DType.AUTO,
    device: Device = None,
    json: Annotated[Path | None, typer.Option("--json", help="Write everything to this file, too.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite that file.")] = False,
    trust_remote_code: Trust = False,
) -> None:
    """Perplexity, tasks, time, memory and size of MODEL, by the protocols of the pruning literature."""
    from graphprune.checkpoint import load_model
    from graphprune.checkpoint.source import load_adapter
    from graphprune.cli.models import check_name, check_text, device_of
    from graphprune.cli.scores import print_evaluations
    from graphprune.errors import CheckpointError, DataError
    from graphprune.evaluate import Evaluation, Questions, evaluate
    from graphprune.evaluate.tasks import check_tasks

    questions = Questions(
        texts=tuple(text or ()),
        length=length,
        tasks=tuple(task or ()),
        few_shot=few_shot,
        limit=limit,
        batch_size=batch_size,
        latency=latency,
        prompt_tokens=prompt,
        new_tokens=new_tokens,
        trials=trials,
    )
    for name in questions.texts:
        check_text(name)
    if questions.tasks:
        with working("looking up tasks"):
            check_tasks(questions.tasks)
    for name in models:
        check_name(name)
    if adapter is not None and len(models) > 1:
        raise DataError(f"--adapter belongs to one model, got {len(models)}. Evaluate one MODEL at a time with it.")
    if json is not None and json.exists() and not force:
        raise CheckpointError(f"{json} exists already. Choose another name, or pass --force to overwrite it.")
    place = device_of(device)
    if questions.texts and length is None:
        questions = questions.model_copy(update={"length": _common_length(models, trust_remote_code)})
    done: list[Evaluation] = []
    for name in models:
        with working(f"loading {name}"):
            model, tokenizer = load_model(name, dtype=dtype.value, device=place, trust_remote_code=trust_remote_code)
            judged = model if adapter is None else load_adapter(model, adapter)
        with working(f"measuring {name}"):
            done.append(evaluate(judged, tokenizer, questions, name=name))
        del model, judged
    print_evaluations(done, out())
    if json is not None:
        listed = ",\n".join(e.model_dump_json(indent=1) for e in done)
        write_text(json, f"[{listed}]\n", overwrite=force)


def _common_length(models: list[str], trust_remote_code: bool) -> int:
    """Perplexities of segments of other lengths cannot be compared: what every model reads, at most 2048 tokens."""
    from graphprune.checkpoint.config import read_config
    from graphprune.checkpoint.source import check_config
    from graphprune.evaluate.evaluation import segment_length

    for name in models:
        if Path(name).is_dir():
            check_config(Path(name))
    return min(segment_length(read_config(name, trust_remote_code=trust_remote_code)) for name in models)
