"""The proof in a fresh process."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from graphprune.checkpoint import prove_folder, save, verify_folder
from graphprune.checkpoint.greedy import continuation
from graphprune.checkpoint.verify import Question, ask
from graphprune.errors import CheckpointError
from graphprune.plan import PrunePlan
from graphprune.reshape import reshape
from graphprune.trace import trace
from tests.decoders import tiny, tokens

TIERS = ["hf-remote-code", "graphprune"]


@pytest.fixture(scope="module")
def small():
    model = tiny("phi3")
    graph = trace(model)
    heads, channels = (graph.select(role=r).names for r in ("attention.group", "mlp.channel"))
    return reshape(model, PrunePlan.remove(graph, {heads[1]: [0], heads[2]: [1, 3], channels[0]: [5]}), graph)


@pytest.fixture(scope="module")
def logits(small):
    with torch.no_grad():
        return small(tokens()).logits


@pytest.mark.parametrize("tier", TIERS)
def test_a_fresh_process_gives_the_same_logits_and_text(tier, small, tmp_path):
    assert prove_folder(small, save(small, tmp_path / "out", targets=[tier])) <= 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("tier", TIERS)
def test_other_logits_are_an_error(tier, small, logits, tmp_path):
    folder = save(small, tmp_path / "out", targets=[tier])
    with pytest.raises(CheckpointError, match=r"other logits in a fresh process.*must not be used"):
        verify_folder(folder, tokens(), logits + 0.5)


@pytest.mark.slow
def test_other_text_is_an_error(small, logits, tmp_path):
    folder = save(small, tmp_path / "out")
    text = continuation(small, {"input_ids": tokens()})
    text.logits[3] += 1.0
    with pytest.raises(CheckpointError, match=r"other text in a fresh process.*differ by up to 1"):
        verify_folder(folder, tokens(), logits, text)


@pytest.mark.slow
def test_a_tensor_that_is_lost_is_an_error_though_transformers_only_warns(small, logits, tmp_path):
    folder = save(small, tmp_path / "out")
    weights = load_file(folder / "model.safetensors")
    del weights["model.norm.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"(?s)does not load in a fresh process.*'model.norm.weight'"):
        verify_folder(folder, tokens(), logits)


@pytest.mark.slow
def test_a_folder_that_does_not_load_is_an_error(small, logits, tmp_path):
    folder = save(small, tmp_path / "out", targets=["graphprune"])
    (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"(?s)does not load in a fresh process.*model.safetensors is missing"):
        verify_folder(folder, tokens(), logits)


@pytest.mark.slow
def test_an_even_model_is_loaded_without_graphprune(tmp_path):
    model = tiny("mistral")
    graph = trace(model)
    names = graph.select(role="attention.group").names
    reshape(model, PrunePlan.remove(graph, {n: [2] for n in names}), graph)
    assert prove_folder(model, save(model, tmp_path / "out")) <= 1e-5


@pytest.mark.slow
def test_folders_cannot_import_graphprune_where_none_of_them_needs_it(small, tmp_path):
    folder = save(small, tmp_path / "out")
    with (folder / "modeling_graphprune.py").open("a") as file:
        file.write("\nimport graphprune\n")
    (told,) = ask([Question(folder, {"input_ids": tokens()})])
    assert "graphprune" in told and "Error" in told


def test_ties_are_no_difference():
    text = continuation(tiny("gpt2"), {"input_ids": tokens()})
    assert text.tokens.shape == (1, 21) and text.logits.shape == (8, 1, 97)
    assert text.distance(text.tokens, text.logits) == 0
    other, changed = text.tokens.clone(), text.logits.clone()
    other[0, 15] += 1  # the third new token was tied, and everything behind it is another text
    changed[3:] += 5.0
    assert text.distance(other, changed) == 0
    changed[2] += 0.5
    assert text.distance(other, changed) == pytest.approx(0.5)


def test_what_generates_no_text_says_so():
    assert "generates no text" in continuation(torch.nn.Linear(2, 2), {"input_ids": tokens()})
