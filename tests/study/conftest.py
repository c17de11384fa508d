"""A tiny decoder in a folder, token ids for it, and a study that takes seconds."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from graphprune.study.grid import Grid, grid
from graphprune.study.studyfile import read_study
from tests.engine.conftest import VOCAB, make_llama


@pytest.fixture(scope="session")
def tiny(tmp_path_factory) -> str:
    """Two layers, 4 key/value heads, 24 channels, in a folder without a tokenizer."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    make_llama(num_hidden_layers=2).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="session")
def ids() -> list[list[int]]:
    """Documents of token ids: 80 sequences of 16."""
    return torch.randint(0, VOCAB, (80, 16), generator=torch.Generator().manual_seed(0)).tolist()


@pytest.fixture
def small() -> Callable[..., dict[str, Any]]:
    """A study of cells that take a fraction of a second, with other parts laid over it."""

    def make(**parts: Any) -> dict[str, Any]:
        spec = {
            "targets": [{"role": "mlp.channel", "ratio": 0.25}],
            "criterion": "magnitude",
            "schedule": {"every": 1, "warmup": 0.0, "cooldown": 0.3},
            "training": {"mode": "none", "steps": 3, "batch_size": 4, "sequence_length": 16, "calibration_batches": 2},
            "export": {"targets": ["graphprune"]},  # the others are proved, which takes longer than the rest
        }
        return {"title": "A small one", "models": {"tiny": "unread"}, "spec": spec, "seeds": [0], **parts}

    return make


@pytest.fixture
def cells() -> Callable[..., Grid]:
    """The grid of a study."""

    def make(study: Any, models: tuple[str, ...] = ("tiny",)) -> Grid:
        return grid(read_study(study), models)

    return make


@pytest.fixture
def written(tmp_path) -> Callable[[str], Path]:
    """A study file with this text."""

    def write(text: str) -> Path:
        file = tmp_path / "study.yaml"
        file.write_text(text, encoding="utf-8")
        return file

    return write
