"""gp.prune from end to end."""

import hashlib
import re

import pytest
import torch
from torch.utils.data import StackDataset
from transformers import AutoModelForCausalLM

import graphprune
from graphprune.checkpoint import load, save, verify_folder
from graphprune.checkpoint.manifest import Manifest
from graphprune.engine import run as run_module
from graphprune.engine.pruner import Pruner
from graphprune.engine.run import prune
from graphprune.errors import CheckpointError, DataError, NonFiniteError, SpecError
from graphprune.plan import PrunePlan
from graphprune.report import Report
from tests.engine.runs import make_spec

pytestmark = pytest.mark.usefixtures("proof_in_this_process")


@pytest.fixture
def tokens() -> torch.Tensor:
    """Token ids of shape (80, 16)."""
    return torch.randint(0, 61, (80, 16), generator=torch.Generator().manual_seed(0))


@pytest.fixture
def checkpoint(llama, tmp_path):
    llama.save_pretrained(tmp_path / "original")
    return tmp_path / "original"


def digests(folder):
    return {f.name: hashlib.sha256(f.read_bytes()).hexdigest() for f in folder.iterdir()}


@pytest.mark.slow  # each starts a fresh process, which imports everything
@pytest.mark.parametrize("mode", ["joint", "separate", "none"])
def test_a_fresh_process_proves_what_was_written(mode, llama, tokens, tmp_path, monkeypatch):
    monkeypatch.setattr(run_module, "verify_folder", verify_folder)
    result = prune(llama, make_spec(mode), train_data=tokens, output=tmp_path / "small", progress=False)
    note = "a fresh process loads the folder; logits differ by at most 0; 8 greedy tokens are the same"
    assert note in result.report.notes
    assert note in Report.read(tmp_path / "small" / "report.json").notes
    Manifest.read(tmp_path / "small").check(tmp_path / "small")


@pytest.mark.slow
def test_an_adapter_that_is_kept_is_proved_beside_its_base(llama, tokens, tmp_path, monkeypatch):
    monkeypatch.setattr(run_module, "verify_folder", verify_folder)
    spec = make_spec(export={"merge_lora": False})
    prune(llama, spec, train_data=tokens, output=tmp_path / "small", progress=False)
    notes = [note for note in Report.read(tmp_path / "small" / "report.json").notes if "differ by at most" in note]
    assert [note.partition(";")[0] for note in notes] == [
        "a fresh process loads the folder",
        "with the adapter beside it, which stock PEFT puts on the loaded model, logits differ by at most 0",
    ]
    assert all(note.endswith("8 greedy tokens are the same") for note in notes)


@pytest.mark.slow
def test_a_folder_that_fails_its_proof_is_said(llama, tokens, tmp_path, monkeypatch):
    def spoiled(model, folder, **options):
        with torch.no_grad():
            model.model.norm.weight.mul_(2.0)
            save(model, folder, **options)
            model.model.norm.weight.div_(2.0)

    monkeypatch.setattr(run_module, "verify_folder", verify_folder)
    monkeypatch.setattr(run_module, "save", spoiled)
    with pytest.raises(CheckpointError, match="gives other logits in a fresh process"):
        prune(llama, make_spec("none"), train_data=tokens, output=tmp_path / "small", progress=False)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_fails_its_proof_is_not_kept(llama, tokens, tmp_path, monkeypatch):
    def fails(folder, *args):
        assert (folder / "manifest.json").is_file()
        raise CheckpointError(f"{folder} gives other logits")

    monkeypatch.setattr(run_module, "verify_folder", fails)
    with pytest.raises(CheckpointError, match=rf"^{re.escape(str(tmp_path / 'small'))} gives other logits$"):
        prune(llama, make_spec("none"), train_data=tokens, output=tmp_path / "small", progress=False)
    assert list(tmp_path.iterdir()) == []


def test_a_model_that_gives_no_numbers_is_not_written(llama, tmp_path):
    """Magnitude never looks at the embedding, so only the proof can notice."""
    with torch.no_grad():
        llama.model.embed_tokens.weight[5] = float("nan")
    with pytest.raises(NonFiniteError, match=r"the pruned model's logits are NaN .* nothing was written"):
        prune(llama, make_spec("none", criterion="magnitude"), output=tmp_path / "small", progress=False)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("mode", ["joint", "separate", "none"])
def test_from_folder_to_folder(mode, checkpoint, tokens, tmp_path, graph):
    before = digests(checkpoint)
    result = prune(checkpoint, make_spec(mode), train_data=tokens, output=tmp_path / "small", progress=False)
    assert digests(checkpoint) == before
    assert result.plan.fingerprint == graph.fingerprint == result.graph.fingerprint
    assert {len(units) for units in result.plan.removed.values()} == {2, 6}
    assert PrunePlan.load(tmp_path / "small" / "plan.json").removed == result.plan.removed
    stock = AutoModelForCausalLM.from_pretrained(tmp_path / "small")
    with torch.no_grad():
        assert torch.equal(stock(tokens[:2]).logits, result.model(tokens[:2]).logits)
    assert not result.model.training


def test_the_report_tells_the_whole_run(checkpoint, tokens, tmp_path, graph):
    result = prune(checkpoint, make_spec(seed=3), train_data=tokens, output=tmp_path / "small", progress=False)
    report = result.report
    written = Report.read(tmp_path / "small" / "report.json")
    assert report.model == str(checkpoint)
    assert report.after.parameters == sum(p.numel() for p in result.model.parameters())
    assert report.after.parameters < report.before.parameters
    assert None not in (report.perplexity_before, report.perplexity_pruned, report.perplexity_tuned)
    assert report.evaluation == "4 sequences held out of train_data, segments of 16 tokens"
    assert [stage.name for stage in report.stages] == [
        "load",
        "trace",
        "read text",
        "evaluate",
        "train",
        "evaluate",
        "reshape",
        "merge",
        "evaluate",
        "save",
        "verify",
    ]
    assert report.spec["criterion"]["average"] == 0.5
    assert report.plan["mlp.channel"] == {
        "groups": 3,
        "removed": 18,
        "of": 72,
        "ratio": 0.25,
        "all_groups": 3,
        "all_of": 72,
        "all_ratio": 0.25,
    }
    assert (report.seed, report.tier, len(report.data_fingerprint)) == (3, "hf", 64)
    assert report.graph_fingerprint == graph.fingerprint
    assert len(report.spec_fingerprint) == 64 and {"torch", "transformers", "accelerate"} <= set(report.versions)
    assert (
        written.load == report.load == f"model = transformers.AutoModelForCausalLM.from_pretrained('{tmp_path}/small')"
    )
    assert written.perplexity_tuned == report.perplexity_tuned
    assert any("a fresh process loads the folder" in note for note in report.notes)


def test_the_same_command_twice_gives_the_same_plan_and_weights(checkpoint, tokens):
    first, second = (prune(checkpoint, make_spec(), train_data=tokens, progress=False) for _ in range(2))
    assert first.plan == second.plan
    assert first.report.perplexity_tuned == second.report.perplexity_tuned
    for a, b in zip(first.model.parameters(), second.model.parameters(), strict=True):
        assert torch.equal(a, b)


def test_perplexities_are_those_of_the_models_they_name(llama, tokens):
    original = graphprune.report.measure(llama)
    result = prune(llama, make_spec("none"), train_data=tokens, evaluation=tokens[:8], progress=False)
    assert result.model is llama
    with torch.no_grad():
        loss = llama(tokens[:8], labels=tokens[:8]).loss
    assert result.report.perplexity_pruned == pytest.approx(float(loss.exp()), rel=1e-5)
    assert result.report.perplexity_tuned is None
    assert result.report.before == original


STOCK = "transformers.AutoModelForCausalLM.from_pretrained"


@pytest.mark.parametrize(
    ("targets", "tier", "line", "said"),
    [
        (
            ["hf", "hf-remote-code"],
            "hf-remote-code",
            STOCK + "({}, trust_remote_code=True)",
            "not of tier hf: layers differ",
        ),
        (["hf"], "hf", STOCK + "({})", "16 of 24 kept in each of 3 groups: a stock config has one size"),
        (["graphprune"], "graphprune", "graphprune.load({})", "a fresh process loads the folder"),
    ],
)
def test_uneven_requests_go_to_the_next_tier_or_are_made_even(targets, tier, line, said, llama, tokens, tmp_path):
    spec = make_spec("none", [{"role": "mlp.channel", "ratio": 0.5, "layers": "1:"}], export={"targets": targets})
    result = prune(llama, spec, train_data=tokens, output=tmp_path / "small", progress=False)
    assert result.report.tier == tier
    assert result.report.load == f"model = {line.format(repr(str(tmp_path / 'small')))}"
    assert any(said in note for note in result.report.notes)
    with torch.no_grad():
        assert torch.equal(load(tmp_path / "small")(tokens[:2]).logits, llama(tokens[:2]).logits)


def test_adapters_can_be_written_apart(checkpoint, tokens, tmp_path):
    spec = make_spec(export={"merge_lora": False})
    result = prune(checkpoint, spec, train_data=tokens, output=tmp_path / "small", progress=False)
    from peft import PeftModel

    base = AutoModelForCausalLM.from_pretrained(tmp_path / "small")
    again = PeftModel.from_pretrained(base, tmp_path / "small" / "adapter").eval()
    with torch.no_grad():
        assert (again(tokens[:2]).logits - result.model(tokens[:2]).logits).abs().max() < 1e-5


@pytest.mark.parametrize("compact", ["always", "never"])
def test_adapters_written_apart_follow_layers_that_move_up(compact, checkpoint, tokens, tmp_path):
    """Adapters are attached by whole paths, so their config must speak of the layers that are left."""
    from peft import PeftModel

    spec = make_spec(targets=[{"role": "layer", "count": 1}], export={"merge_lora": False})
    spec["training"]["compact"] = compact
    result = prune(checkpoint, spec, train_data=tokens, output=tmp_path / "small", progress=False)
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "small")
    again = PeftModel.from_pretrained(base, tmp_path / "small" / "adapter").eval()
    with torch.no_grad():
        assert (again(tokens[:2]).logits - result.model(tokens[:2]).logits).abs().max() < 1e-5
    assert str(tmp_path / "small") == again.peft_config["default"].base_model_name_or_path
    assert sum("logits differ by at most" in note for note in result.report.notes) == 2


def test_weights_alone_need_no_text(llama, tmp_path):
    spec = {**make_spec("none"), "criterion": "magnitude"}
    result = prune(llama, spec, output=tmp_path / "small", progress=False)
    assert result.report.perplexity_before is None
    assert result.report.data_fingerprint == ""
    assert (tmp_path / "small" / "model.safetensors").is_file()


def test_a_torch_data_set_will_do(llama, tokens):
    result = prune(llama, make_spec("none"), train_data=StackDataset(input_ids=tokens), progress=False)
    assert result.report.evaluation == ""
    assert len(result.report.data_fingerprint) == 64


def test_everything_is_refused_before_anything_is_computed(llama, tokens, tmp_path, monkeypatch):
    monkeypatch.setattr(run_module, "run_mode", lambda job: pytest.fail("computed"))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("years of work")
    with pytest.raises(CheckpointError, match=r"not empty \(1 entries, such as 'thesis\.txt'\)"):
        prune(llama, make_spec(), train_data=tokens, output=tmp_path / "full")
    with pytest.raises(SpecError, match=r"selects no group \(role moe\.expert\)"):
        prune(llama, make_spec(targets=[{"role": "moe.expert", "ratio": 0.5}]), train_data=tokens)
    with pytest.raises(SpecError, match="only groups that must not be pruned"):
        prune(llama, make_spec(targets=[{"role": "vocab", "ratio": 0.5}]), train_data=tokens)
    with pytest.raises(DataError, match="needs text, got none"):
        prune(llama, make_spec())
    with pytest.raises(DataError, match="makes 3 sequences"):
        prune(llama, make_spec(), train_data=tokens[:3])
    with pytest.raises(DataError, match="token id 61"):
        prune(llama, make_spec(), train_data=tokens + 1)
    with pytest.raises(CheckpointError, match="no model folder at"):
        prune(tmp_path / "none", make_spec(), train_data=tokens)


def test_a_wrapped_model_is_refused(llama, tokens):
    from peft import LoraConfig, get_peft_model

    wrapped = get_peft_model(llama, LoraConfig(target_modules=["o_proj"]))
    with pytest.raises(SpecError, match="expected a bare model, got a PeftModel around one"):
        prune(wrapped, make_spec(), train_data=tokens)


@pytest.mark.parametrize("stage", ["train", "save", "verify"])
def test_an_interrupted_run_leaves_nothing_half_written(stage, checkpoint, tokens, tmp_path, monkeypatch):
    """Ctrl-C: while training, in the middle of writing, and while the result is proved."""

    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    places = {"train": (Pruner, "score"), "save": (Report, "save"), "verify": (run_module, "verify_folder")}
    monkeypatch.setattr(*places[stage], interrupt)
    before = digests(checkpoint)
    with pytest.raises(KeyboardInterrupt) as told:
        prune(checkpoint, make_spec(), train_data=tokens, output=tmp_path / "small", progress=False)
    assert digests(checkpoint) == before
    # What was trained is kept; before the first checkpoint there is nothing to keep.
    kept = set() if stage == "train" else {"small.run"}
    assert {entry.name for entry in tmp_path.iterdir()} == {"original", *kept}
    assert ("small.run is at step 4 of 4. Continue it with --resume" in str(told.value)) == bool(kept)


def test_a_run_keeps_its_state_until_it_is_done(checkpoint, tokens, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(run_module, "verify_folder", lambda *_: seen.extend(tmp_path.glob("*.run/checkpoint-*")) or 0.0)
    prune(checkpoint, make_spec(), train_data=tokens, output=tmp_path / "small", progress=False)
    assert [entry.name for entry in seen] == ["checkpoint-4"]
    assert {entry.name for entry in tmp_path.iterdir()} == {"original", "small"}


def test_the_state_may_be_elsewhere_and_without_an_output(checkpoint, tokens, tmp_path, monkeypatch):
    """Broken off between training and merging; the second part trains nothing."""
    with monkeypatch.context() as broken:
        broken.setattr("graphprune.engine.modes.merge", lambda model: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            prune(checkpoint, make_spec(), train_data=tokens, checkpoints=tmp_path / "state", progress=False)
    assert (tmp_path / "state" / "checkpoint-4").is_dir()
    with monkeypatch.context() as lazy:
        lazy.setattr(Pruner, "score", lambda *_: pytest.fail("trained again"))
        resumed = prune(
            checkpoint, make_spec(), train_data=tokens, checkpoints=tmp_path / "state", resume=True, progress=False
        )
    assert {entry.name for entry in tmp_path.iterdir()} == {"original"}
    whole = prune(checkpoint, make_spec(), train_data=tokens, progress=False)
    assert resumed.plan == whole.plan
    assert resumed.events == whole.events
    assert any(note.startswith("interrupted and continued at step 4 of 4") for note in resumed.report.notes)
    for a, b in zip(resumed.model.parameters(), whole.model.parameters(), strict=True):
        assert torch.equal(a, b)


def test_an_unfinished_run_is_neither_overwritten_nor_mixed_up(checkpoint, tokens, tmp_path, monkeypatch):
    with monkeypatch.context() as broken:
        broken.setattr("graphprune.engine.modes.merge", lambda model: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            prune(checkpoint, make_spec(), train_data=tokens, output=tmp_path / "small", progress=False)
    before = digests(tmp_path / "small.run" / "checkpoint-4")

    def refused(message, spec=None, data=tokens, model=checkpoint, **options):
        with pytest.raises(CheckpointError, match=message):
            prune(model, spec or make_spec(), train_data=data, output=tmp_path / "small", progress=False, **options)
        assert digests(tmp_path / "small.run" / "checkpoint-4") == before

    refused(r"small\.run holds an unfinished run, at step 4 of 4\. Continue it with --resume")
    other = make_spec(targets=[{"role": "attention.group", "count": 1}, {"role": "mlp.channel", "ratio": 0.25}], seed=3)
    told = r"another spec:\n  - targets\[0\]\.count: expected 2, got 1\n  - seed: expected 0, got 3\n"
    refused(told, other, resume=True)
    refused("training data: expected the fingerprint .*another text", data=tokens.flip(0), resume=True)
    model = AutoModelForCausalLM.from_pretrained(checkpoint)
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight.mul_(1.01)
    refused("expected the same weights, got others", model=model, resume=True)
    refused("expected the same names, shapes and number formats", model=model.bfloat16(), resume=True)


def test_output_settings_may_change_between_the_parts_of_a_run(checkpoint, tokens, tmp_path, monkeypatch):
    with monkeypatch.context() as broken:
        broken.setattr("graphprune.engine.modes.merge", lambda model: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            prune(checkpoint, make_spec(), train_data=tokens, output=tmp_path / "small", progress=False)
    spec = make_spec()
    spec["training"] |= {"logging_steps": 3, "save_every": 1}
    prune(checkpoint, spec, train_data=tokens, output=tmp_path / "small", resume=True, progress=False)
    assert (tmp_path / "small" / "model.safetensors").is_file()


def test_resume_begins_where_there_is_nothing_and_refuses_where_all_is_done(llama, tokens, tmp_path):
    with pytest.raises(CheckpointError, match="expected output or checkpoints"):
        prune(llama, make_spec(), train_data=tokens, resume=True)
    spec = make_spec("none")
    prune(llama, spec, train_data=tokens, output=tmp_path / "small", resume=True, progress=False)
    with pytest.raises(CheckpointError, match=r"small is finished: .*gp\.load"):
        prune(llama, spec, train_data=tokens, output=tmp_path / "small", resume=True, progress=False)


def test_a_run_that_diverged_is_kept_and_goes_on_with_a_lower_learning_rate(checkpoint, tokens, tmp_path, monkeypatch):
    def spoiled(self, step, seen, present, honest=Pruner.score):
        if step == 3:
            raise NonFiniteError("group 'g': the gradient of 'w' is NaN or infinite at step 3.")
        honest(self, step, seen, present)

    def run(rate, **options):
        spec = make_spec()
        spec["training"] |= {"learning_rate": rate, "lr_scheduler": "linear", "logging_steps": 1}
        return prune(checkpoint, spec, train_data=tokens, output=tmp_path / "small", progress=False, **options)

    with monkeypatch.context() as broken:
        broken.setattr(Pruner, "score", spoiled)
        told = r"'g': .* at step 3\. The unfinished run in .*small\.run is at step 2 of 4.*Lower training\.learning"
        with pytest.raises(NonFiniteError, match=told):
            run(1e-2)
    assert [entry.name for entry in tmp_path.glob("small.run/checkpoint-*")] == ["checkpoint-2"]
    result = run(1e-3, resume=True)
    assert [row["learning_rate"] for row in result.log[:4]] == pytest.approx([1e-2, 0.75e-2, 0.5e-3, 0.25e-3])


def test_the_rescued_state_is_that_of_a_run_that_did_not_diverge(checkpoint, tokens, tmp_path, monkeypatch):
    """Numbers break at the third step of a run that saves at none: continued, it ends as if nothing had been."""

    def spoiled(self, step, seen, present, honest=Pruner.score):
        if step == 3:
            raise NonFiniteError("broken")
        honest(self, step, seen, present)

    spec = make_spec(lora={"dropout": 0.3})
    spec["training"]["micro_batch_size"] = 2
    whole = prune(checkpoint, spec, train_data=tokens, progress=False)
    with monkeypatch.context() as broken:
        broken.setattr(Pruner, "score", spoiled)
        with pytest.raises(NonFiniteError, match="broken"):
            prune(checkpoint, spec, train_data=tokens, output=tmp_path / "small", progress=False)
    resumed = prune(checkpoint, spec, train_data=tokens, output=tmp_path / "small", resume=True, progress=False)
    for a, b in zip(resumed.model.parameters(), whole.model.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("mode", ["joint", "separate", "none"])
def test_every_mode_ends_with_the_sizes_that_the_export_asks_for(mode, llama, tokens, tmp_path):
    """Half of 24 channels in two of three layers: as many in all, 16 in each, which is a multiple of 8."""
    target = {"role": "mlp.channel", "ratio": 0.5, "layers": "1:"}
    spec = make_spec(mode, [target], export={"targets": "hf", "multiple_of": 8})
    if mode == "none":
        spec["training"]["rounds"] = 3
    result = prune(llama, spec, train_data=tokens, output=tmp_path / "small", progress=False)
    assert result.report.tier == "hf"
    assert {len(units) for units in result.plan.removed.values()} == {8}
    assert "48 of 72 units asked for in all, 16 of 24 kept in each of 3 groups" in " ".join(result.report.notes)
    stock = AutoModelForCausalLM.from_pretrained(tmp_path / "small")
    assert stock.config.intermediate_size == 16
    assert result.report.spec["targets"][0]["layers"] == "1:"


def test_what_cannot_be_exported_is_refused_before_anything_is_computed(llama, tokens, tmp_path):
    spec = make_spec(targets=[{"role": "mlp.channel", "ratio": 0.5}], export={"multiple_of": 64})
    with pytest.raises(SpecError, match=r"fits export\.multiple_of: 64"):
        prune(llama, spec, train_data=tokens, output=tmp_path / "small", progress=False)
    assert not (tmp_path / "small").exists()
