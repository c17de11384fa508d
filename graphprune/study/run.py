"""``gp.study``: every cell of a grid, kept as it finishes, and read back as results."""

from __future__ import annotations

import logging
import os
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from graphprune.engine.documents import TrainData
from graphprune.engine.interrupts import Interrupted
from graphprune.engine.original import Source
from graphprune.errors import SpecError
from graphprune.evaluate import evaluate
from graphprune.problems import did_you_mean
from graphprune.study.cell import run_cell
from graphprune.study.checks import check_grid, check_questions
from graphprune.study.folder import STUDY_FILE, IndexedCell, ResultsFolder
from graphprune.study.grid import Cell, Grid, grid
from graphprune.study.keys import idle_axes, questions_fingerprint
from graphprune.study.log import log_file, quiet_engine
from graphprune.study.pace import Pace
from graphprune.study.progress import Progress
from graphprune.study.records import CellRecord, DenseRecord
from graphprune.study.results import Results
from graphprune.study.schema import Study
from graphprune.study.shares import Shares
from graphprune.study.studyfile import StudyFile, read_study, text_of
from graphprune.study.subject import Keys, Subject, subjects

log = logging.getLogger(__name__)


def study(
    study: Study | StudyFile | Mapping[str, Any] | str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    models: Mapping[str, str | os.PathLike[str]] | Sequence[str] | str | None = None,
    data: TrainData | None = None,
    evaluation: TrainData | None = None,
    dtype: str = "auto",
    device: torch.device | str | None = None,
    trust_remote_code: bool = False,
    only: Sequence[str] = (),
    retry: bool = False,
    progress: bool = True,
) -> Results:
    """Runs the cells of a study that are not in its folder yet, and gives all results.

    Every cell is a call of :func:`graphprune.prune` on the same sequences, in an order that is the seed's, and judged
    on the same text. What can be refused is refused before anything is computed. A cell that fails is put down with its
    reason, and the grid goes on. Scores computed once serve every ratio, scope and mode that would compute the same.

    Of several processes, started by ``accelerate launch`` or torchrun, each runs cells of its own on its own device.

    Args:
        study: a study, its file, a shipped one (``study:NAME``), or a dictionary.
        out: the folder for its results; what is there of them is not computed again.
        models: folders or Hub ids, by label or not, instead of those of the study.
        data: text or token ids to train and calibrate on, instead of the study's.
        evaluation: text or token ids to measure perplexity on, instead of the study's.
        dtype: of the weights; as they are stored by default.
        device: for all cells; the accelerator if there is one.
        trust_remote_code: run modelling code that comes with a checkpoint.
        only: keys of cells; the others are left alone.
        retry: run cells again that have failed.
        progress: whether to tell how far it is on the standard error stream.

    Raises:
        SpecError: listing every problem of the study and of every cell, each once.
        CheckpointError: a model cannot be read, or ``out`` holds something else or results of another version.
        MissingExtraError: something is to be measured that needs a package which is not installed.
        Interrupted: a KeyboardInterrupt that says how far it is, after Ctrl-C.
    """
    shares = Shares.meet()
    work = Work.of(
        study,
        out,
        models=models,
        data=data,
        evaluation=evaluation,
        dtype=dtype,
        device=device,
        trust_remote_code=trust_remote_code,
    )
    return run_study(work, work.pending(only=only, retry=retry), shares, progress=progress)


def run_study(work: Work, todo: list[tuple[Cell, Keys]], shares: Shares, *, progress: bool = True) -> Results:
    """Runs what is to be run of a study; see :func:`study`."""
    with shares.first("folder") as main:
        work.folder.begin()
        if main:
            work.write_index()
    told = Progress(shown=progress and shares.is_main)
    with log_file(work.folder.path, shares.rank), told.drawn():
        try:
            work.measure_dense(shares)
            work.run(todo, shares, told)
            shares.finish("cells")
        except KeyboardInterrupt as error:
            done = len(work.cells) - len(work.pending(retry=True))
            raise Interrupted(
                f"stopped: {done} of {len(work.cells)} cells are done and kept in {work.folder.path}; the same command "
                "goes on"
            ) from error
    return Results.read(work.folder.path)


@dataclass
class Work:
    """A study that has been checked: all its cells, and where each of them is kept.

    Attributes:
        grid: the cells.
        subjects: the models, by label.
        folder: of the results.
        cells: with their keys, in order; several may have the same.
        notes: on the grid as a whole.
        options: of the command line, that the command of a cell needs.
        in_memory: whether text was given that no file of the study names.
        pace: how long cells take.
    """

    grid: Grid
    subjects: dict[str, Subject]
    folder: ResultsFolder
    cells: list[tuple[Cell, Keys]]
    notes: list[str]
    options: list[str] = field(default_factory=list)
    in_memory: bool = False
    pace: Pace = field(default_factory=Pace)

    @classmethod
    def of(
        cls,
        study: Study | StudyFile | Mapping[str, Any] | str | os.PathLike[str],
        out: str | os.PathLike[str],
        *,
        models: Mapping[str, str | os.PathLike[str]] | Sequence[str] | str | None = None,
        data: TrainData | None = None,
        evaluation: TrainData | None = None,
        dtype: str = "auto",
        device: torch.device | str | None = None,
        trust_remote_code: bool = False,
    ) -> Work:
        """Checks a study and finds out what is there of it; arguments and errors as :func:`study`."""
        folder = ResultsFolder(Path(out))
        folder.check()
        named = [models] if isinstance(models, str) else models
        listed = {k: os.fspath(v) for k, v in named.items()} if isinstance(named, Mapping) else named
        file = read_study(study)
        changes: dict[str, Any] = {} if listed is None else {"models": listed}
        if isinstance(data, (str, Path)):
            changes["data"], data = text_of(file.study, data), None
        if isinstance(evaluation, (str, Path)):
            changes["data.evaluation"], evaluation = os.fspath(evaluation), None
        file = read_study(file, changes)
        place = _device(device)
        sources = {
            label: Source(name, dtype, place, None, trust_remote_code) for label, name in file.study.models.items()
        }
        cells = grid(file, sources)
        check_questions(file.study.measure, file.name)
        check_grid(cells, sources, given=data is not None)
        measured = questions_fingerprint(file.study.measure, place)
        found = subjects(cells, sources, measured, data, evaluation)
        keyed = [(cell, found[cell.model].keys(cell)) for cell in cells.cells]
        options = [] if dtype == "auto" else ["--dtype", dtype]
        options += [] if device is None else ["--device", str(device)]
        options += ["--trust-remote-code"] if trust_remote_code else []
        in_memory = data is not None or evaluation is not None
        work = cls(cells, found, folder, keyed, idle_axes(cells), options, in_memory)
        for cell, keys in keyed:
            record = folder.cell(keys.cell)
            if record is not None and record.status == "done":
                work.pace.took(cell, record.seconds)
        return work

    def pending(self, *, only: Sequence[str] = (), retry: bool = False) -> list[tuple[Cell, Keys]]:
        """The cells that have to be run, each run once; failed ones where they are named, or all with ``retry``.

        Raises:
            SpecError: for a key in ``only`` that no cell has.
        """
        known = {keys.cell for _, keys in self.cells}
        odd = [key for key in only if key not in known]
        if odd:
            raise SpecError(
                f"no cell has the key '{odd[0]}'.{did_you_mean(odd[0], sorted(known))} Keys are listed by --dry-run",
                self.grid.file.name,
            )
        found: dict[str, tuple[Cell, Keys]] = {}
        for cell, keys in self.cells:
            if keys.cell in found or (only and keys.cell not in only):
                continue
            record = self.folder.cell(keys.cell)
            if record is None or (record.status == "failed" and (retry or keys.cell in only)):
                found[keys.cell] = (cell, keys)
        return list(found.values())

    def write_index(self) -> None:
        """Says in the folder which records belong to this study."""
        cells = tuple(
            IndexedCell(
                key=keys.cell,
                labels=cell.labels,
                values=cell.values,
                seed=cell.seed,
                spec=cell.spec.model_dump(mode="json"),
            )
            for cell, keys in self.cells
        )
        dense = {label: subject.dense_key for label, subject in self.subjects.items()}
        self.folder.write_index(self.grid.study, cells, dense, self.notes)

    def measure_dense(self, shares: Shares) -> None:
        """Measures every model as it came that has not been."""
        for label, subject in self.subjects.items():
            key = subject.dense_key
            if self.folder.dense(key) is not None or not shares.take(key):
                continue
            try:
                model, _ = subject.source.load(subject.source.device)
                found = evaluate(model, subject.tokenizer, self.grid.study.measure, name=label)
            except Exception:  # as in a cell, the grid goes on
                log.exception("%s as it came could not be measured", label)
                continue
            self.folder.keep(DenseRecord(key=key, model=label, evaluation=found))

    def run(self, todo: list[tuple[Cell, Keys]], shares: Shares, told: Progress) -> None:
        """Runs cells, as far as no other process has taken them."""
        told.begin(len(self.cells), len(todo))
        for index, (cell, keys) in enumerate(todo):
            if not shares.take(keys.cell):
                told.skipped()
                continue
            rest = [c for c, _ in todo[index:]]
            told.starts(cell, self.left(rest, shares))
            record = self._kept(cell, keys)
            if record.status == "done":
                self.pace.took(cell, record.seconds)
            told.ends(cell, record, self.left(rest[1:], shares))

    def left(self, cells: Sequence[Cell], shares: Shares | None = None) -> float | None:
        """Seconds that cells will take, as far as that can be told."""
        seconds = self.pace.left(cells)
        return None if seconds is None else seconds / (1 if shares is None else shares.count)

    def command(self, keys: Keys) -> str:
        """The command that repeats a cell alone, in a folder of its own; empty where its text was given in memory."""
        if self.in_memory:
            return ""
        parts = ["graphprune", "compare", str(self.folder.path / STUDY_FILE), "--out", "again", *self.options]
        return shlex.join([*parts, "--only", keys.cell])

    def _kept(self, cell: Cell, keys: Keys) -> CellRecord:
        with quiet_engine():
            record = run_cell(
                cell, keys, self.subjects[cell.model], self.grid.study.measure, self.folder, self.command(keys)
            )
        self.folder.keep(record)
        return record


def _device(given: torch.device | str | None) -> torch.device:
    if given is not None:
        return torch.device(given)
    found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return found or torch.device("cpu")
