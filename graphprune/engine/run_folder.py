"""The folder in which an unfinished run keeps its state: it can be continued from it, and it goes when the run is done.

- ``run.json``: whose run this is;
- ``lock``: held by the process that works on it;
- ``pruned/``: in mode ``separate``, plan and scores of the pruning, so that they are not computed again;
- ``checkpoint-40/``: the last two checkpoints of the Trainer, with the state of graphprune's engine;
- ``diverged.txt``: that a training has diverged.
"""

from __future__ import annotations

import fcntl
import logging
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors.torch import load_file, save_file

from graphprune.engine.identity import Identity, spec_differences, spec_of_run
from graphprune.engine.interrupts import Interrupted
from graphprune.engine.marks import checkpoints, fault, last_checkpoint, mark, step_of
from graphprune.engine.state import check_identity
from graphprune.errors import CheckpointError, DivergedError
from graphprune.files import write_whole
from graphprune.plan import PrunePlan
from graphprune.schema import PruneSpec

log = logging.getLogger(__name__)

_RUN, _LOCK, _PRUNED = "run.json", "lock", "pruned"
_PLAN, _SCORES = "plan.json", "scores.safetensors"
#: Written when a training has diverged: what it said. From then on these settings may change.
_DIVERGED = "diverged.txt"
_MAY_CHANGE = ("training.learning_rate", "training.max_grad_norm")


class Run(BaseModel):
    """What ``run.json`` says.

    Attributes:
        identity: the spec, graph, model and data that the run was begun with.
        steps: optimizer steps of the whole run.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: int = 1
    identity: Identity
    steps: int


class RunFolder:
    """The state of a run on disk.

    Args:
        path: the folder; it need not exist.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def check(self, spec: PruneSpec, *, resume: bool) -> None:
        """Whether a run with ``spec`` may begin here, or continue; before any model is loaded.

        A run that was killed before anything worth keeping was there is none.

        Raises:
            CheckpointError: if there is an unfinished run and ``resume`` is off, if its spec is another one, or if
                the folder is somebody else's.
        """
        found = self._read()
        if found is None or not self.worth:
            return
        if not resume:
            raise CheckpointError(
                f"{self.path} holds an unfinished run, {self.state_of(found)}. Continue it with --resume "
                f"(gp.prune(..., resume=True)), or remove that folder to begin anew."
            )
        problems = self._allowed(spec_differences(found.identity.spec, spec_of_run(spec)))
        if problems:
            listed = "\n".join(f"  - {problem}" for problem in problems)
            raise CheckpointError(
                f"the unfinished run in {self.path} was begun with another spec:\n{listed}\n"
                "Continue it with the spec it was begun with, or name another output to begin anew."
            )

    @contextmanager
    def held(self, identity: Identity, steps: int) -> Iterator[None]:
        """Begins or continues the run for the time of the ``with`` block; nobody else can meanwhile.

        Left by an error or Ctrl-C, a folder from which nothing could be continued is removed again; otherwise the
        message says how to go on.

        Raises:
            Interrupted: instead of KeyboardInterrupt, where the run can be continued.
            CheckpointError: if another process works here, the folder cannot be written, or an unfinished run in it
                belongs to another spec, graph, model or data.
        """
        made = [p for p in self.path.absolute().parents if not p.exists()]  # innermost first
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            lock = (self.path / _LOCK).open("a")
        except OSError as error:
            raise CheckpointError(f"{self.path} cannot be written: {error.strerror}. Name another place.") from None
        with lock:
            self._hold(lock)
            found = self._read()
            if found is None or not self.worth:
                run = Run(identity=identity, steps=steps)
                write_whole(self.path / _RUN, run.model_dump_json(indent=1) + "\n", durable=True)
            else:
                what = f"the unfinished run in {self.path}"
                check_identity(found.identity, identity, what, self._allowed)
                log.info("continuing the run in %s, %s", self.path, self.state_of(found))
            try:
                yield
            except BaseException as error:
                if not self.worth:
                    self.remove()
                    for parent in made:
                        with suppress(OSError):
                            parent.rmdir()
                    raise
                if isinstance(error, DivergedError):
                    write_whole(self.path / _DIVERGED, f"{error}\n", durable=True)
                told = self._told(error)
                if told is error:
                    raise
                raise told from error

    @property
    def worth(self) -> bool:
        """Whether anything could be continued from here."""
        return self.last is not None or fault(self.path / _PRUNED) is None

    @property
    def last(self) -> Path | None:
        """The latest whole checkpoint of the training."""
        return next((found for found in checkpoints(self.path) if fault(found) is None), None)

    def start(self) -> Path | None:
        """The checkpoint to continue from; what was half-written after it is cleared away."""
        last = last_checkpoint(self.path)
        for found in checkpoints(self.path):
            if found != last and (last is None or step_of(found) > step_of(last)):
                shutil.rmtree(found)
        return last

    def state_of(self, run: Run | None = None) -> str:
        """How far the run is, in words."""
        run = run or self._read()
        last = self.last
        if run is None or last is None:
            return "pruned and not yet tuned" if fault(self.path / _PRUNED) is None else "at its beginning"
        return f"at step {step_of(last)} of {run.steps}"

    def keep_pruned(self, plan: PrunePlan, scores: dict[str, torch.Tensor]) -> None:
        """Keeps what one-shot pruning has found out.

        Raises:
            CheckpointError: if it cannot be written.
        """
        folder = self.path / _PRUNED
        try:
            folder.mkdir(exist_ok=True)
            save_file({name: value.contiguous() for name, value in scores.items()}, folder / _SCORES)
            plan.save(folder / _PLAN)
            mark(folder)
        except OSError as error:
            raise CheckpointError(f"{folder} cannot be written: {error}") from error

    def pruned(self) -> tuple[PrunePlan, dict[str, torch.Tensor]] | None:
        """The plan and the scores of :meth:`keep_pruned`; None where there are none that are whole."""
        folder = self.path / _PRUNED
        if fault(folder) is not None:
            return None
        return PrunePlan.load(folder / _PLAN), load_file(folder / _SCORES)

    def remove(self) -> None:
        """Takes the folder away, ``run.json`` last: a half-removed folder is still known for what it is."""
        for entry in sorted(self.path.iterdir(), key=lambda e: e.name == _RUN):
            with suppress(OSError):
                shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
        with suppress(OSError):
            self.path.rmdir()

    def _told(self, error: BaseException) -> BaseException:
        """The error that ended a part of the run, with where its state is and how to go on."""
        kept = f"The unfinished run in {self.path} is {self.state_of()}"
        how = "--resume, or gp.prune(..., resume=True)"
        if isinstance(error, KeyboardInterrupt):
            number = error.number if isinstance(error, Interrupted) else signal.SIGINT
            return Interrupted(f"interrupted. {kept}. Continue it with {how}.", number)
        if isinstance(error, DivergedError):
            return DivergedError(
                f"{error} {kept}, before the numbers broke. Lower {' or '.join(_MAY_CHANGE)} in the spec and continue "
                f"with {how}, or begin anew."
            )
        log.warning("%s. Continue it with %s.", kept, how)
        return error

    def _allowed(self, problems: list[str]) -> list[str]:
        """After a divergence, what tames it may change."""
        if not (self.path / _DIVERGED).is_file():
            return problems
        return [p for p in problems if not p.startswith(_MAY_CHANGE)]

    def _hold(self, lock: IO[str]) -> None:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise CheckpointError(
                f"another process works on the run in {self.path}. Wait for it, or end it, and resume then."
            ) from None

    def _read(self) -> Run | None:
        """None where there is nothing yet, or next to nothing."""
        if not self.path.exists():
            return None
        if not self.path.is_dir():
            raise CheckpointError(f"{self.path} is a file, expected a folder for checkpoints. Name another place.")
        try:
            return Run.model_validate_json((self.path / _RUN).read_text(encoding="utf-8"))
        except FileNotFoundError:
            # Killed right after it was made, it has a lock and perhaps a part of run.json.
            other = [e.name for e in self.path.iterdir() if e.name != _LOCK and not e.name.startswith(f".{_RUN}.")]
            if other:
                raise CheckpointError(
                    f"{self.path} has no {_RUN}, but other files, such as '{min(other)}': it is no unfinished "
                    "run. Name another place for checkpoints."
                ) from None
            return None
        except (ValidationError, UnicodeDecodeError) as error:
            raise CheckpointError(
                f"{self.path / _RUN} is damaged, or of a newer version of graphprune: {error}. "
                "Remove the folder to begin anew."
            ) from None
