"""The proof in a fresh process."""

import copy

import pytest
import torch
from safetensors.torch import load_file, save_file

from graphprune.checkpoint import load, prove_folder, save, verify_folder
from graphprune.checkpoint.adapters import ADAPTER
from graphprune.checkpoint.greedy import continuation
from graphprune.checkpoint.manifest import Manifest, records
from graphprune.checkpoint.verify import verify_places, without_adapter
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


def adapted(small, *, copies=None):
    """A copy of a pruned decoder under a random adapter, which may have trained copies of modules, too."""
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=2, target_modules=["o_proj"], modules_to_save=copies, init_lora_weights=False)
    wrapped = peft.get_peft_model(copy.deepcopy(small), config).eval()
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if "modules_to_save" in name:
                parameter.mul_(1.5)
    return wrapped


@pytest.mark.slow
@pytest.mark.parametrize("tier", TIERS)
def test_an_adapter_that_is_kept_is_proved_beside_its_base(tier, small, tmp_path):
    wrapped = adapted(small)
    folder = save(wrapped, tmp_path / "out", merge_lora=False, targets=[tier])
    assert prove_folder(wrapped, folder) <= 1e-5


@pytest.mark.slow
def test_a_damaged_adapter_is_noticed_though_its_base_is_whole(small, logits, tmp_path):
    wrapped = adapted(small)
    folder = save(wrapped, tmp_path / "out", merge_lora=False)
    file = folder / ADAPTER / "adapter_model.safetensors"
    weights = load_file(file)
    name = next(iter(weights))
    save_file({**weights, name: weights[name] * 1.5}, file)
    assert verify_folder(folder, tokens(), logits) <= 1e-5
    with pytest.raises(CheckpointError, match=r"out with its adapter gives other logits in a fresh process"):
        prove_folder(wrapped, folder)
    file.unlink()
    with pytest.raises(CheckpointError, match=r"(?s)out with its adapter does not load in a fresh process.*adapter"):
        prove_folder(wrapped, folder)


@pytest.mark.parametrize("copies", [None, ["norm"]])
def test_the_weights_beside_an_adapter_have_its_trained_copies(copies, small, tmp_path):
    wrapped = adapted(small, copies=copies)
    base = load(save(wrapped, tmp_path / "out", merge_lora=False))
    with torch.no_grad(), without_adapter(wrapped) as alone:
        assert torch.equal(alone(tokens()).logits, base(tokens()).logits)
    assert not torch.equal(wrapped(tokens()).logits, base(tokens()).logits)


@pytest.mark.slow
@pytest.mark.parametrize("tier", TIERS)
def test_that_everything_has_its_place_is_told_without_the_weights(tier, small, tmp_path):
    verify_places(save(small, tmp_path / "good", targets=[tier]))
    folder = save(small, tmp_path / "bad", targets=[tier])
    weights = load_file(folder / "model.safetensors")
    weights["model.norm.weight"] = weights["model.norm.weight"][:-1].clone()
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    resigned(folder)
    with pytest.raises(CheckpointError, match=r"(?s)does not load in a fresh process.*model\.norm\.weight"):
        verify_places(folder)
    del weights["model.norm.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    resigned(folder)
    with pytest.raises(CheckpointError, match=r"(?s)does not load in a fresh process.*model\.norm\.weight"):
        verify_places(folder)


def resigned(folder):
    """Lets the manifest agree with the files as they are now."""
    Manifest.read(folder).model_copy(update={"files": records(folder)}).write(folder)


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
