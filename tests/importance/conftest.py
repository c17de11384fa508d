"""Hand-made observations and groups, so that every formula is tested on numbers that nothing else has touched."""

from typing import ClassVar

import pytest
import torch

from graphprune.graph import Block, Group, Member
from graphprune.importance.base import LoraFactors, Observation


class Seen(Observation):
    """An observation made of dictionaries; what is not in them was not observed."""

    def __init__(self, weights, **signals):
        self.weights, self.signals = weights, signals

    def _of(self, signal, tensor):
        return self.signals.get(signal, {}).get(tensor)

    def weight(self, tensor):
        return self.weights[tensor]

    def gradient(self, tensor):
        return self.signals["gradients"][tensor]

    def squared_gradient(self, tensor):
        return self.signals["squares"][tensor]

    def lora(self, tensor):
        return self._of("lora", tensor)

    def input_norm(self, tensor):
        return self._of("norms", tensor)

    def mask_gradient(self, group):
        return self.signals["masks"][group.name]

    def holder(self, tensor):
        return self._of("holders", tensor)


def member(tensor, dim, size, length, *blocks, consumes=False):
    """A member; a block is (start, unit_stride, (count, stride)...), one index per unit by default."""
    blocks = blocks or ((0, 1),)
    return Member(
        tensor=tensor,
        dim=dim,
        size=size,
        length=length,
        consumes=consumes,
        blocks=tuple(Block(start=b[0], unit_stride=b[1], loops=tuple(b[2:])) for b in blocks),
    )


@pytest.fixture
def toy():
    """Observations, members, and groups of the shapes that real models have."""
    return Toy


class Toy:
    Seen = Seen
    member = staticmethod(member)
    #: Three key/value heads of two channels, two query heads each: query rows by the four, the output's columns too.
    grouped = Group(
        name="layer/attention",
        role="attention.group",
        layer=0,
        size=3,
        members=(
            member("q.weight", 0, 3, 12, (0, 4, (4, 1))),
            member("k.weight", 0, 3, 6, (0, 2, (2, 1))),
            member("k.bias", 0, 3, 6, (0, 2, (2, 1))),
            member("o.weight", 1, 3, 12, (0, 4, (4, 1)), consumes=True),
        ),
    )
    #: One fused matrix of queries, keys and values of two heads in four blocks, and a row that belongs to nobody.
    fused = Group(
        name="layer/fused",
        role="attention.group",
        layer=0,
        size=2,
        members=(
            member("qkv.weight", 0, 2, 15, (0, 3, (3, 1)), (6, 1), (8, 1), (10, 2, (2, 1))),
            member("out.weight", 1, 2, 6, (0, 3, (3, 1)), consumes=True),
        ),
    )
    #: Four experts, and the five channels inside of every expert.
    experts = Group(
        name="layer/experts",
        role="moe.expert",
        layer=0,
        size=4,
        members=(member("up", 0, 4, 4), member("down", 0, 4, 4), member("router.weight", 0, 4, 4)),
    )
    channels = Group(
        name="layer/channels",
        role="moe.channel",
        layer=0,
        size=5,
        members=(member("up", 1, 5, 10, (0, 1), (5, 1)), member("down", 2, 5, 5, consumes=True)),
    )
    shapes: ClassVar = {
        "q.weight": (12, 7),
        "k.weight": (6, 7),
        "k.bias": (6,),
        "o.weight": (8, 12),
        "qkv.weight": (15, 6),
        "out.weight": (5, 6),
        "up": (4, 10, 3),
        "down": (4, 3, 5),
        "router.weight": (4, 3),
    }
    groups = (grouped, fused, experts, channels)

    @classmethod
    def tensors(cls, seed, dtype=torch.float64):
        """Random tensors of all shapes."""
        generator = torch.Generator().manual_seed(seed)
        return {
            name: torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)
            for name, shape in cls.shapes.items()
        }

    @staticmethod
    def unit_sums(group, saliency, names=None):
        """Per member the sums of an element-wise saliency over each unit's slice: (members, size)."""
        rows = []
        for m in group.members:
            if names is None or m.tensor in names:
                value = saliency[m.tensor]
                rows.append(torch.stack([value.index_select(m.dim, m.indices(u)).sum() for u in range(group.size)]))
        return torch.stack(rows)

    @staticmethod
    def factors(shape, seed, rank=2, scaling=1.5, transposed=False, dtype=torch.float64):
        """Random non-zero LoRA factors of a tensor of ``shape``, and the d × k surrogate and update, stored layout."""
        generator = torch.Generator().manual_seed(seed)
        *stack, rows, columns = shape
        d, k = (columns, rows) if transposed else (rows, columns)

        def draw(*size):
            return torch.randn(*stack, *size, generator=generator, dtype=torch.float64)

        a, b, grad_a, grad_b = draw(rank, k), draw(d, rank), draw(rank, k), draw(d, rank)
        surrogate, update = grad_b @ a + b @ grad_a - grad_b @ grad_a, scaling * (b @ a)
        if transposed:
            surrogate, update = surrogate.mT, update.mT
        cast = [t.to(dtype) for t in (a, b, grad_a, grad_b)]
        return LoraFactors(*cast, scaling=scaling, transposed=transposed), surrogate, update
