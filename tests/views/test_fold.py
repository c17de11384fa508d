"""Layers that are alike are found, and names lose their layer's index but nothing else."""

from __future__ import annotations

import graphprune as gp
from graphprune.views.fold import Fold, fold_of, kinds
from tests.decoders import tiny


def test_the_layers_index_is_taken_out_and_nothing_else():
    fold = Fold("model.layers")
    assert fold.split("model.layers.13.mlp.experts.1.up") == ("model.layers.{layer}.mlp.experts.1.up", 13)
    assert fold.split("model.layers.3") == ("model.layers.{layer}", 3)
    for other in ("model.layers", "other.model.layers.3.x", "model.layers.3x", "sub_model.layers.3.x", "lm_head"):
        assert fold.split(other) == (other, None)
    assert fold.split("from model.layers.1.x to model.layers.2.x")[1] is None
    assert Fold(None).split("model.layers.3.x") == ("model.layers.3.x", None)


def test_items_that_differ_in_their_layer_alone_are_one():
    items = [{"tensor": f"h.{n}.w", "dim": 0, "only": n} for n in (0, 1, 5)]
    items += [{"tensor": "h.2.w", "dim": 1, "only": 2}, {"tensor": "head", "dim": 0, "only": None}]
    assert Fold("h").values(items) == [
        {"value": {"tensor": "h.{layer}.w", "dim": 0, "only": "{layer}"}, "layers": [0, 1, 5]},
        {"value": {"tensor": "h.{layer}.w", "dim": 1, "only": "{layer}"}, "layers": [2]},
        {"value": {"tensor": "head", "dim": 0, "only": None}, "layers": []},
    ]


def test_the_stack_is_found_without_knowing_names():
    for name, path in (("llama", "model.layers"), ("gpt2", "transformer.h"), ("opt", "model.decoder.layers")):
        assert fold_of(gp.trace(tiny(name))).stack == path


def test_experts_numbered_like_their_layer_do_not_confuse():
    def group(layer: int) -> gp.Group:
        tensor = f"m.layers.{layer}.experts.{layer}.up"
        member = gp.Member(tensor=tensor, dim=0, size=2, length=2, blocks=(gp.Block(start=0, unit_stride=1),))
        return gp.Group(name=f"x/{layer}", role="mlp.channel", layer=layer, size=2, members=(member,))

    graph = gp.DependencyGraph(groups=tuple(map(group, range(3))), shapes={}, layers=3)
    assert fold_of(graph).stack == "m.layers"


def test_layers_that_are_alike_are_one_kind():
    graph = gp.trace(tiny("llama", num_hidden_layers=4))
    assert kinds(graph) == ((0, 1, 2, 3),)
    plan = gp.PrunePlan.remove(graph, {graph.select(role="mlp.channel", layers=2).names[0]: [0, 1]})
    model = tiny("llama", num_hidden_layers=4)
    assert kinds(gp.trace(gp.reshape(model, plan))) == ((0, 1, 3), (2,))


def test_a_graph_without_layers_has_no_kinds():
    assert kinds(gp.DependencyGraph(groups=(), shapes={"w": (3,)})) == ()
