"""Whatever is done to a tensor in a file is what torch does to it, and mostly without reading more than is kept."""

import pytest
import torch
from safetensors.torch import save_file

from graphprune.stream import nodes
from graphprune.stream.files import deferred_weights
from graphprune.stream.nodes import Call, Joined, Picked


@pytest.fixture
def pair(tmp_path):
    """Tensors, and the same deferred."""
    tensors = {
        "a": torch.randn(6, 8),
        "b": torch.randn(6, 8),
        "c": torch.randn(4, 6, 10).bfloat16(),
        "v": torch.randn(12),
    }
    save_file(tensors, tmp_path / "x.safetensors")
    return tensors, deferred_weights([tmp_path / "x.safetensors"])


ROWS, COLUMNS = torch.tensor([0, 3, 4]), torch.tensor([1, 2, 7])

#: Operations that end as places in files.
PLACES = {
    "rows": lambda t: t["a"].index_select(0, ROWS),
    "columns": lambda t: t["a"].index_select(1, COLUMNS),
    "both": lambda t: t["a"].index_select(0, ROWS).index_select(1, COLUMNS),
    "again": lambda t: t["a"].index_select(0, ROWS)[1:],
    "turned": lambda t: t["a"].t().index_select(0, COLUMNS),
    "turned stack": lambda t: t["c"].transpose(1, 2).contiguous().index_select(1, COLUMNS),
    "divided and turned": lambda t: t["a"].view(2, 3, 8).transpose(0, 1).reshape(6, 8),
    "divided, cut, joined": lambda t: t["a"].view(2, 3, 8).index_select(1, torch.tensor([0, 2])).reshape(4, 8),
    "rotary order": lambda t: t["v"].view(2, 3, 2).transpose(1, 2).reshape(12)[ROWS.max() :],
    "joined and divided again": lambda t: torch.cat([t["a"], t["b"]]).index_select(0, torch.tensor([1, 7])).chunk(2)[1],
    "stacked and taken apart": lambda t: torch.stack([t["a"], t["b"]]).index_select(2, COLUMNS).unbind(0)[1],
    "experts": lambda t: (
        torch.cat([torch.stack([t["a"], t["b"]]), torch.stack([t["b"], t["a"]])], dim=1)
        .index_select(1, torch.tensor([0, 2, 6, 8]))
        .chunk(2, dim=1)[1]
        .chunk(2, dim=0)[0]
        .squeeze(0)
    ),
    "one of a stack": lambda t: t["c"][2],
    "last dimension": lambda t: t["c"][..., 3:9:2],
    "with a new dimension": lambda t: t["a"].unsqueeze(1).index_select(2, COLUMNS),
    "flattened": lambda t: t["v"].view(3, 4).view(12).index_select(0, ROWS),
}

#: Operations that are carried out later.
CALLS = {
    "scaled": lambda t: ((t["v"] + 1.0) * 1.25 - 1.0).to(torch.bfloat16),
    "merged": lambda t: (t["a"] + t["b"].t().contiguous().t() * 0.5).index_select(1, COLUMNS),
    "flattened stack": lambda t: t["c"].reshape(4, -1).index_select(1, COLUMNS),
    "cast": lambda t: t["c"].float().index_select(0, torch.tensor([0, 3])),
    "backwards": lambda t: torch.cat([t["a"], t["b"]]).index_select(0, torch.tensor([8, 1])),
    "largest": lambda t: t["a"].max(dim=0)[1],
}


@pytest.mark.parametrize("what", [*PLACES, *CALLS])
def test_values_are_those_of_torch(pair, what):
    real, later = pair
    operation = {**PLACES, **CALLS}[what]
    expected, got = operation(real).contiguous(), operation(later)
    assert tuple(got.shape) == tuple(expected.shape)
    assert got.dtype == expected.dtype
    assert torch.equal(got.node.value(), expected)
    pieces = b"".join(piece.tobytes() for piece in got.node.pieces())
    assert pieces == expected.flatten().view(torch.uint8).numpy().tobytes()


@pytest.mark.parametrize("what", PLACES)
def test_places_stay_places(pair, what):
    assert isinstance(PLACES[what](pair[1]).node, Picked)


def test_tensors_larger_than_a_piece_come_in_pieces(pair, monkeypatch):
    monkeypatch.setattr("graphprune.stream.numbers.PIECE", 16)
    real, later = pair
    for what, operation in PLACES.items():
        assert torch.equal(operation(later).node.value(), operation(real)), what
    assert len(list(later["a"].node.pieces())) == 6


def test_rows_that_are_joined_are_written_one_after_the_other(pair):
    _, later = pair
    node = torch.cat([later["a"], later["b"]]).node
    assert isinstance(node, Joined)
    assert len(list(node.pieces())) == 2


def test_tensors_that_share_a_result_compute_it_once(pair):
    _, later = pair
    calls = []
    shared = Call(lambda t: calls.append(1) or t * 2, (later["a"].node,), (6, 8))
    halves = [shared.pick(0, range(3)), shared.pick(0, range(3, 6))]
    values = [half.value() for half in halves]
    assert torch.equal(torch.cat(values), pair[0]["a"] * 2)
    assert len(calls) == 1
    assert len(nodes._RECENT._held) == 1  # nothing else is kept
    nodes.forget()
    assert not nodes._RECENT._held
