"""What PEFT puts around layers, and the model without what it adds."""

import copy

import pytest
import torch

from graphprune.names import resolve_tensor
from graphprune.reshape.adapters import merge_problem, peft_layers, peft_model, without_deltas
from tests.decoders import tiny, tokens

peft = pytest.importorskip("peft")


def wrapped(name="llama", **settings):
    config = peft.LoraConfig(r=2, init_lora_weights=False, **settings)
    return peft.get_peft_model(tiny(name), config).eval()


def logits(model):
    with torch.no_grad():
        return model(tokens()).logits


def test_the_wrapper_is_found_below_others():
    model = wrapped(target_modules=["q_proj"])
    assert peft_model(torch.compile(model, backend="eager")) is model
    assert peft_model(model.get_base_model()) is None
    assert peft_model(tiny("llama")) is None


def test_layers_have_the_paths_of_what_they_adapt():
    model = wrapped("mixtral", target_parameters=["experts.gate_up_proj", "experts.down_proj"], target_modules=[])
    assert [path for path, _ in peft_layers(model)] == [
        f"model.layers.{i}.mlp.experts" for i in range(3) for _ in range(2)
    ]


def test_without_deltas_a_model_computes_with_the_tensors_that_its_names_lead_to():
    model = wrapped(target_modules=["q_proj"], modules_to_save=["lm_head"])
    model.base_model.model.lm_head.modules_to_save["default"].weight.data.add_(1)
    twin = tiny("llama")
    twin.load_state_dict({name: resolve_tensor(model, name) for name in twin.state_dict()})
    before = logits(model)
    with without_deltas(model):
        assert torch.equal(logits(model), logits(twin))
    assert torch.equal(logits(model), before)
    merged = copy.deepcopy(model)
    merged.merge_adapter()
    with without_deltas(merged):
        torch.testing.assert_close(logits(merged), before, rtol=0, atol=1e-5)


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`")
def test_merging_into_a_weight_that_others_share_is_a_problem():
    assert merge_problem(wrapped("llama-tied-bias", target_modules=["q_proj"])) == ""
    assert merge_problem(wrapped(target_modules=["lm_head", "embed_tokens"])) == ""
    problem = merge_problem(wrapped("llama-tied-bias", target_modules=["lm_head"]))
    assert problem.startswith("'lm_head' carries an adapter and shares its weight: merged, it would change lm_head")
