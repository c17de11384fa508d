"""Computing something in a process of its own: a crash or a hang is a result, not the end."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from typing import Any, TypeVar

import torch
from transformers.utils import logging

from graphprune.testing.models import tiny_model
from graphprune.testing.zoo import cases
from graphprune.trace import trace

Found = TypeVar("Found")

MEMORY = 12 * 2**30
"""Bytes of address space for one such process."""


class FailedError(Exception):
    """The process gave no answer; says why."""


def apart(compute: Callable[[], str], limit: float) -> str:
    """What ``compute`` returns in a process that is divided off this one, of one thread and limited memory.

    Raises:
        FailedError: if it took longer than ``limit`` seconds, or ended without an answer.
    """
    context: Any = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_send, args=(compute, theirs), daemon=True)
    process.start()
    theirs.close()
    try:
        if ours.poll(limit):
            return str(ours.recv())
        raise FailedError(f"took longer than {limit:.0f} s")
    except EOFError:
        process.join()
        raise FailedError(f"its process ended with code {process.exitcode}") from None
    finally:
        process.kill()
        process.join()
        ours.close()


def each(
    names: Sequence[str], done: Mapping[str, Found], measured: Callable[[str], Found], jobs: int
) -> Iterator[Found]:
    """One result per name, in order: that in ``done``, or what ``measured`` gives, ``jobs`` names at once.

    What torch loads at its first fake tensor is loaded here, before processes divide.
    """
    missing = [name for name in names if name not in done]
    if missing:
        trace(tiny_model(cases()[0]))
    with ThreadPoolExecutor(jobs) as pool:
        fresh = pool.map(measured, missing)
        for name in names:
            yield done[name] if name in done else next(fresh)


def _send(compute: Callable[[], str], connection: Connection) -> None:
    torch.set_num_threads(1)
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    _limit_memory()
    connection.send(compute())


def _limit_memory() -> None:
    """Lets allocations fail in this process before they fail in others; where the system can."""
    try:
        import resource
    except ImportError:  # not on Windows
        return
    _, most = resource.getrlimit(resource.RLIMIT_AS)
    limit = MEMORY if most == resource.RLIM_INFINITY else min(MEMORY, most)
    resource.setrlimit(resource.RLIMIT_AS, (limit, most))
