"""A saved model is quantised by llm-compressor, and transformers loads the compressed folder."""

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from graphprune import demo
from tests.interop.folders import ids, load, loss

llmcompressor = pytest.importorskip("llmcompressor", reason="needs the package llmcompressor")

#: What is asked for, and whether it needs calibration text. The scheme W4A16 has groups of 128 inputs, and refuses
#: widths that are no multiple of that; here they are multiples of 64.
GROUPS_OF_64 = {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": 64}
RECIPES = {
    "W8A8": ({"scheme": "W8A8"}, True),
    "GPTQ": ({"config_groups": {"group_0": {"targets": ["Linear"], "weights": GROUPS_OF_64}}}, True),
    "FP8": ({"scheme": "FP8_DYNAMIC"}, False),
}


@pytest.mark.parametrize("name", RECIPES)
def test_a_stock_folder_is_compressed_and_loads_again(name, stock, tmp_path):
    from datasets import Dataset
    from llmcompressor import oneshot
    from llmcompressor.modifiers.quantization import GPTQModifier, QuantizationModifier

    settings, calibrated = RECIPES[name]
    kind = GPTQModifier if name == "GPTQ" else QuantizationModifier
    recipe = kind(**settings, ignore=["lm_head"], **({"targets": "Linear"} if "scheme" in settings else {}))
    options = {}
    if calibrated:
        text = demo.calibration_path().read_text(encoding="utf-8")[:20_000]
        stream = AutoTokenizer.from_pretrained(stock)(text).input_ids
        rows = [stream[i : i + 64] for i in range(0, 64 * 16, 64)]
        data = Dataset.from_dict({"input_ids": rows, "attention_mask": [[1] * 64] * len(rows)})
        options = {"dataset": data, "num_calibration_samples": len(rows), "max_seq_length": 64}
    tokens, model = ids(stock), load(stock)
    before = loss(model, tokens)
    oneshot(model=model, recipe=recipe, **options)
    model.save_pretrained(tmp_path / "compressed", save_compressed=True)
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "compressed").eval()
    assert again.config.quantization_config is not None
    assert again.config.intermediate_size == 256
    assert loss(again, tokens) == pytest.approx(before, abs=0.3)
