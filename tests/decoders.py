"""Tiny decoders of many families, built from config classes alone; sizes are pairwise distinct where they can be."""

from __future__ import annotations

from typing import Any

import torch
import transformers as tf
from transformers import PreTrainedModel

SIZES: dict[str, Any] = {
    "hidden_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 6,
    "intermediate_size": 40,
}
COMMON: dict[str, Any] = {
    "vocab_size": 97,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": None,
    "pad_token_id": None,
}
MOE: dict[str, Any] = {**SIZES, "num_experts_per_tok": 2}
FALCON: dict[str, Any] = {"hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 8, "ffn_hidden_size": 40}

DECODERS: dict[str, tuple[type[tf.PreTrainedConfig], dict[str, Any]]] = {
    "llama": (tf.LlamaConfig, SIZES),
    "llama-tied-bias": (
        tf.LlamaConfig,
        {**SIZES, "tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True},
    ),
    "mistral": (tf.MistralConfig, SIZES),
    "qwen2": (tf.Qwen2Config, SIZES),
    "qwen3": (tf.Qwen3Config, SIZES),
    "gemma2": (tf.Gemma2Config, {**SIZES, "sliding_window": 8}),
    "gemma3_text": (tf.Gemma3TextConfig, {**SIZES, "sliding_window": 8}),
    "phi3": (tf.Phi3Config, SIZES),
    "gpt2": (tf.GPT2Config, {"n_embd": 48, "n_layer": 3, "n_head": 8, "n_inner": 40, "n_positions": 64}),
    "gpt_neox": (tf.GPTNeoXConfig, {**SIZES, "num_attention_heads": 4}),
    "opt": (tf.OPTConfig, {**SIZES, "ffn_dim": 40, "word_embed_proj_dim": 48}),
    "bloom": (tf.BloomConfig, {"hidden_size": 48, "n_layer": 3, "n_head": 8}),
    "falcon-grouped": (tf.FalconConfig, {**FALCON, "new_decoder_architecture": True, "num_kv_heads": 4}),
    "falcon-multi-query": (tf.FalconConfig, {**FALCON, "multi_query": True}),
    "falcon-alibi": (tf.FalconConfig, {**FALCON, "multi_query": False, "alibi": True}),
    "olmo2": (tf.Olmo2Config, SIZES),
    "mixtral": (tf.MixtralConfig, {**MOE, "num_local_experts": 5}),
    "qwen3_moe": (tf.Qwen3MoeConfig, {**MOE, "num_experts": 5, "moe_intermediate_size": 20}),
}


def config(name: str, **changes: Any) -> tf.PreTrainedConfig:
    """The config of a tiny decoder."""
    kind, sizes = DECODERS[name]
    values = {**COMMON, **sizes, **changes}
    return kind(**{k: v for k, v in values.items() if not (k == "head_dim" and kind in NO_HEAD_DIM)})


NO_HEAD_DIM = (tf.GPTNeoXConfig, tf.OPTConfig, tf.Phi3Config)


def tiny(name: str, seed: int = 0, **changes: Any) -> PreTrainedModel:
    """A tiny decoder in evaluation mode, with every parameter random: a zero bias would hide a missed slice."""
    torch.manual_seed(seed)
    model = tf.AutoModelForCausalLM.from_config(config(name, **changes)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return model


def tokens(batch: int = 2, length: int = 13, vocab: int = 97) -> torch.Tensor:
    """Random token ids of shape (batch, length)."""
    return torch.randint(3, vocab, (batch, length), generator=torch.Generator().manual_seed(7))
