"""What a model is for, and which of transformers' auto classes builds and loads it."""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any

import transformers

from graphprune.errors import CheckpointError

TASKS: Mapping[str, str] = {
    "causal-lm": "AutoModelForCausalLM",
    "seq2seq-lm": "AutoModelForSeq2SeqLM",
    "image-text-to-text": "AutoModelForImageTextToText",
    "masked-lm": "AutoModelForMaskedLM",
    "sequence-classification": "AutoModelForSequenceClassification",
    "token-classification": "AutoModelForTokenClassification",
    "question-answering": "AutoModelForQuestionAnswering",
    "image-classification": "AutoModelForImageClassification",
    "audio-classification": "AutoModelForAudioClassification",
    "speech-seq2seq": "AutoModelForSpeechSeq2Seq",
    "feature-extraction": "AutoModel",
}
"""Auto classes by the name of what their models do; a class that several of them build belongs to the first."""
DEFAULT = "causal-lm"


def check_task(task: str) -> str:
    """``task`` itself.

    Raises:
        CheckpointError: if there is no task of that name.
    """
    if task in TASKS:
        return task
    close = get_close_matches(task, TASKS, n=1)
    hint = f" Did you mean '{close[0]}'?" if close else ""
    raise CheckpointError(f"--task: expected one of {', '.join(TASKS)}, got '{task}'.{hint}")


def task_of(config: Any) -> str:
    """The task of the class that a config names in ``architectures``; a causal language model where it names none.

    Raises:
        CheckpointError: if it names none, and there is no causal language model of its type.
    """
    named = getattr(config, "architectures", None) or []
    remote = getattr(config, "auto_map", None) or {}
    kind = str(getattr(config, "model_type", ""))
    for task, auto in TASKS.items():
        if named and named[0] in (*_classes(task, kind), str(remote.get(auto, "")).rpartition(".")[2]):
            return task
    if DEFAULT in tasks_for(config):
        return DEFAULT
    able = ", ".join(tasks_for(config)) or "none that is known here"
    what = f"the class '{named[0]}', which no auto class here builds" if named else "no class"
    raise CheckpointError(
        f"a config of type '{kind}' names {what}, and is not that of a causal language model. "
        f"Say what the model is for with --task (task=...); this type is made for: {able}"
    )


def tasks_for(config: Any) -> list[str]:
    """The tasks for which a config's type, or the code that comes with it, has a class."""
    remote = getattr(config, "auto_map", None) or {}
    kind = str(getattr(config, "model_type", ""))
    return [task for task, auto in TASKS.items() if _classes(task, kind) or auto in remote]


def auto_class(task: str) -> Any:
    """The auto class of a task."""
    return getattr(transformers, TASKS[task])


def loader_name(architecture: str, kind: str) -> str:
    """The class of transformers whose ``from_pretrained`` gives a model of class ``architecture``.

    Args:
        architecture: the name of a model class.
        kind: the ``model_type`` of its config.
    """
    for task, auto in TASKS.items():
        if architecture in _classes(task, kind):
            return auto
    return architecture if hasattr(transformers, architecture) else TASKS[DEFAULT]


def predicts_next_token(model: Any) -> bool:
    """Whether a model is trained to continue a text, so that text gives a loss and a perplexity.

    A model outside of transformers does not say, and is taken to.
    """
    generates = getattr(model, "can_generate", None)
    decodes_only = not getattr(getattr(model, "config", None), "is_encoder_decoder", False)
    return generates is None or (bool(generates()) and decodes_only)


def _classes(task: str, kind: str) -> tuple[str, ...]:
    """Names of the classes that an auto class builds from configs of type ``kind``."""
    found = auto_class(task)._model_mapping._model_mapping.get(kind, ())
    return (found,) if isinstance(found, str) else tuple(found)
