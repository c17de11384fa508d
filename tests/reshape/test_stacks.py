"""Removing layers: what knows layers by their numbers follows."""

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from graphprune.graph import DependencyGraph, Group, Stack
from graphprune.plan import PrunePlan
from graphprune.reshape import reshape
from graphprune.reshape.apply import cut_model
from graphprune.reshape.history import history_of
from graphprune.reshape.stacks import called_after, config_changes
from graphprune.trace import trace
from tests.decoders import tiny, tokens


class Config(PreTrainedConfig):
    model_type = "stacked"
    num_hidden_layers: int = 4
    width: int = 3
    tie_word_embeddings: bool = True


class Body(PreTrainedModel):
    """Four layers; the weight of layer 0 is also that of layers 2 and 3."""

    config_class = Config

    def __init__(self, config):
        super().__init__(config)
        self._tied_weights_keys = {r"layers.[23].weight": "layers.0.weight"}
        self.layers = nn.ModuleList(nn.Linear(3, 3, bias=False) for _ in range(4))
        self.post_init()


class Whole(PreTrainedModel):
    config_class = Config

    def __init__(self, config):
        super().__init__(config)
        self.body = Body(config)
        self.post_init()


def without(model, removed):
    stack = Stack(path="body.layers", size=4, counts=(("config", "num_hidden_layers"),))
    group = Group(name="layer", role="layer", layer=None, size=4, members=(), stacks=(stack,))
    graph = DependencyGraph(groups=(group,), shapes={}, layers=4)
    plan = PrunePlan.remove(graph, {"layer": removed})
    changes = config_changes(graph, plan, model.config.to_dict())
    cut_model(model, graph, plan)
    return changes


@pytest.mark.parametrize(
    ("removed", "tied"),
    [
        ([1], {"layers.1.weight": "layers.0.weight", "layers.2.weight": "layers.0.weight"}),
        ([0], {"layers.2.weight": "layers.1.weight"}),  # another one is the first that has it
        ([0, 3], {}),
    ],
)
def test_the_names_of_tied_weights_follow(removed, tied):
    model = Whole(Config())
    model.tie_weights()
    without(model, removed)
    assert model.body.all_tied_weights_keys == tied
    assert model.all_tied_weights_keys == {f"body.{n}": f"body.{of}" for n, of in tied.items()}
    assert model.body.get_expanded_tied_weights_keys() == tied
    before = [id(layer.weight) for layer in model.body.layers]
    model.tie_weights()
    assert [id(layer.weight) for layer in model.body.layers] == before


def test_names_that_no_removed_layer_moves_are_left_alone():
    model = Whole(Config(tie_word_embeddings=False))
    patterns = model.body._tied_weights_keys
    without(model, [1])
    assert model.all_tied_weights_keys == {}
    assert model.body._tied_weights_keys is patterns


def test_what_a_config_says_of_single_layers_moves_with_them():
    model = Whole(Config(per_layer_config={1: {"width": 5}, 3: {"width": 7}}))
    assert without(model, [0, 1]) == {
        ("num_hidden_layers",): 2,
        ("per_layer_config",): {"1": {"width": 7}},
    }
    assert [layer.width for layer in model.config.per_layer_config] == [3, 7]


def test_the_graph_by_the_names_of_the_cut_model():
    model = tiny("llama")
    graph = trace(model)
    plan = PrunePlan.remove(graph, {"model.layers/layer": [1], "model.layers.2.mlp/mlp.channel": [0, 3]})
    after = called_after(graph, plan)
    names = {name for name, _ in reshape(model, plan, graph).named_parameters()}
    assert set(after.shapes) == names == {m.tensor for g in after.groups for m in g.members}
    moved = after.by_name["model.layers.2.mlp/mlp.channel"]
    assert {m.tensor for m in moved.members} == {f"model.layers.1.mlp.{n}_proj.weight" for n in ("gate", "up", "down")}
    assert after.by_name["model.layers.1.mlp/mlp.channel"].members == ()
    widths = PrunePlan.remove(graph, {"model.layers.2.mlp/mlp.channel": [0, 3]})
    assert called_after(graph, widths) is graph


def test_a_computed_list_that_was_written_down_is_computed_again_where_a_config_describes_the_model(tmp_path):
    """The kinds of layers follow from their number there, and all are of one kind."""
    torch.manual_seed(0)
    config = AutoConfig.for_model("mamba", hidden_size=16, num_hidden_layers=3, vocab_size=97, state_size=4)
    model = AutoModelForCausalLM.from_config(config).eval()
    kind, graph = type(model.config), trace(model)
    reshape(model, PrunePlan.remove(graph, {graph.select(role="layer").names[0]: [1]}), graph)
    assert history_of(model).stock, history_of(model).why_not
    assert type(model.config) is kind
    model.save_pretrained(tmp_path)
    stock = AutoModelForCausalLM.from_pretrained(tmp_path)
    with torch.no_grad():
        assert torch.equal(stock(tokens()).logits, model(tokens()).logits)
