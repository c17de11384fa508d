"""Every rule against arithmetic: a unit of an input may only reach the same unit of the output.

For each operation one tensor is followed, and one unit of each of its axes is changed at a time. Where the rule says
that the axis runs through an output dimension, only that unit's slice of the output may change. The oracle is the
operation itself on real numbers; it knows nothing of axes.
"""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from graphprune.trace.axes import atoms, length
from graphprune.trace.places import places
from graphprune.trace.record import Kind
from graphprune.trace.tracer import Operations, Tracer, frozen_reasons, register_parameters

W = torch.randn(12, 5)
BATCH = torch.randn(4, 6, 3)
TABLE_ROWS = torch.tensor([[0, 2], [3, 1]])

KEEPS_AXES = {
    "view": lambda x: x.view(2, 2, 6),
    "view back": lambda x: x.view(2, 12).view(4, 6),
    "unsafe view": lambda x: x.t().reshape(3, 8),
    "permute": lambda x: x.view(2, 2, 6).permute(2, 0, 1),
    "transpose": lambda x: x.transpose(0, 1),
    "t": lambda x: x.t(),
    "unsqueeze": lambda x: x.unsqueeze(1),
    "squeeze": lambda x: x.unsqueeze(0).squeeze(0),
    "expand": lambda x: x[:, None].expand(4, 5, 6),
    "repeat": lambda x: x.repeat(3, 1),
    "repeat_interleave": lambda x: x.repeat_interleave(2, dim=1),
    "cat": lambda x: torch.cat([x, x * 2], dim=1),
    "rotate halves": lambda x: torch.cat([-x[:, 3:], x[:, :3]], dim=1) + x,
    "stack": lambda x: torch.stack([x, x + 1], dim=1),
    "slice": lambda x: x[:, 2:5],
    "strided slice": lambda x: x[:, ::2] * x[:, 1::2],
    "strided from one": lambda x: x[:, 1::3],
    "narrow": lambda x: x.narrow(1, 1, 4),
    "select": lambda x: x.view(4, 2, 3)[:, 1],
    "split": lambda x: x.split(2, dim=1)[1],
    "split sizes": lambda x: x.split([1, 3, 2], dim=1)[1],
    "chunk and gate": lambda x: F.silu(x.chunk(2, -1)[0]) * x.chunk(2, -1)[1],
    "unbind": lambda x: x.view(4, 2, 3).unbind(1)[0],
    "pad": lambda x: F.pad(x, (1, 2)),
    "negative pad": lambda x: F.pad(x, (-1, 0)),
    "pointwise": lambda x: torch.sigmoid(x) * x + 1,
    "broadcast": lambda x: x[:, None, :] * torch.ones(3, 1),
    "where": lambda x: torch.where(x > 0, x, torch.zeros(())),
    "masked_fill": lambda x: x.masked_fill(torch.zeros(4, 6, dtype=torch.bool), 0.0),
    "in place": lambda x: x.clone().mul_(3).add_(1),
    "unsqueeze in place": lambda x: x.clone().unsqueeze_(1) * torch.ones(3, 1),
    "squeeze in place": lambda x: x[:, None].clone().squeeze_(1),
    "transpose in place": lambda x: x.clone().transpose_(0, 1),
    "t in place": lambda x: x.clone().t_(),
    "quotient in place": lambda x: x.clone().floor_divide_(0.1),
    "comparison in place": lambda x: x.clone().gt_(0.5),
    "matrices in place": lambda x: torch.zeros(4, 6, 2).baddbmm_(BATCH.mT.reshape(4, 6, 3)[..., :3], x.view(4, 3, 2)),
    "copy into empty": lambda x: x.new_empty(4, 6).copy_(x),
    "to float64": lambda x: x.to(torch.float64),
    "sum": lambda x: x.view(2, 2, 6).sum(1),
    "mean keepdim": lambda x: x.mean(0, keepdim=True),
    "var": lambda x: x.var(0),
    "amax": lambda x: x.amax(0),
    "max with index": lambda x: x.max(0).values,
    "softmax": lambda x: x.view(4, 2, 3).softmax(1),
    "log_softmax": lambda x: x.log_softmax(0),
    "layer_norm": lambda x: F.layer_norm(x.view(4, 2, 3), (3,)),
    "matmul": lambda x: torch.randn(3, 4, generator=torch.Generator().manual_seed(0)) @ x,
    "linear": lambda x: F.linear(torch.ones(2, 6), x, torch.ones(4)),
    "bmm": lambda x: torch.bmm(BATCH, x.view(4, 3, 2)),
    "baddbmm": lambda x: torch.baddbmm(torch.ones(1), BATCH, x.view(4, 3, 2)),
    "index rows": lambda x: x[TABLE_ROWS],
    "index columns by numbers": lambda x: x[:, [-1]],
    "index_select": lambda x: x.index_select(0, torch.tensor([3, 0])),
    "embedding": lambda x: F.embedding(TABLE_ROWS, x),
    "gather": lambda x: x.gather(1, torch.tensor([[0, 1]] * 4)),
    "topk values": lambda x: x.view(4, 3, 2).topk(2, dim=1).values,
    "sort": lambda x: x.sort(0).values,
    "scatter": lambda x: torch.zeros(4, 6).scatter(1, torch.tensor([[1]] * 4), x[:, :1]),
    "masked_scatter": lambda x: torch.ones(5, 6).masked_scatter((torch.arange(5)[:, None] > 0).expand(5, 6), x),
    "avg_pool2d": lambda x: F.avg_pool2d(x.view(1, 4, 2, 3), 2),
    "max_pool2d": lambda x: F.max_pool2d(x.view(4, 1, 2, 3), 2),
    "adaptive": lambda x: F.adaptive_avg_pool2d(x.view(1, 4, 2, 3), (1, 2)),
    "interpolate": lambda x: F.interpolate(x.view(1, 4, 2, 3), scale_factor=2, mode="bicubic"),
    "index_add": lambda x: torch.zeros(3, 6).index_add(0, torch.tensor([0, 1, 2, 0]), x),
    "sdpa": lambda x: F.scaled_dot_product_attention(*(x.view(1, 4, 2, 3) * i for i in (1, 2, 3))),
    "sdpa grouped": lambda x: F.scaled_dot_product_attention(
        torch.ones(1, 4, 5, 3), *(x.view(1, 2, 4, 3) * i for i in (1, 2)), enable_gqa=True
    ),
    "one_hot product": lambda x: (x[:, :, None] * F.one_hot(torch.tensor([[0, 2]] * 2)).sum(0)[:1, None]).sum(-1),
}

MIXING = {"softmax", "averaged", "normalised", "matched"}
"""Flags of axes along which an operation weighs units against each other, as their rules say."""


def follow(operation, tensor):
    """The tracer after ``operation`` ran on the followed ``tensor``, and the result."""
    tracer = Tracer()
    register_parameters(tracer, {"x": tensor})
    with torch.no_grad(), Operations(tracer):
        result = operation(tensor)
    return tracer, result


@pytest.mark.parametrize("name", KEEPS_AXES)
def test_units_stay_apart(name):
    operation = KEEPS_AXES[name]
    torch.manual_seed(1)
    x = torch.randn(4, 6)
    tracer, result = follow(operation, x)
    assert tracer.notes == []
    before = operation(x.clone())
    dims = tracer.info(result).dims
    assert tuple(map(length, dims)) == tuple(result.shape)
    followed = 0
    for d, expr in enumerate(dims):
        for atom, out_blocks in places(expr).items():
            for dim, own in enumerate(tracer.parameters["x"]):
                known = atom in places(own) and not atom.flags & MIXING
                for unit in range(atom.size if known else 0):
                    followed += 1
                    index = torch.cat([b.offsets() + unit * b.unit_stride for b in places(own)[atom]])
                    changed = x.clone()
                    changed.index_add_(dim, index, torch.ones_like(x.index_select(dim, index)))
                    differs = (operation(changed) != before).transpose(0, d).reshape(result.shape[d], -1)
                    moved = differs.any(1).nonzero().flatten()
                    mine = torch.cat([b.offsets() + unit * b.unit_stride for b in out_blocks])
                    assert set(moved.tolist()) <= set(mine.tolist()), f"axis {atom} of output dimension {d}"
    assert followed or name in {"index rows", "index_select", "embedding", "scatter", "index_add", "mean keepdim"} | {
        "one_hot product",
        "max with index",
        "sort",
        "index columns by numbers",
    }


@pytest.mark.parametrize(
    ("operation", "word"),
    [
        (lambda x: x.cumsum(1), "cumsum"),
        (lambda x: x.flip(1), "flip"),
        (lambda x: x.clone().cumsum_(1), "positions are mixed by 'cumsum'"),
        (lambda x: x.clone().as_strided_((6, 4), (1, 6)), "no rule for the operation 'as_strided_'"),
        (lambda x: x.clone().renorm_(2, 0, 1.0), "no rule for the operation 'renorm_'"),
        (lambda x: x.unfold(1, 3, 1), "sliding windows"),
        (lambda x: F.group_norm(x.view(1, 4, 6), 2), "normalised in groups"),
        (lambda x: F.avg_pool2d(x.view(1, 1, 4, 6), 2), "positions are mixed by 'avg_pool2d'"),
        (lambda x: torch.ones(5, 6).masked_scatter(torch.arange(30).view(5, 6) > 5, x), "no rule for the operation"),
        (lambda x: torch.fft.fft(x), "no rule for the operation"),
        (lambda x: x.reshape(3, 8), "regroups"),
    ],
)
def test_what_mixes_units_is_frozen_with_the_reason(operation, word):
    tracer, _ = follow(operation, torch.randn(4, 6))
    reasons = [r for texts in frozen_reasons(tracer).values() for r in texts]
    assert any(word in reason for reason in reasons)


def test_indices_chosen_by_activations_tie_the_rows_they_pick():
    router, experts = torch.randn(5, 3), torch.randn(5, 7, 3)
    tracer = Tracer()
    register_parameters(tracer, {"router": router, "experts": experts, "table": (table := torch.randn(9, 3))})
    with torch.no_grad(), Operations(tracer):
        hidden = F.embedding(torch.tensor([1, 4]), table)
        chosen = (hidden @ router.t()).softmax(-1).topk(2, dim=-1).indices
        _ = experts[chosen]
    (expert,) = atoms(tracer.parameters["experts"][0])
    assert expert is atoms(tracer.parameters["router"][0])[0]
    assert {"routed", "expert_weights", "chosen"} <= expert.flags
    assert [count for expr, count in tracer.minimums if expert in atoms(expr)] == [2]


def test_products_of_activations_mark_heads_and_matched_dimensions():
    table, q, k = torch.randn(9, 8), torch.randn(8, 8), torch.randn(8, 8)
    tracer = Tracer()
    register_parameters(tracer, {"table": table, "q": q, "k": k})
    with torch.no_grad(), Operations(tracer):
        hidden = F.embedding(torch.tensor([1, 4, 2]), table)
        heads = [(hidden @ w.t()).view(3, 2, 4).transpose(0, 1) for w in (q, k)]
        scores = torch.bmm(heads[0], heads[1].transpose(1, 2)).softmax(-1)
    head, dim = atoms(tracer.parameters["q"][0])
    assert "heads" in head.flags and "softmax_batch" in head.flags
    assert "matched" in dim.flags and "heads" not in dim.flags
    assert tracer.info(scores).kind is Kind.ACTIVATION


def test_a_constant_made_inside_the_forward_marks_what_it_meets():
    tracer, _ = follow(lambda x: x * torch.arange(6.0), torch.randn(4, 6))
    (expr, _), *_ = tracer.valued
    assert atoms(expr) == atoms(tracer.parameters["x"][1])
    tracer, _ = follow(lambda x: x * torch.ones(6), torch.randn(4, 6))
    assert tracer.valued == []


def test_mean_squares_are_told_from_means():
    tracer, _ = follow(lambda x: x.pow(2).mean(-1), torch.randn(4, 6))
    assert [atoms(norm.axis) for norm in tracer.norms] == [atoms(tracer.parameters["x"][1])]
    tracer, _ = follow(lambda x: x.mean(-1), torch.randn(4, 6))
    assert tracer.norms == []
    tracer, _ = follow(lambda x: (1 + x) * 2, torch.randn(4, 6))
    assert tracer.shifts == {"x": 1.0}
