"""Layers and models that bitsandbytes has quantised; importing this module skips tests without the package."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from graphprune.packed import keep_trainable, packed_in
from tests.decoders import tiny

bitsandbytes = pytest.importorskip("bitsandbytes", reason="needs the extra 'bitsandbytes'")

KINDS: dict[str, dict[str, Any]] = {
    "int8": {"load_in_8bit": True},
    "nf4": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},
    "nf4-double": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True},
}
#: Inputs of 4-bit layers in multiples of 64: bitsandbytes dequantises others wrongly on some CPUs.
WIDE: dict[str, dict[str, int]] = {
    "llama": {"hidden_size": 64, "intermediate_size": 128, "head_dim": 8},
    "gpt2": {"n_embd": 64, "n_inner": 128},
}


def linear(kind: str, weight: torch.Tensor, *, transposed: bool = False, **options: Any) -> nn.Module:
    """A quantised layer with ``weight`` (outputs, inputs), on the CPU; ``transposed``: in the place of a Conv1D."""
    rows, columns = weight.shape
    if kind == "int8":
        layer = bitsandbytes.nn.Linear8bitLt(columns, rows, has_fp16_weights=False)
        layer.weight = bitsandbytes.nn.Int8Params(weight.clone(), requires_grad=False, has_fp16_weights=False)
    else:
        options = {"quant_type": "nf4", "compress_statistics": kind == "nf4-double", **options}
        own = {key: value for key, value in options.items() if key != "blocksize"}
        layer = bitsandbytes.nn.Linear4bit(columns, rows, **own)
        layer.weight = bitsandbytes.nn.Params4bit(weight.clone(), requires_grad=False, module=layer, **options)
    layer.source_cls = Conv1D if transposed else nn.Linear
    return layer.to("cpu")


def load(name: str, kind: str, folder: Any, **sizes: int) -> tuple[PreTrainedModel, PreTrainedModel]:
    """A tiny decoder without dropout, quantised, and its twin with the dequantised weights in float32."""
    twin = tiny(
        name,
        **{**WIDE[name], **sizes},
        **({"resid_pdrop": 0, "embd_pdrop": 0, "attn_pdrop": 0} if name == "gpt2" else {}),
    )
    twin.save_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, quantization_config=BitsAndBytesConfig(**KINDS[kind]))
    keep_trainable(model)
    for path, module in model.named_modules():
        found = packed_in(module)
        if found is not None:
            twin.get_submodule(path).weight.data = found.whole().float().contiguous()
    return model, copy.deepcopy(twin)
