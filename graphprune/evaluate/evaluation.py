"""Everything that is measured of one model, in one value that can be written as JSON."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from pydantic import BaseModel, ConfigDict
from torch import nn

from graphprune.evaluate.corpora import read_corpus
from graphprune.evaluate.latency import Latency, latency
from graphprune.evaluate.perplexity import perplexity
from graphprune.evaluate.tasks import TaskScore, run_tasks
from graphprune.names import bare
from graphprune.report.measures import Measures, measure
from graphprune.report.stages import Stage, StageClock


class Questions(BaseModel):
    """What to measure, apart from sizes and operations, which are always.

    Attributes:
        texts: corpora and files for perplexity (:func:`~graphprune.evaluate.corpora.read_corpus`).
        length: tokens per segment; by default 2048, or as many as the model reads.
        tasks: for :func:`~graphprune.evaluate.tasks.run_tasks`.
        few_shot: examples in the prompt of tasks.
        limit: only the first so many questions of each task.
        batch_size: segments or questions at a time.
        latency: whether to measure time.
        prompt_tokens: of the prompt that is timed.
        new_tokens: that are then decoded.
        trials: measurements of time.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    texts: tuple[str, ...] = ()
    length: int | None = None
    tasks: tuple[str, ...] = ()
    few_shot: int | None = None
    limit: int | None = None
    batch_size: int = 8
    latency: bool = False
    prompt_tokens: int = 2048
    new_tokens: int = 32
    trials: int = 5


class Evaluation(BaseModel):
    """What was measured of one model.

    Attributes:
        name: what the model is called.
        dtype: of its weights.
        device: the kind of device it ran on.
        size: parameters, bytes, operations of a forward pass, cache.
        length: tokens per segment, where there is a perplexity.
        perplexity: by text.
        tasks: by task.
        latency: with adapters merged, where there are any.
        latency_unmerged: with adapters beside the weights, where there are any.
        stages: time and peak memory of each part.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, ser_json_inf_nan="strings")

    name: str
    dtype: str
    device: str
    size: Measures
    length: int | None = None
    perplexity: dict[str, float] = {}
    tasks: dict[str, TaskScore] = {}
    latency: Latency | None = None
    latency_unmerged: Latency | None = None
    stages: tuple[Stage, ...] = ()

    @property
    def peak_bytes(self) -> int | None:
        """The largest memory on the accelerator, or of the process where there is none, over all parts."""
        on_device = [s.peak_device_bytes for s in self.stages if s.peak_device_bytes is not None]
        peaks = on_device if self.device != "cpu" else [s.peak_rss_bytes for s in self.stages]
        return max(peaks, default=None)


def evaluate(
    model: nn.Module,
    tokenizer: Any | None,
    questions: Questions,
    *,
    name: str = "",
    step: Callable[[str], object] | None = None,
) -> Evaluation:
    """Measures a decoder; with LoRA adapters, quality is that with adapters, time that of both forms.

    Args:
        model: a causal language model, bare or with adapters, on the device to measure on.
        tokenizer: needed for texts and tasks.
        questions: what to measure.
        name: what to call it; by default the name in its config.
        step: told before each part what it is.

    Raises:
        DataError, NonFiniteError, MissingExtraError: whatever the parts raise.
    """
    base: Any = bare(model)
    clock = StageClock()
    tell = step or (lambda _: None)
    length = (questions.length or segment_length(base.config)) if questions.texts else None
    found: dict[str, float] = {}
    for text in questions.texts:
        assert length is not None
        tell(f"perplexity on {text}")
        with clock.stage(f"perplexity on {text}"):
            content = read_corpus(text)
            found[text] = perplexity(model, tokenizer, content, length=length, batch_size=questions.batch_size)
    tasks: dict[str, TaskScore] = {}
    if questions.tasks:
        tell(f"tasks: {', '.join(questions.tasks)}")
        with clock.stage("tasks"):
            tasks = run_tasks(
                model,
                tokenizer,
                questions.tasks,
                few_shot=questions.few_shot,
                limit=questions.limit,
                batch_size=questions.batch_size,
            )
    merged = unmerged = None
    if questions.latency:
        tell("latency")
        with clock.stage("latency"):
            if hasattr(model, "merge_adapter"):
                unmerged = _latency(model, questions)
                with _merged(model):
                    merged = _latency(model, questions)
            else:
                merged = _latency(model, questions)
    tell("size")
    weight = base.get_input_embeddings().weight
    return Evaluation(
        name=name or base.config.name_or_path or type(base).__name__,
        dtype=str(weight.dtype).removeprefix("torch."),
        device=weight.device.type,
        size=measure(base, questions.prompt_tokens),
        length=length,
        perplexity=found,
        tasks=tasks,
        latency=merged,
        latency_unmerged=unmerged,
        stages=clock.stages,
    )


def segment_length(config: Any) -> int:
    """Tokens per segment where nothing else is asked for: 2048, or as many as a model of this config reads."""
    limit = getattr(config.get_text_config(), "max_position_embeddings", None)
    return min(2048, limit) if isinstance(limit, int) and limit > 1 else 2048


def _latency(model: nn.Module, questions: Questions) -> Latency:
    return latency(
        model, prompt_tokens=questions.prompt_tokens, new_tokens=questions.new_tokens, trials=questions.trials
    )


@contextmanager
def _merged(model: Any) -> Iterator[None]:
    """Adapters merged into the weights meanwhile; the weights come back bit by bit, unmerging alone would round."""
    saved = {name: p.detach().clone() for name, p in model.named_parameters() if "base_layer" in name}
    model.merge_adapter()
    try:
        yield
    finally:
        model.unmerge_adapter()
        for name, p in model.named_parameters():
            if name in saved:
                p.data.copy_(saved[name])
