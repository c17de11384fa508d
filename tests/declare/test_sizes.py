"""Integers that follow declared groups: on modules, on the config, and on the config as one module reads it."""

import copy
from types import SimpleNamespace

import pytest
import torch

import graphprune as gp
from graphprune.declare import trace_with
from graphprune.declare.sizes import find_integer
from graphprune.errors import ReshapeError, SpecError
from tests.declare.models import HEADS as COUNT
from tests.declare.models import Decoder, Opaque, Plain, attend, ids
from tests.declare.specs import HEADS, spec


class Reading(Opaque):
    """Attention that reads the number of heads from the config, which all layers share."""

    config = None

    def __init__(self):
        super().__init__()
        self.config = SHARED

    def forward(self, x):
        return self.back(attend(self.query(x), self.key(x), self.value(x), self.config.heads))


class Configured(Decoder):
    """A model with a config is called as those of transformers are."""

    def forward(self, input_ids, use_cache=False):
        return super().forward(input_ids)


SHARED = SimpleNamespace(heads=COUNT, inner=SimpleNamespace(heads=COUNT, to_dict=dict))


@pytest.fixture
def model():
    torch.manual_seed(0)
    SHARED.heads = COUNT
    decoder = Configured(Reading, Plain).eval()
    decoder.config = SHARED
    return decoder


def followed(sizes, **changes):
    return spec({**HEADS, "sizes": sizes, **changes})


@pytest.mark.parametrize(
    ("place", "found"),
    [
        ("blocks.1.attention.n_heads", ("blocks.1.attention", "n_heads", "blocks.1.attention", COUNT)),
        ("config.heads", ("config", "heads", "", COUNT)),
        ("config.inner.heads", ("config.inner", "heads", "", COUNT)),
        ("blocks.1.attention.config.heads", ("config", "heads", "blocks.1.attention", COUNT)),
        ("blocks.1.attention.config.inner.heads", ("config.inner", "heads", "blocks.1.attention", COUNT)),
        ("config.outer.heads", "the model has no 'config.outer'"),
        ("config.head", "no attribute 'head' there; integers are heads"),
    ],
)
def test_where_integers_are(model, place, found):
    assert find_integer(model, place) == found


def test_what_is_neither_a_module_nor_the_config(model):
    model.blocks[1]["attention"].notes = SimpleNamespace(heads=COUNT)
    found = find_integer(model, "blocks.1.attention.notes.heads")
    assert found == "'blocks.1.attention.notes' is neither a module nor the model's config"
    assert "has no module 'blocks.1.nothing'" in find_integer(model, "blocks.1.nothing.heads")


def test_layers_may_differ_in_what_each_reads_from_the_config(model):
    wanted = followed({"blocks.{layer}.attention.config.heads": "size"})
    graph = trace_with(model, wanted)
    plan = gp.PrunePlan.remove(graph, {"blocks.0.attention/attention.group": [1, 2]})
    with torch.no_grad(), gp.masked(model, plan, graph):
        masked = model(ids())
    small = gp.reshape(model, plan, graph)
    assert [block["attention"].config.heads for block in small.blocks] == [COUNT - 2, COUNT, COUNT]
    with torch.no_grad():
        assert torch.allclose(small(ids()), masked, atol=1e-5)


def test_what_the_whole_model_reads_must_agree(model):
    graph = trace_with(model, followed({"config.heads": "size"}))
    names = graph.select(role="attention.group").names
    for uneven in ({names[0]: [1], names[1]: [2, 3]}, {names[0]: [1]}):
        with pytest.raises(ReshapeError, match=r"would have to be .* Prune the layers alike"):
            gp.reshape(copy.deepcopy(model), gp.PrunePlan.remove(graph, uneven), graph)
    gp.reshape(model, gp.PrunePlan.remove(graph, {name: [3] for name in names}), graph)
    assert model.config.heads == COUNT - 1
    assert model(ids()).isfinite().all()


def test_the_number_of_units_can_be_read_from_the_model(model):
    wanted = followed({"config.heads": "size"}, size="config.heads")
    assert {g.size for g in trace_with(model, wanted).select(role="attention.group")} == {COUNT}
    with pytest.raises(SpecError, match=r"groups\[0\]\.size: expected the path of an integer, got 'config.head'"):
        trace_with(model, followed({}, size="config.head"))
    del model.config
    model.config = SimpleNamespace(heads=None)
    with pytest.raises(SpecError, match=r"groups\[0\]\.size: expected two units or more, but 'config.heads' is None"):
        gp.declare(gp.trace(Decoder(Opaque, Plain)), wanted, model)


def test_an_integer_that_the_trace_knows_better_is_refused():
    """The width of the feed-forward net is not the number of heads, though the spec says so."""

    class Sized(Plain):
        def __init__(self):
            super().__init__()
            self.width = 10

        def forward(self, x):
            return self.down(self.up(x).view(*x.shape[:-1], self.width).relu())

    model = Decoder(Opaque, Sized).eval()
    with pytest.raises(SpecError, match=r"follows blocks\.0\.ffn/mlp\.channel otherwise already"):
        trace_with(model, followed({"blocks.{layer}.ffn.width": "size + 4"}))
