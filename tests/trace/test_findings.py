"""A finished trace is looked up by axis."""

from __future__ import annotations

import pytest

from graphprune.trace import groups, trace
from graphprune.trace.axes import fresh, regroup
from graphprune.trace.findings import Findings, by_atom
from graphprune.trace.tracer import Consumption, Tracer
from tests.decoders import tiny


def test_things_are_found_under_every_atom_of_their_axis():
    heads, size, other = fresh(4), fresh(8), fresh(5)
    things = [("both", heads + size), ("inner", size)]
    found = by_atom(things, lambda thing: thing[1])
    assert [name for name, _ in found[heads[0]]] == ["both"]
    assert [name for name, _ in found[size[0]]] == ["both", "inner"]
    assert found[other[0]] == []


def test_a_tensor_consumes_the_axis_that_a_product_summed_over():
    tracer, rows = Tracer(), fresh(32)
    tracer.consumptions.append(Consumption(frozenset({"down"}), rows, None))
    heads, size = regroup([rows], [4, 8])  # divided after it was consumed
    seen = Findings(tracer)
    assert seen.consumes("down", heads + size)
    assert seen.consumes("down", heads), "a dimension of its own, summed over together with the other"
    assert not seen.consumes("down", heads + fresh(3))
    assert not seen.consumes("up", rows)
    assert seen.consumptions[heads[0]] == seen.consumptions[size[0]] == tracer.consumptions


def test_the_work_grows_with_the_layers_and_not_with_their_square(monkeypatch):
    """Walks through axis expressions, the bulk of what building a graph costs, counted for 4 and for 16 layers."""
    walks = {}
    for layers in (4, 16):
        model = tiny("llama", num_hidden_layers=layers)
        with monkeypatch.context() as patch:
            count = 0
            honest = groups.places

            def counted(expr, honest=honest):
                nonlocal count
                count += 1
                return honest(expr)

            patch.setattr(groups, "places", counted)
            trace(model)
        walks[layers] = count
    assert walks[16] == pytest.approx(4 * walks[4], rel=0.1)
