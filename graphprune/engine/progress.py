"""One line that says how far a training is, and how long it still takes."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments


class ProgressLine(TrainerCallback):
    """Steps done, time left and the last loss, on the standard error stream.

    Args:
        title: what is being done, in one word.
        console: where to draw; the terminal's error stream by default.
    """

    def __init__(self, title: str, console: Console | None = None) -> None:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
        times = (TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(), TextColumn("{task.fields[loss]}"))
        self._bar = Progress(*columns, *times, console=console or Console(stderr=True))
        self._task = self._bar.add_task(title, total=None, loss="")

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if state.is_world_process_zero:
            self._bar.update(self._task, total=state.max_steps)
            self._bar.start()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self._bar.update(self._task, completed=state.global_step)

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        loss = kwargs["logs"].get("loss")
        if loss is not None:
            self._bar.update(self._task, loss=f"loss {float(loss):.4f}")

    def close(self) -> None:
        """Leaves the line as it stands, also when the training was broken off."""
        self._bar.stop()
