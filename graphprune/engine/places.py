"""The folders of a run: whether they can be written, or continued from, before any model is loaded."""

from __future__ import annotations

import os
from pathlib import Path

from pydantic import ValidationError

from graphprune.checkpoint import check_output_folder
from graphprune.checkpoint.folder import clear_partial
from graphprune.checkpoint.manifest import MANIFEST
from graphprune.engine.identity import spec_differences, spec_of_run
from graphprune.engine.run_folder import RunFolder
from graphprune.errors import CheckpointError, SpecError
from graphprune.report import Report
from graphprune.schema import PruneSpec

Folder = str | os.PathLike[str]


def check_places(
    spec: PruneSpec, output: Folder | None, checkpoints: Folder | None = None, *, resume: bool = False
) -> RunFolder | None:
    """Checks the folders of a run.

    Args:
        spec: what is going to be done.
        output: where the result goes; None for a result in memory alone.
        checkpoints: where the state of the unfinished run goes, instead of a folder beside ``output``.
        resume: whether an unfinished run is to be continued.

    Returns:
        The folder that holds the state of the run until it is done, None for a run that keeps none.

    Raises:
        SpecError: a folder for the result of a run that leaves nothing to write.
        CheckpointError: ``output`` is not empty, or there is an unfinished run that must not, or cannot, be continued.
    """
    if not spec.coupled and (output is not None or checkpoints is not None):
        raise SpecError(
            "coupled: false is an ablation: what it leaves can be measured, and neither written nor continued. "
            "Leave out the output and checkpoints folders, or set coupled: true."
        )
    if resume and output is None and checkpoints is None:
        raise CheckpointError("resume: expected output or checkpoints, which say where the unfinished run is; got none")
    if output is not None:
        if resume:
            clear_partial(output)
            if is_finished(output, spec):
                raise CheckpointError(f"the run into {output} is finished: load its result with gp.load.")
        check_output_folder(output)
    folder = run_folder(spec, output, checkpoints)
    if folder is not None:
        folder.check(spec, resume=resume)
    return folder


def run_folder(spec: PruneSpec, output: Folder | None, checkpoints: Folder | None = None) -> RunFolder | None:
    """Where a run keeps its state: ``checkpoints``, by default beside ``output``; None where it keeps none."""
    if spec.training.mode == "none" or not spec.training.save_every:
        return None
    if checkpoints is not None:
        return RunFolder(Path(checkpoints).expanduser())
    if output is None:
        return None
    path = Path(output).expanduser().absolute()
    return RunFolder(path.with_name(f"{path.name}.run"))


def is_finished(output: Folder, spec: PruneSpec) -> bool:
    """Whether ``output`` holds the result of a run with ``spec``; clears away what is left of the run's state.

    A process may be killed between the last moment of a run and the removal of its state.

    Raises:
        CheckpointError: if there is the result of another spec, or of a report that cannot be read.
    """
    path = Path(output).expanduser()
    if not (path / MANIFEST).is_file() or not (path / "report.json").is_file():
        return False
    try:
        made = PruneSpec.model_validate(Report.read(path / "report.json").spec)
    except ValidationError as error:
        raise CheckpointError(f"the spec in {path / 'report.json'} is of another version: {error}") from None
    problems = spec_differences(spec_of_run(made), spec_of_run(spec))
    if problems:
        listed = "\n".join(f"  - {problem}" for problem in problems)
        raise CheckpointError(f"{path} holds the result of another spec:\n{listed}\nName another output.")
    folder = run_folder(spec, output)
    if folder is not None and folder.path.is_dir():
        folder.check(spec, resume=True)
        folder.remove()
    return True
