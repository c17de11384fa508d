"""Models on several devices, as accelerate lays them out; here every device is the CPU."""

import pytest
import torch
from accelerate import cpu_offload, dispatch_model
from torch import nn

from graphprune.errors import CriterionError, ReshapeError
from graphprune.masking import masked
from graphprune.placement import absent, input_device
from graphprune.ranking import plan
from graphprune.reshape import reshape
from graphprune.schema import PruneSpec
from graphprune.score import score
from graphprune.trace import trace
from tests.engine.conftest import make_llama

IDS = torch.randint(0, 61, (4, 16), generator=torch.Generator().manual_seed(0))


def make_spec(criterion):
    targets = [{"role": "attention.group", "count": 1}, {"role": "mlp.channel", "ratio": 0.5}]
    return PruneSpec.model_validate({"targets": targets, "criterion": criterion})


def laid_out():
    places = dict.fromkeys(["model.embed_tokens", "model.norm", "model.rotary_emb", "lm_head"], "cpu")
    places |= {f"model.layers.{i}": "cpu" for i in range(3)}
    return dispatch_model(make_llama(), places, main_device="cpu", force_hooks=True)


@pytest.mark.parametrize("criterion", ["lora", "taylor", "gate", "wanda", "magnitude"])
def test_the_hooks_that_move_activations_change_no_score(criterion):
    model = make_llama()
    graph, spec = trace(model), make_spec(criterion)
    expected = score(model, graph, spec, [{"input_ids": IDS}])
    torch.testing.assert_close(score(laid_out(), graph, spec, [{"input_ids": IDS}]), expected)


def test_graph_masks_and_cuts_are_those_of_the_same_model_in_one_place():
    model, whole = laid_out(), make_llama()
    graph = trace(model)
    assert graph.fingerprint == trace(whole).fingerprint
    gone = plan(graph, make_spec("magnitude"), score(model, graph, make_spec("magnitude")))
    with torch.no_grad():
        with masked(whole, gone, graph):
            expected = whole(IDS).logits
        with masked(model, gone, graph):
            torch.testing.assert_close(model(IDS).logits, expected)
        torch.testing.assert_close(reshape(model, gone, graph)(IDS).logits, expected)


def test_offloaded_weights_are_refused():
    graph = trace(make_llama())
    spec = make_spec("magnitude")
    gone = plan(graph, spec, score(make_llama(), graph, spec))
    model = cpu_offload(make_llama(), execution_device="cpu")
    with pytest.raises(CriterionError, match=r"weights cannot be read: \d+ of its \d+ tensors are offloaded"):
        score(model, graph, spec)
    with pytest.raises(CriterionError, match=r"weights cannot be read: \d+ of its \d+ tensors are offloaded"):
        score(model, graph, make_spec("lora"), [{"input_ids": IDS}])  # which puts adapters on first
    with pytest.raises(ReshapeError, match=r"cannot be cut: .* offloaded"):
        reshape(model, gone, graph)
    assert input_device(model).type == "meta"


def test_inputs_go_where_they_are_read():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = nn.Linear(2, 2, device="meta")
            self.first = nn.Embedding(3, 2)

        def get_input_embeddings(self):
            return self.first

    assert input_device(Two()).type == "cpu"
    assert input_device(nn.Linear(1, 1, device="meta")).type == "meta"
    assert input_device(nn.Identity()).type == "cpu"
    assert absent(nn.Linear(1, 1, device="meta"), nn.Linear(1, 1, device="meta").parameters()) is None
