"""Questions to a fresh process."""

import pytest
import torch

from graphprune.checkpoint import save
from graphprune.checkpoint.fresh import Question, ask
from graphprune.plan import PrunePlan
from graphprune.reshape import reshape
from graphprune.trace import trace
from tests.decoders import tiny, tokens


@pytest.fixture(scope="module")
def small():
    model = tiny("phi3")
    graph = trace(model)
    return reshape(model, PrunePlan.remove(graph, {graph.select(role="mlp.channel").names[0]: [5]}), graph)


@pytest.mark.slow
def test_folders_cannot_import_graphprune_where_none_of_them_needs_it(small, tmp_path):
    folder = save(small, tmp_path / "out")
    with (folder / "modeling_graphprune.py").open("a") as file:
        file.write("\nimport graphprune\n")
    (told,) = ask([Question(folder, {"input_ids": tokens()})])
    assert "graphprune" in told and "Error" in told


@pytest.mark.slow
def test_every_question_has_its_own_answer(small, tmp_path):
    good = save(small, tmp_path / "good")
    bad = save(small, tmp_path / "bad")
    (bad / "model.safetensors").unlink()
    ids = {"input_ids": tokens()}
    whole, text, size, told = ask([Question(good, ids), Question(good, ids, ids), Question(good), Question(bad, ids)])
    assert whole.keys() == {"logits"} and torch.equal(whole["logits"], text["logits"])
    assert text["tokens"].shape[1] == tokens().shape[1] + 8
    assert int(size["parameters"]) == small.num_parameters()
    assert "model.safetensors" in told
