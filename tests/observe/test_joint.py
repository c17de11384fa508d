"""Gradients that two processes average inside their backward passes, where they go through the same layers."""

import os
import socket

import pytest
import torch
from torch import distributed, multiprocessing, nn
from torch.distributed.fsdp import fully_shard

from graphprune import processes
from graphprune.errors import DistributedError
from graphprune.observe.gradients import GradientTap
from graphprune.observe.joint import JointGradients, Meeting

NAMES = ["first.weight", "experts.0.weight", "experts.1.weight"]


class Net(nn.Module):
    """Two experts, of which a batch reaches some."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Linear(3, 4, bias=False)
        self.experts = nn.ModuleList(nn.Linear(4, 2, bias=False) for _ in range(2))

    def forward(self, inputs, chosen):
        hidden = self.first(inputs).relu()
        return sum(self.experts[number](hidden).square().mean() for number in chosen)


def batch(rank):
    return torch.randn(5, 3, generator=torch.Generator().manual_seed(rank))


def mean_gradients(choices):
    """By one process: the gradients of the mean loss."""
    net = Net()
    (sum(net(batch(rank), chosen) for rank, chosen in enumerate(choices)) / len(choices)).backward()
    return {n: torch.zeros_like(p) if p.grad is None else p.grad for n, p in net.named_parameters()}


def check_meeting(rank):
    net = Net().requires_grad_(False)
    meeting, found, met = Meeting(net, NAMES), {}, []

    def take(parameter, gradient):
        mean = meeting.mean(parameter, gradient)
        if mean is not None:
            met.append(id(parameter))
            found[id(parameter)] = mean

    tap = GradientTap(net, NAMES, take)
    tap.open()
    meeting.agreement.open()
    for choices, agree in [([(0, 1), (0, 1)], True), ([(0,), (1,)], False), ([(0, 1), (1, 0)], False)]:
        found.clear(), met.clear(), meeting.reset()
        with torch.no_grad():
            net(batch(0), (rank,))  # an evaluation is none of it
        net(batch(rank), choices[rank]).backward()
        assert meeting.agreement.holds is agree and len(met) == (3 if agree else 0)
        found.update({id(tensor): mean for tensor, mean in meeting.rest()})
        expected = mean_gradients(choices)
        for name, parameter in net.named_parameters():
            torch.testing.assert_close(found[id(parameter)], expected[name])
    meeting.reset()
    meeting.agreement.holds = True  # wrongly
    meeting.mean(list(net.parameters())[rank], torch.ones(2))
    with pytest.raises(DistributedError, match="in different orders in their backward passes"):
        list(meeting.rest())
    meeting.agreement.close()
    tap.close()


def check_parts(rank, *, divided):
    """Sums over two backward passes, of a model that is whole and of one that FSDP2 has divided."""
    net = Net().requires_grad_(False)
    net.first.weight.requires_grad_(True)  # one that is trained keeps its gradient
    if divided:
        fully_shard(net.experts[0])
        fully_shard(net)
    recorder = JointGradients(net, NAMES)
    recorder.open()
    second = [(0,), (0,)] if divided else [(0,), (1,)]  # FSDP2 cannot do with layers that not all reach
    for chosen in [(0, 1), second[rank]]:
        recorder._meeting.agreement.reset()
        net(batch(rank), chosen).backward()
    assert all(value.numel() == 6 - 2 * ("experts" in name) for name, value in recorder.recorded())
    recorder.share()
    both, one = mean_gradients([(0, 1), (0, 1)]), mean_gradients(second)
    for name in NAMES:
        torch.testing.assert_close(recorder.sum(name), both[name] + one[name])
    recorder.close()
    assert [p.requires_grad for p in net.parameters()] == [True, False, False]
    assert net.first.weight.grad is not None and net.experts[1].weight.grad is None


def meet(rank, port):
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", LOCAL_WORLD_SIZE="2")
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    processes.join()
    check_meeting(rank)
    check_parts(rank, divided=False)
    check_parts(rank, divided=True)
    distributed.destroy_process_group()


@pytest.mark.slow
def test_two_processes():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    multiprocessing.start_processes(meet, args=(port,), nprocs=2, start_method="spawn")


def test_alone_a_part_is_the_whole():
    value = torch.arange(6.0).reshape(2, 3)
    assert torch.equal(processes.whole(processes.part(value), value.shape), value)
