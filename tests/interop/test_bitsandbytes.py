"""A saved model is quantised by bitsandbytes while transformers loads it."""

import pytest
import torch
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from tests.interop.folders import ids, load, loss

bitsandbytes = pytest.importorskip("bitsandbytes", reason="needs the extra 'bitsandbytes'")

KINDS = {
    "int8": {"load_in_8bit": True},
    "nf4": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},
    "nf4 twice": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True},
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_stock_folder_loads_quantised_and_answers_nearly_alike(kind, stock, tmp_path):
    settings = BitsAndBytesConfig(**KINDS[kind])
    model = AutoModelForCausalLM.from_pretrained(stock, quantization_config=settings, device_map="cpu").eval()
    packed = [m for m in model.modules() if isinstance(m, (bitsandbytes.nn.Linear8bitLt, bitsandbytes.nn.Linear4bit))]
    assert len(packed) == 6 * 7
    assert {m.out_features for m in packed if m.in_features == 256} == {192}
    tokens = ids(stock)
    assert loss(model, tokens) == pytest.approx(loss(load(stock), tokens), abs=0.3)
    written = model.generate(tokens[:, :20], max_new_tokens=4, do_sample=False)
    assert written.shape[1] == 24

    model.save_pretrained(tmp_path / "quantised")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "quantised", device_map="cpu").eval()
    assert loss(again, tokens) == pytest.approx(loss(model, tokens), abs=0.05)


def test_a_loaded_model_of_any_tier_is_quantised_layer_by_layer(folder):
    """What needs gp.load has no from_pretrained to quantise it; its linear layers can be replaced all the same."""
    model, tokens = load(folder), ids(folder)
    before = loss(model, tokens)
    for module in [*model.modules()]:
        for name, layer in module.named_children():
            if type(layer) is torch.nn.Linear and layer is not model.lm_head:
                small = bitsandbytes.nn.Linear8bitLt(
                    layer.in_features, layer.out_features, bias=layer.bias is not None, has_fp16_weights=False
                )
                small.load_state_dict(layer.state_dict())
                setattr(module, name, small.to("cpu"))
    assert loss(model, tokens) == pytest.approx(before, abs=0.1)
