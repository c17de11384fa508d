"""Ctrl-C, and the SIGTERM of a cluster: a training ends after the optimizer step it is in, with a checkpoint."""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from graphprune import processes

log = logging.getLogger(__name__)

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupted(KeyboardInterrupt):
    """A run was interrupted, and can be continued; says where its state is and how to go on.

    Attributes:
        number: of the signal.
    """

    def __init__(self, message: str, number: int = signal.SIGINT) -> None:
        self.number = number
        super().__init__(message)

    @property
    def exit_code(self) -> int:
        """128 plus the number of the signal, as shells have it."""
        return 128 + self.number


class StopAtStep(TrainerCallback):
    """Ends a training when a signal has come, as soon as the step is done and its checkpoint written.

    Put it behind the callbacks that complete a checkpoint. Of several processes all end, at the same step, when one was
    told to. A second signal ends the process at once, as ever; what
    was written before is still there.
    """

    def __init__(self) -> None:
        self._received: int | None = None
        self._stopping = False
        self._former: dict[int, Any] = {}

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Catches the signals inside the ``with`` block; does nothing where Python allows no handler."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        # Ctrl-C that the caller ignores, such as a shell's background job, stays ignored.
        heard = [s for s in _SIGNALS if signal.getsignal(s) not in (signal.SIG_IGN, None)]
        self._former = {number: signal.signal(number, self._hear) for number in heard}
        try:
            yield
        finally:
            self._restore()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self._stopping = processes.any_of(self._received is not None)
        if self._stopping:
            control.should_save = True

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if self._stopping:
            number = self._received if self._received is not None else signal.SIGTERM
            raise Interrupted(f"stopped after step {state.global_step} of {state.max_steps}", number)

    def _hear(self, number: int, frame: FrameType | None) -> None:
        self._received = number
        self._restore()
        # Not through the log: a signal may come in the middle of a log line.
        os.write(2, b"\nstopping after this optimizer step; once more to stop at once\n")

    def _restore(self) -> None:
        for number, former in self._former.items():
            signal.signal(number, former)
        self._former = {}
