"""Tiny models that are no decoders: classifiers of texts and of images, translators, a decoder that also sees."""

from __future__ import annotations

from typing import Any

import torch
import transformers as tf
from transformers import PreTrainedModel

from tests.decoders import COMMON, SIZES

ENCODER: dict[str, Any] = {
    "hidden_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 8,
    "intermediate_size": 40,
    "num_labels": 5,
}
VISION: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 36,
    "image_size": 28,
    "patch_size": 14,
}
IMAGE_TOKEN, PATCHES = 96, 4


def text_classifier(**changes: Any) -> PreTrainedModel:
    """Eight heads, 40 channels, five labels."""
    config = tf.BertConfig(**{**ENCODER, "vocab_size": 97, "max_position_embeddings": 64, **changes})
    return _random(lambda: tf.AutoModelForSequenceClassification.from_config(config))


def image_classifier(**changes: Any) -> PreTrainedModel:
    """Reads images of 28 by 28 in patches of 4."""
    config = tf.ViTConfig(**{**ENCODER, "image_size": 28, "patch_size": 4, **changes})
    return _random(lambda: tf.AutoModelForImageClassification.from_config(config))


def translator() -> PreTrainedModel:
    """An encoder and a decoder."""
    sizes = {"d_model": 48, "d_kv": 6, "d_ff": 40, "num_layers": 3, "num_heads": 8}
    config = tf.T5Config(**sizes, vocab_size=97, decoder_start_token_id=0)
    return _random(lambda: tf.AutoModelForSeq2SeqLM.from_config(config))


def seeing_decoder() -> PreTrainedModel:
    """A decoder behind a vision tower; token 96 stands for a patch of an image."""
    vision = tf.CLIPVisionConfig(**VISION, projection_dim=24)
    text = tf.LlamaConfig(**{**COMMON, **SIZES})
    config = tf.LlavaConfig(vision_config=vision, text_config=text, image_token_index=IMAGE_TOKEN)
    return _random(lambda: tf.AutoModelForImageTextToText.from_config(config))


def text_and_image(rows: int = 1) -> dict[str, torch.Tensor]:
    """What :func:`seeing_decoder` reads: 11 tokens, four of them for the patches of an image."""
    generator = torch.Generator().manual_seed(5)
    ids = torch.randint(3, 90, (rows, 11), generator=generator)
    ids[:, 2 : 2 + PATCHES] = IMAGE_TOKEN
    return {"input_ids": ids, "pixel_values": torch.randn(rows, 3, 28, 28, generator=generator)}


def images(rows: int = 2) -> torch.Tensor:
    """Images for :func:`image_classifier`."""
    return torch.randn(rows, 3, 28, 28, generator=torch.Generator().manual_seed(3))


def _random(build: Any) -> PreTrainedModel:
    torch.manual_seed(0)
    model: PreTrainedModel = build().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return model
