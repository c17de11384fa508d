"""The processes of one run, where a launcher has started several: what they agree on, and which of them writes.

In a single process everything here does nothing, and needs no communication. Otherwise every process has to make the
same calls in the same order.
"""

from __future__ import annotations

import functools
import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, distributed

from graphprune.errors import OtherProcessError

T = TypeVar("T")

#: How long a process waits for the others: one of them may be writing a large model, and proving it.
_PATIENCE = timedelta(hours=2)


def join() -> None:
    """Meets the other processes that torchrun or ``accelerate launch`` has started, if there are any.

    Each of them takes the device that is meant for it. Processes that have met before stay as they are.
    """
    if "LOCAL_RANK" not in os.environ or int(os.environ.get("WORLD_SIZE", "1")) < 2 or _met():
        return
    from accelerate import PartialState

    PartialState(cpu=not torch.accelerator.is_available(), timeout=_PATIENCE)


def part_company() -> None:
    """From here on this process is on its own, on the device that is meant for it, and :func:`join` finds nobody.

    For whole runs that the processes of a launcher divide among them. Call it before anything is on a device.
    """
    # Counted without touching them; a Trainer takes the first one that it sees.
    devices = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(torch.cuda.device_count())))
    if devices:
        listed = devices.split(",")
        os.environ["CUDA_VISIBLE_DEVICES"] = listed[int(os.environ.get("LOCAL_RANK", "0")) % len(listed)]
    left = environment_alone()
    for name in set(os.environ) - set(left) - {"RANK"}:  # which the command line looks at, to speak only once
        del os.environ[name]


def environment_alone() -> dict[str, str]:
    """The environment for a process that must not take itself for one of these."""
    prefixes = ("ACCELERATE_", "FSDP_", "TORCHELASTIC_", "ROLE_", "GROUP_", "MASTER_")
    names = {"RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE"}
    return {name: v for name, v in os.environ.items() if name not in names and not name.startswith(prefixes)}


def leave() -> None:
    """Ends what :func:`join` began, at the end of a program."""
    if _met():
        distributed.destroy_process_group()


def count() -> int:
    """How many processes there are."""
    return distributed.get_world_size() if _met() else 1


def is_main() -> bool:
    """Whether this is the process that writes; true where there is only one."""
    return not _met() or distributed.get_rank() == 0


def total(values: Sequence[Tensor]) -> list[Tensor]:
    """The sums over processes of tensors that have the same shapes in each, at least in float32."""
    if count() == 1 or not values:
        return list(values)
    kind = functools.reduce(torch.promote_types, (value.dtype for value in values), torch.float32)
    flat = torch.cat([value.detach().reshape(-1).to(_meeting_place(), kind) for value in values])
    distributed.all_reduce(flat)
    parts = torch.split(flat, [value.numel() for value in values])
    return [
        part.reshape(value.shape).to(value.device, torch.promote_types(value.dtype, torch.float32))
        for part, value in zip(parts, values, strict=True)
    ]


def mean(values: Sequence[Tensor]) -> list[Tensor]:
    """The means over processes, as :func:`total`."""
    if count() == 1:
        return list(values)
    return [value / count() for value in total(values)]


def part(value: Tensor) -> Tensor:
    """This process's part of a tensor that all of them have: flat, of the same size in each, the last ones padded."""
    flat = value.detach().reshape(-1)
    size = -(-flat.numel() // count())
    own = flat[distributed.get_rank() * size :][:size] if count() > 1 else flat
    return torch.nn.functional.pad(own, (0, size - own.numel()))


def whole(own: Tensor, shape: torch.Size) -> Tensor:
    """The tensor of ``shape`` whose parts (:func:`part`) the processes hold."""
    if count() == 1:
        return own.reshape(shape)
    here = own.to(_meeting_place())
    parts = [torch.empty_like(here) for _ in range(count())]
    distributed.all_gather(parts, here)
    return torch.cat(parts)[: shape.numel()].reshape(shape).to(own.device)


def any_of(flag: bool) -> bool:
    """Whether ``flag`` is set in any process."""
    return flag if count() == 1 else bool(total([torch.tensor(float(flag))])[0] > 0)


def same(text: str) -> bool:
    """Whether all processes have the same ``text``."""
    if count() == 1:
        return True
    digest = int.from_bytes(hashlib.sha256(text.encode()).digest()[:7], "big")
    # The largest is the smallest: one reduction tells both.
    ends = torch.tensor([digest, -digest], dtype=torch.int64, device=_meeting_place())
    distributed.all_reduce(ends, distributed.ReduceOp.MAX)
    return int(ends[0]) == -int(ends[1])


def wait() -> None:
    """Until every process has come here."""
    if count() > 1:
        distributed.barrier()


def from_main(make: Callable[[], T]) -> T:
    """What ``make`` gives in the main process, where alone it is called; must be a value that can be pickled.

    Raises:
        OtherProcessError: in the other processes, if ``make`` fails; in the main process its own error is raised.
    """
    if count() == 1:
        return make()
    box: list[Any] = [None, ""]
    failed: Exception | None = None
    if is_main():
        try:
            box[0] = make()
        except Exception as error:  # noqa: BLE001 the others wait for an answer, whatever it is
            failed, box[1] = error, _in_words(error)
    distributed.broadcast_object_list(box, src=0)
    if failed is not None:
        raise failed
    if box[1]:
        raise OtherProcessError(box[1])
    return cast(T, box[0])


@contextmanager
def together() -> Iterator[None]:
    """A ``with`` block in which every process works alone; if one fails there, none goes on and none waits.

    Raises:
        OtherProcessError: in the processes that did not fail themselves.
    """
    if count() == 1:
        yield
        return
    try:
        yield
    except Exception as error:
        _failures(_in_words(error))
        raise
    others = _failures("")
    if others:
        raise OtherProcessError(others[0])


def _failures(own: str) -> list[str]:
    told: list[Any] = [None] * count()
    distributed.all_gather_object(told, own)
    return [f"process {rank}: {text}" for rank, text in enumerate(told) if text]


def _in_words(error: Exception) -> str:
    return str(error) or type(error).__name__


def _met() -> bool:
    return bool(distributed.is_available() and distributed.is_initialized())


def _meeting_place() -> torch.device:
    """Where tensors have to be to be sent."""
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return torch.device("cpu") if accelerator is None or distributed.get_backend() == "gloo" else accelerator
