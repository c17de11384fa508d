"""The folder of an unfinished run as all processes of the run see it: one of them works on it, the others are told."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import torch

from graphprune import processes
from graphprune.engine.identity import Identity
from graphprune.engine.run_folder import RunFolder
from graphprune.plan import PrunePlan


class SharedFolder:
    """What a run does with its :class:`~graphprune.engine.run_folder.RunFolder`, whose methods these are.

    Every process makes the same calls. Only the main process holds the lock, reads and writes; the others need not even
    see the same disk, except for the Trainer's own checkpoints. In a single process this is the folder itself.

    Args:
        folder: the folder.
    """

    def __init__(self, folder: RunFolder) -> None:
        self._folder = folder
        self.path = folder.path

    @contextmanager
    def held(self, identity: Identity, steps: int) -> Iterator[None]:
        """Begins or continues the run; errors as :meth:`RunFolder.held`, and OtherProcessError beside the main one."""
        with ExitStack() as stack:
            processes.from_main(lambda: stack.enter_context(self._folder.held(identity, steps)))
            yield

    @property
    def worth(self) -> bool:
        """Whether anything could be continued from here."""
        return processes.from_main(lambda: self._folder.worth)

    def start(self) -> Path | None:
        """The checkpoint to continue from."""
        return processes.from_main(self._folder.start)

    def state_of(self) -> str:
        """How far the run is, in words."""
        return processes.from_main(self._folder.state_of)

    def keep_pruned(self, plan: PrunePlan, scores: dict[str, torch.Tensor]) -> None:
        """Keeps what one-shot pruning has found out."""
        processes.from_main(lambda: self._folder.keep_pruned(plan, scores))

    def pruned(self) -> tuple[PrunePlan, dict[str, torch.Tensor]] | None:
        """The plan and the scores of :meth:`keep_pruned`; None where there are none that are whole."""
        return processes.from_main(self._folder.pruned)

    def remove(self) -> None:
        """Takes the folder away."""
        processes.from_main(self._folder.remove)
