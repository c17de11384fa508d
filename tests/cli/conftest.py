"""A tiny decoder on disk, and the command line called as a user calls it."""

from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM
from typer.testing import CliRunner

from graphprune import demo
from graphprune.cli import app


@pytest.fixture(scope="session")
def tiny(tmp_path_factory) -> Path:
    """A decoder without training: 3 layers, 4 KV heads of 2 query heads, 40 channels."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    config = LlamaConfig(
        hidden_size=48,
        num_hidden_layers=3,
        num_attention_heads=8,
        num_key_value_heads=4,
        head_dim=6,
        intermediate_size=40,
        vocab_size=97,
        max_position_embeddings=64,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def little(tmp_path_factory) -> Path:
    """One layer of 8 channels that reads 48 tokens, with the tokenizer of the demo decoder."""
    folder = tmp_path_factory.mktemp("models") / "little"
    config = LlamaConfig(
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
        vocab_size=1024,
        max_position_embeddings=48,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(demo.model_path()).save_pretrained(folder)
    return folder


@pytest.fixture
def run() -> Callable[..., Result]:
    """Runs the command line; the result has ``stdout``, ``stderr`` and ``exit_code``."""

    def call(*arguments: object) -> Result:
        return CliRunner().invoke(app, [str(a) for a in arguments])

    return call


@pytest.fixture
def refused(run) -> Callable[..., str]:
    """Runs the command line, expects an error on purpose, and gives its text."""

    def call(*arguments: object) -> str:
        result = run(*arguments)
        assert result.exit_code == 2, result.output
        assert isinstance(result.exception, SystemExit)  # nothing but the exit was raised
        assert "Traceback" not in result.output
        assert result.stdout == ""
        return result.stderr

    return call
