"""Saving and loading: equal logits whatever the tier, whole folders or none."""

import json

import pytest
import torch
import transformers
from huggingface_hub.errors import StrictDataclassError
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from graphprune.checkpoint import load, load_model, save
from graphprune.checkpoint.manifest import Manifest
from graphprune.errors import CheckpointError
from graphprune.plan import PrunePlan
from graphprune.reshape import reshape
from graphprune.reshape.history import history_of
from graphprune.trace import trace
from tests.decoders import DECODERS, tiny, tokens


def pruned(name, *, even=False, **changes):
    """A decoder that lost units in every group: in all layers alike, or more in later layers."""
    model = tiny(name, **changes)
    model.config._experts_implementation = "eager"
    graph = trace(model)
    removed = {}
    for g in graph.select(layers=":" if even else None):
        if g.exact:
            most = g.size - g.minimum
            removed[g.name] = range(min(most, max(1, g.size // 4)) if even else min(most, g.layer or 0))
    return reshape(model, PrunePlan.remove(graph, removed), graph)


@torch.no_grad()
def answers(model):
    model.config._experts_implementation = "eager"
    generated = model.generate(tokens(), max_new_tokens=4, min_new_tokens=4, do_sample=False, pad_token_id=0)
    return model(tokens()).logits, generated


def assert_same(one, other):
    for mine, theirs in zip(answers(one), answers(other), strict=True):
        assert torch.equal(mine, theirs)


@pytest.mark.parametrize("tier", ["graphprune", "hf-remote-code"])
@pytest.mark.parametrize("name", DECODERS)
def test_uneven_models_come_back_through_load(name, tier, tmp_path):
    model = pruned(name)
    assert not history_of(model).stock
    save(model, tmp_path / "out", targets=["hf", tier])
    assert Manifest.read(tmp_path / "out").tier == tier
    again = load(tmp_path / "out")
    assert type(again) is type(model)
    assert_same(model, again)
    assert history_of(again) == history_of(model)
    assert {n: p.shape for n, p in again.named_parameters()} == {n: p.shape for n, p in model.named_parameters()}
    assert not list((tmp_path / "out").glob("*.bin"))


@pytest.mark.parametrize("name", ["llama", "llama-tied-bias", "mistral", "qwen2", "qwen3", "phi3", "mixtral", "gemma2"])
def test_even_models_come_back_through_stock_transformers(name, tmp_path):
    model = pruned(name, even=True)
    assert history_of(model).stock, history_of(model).why_not
    save(model, tmp_path / "out")
    manifest = Manifest.read(tmp_path / "out")
    assert manifest.tier == "hf"
    assert "AutoModelForCausalLM.from_pretrained" in manifest.load
    stock, info = AutoModelForCausalLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(info.values())
    assert_same(model, stock)
    assert_same(model, load(tmp_path / "out"))


def test_a_live_config_that_checks_itself_cannot_stop_saving(tmp_path):
    """Sizes that differ between layers leave a config in memory that no longer fits together."""
    model = pruned("llama")
    model.config.__dict__["num_attention_heads"] = 7
    with pytest.raises(StrictDataclassError, match="not a multiple of the number of attention heads"):
        model.config.validate()
    save(model, tmp_path / "out")
    assert model.config.num_attention_heads == 7
    assert_same(model, load(tmp_path / "out"))


def test_the_line_in_the_manifest_loads_the_folder(tmp_path):
    model = pruned("gpt2")
    folder = save(model, tmp_path / "out")
    line = json.loads((folder / "manifest.json").read_text())["load"]
    scope = {}
    exec("import graphprune, transformers\n" + line, scope)
    assert_same(model, scope["model"])


def test_a_loaded_model_can_be_pruned_and_saved_again(tmp_path):
    model = load(save(pruned("phi3"), tmp_path / "one"))
    graph = trace(model)
    plan = PrunePlan.remove(graph, {g.name: [0, 1] for g in graph.select(role="mlp.channel")})
    reshape(model, plan, graph)
    folder = save(model, tmp_path / "two")
    manifest = Manifest.read(folder)
    assert len(manifest.steps) == 1
    assert manifest.base_config["intermediate_size"] == 40
    written = PrunePlan.load(folder / "plan.json")
    assert [len(u) for n, u in written.removed.items() if n.endswith("mlp.channel")].count(2) == 1
    assert_same(model, load(folder))


def test_tied_weights_are_written_once_and_tied_again(tmp_path):
    model = pruned("llama-tied-bias")
    folder = save(model, tmp_path / "out")
    assert sum("embed" in key or "lm_head" in key for key in load_file(folder / "model.safetensors")) == 1
    again = load(folder)
    assert again.lm_head.weight is again.model.embed_tokens.weight


def test_dtype_is_kept_or_chosen(tmp_path):
    model = pruned("qwen2").to(torch.bfloat16)
    folder = save(model, tmp_path / "out")
    assert {p.dtype for p in load(folder).parameters()} == {torch.bfloat16}
    assert {p.dtype for p in load(folder, dtype=torch.float32).parameters()} == {torch.float32}


def test_adapters_are_merged_into_what_is_written(tmp_path):
    peft = pytest.importorskip("peft")
    model = tiny("llama")
    graph = trace(model)
    config = peft.LoraConfig(r=2, target_modules=["down_proj", "q_proj"], init_lora_weights=False)
    wrapped = peft.get_peft_model(model, config).eval()
    names = graph.select(role="mlp.channel").names
    reshape(wrapped, PrunePlan.remove(graph, {names[1]: [3, 4]}), graph)
    with torch.no_grad():
        expected = wrapped(tokens()).logits
    folder = save(wrapped, tmp_path / "out")
    with torch.no_grad():
        torch.testing.assert_close(load(folder)(tokens()).logits, expected, rtol=0, atol=1e-5)
        assert torch.equal(wrapped(tokens()).logits, expected), "the model in memory keeps its adapters"
    assert not any("lora" in key for key in load_file(folder / "model.safetensors"))

    apart = save(wrapped, tmp_path / "apart", merge_lora=False)
    assert (apart / "adapter" / "adapter_model.safetensors").is_file()
    with torch.no_grad():
        bare = load(apart)
        assert not torch.allclose(bare(tokens()).logits, expected, atol=1e-3)
        namespace = {"transformers": transformers, "peft": peft}
        exec(json.loads((apart / "manifest.json").read_text())["load"], namespace)  # the line that people copy
        again = namespace["model"].eval()
        torch.testing.assert_close(again(tokens()).logits, expected, rtol=0, atol=1e-5)


def test_everything_is_in_the_folder_and_hashed(tmp_path):
    class Report:
        def save(self, folder):
            (folder / "report.md").write_text("fine")

    class Tokenizer:
        def save_pretrained(self, folder):
            (folder / "tokenizer.json").write_text("{}")

    folder = save(pruned("llama"), tmp_path / "out", report=Report(), tokenizer=Tokenizer())
    written = {f.name for f in folder.iterdir()}
    assert written == {
        "config.json",
        "generation_config.json",
        "graph.json",
        "manifest.json",
        "model.safetensors",
        "modeling_graphprune.py",
        "plan.json",
        "report.md",
        "tokenizer.json",
    }
    manifest = Manifest.read(folder)
    assert set(manifest.files) == written - {"manifest.json"}
    assert manifest.libraries["graphprune"]
    assert "layers differ" in manifest.why_not_hf
    assert json.loads((folder / "config.json").read_text())["intermediate_size"] == 40


@pytest.mark.parametrize(
    ("error", "told"), [(KeyboardInterrupt, None), (OSError("disk full"), "out cannot be written: disk full")]
)
def test_an_interrupted_save_leaves_nothing(tmp_path, error, told):
    class Report:
        def save(self, folder):
            assert any(folder.iterdir())
            raise error

    with pytest.raises(KeyboardInterrupt if told is None else CheckpointError, match=told):
        save(pruned("llama"), tmp_path / "new" / "newer" / "out", report=Report())
    assert list(tmp_path.iterdir()) == []


def test_a_folder_with_something_in_it_is_never_written(tmp_path):
    mine = tmp_path / "out" / "thesis.txt"
    mine.parent.mkdir()
    mine.write_text("four years")
    with pytest.raises(CheckpointError, match=r"not empty \(1 entries, such as 'thesis.txt'\)"):
        save(tiny("llama"), tmp_path / "out")
    assert mine.read_text() == "four years"
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("place", ["thesis.txt/out", "thesis.txt/deeper/out"])
def test_a_place_where_no_folder_can_be_is_refused(tmp_path, place):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(CheckpointError, match=r"cannot be made, because .*thesis\.txt is a file"):
        save(pruned("llama"), tmp_path / place)
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


def test_an_empty_folder_is_filled(tmp_path):
    (tmp_path / "out").mkdir()
    save(tiny("llama"), tmp_path / "out")
    assert (tmp_path / "out" / "manifest.json").is_file()
    assert len(list(tmp_path.iterdir())) == 1


def test_a_model_cut_by_somebody_else_is_refused(tmp_path):
    model = tiny("llama")
    layer = model.model.layers[0].mlp
    layer.down_proj = torch.nn.Linear(12, 48, bias=False)
    with pytest.raises(CheckpointError, match="does not describe its tensors"):
        save(model, tmp_path / "out")
    with pytest.raises(CheckpointError, match="only transformers models"):
        save(torch.nn.Linear(2, 2), tmp_path / "out")


def test_a_damaged_folder_is_noticed(tmp_path):
    folder = save(pruned("llama"), tmp_path / "out")
    plan = folder / "plan.json"
    plan.write_text(plan.read_text().replace("0", "1", 1))
    with pytest.raises(CheckpointError, match=r"damaged.*\n.*plan.json: its content is not what was written"):
        load(folder)
    (folder / "graph.json").unlink()
    with pytest.raises(CheckpointError, match=r"graph.json is missing"):
        load(folder)
    with pytest.raises(CheckpointError, match=r"no manifest.json"):
        load(tmp_path)


def test_load_model_reads_every_tier(tmp_path):
    uneven = pruned("llama")
    save(uneven, tmp_path / "own")
    model, tokenizer = load_model(tmp_path / "own")
    assert tokenizer is None
    assert_same(model, uneven)
    plain = tiny("gpt2")
    plain.save_pretrained(tmp_path / "plain")
    assert_same(load_model(str(tmp_path / "plain"))[0], plain)
