"""Time and peak memory of the stages of a run."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch
from pydantic import BaseModel, ConfigDict

_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")


class Stage(BaseModel):
    """One stage of a run.

    Attributes:
        name: what was done.
        seconds: wall-clock time.
        peak_rss_bytes: the largest resident memory of the process during the stage.
        peak_device_bytes: the largest memory allocated on the accelerator during the stage, where there is one.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    seconds: float
    peak_rss_bytes: int
    peak_device_bytes: int | None = None


class StageClock:
    """Measures stages, one after the other or one inside the other.

    Example:
        ``clock = StageClock()``, ``with clock.stage("score"): ...``, ``clock.stages``.
    """

    def __init__(self) -> None:
        self._done: list[tuple[float, Stage]] = []
        self._open: list[tuple[int, int | None]] = []

    @property
    def stages(self) -> tuple[Stage, ...]:
        """The finished stages, in the order in which they began."""
        return tuple(stage for _, stage in sorted(self._done, key=lambda item: item[0]))

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Measures the block as stage ``name``, also when an exception ends it."""
        self._note_peaks()  # what the surrounding stages have seen before the peak is reset
        _reset_peaks()
        self._open.append((0, None))
        start = time.perf_counter()
        try:
            yield
        finally:
            seconds = time.perf_counter() - start
            self._note_peaks()
            rss, device = self._open.pop()
            stage = Stage(name=name, seconds=seconds, peak_rss_bytes=rss, peak_device_bytes=device)
            self._done.append((start, stage))

    def _note_peaks(self) -> None:
        rss, device = _peaks()
        for i, (seen, seen_device) in enumerate(self._open):
            both = [d for d in (seen_device, device) if d is not None]
            self._open[i] = (max(seen, rss), max(both, default=None))


def _reset_peaks() -> None:
    with suppress(OSError):  # on other systems, and in some containers, the peak of the whole process is reported
        _CLEAR.write_text("5", encoding="ascii")  # Linux: start a new high-water mark (man 5 proc)
    if _on_device():
        torch.cuda.reset_peak_memory_stats()


def _peaks() -> tuple[int, int | None]:
    rss = None
    try:
        line = next(x for x in _STATUS.read_text(encoding="ascii").splitlines() if x.startswith("VmHWM"))
        rss = int(line.split()[1]) * 1024
    except (OSError, StopIteration):
        # Kilobytes everywhere but on macOS.
        rss = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return rss, torch.cuda.max_memory_allocated() if _on_device() else None


def _on_device() -> bool:
    return torch.cuda.is_available() and bool(torch.cuda.is_initialized())  # type: ignore[no-untyped-call]
