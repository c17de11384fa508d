"""Scores that a run is given."""

import pytest
import torch

from graphprune.engine.run import prune
from graphprune.errors import CheckpointError, NonFiniteError, PlanError, SpecError
from graphprune.score import score
from tests.engine.conftest import make_llama
from tests.engine.runs import make_spec

BATCHES = {"calibration_batches": 2}


@pytest.fixture
def tokens() -> torch.Tensor:
    """Token ids of shape (80, 16)."""
    return torch.randint(0, 61, (80, 16), generator=torch.Generator().manual_seed(0))


def given(mode, scores, tokens, training=None, **more):
    spec = make_spec(mode, training={**BATCHES, **(training or {})}, **more.pop("spec", {}))
    return prune(make_llama(), spec, train_data=tokens, scores=scores, progress=False, **more)


@pytest.mark.parametrize("criterion", ["taylor", "lora", "magnitude"])
def test_a_run_with_its_own_scores_is_the_same_run(criterion, tokens):
    for mode in ("none", "separate"):
        own = given(mode, None, tokens, spec={"criterion": criterion})
        again = given(mode, own.scores, tokens, spec={"criterion": criterion})
        assert again.plan == own.plan and again.losses == own.losses
        assert "score" in {s.name for s in own.report.stages} and "rank" in {s.name for s in again.report.stages}
        for name, value in own.model.state_dict().items():
            assert torch.equal(again.model.state_dict()[name], value), name


def test_nothing_is_scored(tokens, monkeypatch):
    own = given("none", None, tokens)
    monkeypatch.setattr("graphprune.engine.modes.choose", None)
    other = given("none", own.scores, tokens, spec={"targets": [{"role": "mlp.channel", "ratio": 0.5}]})
    assert {name: len(units) for name, units in other.plan.removed.items()} == {
        f"model.layers.{i}.mlp/mlp.channel": 12 for i in range(3)
    }
    assert set(other.scores) == set(other.plan.removed)  # of the groups that the targets select


def test_no_text_is_needed_where_nothing_is_trained(graph):
    scores = {g.name: torch.arange(g.size, dtype=torch.float32) for g in graph}
    result = prune(make_llama(), make_spec("none"), scores=scores, progress=False)
    assert result.plan.removed["model.layers.0.mlp/mlp.channel"] == (0, 1, 2, 3, 4, 5)


def test_they_are_those_of_gp_score(graph):
    spec = make_spec("none", criterion="magnitude")
    from graphprune.specfile import load_spec

    scores = score(make_llama(), graph, load_spec(spec))
    expected = prune(make_llama(), spec, progress=False)
    assert prune(make_llama(), spec, scores=scores, progress=False).plan == expected.plan


@pytest.mark.parametrize(
    ("mode", "training", "message"),
    [
        ("joint", {}, "scores: expected training.mode none or separate, .* got joint"),
        ("none", {"rounds": 2}, "scores: expected training.rounds 1, got 2"),
    ],
)
def test_where_units_are_judged_more_than_once_they_are_refused(mode, training, message, tokens):
    with pytest.raises(SpecError, match=message):
        given(mode, {}, tokens, training)


def test_what_is_no_score_is_refused(graph, tokens):
    scores = {g.name: torch.ones(g.size) for g in graph}
    name = "model.layers.1.mlp/mlp.channel"
    with pytest.raises(PlanError, match=f"of 6 groups, which the targets select; 1 are missing, '{name}' first"):
        given("none", {k: v for k, v in scores.items() if k != name}, tokens)
    with pytest.raises(PlanError, match=rf"expected 24 for group '{name}', got a tensor of shape \(3,\)"):
        given("none", {**scores, name: torch.ones(3)}, tokens)
    with pytest.raises(NonFiniteError, match=f"group '{name}': 1 of 24 scores are NaN or infinite"):
        given("none", {**scores, name: torch.tensor([float("nan")] + [1.0] * 23)}, tokens)


def test_a_run_goes_on_with_the_scores_that_it_began_with(graph, tokens, tmp_path, monkeypatch):
    from graphprune.engine import modes

    scores = {g.name: torch.arange(g.size, dtype=torch.float32) for g in graph}
    monkeypatch.setattr(modes, "train", lambda *a, **k: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        given("separate", scores, tokens, checkpoints=tmp_path / "run")
    monkeypatch.undo()
    with pytest.raises(CheckpointError, match=r"scores: expected given ones with the fingerprint .*, got none"):
        given("separate", None, tokens, checkpoints=tmp_path / "run", resume=True)
    done = given("separate", scores, tokens, checkpoints=tmp_path / "run", resume=True)
    assert done.plan == given("separate", scores, tokens).plan
