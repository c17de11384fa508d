"""What processes agree on: alone nothing is sent, and two of them really meet."""

import os
import socket

import pytest
import torch
from torch import multiprocessing

from graphprune import processes
from graphprune.errors import OtherProcessError


def test_alone_everything_is_as_it_was(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    processes.join()
    values = [torch.ones(2, dtype=torch.bfloat16)]
    assert processes.count() == 1 and processes.is_main()
    assert processes.total(values)[0] is values[0] and processes.mean(values)[0] is values[0]
    assert processes.any_of(True) and not processes.any_of(False)
    assert processes.same("anything")
    assert processes.from_main(lambda: 3) == 3
    processes.wait()
    with processes.together():
        pass


def meet(rank, port):
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", LOCAL_WORLD_SIZE="2")
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    processes.join()
    processes.join()  # once is enough
    assert processes.count() == 2 and processes.is_main() == (rank == 0)

    mine = [torch.full((2, 3), float(rank), dtype=torch.bfloat16), torch.tensor([rank + 1.0], dtype=torch.float64)]
    sums = processes.total(mine)
    assert [s.dtype for s in sums] == [torch.float32, torch.float64]
    assert sums[0].tolist() == [[1.0] * 3] * 2 and sums[1].tolist() == [3.0]
    assert processes.mean(mine)[1].tolist() == [1.5]
    assert processes.any_of(rank == 1) and not processes.any_of(False)
    assert processes.same("plan") and not processes.same(f"plan {rank}")

    assert processes.from_main(lambda: ("from", rank)) == ("from", 0)
    expected = ValueError if rank == 0 else OtherProcessError
    with pytest.raises(expected, match="no such folder"):
        processes.from_main(lambda: fail("no such folder"))

    with processes.together():
        pass
    with pytest.raises(OtherProcessError if rank == 0 else ValueError, match="no memory"):
        work_alone(rank)
    processes.wait()
    torch.distributed.destroy_process_group()


def fail(message):
    raise ValueError(message)


def work_alone(rank):
    with processes.together():
        if rank == 1:
            fail("no memory")


def test_two_processes():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    multiprocessing.spawn(meet, (port,), nprocs=2)


def test_a_process_that_parts_company_is_alone_on_its_device(monkeypatch):
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,7")
    processes.part_company()
    processes.join()
    assert processes.count() == 1 and processes.is_main()
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "7"
    assert "WORLD_SIZE" not in os.environ and os.environ["RANK"] == "3"
