"""What is proved about a checkpoint that was cut on the way."""

import pytest
import torch
from safetensors.torch import load_file, save_file

import graphprune as gp
from graphprune.checkpoint.manifest import Manifest, records
from graphprune.errors import CheckpointError
from graphprune.stream import proof as proof_module
from graphprune.stream.proof import bytes_of, prove_written
from tests.decoders import tiny
from tests.stream.plans import thirds


@pytest.fixture
def checkpoint(tmp_path):
    model = tiny("phi3")
    model.save_pretrained(tmp_path / "model")
    thirds(gp.trace(model)).save(tmp_path / "plan.json")
    return tmp_path


def cut(checkpoint, **options):
    return gp.apply(checkpoint / "model", checkpoint / "plan.json", checkpoint / "small", **options)


def damaging(monkeypatch, damage):
    """Lets ``damage`` change the tensors of a folder after it is written and before it is proved."""
    real = prove_written

    def late(written, *arguments, **options):
        file = written / "model.safetensors"
        weights = load_file(file)
        damage(weights)
        save_file(weights, file, metadata={"format": "pt"})
        Manifest.read(written).model_copy(update={"files": records(written)}).write(written)
        return real(written, *arguments, **options)

    monkeypatch.setattr("graphprune.stream.apply.prove_written", late)


def doubled(weights):
    weights["lm_head.weight"] *= 2.0


def lost(weights):
    del weights["model.norm.weight"]


def too_short(weights):
    weights["model.norm.weight"] = weights["model.norm.weight"][:-1].clone()


def one_more(weights):
    weights["model.normal.weight"] = torch.ones(3)


def little_memory(monkeypatch):
    monkeypatch.setattr(proof_module, "available_memory", lambda: 1000)


@pytest.mark.slow
def test_what_it_computes_is_compared_by_default(checkpoint):
    told = cut(checkpoint).proof
    assert told.startswith("a fresh process loads the folder and computes what the model cut in memory does; logits")
    assert told.endswith("8 greedy tokens are the same")


@pytest.mark.slow
@pytest.mark.parametrize("prove", ["auto", True])
def test_other_numbers_are_noticed(checkpoint, prove, monkeypatch):
    damaging(monkeypatch, doubled)
    with pytest.raises(CheckpointError, match="/small gives other logits in a fresh process"):
        cut(checkpoint, prove=prove)
    assert not (checkpoint / "small").exists()


@pytest.mark.slow
@pytest.mark.parametrize("tier", ["hf-remote-code", "graphprune"])
def test_without_memory_names_and_shapes_are_and_that_is_said(checkpoint, tier, monkeypatch):
    little_memory(monkeypatch)
    monkeypatch.setattr("graphprune.stream.apply.load_model", lambda *a, **k: pytest.fail("was loaded"))
    told = cut(checkpoint, targets=[tier]).proof
    assert "finds a place for every tensor in its files, by name and shape; what it computes was not compared" in told
    assert "more than half of the 0.0 GB that are free (--prove, prove=True, compares it all the same)" in told


@pytest.mark.slow
@pytest.mark.parametrize("damage", [lost, too_short, one_more])
def test_without_memory_tensors_that_do_not_fit_are_noticed(checkpoint, damage, monkeypatch):
    little_memory(monkeypatch)
    damaging(monkeypatch, damage)
    with pytest.raises(CheckpointError, match=r"(?s)/small does not load in a fresh process.*model\.norm"):
        cut(checkpoint)
    assert not (checkpoint / "small").exists()


def test_nothing_is_proved_where_that_is_asked(checkpoint, monkeypatch):
    monkeypatch.setattr("subprocess.run", lambda *a, **k: pytest.fail("a process was started"))
    assert cut(checkpoint, prove=False).proof == "not proved: nothing has loaded the folder"


def proved(monkeypatch, model, cut_in_memory, **options):
    """What is said of a model, and which proofs were made."""
    made = []
    monkeypatch.setattr(proof_module, "verify_places", lambda folder: made.append("places"))
    monkeypatch.setattr(proof_module, "verify_folder", lambda *_: made.append("logits") or 0.0)
    return prove_written("folder", model, cut_in_memory, original=bytes_of(model), **options), made


def test_the_memory_that_is_needed_is_what_is_held_at_once(monkeypatch):
    model = tiny("llama")
    monkeypatch.setattr(proof_module, "is_deferred", lambda _: True)
    for room, expected in ((4, "logits"), (3.9, "places")):  # original and cut, and as much again to spare
        monkeypatch.setattr(proof_module, "available_memory", lambda room=room: room * bytes_of(model))
        assert proved(monkeypatch, model, lambda: model, prove="auto")[1] == [expected]
    monkeypatch.setattr(proof_module, "is_deferred", lambda _: False)
    monkeypatch.setattr(proof_module, "available_memory", lambda: 2 * bytes_of(model))
    assert proved(monkeypatch, model, lambda: pytest.fail("is in memory"), prove="auto")[1] == ["logits"]


def test_what_cannot_be_compared_is_said_or_an_error_where_it_must_be(monkeypatch):
    model = tiny("llama")
    with torch.no_grad():
        model.lm_head.weight.fill_(float("nan"))
    told, made = proved(monkeypatch, model, lambda: model, prove="auto")
    assert made == ["places"]
    assert "what it computes was not compared: the logits of the model in memory are NaN or infinite" in told
    with pytest.raises(CheckpointError, match="NaN or infinite"):
        proved(monkeypatch, model, lambda: model, prove=True)
    monkeypatch.setattr(model.model, "forward", lambda **_: 1 / 0)
    told, made = proved(monkeypatch, model, lambda: model, prove="auto")
    assert made == ["places"] and "the model cut in memory does not compute here (ZeroDivisionError" in told


def test_an_original_that_cannot_be_read_again_is_an_error(checkpoint, monkeypatch):
    def fails(*_args, **_options):
        raise CheckpointError("it has gone")

    monkeypatch.setattr("graphprune.stream.apply.load_model", fails)
    with pytest.raises(CheckpointError, match="it has gone"):
        cut(checkpoint)
    assert not (checkpoint / "small").exists()
