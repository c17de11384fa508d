"""Asking classes which sizes they accept."""

from graphprune.export.stock import Stock
from graphprune.plan import PrunePlan
from graphprune.reshape.further import cut_further
from graphprune.trace import trace
from tests.decoders import tiny


def heads(graph, kept):
    return dict.fromkeys(graph.select(role="attention.group").names, kept)


def test_a_class_is_asked_by_building_it():
    model = tiny("llama-tied-bias", hidden_size=40)
    graph = trace(model)
    stock = Stock(model, graph)
    assert not stock.accepts(heads(graph, 2), quick=True)  # no field is known yet
    assert [stock.accepts(heads(graph, n)) for n in (1, 2, 3)] == [True, True, False]
    assert [Stock.accepts(stock, heads(graph, n), quick=True) for n in (1, 3)] == [True, False]
    assert stock.objection(heads(graph, 2)) == ""
    assert stock.objection(heads(graph, 3)).startswith("no config of this class describes the result")
    assert "layers differ" in stock.impossible({graph.select(role="mlp.channel").names[0]: 20})


def test_equal_shapes_are_not_enough():
    """Heads of half the size have the shapes of half of the heads: only a trace can tell."""
    model = tiny("llama", num_attention_heads=4, num_key_value_heads=4, head_dim=4)
    graph = trace(model)
    assert Stock(model, graph).objection(heads(graph, 2)) == ""


def test_a_model_that_is_being_cut_is_asked_as_it_was_before():
    model = tiny("llama", hidden_size=40)
    graph = trace(model)
    before = Stock(model, graph)
    names = graph.select(role="mlp.channel").names
    cut_further(model, graph, PrunePlan.remove(graph, {name: [0] for name in names}), more=True)
    now = Stock(model, graph)
    for kept in (39, 20):
        sizes = dict.fromkeys(names, kept)
        assert now.accepts(sizes) and before.accepts(sizes)
        assert now.objection(sizes) == ""
