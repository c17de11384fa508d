"""How several processes divide the cells of a study: each takes the next one that nobody has taken."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

from graphprune import processes

#: Seconds between two looks at how far the others are.
_GLANCE = 0.5
#: How long the processes may take to find each other.
_MEETING = timedelta(minutes=10)


class Shares:
    """What the processes of a study tell each other; a single process has nobody to ask.

    Attributes:
        rank: of this process.
        count: of processes.
    """

    def __init__(self, store: Any = None, rank: int = 0, count: int = 1) -> None:
        self._store = store
        self.rank = rank
        self.count = count

    @classmethod
    def meet(cls) -> Shares:
        """Finds the other processes that torchrun or ``accelerate launch`` has started, and parts company with them."""
        if "LOCAL_RANK" not in os.environ or int(os.environ.get("WORLD_SIZE", "1")) < 2:
            return cls()
        from torch.distributed.rendezvous import rendezvous

        store, rank, count = next(rendezvous("env://", timeout=_MEETING))
        processes.part_company()
        return cls(store, rank, count)

    @property
    def is_main(self) -> bool:
        """Whether this is the process that tells and writes the results."""
        return self.rank == 0

    def take(self, key: str) -> bool:
        """Whether the cell is this process's: no other has taken it."""
        return self._store is None or self._store.add(f"cell/{key}", 1) == 1

    @contextmanager
    def first(self, what: str) -> Iterator[bool]:
        """A ``with`` block that the main process enters at once, the others when it is through."""
        if not self.is_main:
            self._until(f"first/{what}", 1)
        yield self.is_main
        if self.is_main and self._store is not None:
            self._store.add(f"first/{what}", 1)

    def finish(self, what: str) -> None:
        """Waits until every process has come here."""
        if self._store is not None:
            self._store.add(f"end/{what}", 1)
            self._until(f"end/{what}", self.count)
            # The main process may keep the store, so it leaves last.
            self._store.add(f"left/{what}", 1)
            if self.is_main:
                self._until(f"left/{what}", self.count)

    def _until(self, name: str, count: int) -> None:
        while self._store.add(name, 0) < count:
            time.sleep(_GLANCE)
