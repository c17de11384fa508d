"""The proof in a fresh process."""

import pytest
import torch

from graphprune.checkpoint import save, verify_folder
from graphprune.errors import CheckpointError
from graphprune.plan import PrunePlan
from graphprune.reshape import reshape
from graphprune.trace import trace
from tests.decoders import tiny, tokens


@pytest.fixture
def saved(tmp_path):
    model = tiny("phi3")
    graph = trace(model)
    heads, channels = (graph.select(role=r).names for r in ("attention.group", "mlp.channel"))
    reshape(model, PrunePlan.remove(graph, {heads[1]: [0], heads[2]: [1, 3], channels[0]: [5]}), graph)
    with torch.no_grad():
        logits = model(tokens()).logits
    return save(model, tmp_path / "out"), logits


def test_a_fresh_process_gives_the_same_logits(saved):
    folder, logits = saved
    assert verify_folder(folder, tokens(), logits) <= 1e-5


@pytest.mark.slow
def test_other_logits_are_an_error(saved):
    folder, logits = saved
    with pytest.raises(CheckpointError, match=r"other logits in a fresh process.*must not be used"):
        verify_folder(folder, tokens(), logits + 0.5)


@pytest.mark.slow
def test_a_folder_that_does_not_load_is_an_error(saved):
    folder, logits = saved
    (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"(?s)does not load in a fresh process.*model.safetensors is missing"):
        verify_folder(folder, tokens(), logits)


@pytest.mark.slow
def test_an_even_model_is_loaded_without_graphprune(tmp_path):
    model = tiny("mistral")
    graph = trace(model)
    names = graph.select(role="attention.group").names
    reshape(model, PrunePlan.remove(graph, {n: [2] for n in names}), graph)
    with torch.no_grad():
        logits = model(tokens()).logits
    assert verify_folder(save(model, tmp_path / "out"), tokens(), logits) <= 1e-5
