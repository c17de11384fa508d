"""A decoder small enough to train in a test, and token ids for it."""

import pytest
import torch
from peft import PeftModel
from transformers import LlamaConfig, LlamaForCausalLM

from graphprune.checkpoint import load
from graphprune.checkpoint.greedy import continuation
from graphprune.engine import run as run_module
from graphprune.graph import DependencyGraph
from graphprune.trace import trace

VOCAB = 61


def make_llama(**sizes):
    """Three layers, 4 key/value heads with 2 query heads each, 24 channels; the same weights every time."""
    torch.manual_seed(0)
    usual = {
        "hidden_size": 32,
        "num_hidden_layers": 3,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 4,
        "intermediate_size": 24,
        "vocab_size": VOCAB,
        "max_position_embeddings": 64,
        "initializer_range": 0.2,  # scores of an almost linear model would all be alike
    }
    return LlamaForCausalLM(LlamaConfig(**{**usual, **sizes})).eval()


@pytest.fixture
def llama() -> LlamaForCausalLM:
    return make_llama()


@pytest.fixture(scope="session")
def graph() -> DependencyGraph:
    return trace(make_llama())


@pytest.fixture(scope="session")
def tokens() -> torch.Tensor:
    """Token ids of shape (24, 16)."""
    return torch.randint(0, VOCAB, (24, 16), generator=torch.Generator().manual_seed(0))


@pytest.fixture
def proof_in_this_process(monkeypatch):
    """The same proof as verify_folder gives, without the seconds that a fresh process takes to start."""

    def verify(folder, inputs, expected_logits, text, *, adapter=False):
        loaded = load(folder)
        if adapter:
            loaded = PeftModel.from_pretrained(loaded, folder / "adapter").eval()
        with torch.no_grad():
            distance = (loaded(**inputs).logits - expected_logits).abs().max().item()
        assert distance < 1e-5
        assert torch.equal(continuation(loaded, inputs).tokens, text.tokens)
        return distance

    monkeypatch.setattr(run_module, "verify_folder", verify)
