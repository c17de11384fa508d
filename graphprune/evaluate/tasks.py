"""Zero-shot and few-shot tasks, by lm-eval's own code."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict
from torch import nn

from graphprune.errors import DataError, MissingExtraError
from graphprune.evaluating import evaluating

SUITES: Mapping[str, tuple[str, ...]] = {
    "common-sense": ("boolq", "piqa", "hellaswag", "winogrande", "arc_easy", "arc_challenge", "openbookqa"),
}
"""Names for several tasks at once: what LLM-Pruner and LoRAPrune evaluate on."""
FEW_SHOT: Mapping[str, int] = {"mmlu": 5}
"""Examples in the prompt where the literature gives some and nothing else is asked for."""


class TaskScore(BaseModel):
    """What lm-eval says of one task.

    Attributes:
        metrics: values by lm-eval's name of the metric, such as ``acc`` and ``acc_norm``.
        errors: their standard errors, where lm-eval gives them.
        samples: how many questions were asked; of a group of tasks, over all of them.
        few_shot: examples in the prompt; None where the task itself says.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    metrics: dict[str, float]
    errors: dict[str, float]
    samples: int | None
    few_shot: int | None

    @property
    def headline(self) -> str:
        """The metric that papers print: accuracy normalised by length where there is one, else the first."""
        return "acc_norm" if "acc_norm" in self.metrics else next(iter(self.metrics))


def run_tasks(
    model: nn.Module,
    tokenizer: Any,
    tasks: Sequence[str],
    *,
    few_shot: int | None = None,
    limit: int | None = None,
    batch_size: int = 8,
    seed: int = 1234,
) -> dict[str, TaskScore]:
    """Scores a decoder on tasks of lm-eval (https://github.com/EleutherAI/lm-evaluation-harness).

    Args:
        model: a causal language model, bare or with adapters.
        tokenizer: its tokenizer.
        tasks: each the name of a task or group that lm-eval knows (``arc_easy``, ``mmlu``), a suite of :data:`SUITES`,
            a task file of lm-eval (``my_task.yaml``, whose data files are found beside it), or ``NAME=FILE.jsonl``:
            local rows with the fields ``query``, ``choices`` and ``gold``, worded like the task of that name that
            graphprune ships (``arc_easy``, ``openbookqa``, or ``multiple_choice`` for any other questions).
        few_shot: examples in the prompt; by default 5 for mmlu, and what each task says otherwise.
        limit: only the first so many questions of each task.
        batch_size: questions at a time.
        seed: of the choice of examples.

    Returns:
        By task, in the order asked for, a group before its tasks.

    Raises:
        MissingExtraError: if lm-eval is not installed.
        DataError: if a task is unknown, malformed, or its data cannot be reached; names it.
    """
    try:
        import lm_eval
        from lm_eval.models.huggingface import HFLM
        from lm_eval.tasks import TaskManager
    except ImportError:
        raise MissingExtraError("lm-eval", "eval", "scoring on tasks") from None
    manager = TaskManager()
    wanted = {name: _task(name, manager) for asked in tasks for name in SUITES.get(asked, (asked,))}
    scores: dict[str, TaskScore] = {}
    with evaluating(model):
        wrapped = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch_size)
        for name, task in wanted.items():  # one at a time, so that an error can be told apart
            examples = few_shot if few_shot is not None else FEW_SHOT.get(name)
            try:
                found = lm_eval.simple_evaluate(
                    model=wrapped,
                    tasks=[task],
                    num_fewshot=examples,
                    limit=limit,
                    task_manager=manager,
                    fewshot_random_seed=seed,
                    log_samples=False,
                    bootstrap_iters=1000,
                )
            except Exception as error:  # data sets, templates and metrics can raise anything
                raise DataError(_failed(name, error)) from error
            scores.update(_scores(found, examples))
    return scores


def check_tasks(tasks: Sequence[str]) -> None:
    """Finds out, before a model is loaded, what :func:`run_tasks` would refuse for its name alone.

    Raises:
        MissingExtraError, DataError: as there.
    """
    try:
        from lm_eval.tasks import TaskManager
    except ImportError:
        raise MissingExtraError("lm-eval", "eval", "scoring on tasks") from None
    manager = TaskManager()
    for asked in tasks:
        for name in SUITES.get(asked, (asked,)):
            _task(name, manager)


def check_data(tasks: Sequence[str]) -> list[str]:
    """Builds every task, its data included, and says what cannot be had; arguments as :func:`run_tasks`.

    Raises:
        MissingExtraError: if lm-eval is not installed.
    """
    try:
        from lm_eval.tasks import TaskManager, get_task_dict
    except ImportError:
        raise MissingExtraError("lm-eval", "eval", "scoring on tasks") from None
    manager = TaskManager()

    def problem(name: str) -> str:
        try:
            get_task_dict([_task(name, manager)], manager)
        except DataError as error:
            return str(error)
        except Exception as error:  # noqa: BLE001 data sets and templates can raise anything
            return _failed(name, error)
        return ""

    return [told for asked in tasks for name in SUITES.get(asked, (asked,)) if (told := problem(name))]


def _task(name: str, manager: Any) -> str | dict[str, Any]:
    """What lm-eval takes: the name of a task it knows, or the content of a task file."""
    template, is_local, data = name.partition("=")
    if is_local:
        return _local(template, Path(data))
    if name.endswith((".yaml", ".yml")):
        return _from_file(Path(name))
    if name not in manager.all_tasks:
        raise DataError(
            f"expected a task or group of lm-eval, a suite ({', '.join(SUITES)}), a task file (.yaml) or "
            f"NAME=FILE.jsonl with NAME one of {', '.join(templates())}, got '{name}'"
        )
    return name


def templates() -> list[str]:
    """Names of the tasks that graphprune ships for local rows."""
    folder = resources.files("graphprune.specs") / "tasks"
    return sorted(f.name.removesuffix(".yaml") for f in folder.iterdir() if f.name.endswith(".yaml"))


def _local(template: str, data: Path) -> dict[str, Any]:
    if template not in templates():
        raise DataError(f"expected NAME=FILE.jsonl with NAME one of {', '.join(templates())}, got '{template}={data}'")
    if not data.is_file():
        raise DataError(f"task {template}: no file at {data} (relative paths start at {Path.cwd()})")
    text = (resources.files("graphprune.specs") / "tasks" / f"{template}.yaml").read_text(encoding="utf-8")
    return {**yaml.safe_load(text), "dataset_kwargs": {"data_files": {"test": str(data.resolve())}}}


def _from_file(file: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise DataError(
            f"the task file {file} cannot be read as plain YAML: {error}. A task with its own Python code has to be "
            "installed with lm-eval, and is then given by its name."
        ) from None
    if not isinstance(content, dict) or "task" not in content:
        raise DataError(f"{file} is no task file of lm-eval: expected a mapping with the field 'task'")
    files = (content.get("dataset_kwargs") or {}).get("data_files")
    if files is not None:
        content["dataset_kwargs"] = {**content["dataset_kwargs"], "data_files": _beside(file, files)}
    return content


def _beside(task_file: Path, files: Any) -> Any:
    """Data files with paths that do not depend on the working directory."""
    if isinstance(files, Mapping):
        return {split: _beside(task_file, value) for split, value in files.items()}
    if isinstance(files, list):
        return [_beside(task_file, value) for value in files]
    return files if "://" in str(files) else str((task_file.parent / str(files)).resolve())


def _failed(name: str, error: Exception) -> str:
    reason = " ".join(str(error).split())[:200] or type(error).__name__
    template = name if name in templates() else "multiple_choice"
    return (
        f"task '{name}' could not be run: {reason}. Where its data cannot be downloaded, give local rows as "
        f"{template}=FILE.jsonl (fields query, choices and gold), or a task file of lm-eval."
    )


def _scores(found: Any, few_shot: int | None) -> dict[str, TaskScore]:
    # A group has its own entry in `groups`, and its tasks theirs in `results`.
    counts = {name: int(n["effective"]) for name, n in found.get("n-samples", {}).items()}
    scores = {}
    for name, values in {**found.get("groups", {}), **found["results"]}.items():
        metrics, errors = {}, {}
        for key, value in values.items():
            metric, _, kind = key.partition(",")
            if isinstance(value, (int, float)) and not isinstance(value, bool) and "," in key:
                if metric.endswith("_stderr"):
                    errors[metric.removesuffix("_stderr")] = float(value)
                else:
                    metrics[metric if kind == "none" else f"{metric} ({kind})"] = float(value)
        if metrics:
            below = found.get("group_subtasks", {}).get(name) or ()
            samples = counts.get(name) or (sum(counts.get(task, 0) for task in below) or None)
            scores[name] = TaskScore(metrics=metrics, errors=errors, samples=samples, few_shot=few_shot)
    return scores
