"""What a user can get wrong, through the real command line: told what, where and what next, and nothing written."""

import hashlib
import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast
from typer.testing import CliRunner

from graphprune.cli import app
from graphprune.plan import PrunePlan
from graphprune.trace import trace
from tests.decoders import tiny

ONE_SHOT = """\
targets:
  - {role: [attention.group, mlp.channel], ratio: 0.5}
criterion: magnitude
training: {mode: none}
"""
JOINT = """\
targets:
  - {role: [attention.group, mlp.channel], ratio: 0.5}
training: {steps: 4, batch_size: 4, sequence_length: 16}
schedule: {every: 1}
"""
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"


def letters() -> PreTrainedTokenizerFast:
    """One token per character: 97 tokens, as many as the tiny decoders know."""
    vocabulary = {text: i for i, text in enumerate(["<unk>", "<s>", "</s>", *map(chr, range(32, 126))])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", eos_token="</s>")


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint") / "original"
    tiny("llama").save_pretrained(folder)
    letters().save_pretrained(folder)
    return folder


@pytest.fixture
def desk(original, tmp_path, monkeypatch):
    """The working folder of a user, with a model of three layers and a text; what is there is never changed."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(original, "model")
    (tmp_path / "text.txt").write_text("The quick brown fox jumps over the lazy dog. " * 40)
    return tmp_path


@pytest.fixture
def refused(desk):
    """Runs ``graphprune prune``, expects an error on purpose and nothing on disk, and gives the message."""

    def call(*arguments, spec=ONE_SHOT, text="text.txt", out="small", kept=""):
        (desk / "spec.yaml").write_text(spec)
        before = contents(desk)
        data = ["--data", text] if text else []
        result = CliRunner().invoke(app, [*(arguments or ["prune", "model", "spec.yaml"]), *data, "--out", out])
        assert result.exit_code == 2, result.output
        assert isinstance(result.exception, SystemExit), result.exception
        assert "Traceback" not in result.output
        assert "Error(" not in result.stderr
        if kept:  # of a training that diverged, the last state that was in order
            assert (desk / f"{out}.run" / kept / "complete.json").is_file()
            shutil.rmtree(desk / f"{out}.run")
        assert contents(desk) == before
        assert result.stdout == ""
        return result.stderr[result.stderr.index("error: ") :]

    return call


def contents(folder):
    """Every folder, and the digest of every file, below ``folder``."""
    return {
        str(entry.relative_to(folder)): hashlib.sha256(entry.read_bytes()).hexdigest() if entry.is_file() else None
        for entry in folder.rglob("*")
    }


def change_config(folder, **changes):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))


def change_weight(folder, name, value):
    tensors = load_file(folder / WEIGHTS)
    tensors[name][:, 3] = value
    save_file(tensors, folder / WEIGHTS, {"format": "pt"})


# --- specs ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("{role:", "{role ", "spec.yaml: 1 problem\n  - expected YAML, but it cannot be parsed (line 2"),
        ("training:", "trainig:", "trainig (line 4): unknown key. Did you mean 'training'?"),
        ("ratio:", "ration:", "targets[0].ration (line 2): unknown key. Did you mean 'ratio'?"),
        ("magnitude", "magnitud", "criterion (line 3): unknown criterion 'magnitud'. Did you mean 'magnitude'?"),
        ("ratio: 0.5", "ratio: 1.0", "targets[0].ratio (line 2): expected less than 1, got 1.0"),
        ("ratio: 0.5", "ratio: -0.5", "targets[0].ratio (line 2): expected greater than or equal to 0, got -0.5"),
        (
            "mlp.channel]",
            "mlp.channel], layers: '7:'",
            "selects no group (role attention.group, mlp.channel, layers 7:)",
        ),
        ("attention.group, mlp.channel", "mlp.chanel", "Did you mean 'mlp.channel'? The model has 3 layers"),
        ("ratio: 0.5", "count: 40", "group 'model.layers.0.self_attn/attention.group' and 2 more have 4 units"),
        ("ratio: 0.5", "ratio: 0.5, layers: 3", "targets[0]: layer 3 does not exist: the model has 3 layers"),
        (
            "ratio: 0.5}",
            "ratio: 0.5}\n  - {name: '*mlp*', ratio: 0.25}",
            "targets[0] and targets[1] both select 3 groups, 'model.layers.0.mlp/mlp.channel' first",
        ),
        (
            "attention.group, mlp.channel",
            "vocab",
            "selects only groups that must not be pruned (2):\n      'model/vocab' and",
        ),
    ],
)
def test_a_wrong_spec(refused, old, new, told):
    assert old in ONE_SHOT
    message = refused(spec=ONE_SHOT.replace(old, new))
    assert told in message
    assert message.startswith("error: spec.yaml: ")


# --- models -----------------------------------------------------------------------------------------------------------


def without(name):
    return lambda folder: (folder / name).unlink()


def truncated(folder):
    content = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(content[: len(content) // 2])


def without_a_shard(folder):
    tiny("llama").save_pretrained(folder, max_shard_size="60KB")
    (folder / WEIGHTS).unlink()
    (folder / "model-00002-of-00004.safetensors").unlink()


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (without("config.json"), "model has no config.json. Is it a model folder?"),
        (lambda folder: (folder / "config.json").write_text("{"), "'model/config.json' is not a valid JSON file"),
        (lambda folder: change_config(folder, model_type="llamma"), "`llamma` but Transformers does not recognize"),
        (without(WEIGHTS), f"model has neither {WEIGHTS} nor {INDEX}"),
        (without_a_shard, f"lacks 1 of the 4 weight files that {INDEX} names: model-00002-of-00004.safetensors"),
        (truncated, f"model/{WEIGHTS} is no readable safetensors file"),
        (lambda folder: (folder / WEIGHTS).rename(folder / "pytorch_model.bin"), "Only safetensors are read"),
        (
            lambda folder: change_config(folder, num_hidden_layers=4),
            "lack 9 tensors of a LlamaForCausalLM: model.layers.3",
        ),
        (
            lambda folder: change_config(folder, intermediate_size=44),
            "expected (48, 44), got (48, 40). Does config.json",
        ),
        (lambda folder: change_config(folder, hidden_size=50), "The hidden size (50) is not a multiple of"),
        (
            lambda folder: change_config(folder, num_key_value_heads=0),
            "expected a model as a hub id, a local folder or a config file",
        ),
        (without("tokenizer.json"), "the tokenizer in model cannot be loaded"),
    ],
)
def test_a_damaged_model_folder(refused, desk, spoil, told):
    spoil(desk / "model")
    assert told in refused()


def test_a_model_without_a_tokenizer(refused, desk):
    (desk / "model" / "tokenizer.json").unlink()
    (desk / "model" / "tokenizer_config.json").unlink()
    assert "text.txt is text, which needs a tokenizer" in refused(spec=JOINT)


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("./modell", "got './modell': no such folder or file"),
        ("modell", "expected a model as a hub id, a local folder or a config file, got 'modell' (no such folder)"),
        ("text.txt", "expected a model as a hub id, a local folder or a config file, got 'text.txt'"),
    ],
)
def test_a_model_that_is_not_there(refused, name, told):
    assert told in refused("prune", name, "spec.yaml")


# --- where to and from ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("out", "told"),
    [
        ("model", "output folder model is not empty (5 entries, such as 'config.json'). Nothing is ever overwritten"),
        ("text.txt", "output folder text.txt is a file. Name a new folder."),
        ("text.txt/small", "cannot be made, because"),
    ],
)
def test_an_output_folder_that_is_taken(refused, out, told):
    assert told in refused(out=out)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "calibration.txt is empty: expected text to train and calibrate on, got no tokens"),
        (b" \n\n ", "calibration.txt is empty"),
        (b"short", "calibration.txt has 6 tokens in 1 documents; sequence_length is 16, so there is not one sequence"),
        (b"a few words" * 5, "makes 3 sequences; training.batch_size is 4, so there is not one batch"),
        (b"\xff\xfe\x00", "calibration.txt is not UTF-8 text"),
        (None, "no text file at calibration.txt (relative paths start at the working directory"),
    ],
)
def test_text_that_does_not_do(refused, desk, content, told):
    if content is not None:
        (desk / "calibration.txt").write_bytes(content)
    assert told in refused(spec=JOINT, text="calibration.txt")


def test_sequences_longer_than_the_model_reads(refused):
    message = refused(spec=JOINT.replace("length: 16", "length: 65"))
    assert "training.sequence_length: expected at most 64, the positions this model knows" in message


def test_a_plan_of_another_model(refused, desk):
    other = trace(tiny("llama", num_hidden_layers=2))
    PrunePlan.remove(other, {other.select(role="mlp.channel").names[0]: [0]}).save(desk / "plan.json")
    message = refused("apply", "model", "plan.json", text=None)
    assert f"the plan was made for a model with graph fingerprint {other.fingerprint}, this model has" in message


def test_a_plan_edited_to_remove_a_frozen_group(refused, desk):
    graph = trace(tiny("llama"))
    plan = PrunePlan(fingerprint=graph.fingerprint, sizes=graph.sizes(), removed={"model/vocab": (0,)})
    plan.save(desk / "plan.json")
    message = refused("apply", "model", "plan.json", text=None)
    assert (
        "the plan removes what must stay:\n  - group 'model/vocab' must not be pruned: units are token ids" in message
    )


# --- numbers that are none --------------------------------------------------------------------------------------------


def test_a_weight_that_is_nan_is_named_by_its_group(refused, desk):
    change_weight(desk / "model", "model.layers.1.mlp.up_proj.weight", float("nan"))
    message = refused()
    assert (
        "group 'model.layers.1.mlp/mlp.channel': 40 of 40 scores are NaN or infinite, the first for unit 0" in message
    )


def test_a_weight_that_no_score_reads_is_noticed_before_writing(refused, desk):
    change_weight(desk / "model", "lm_head.weight", float("inf"))
    assert "the pruned model's logits are NaN or infinite" in refused()


def test_training_that_diverges_names_group_and_step(refused):
    message = refused(spec=JOINT.replace("steps: 4", "steps: 8, learning_rate: 1.0e+30"), kept="checkpoint-1")
    assert "group 'model.layers.0.self_attn/attention.group': the gradient of" in message
    assert "is NaN or infinite at step 2. The loss has diverged: lower the learning rate" in message
    assert "small.run is at step 1 of 8, before the numbers broke" in message


def test_a_gradient_that_is_nan_names_group_and_step(refused, desk, monkeypatch):
    """A loss that is finite with a gradient that is not: the last batch of step 3."""
    from graphprune.engine.callback import PruneCallback

    honest = PruneCallback.on_pre_optimizer_step

    def spoiled(self, args, state, control, **kwargs):
        if state.global_step == 2:
            for name, parameter in kwargs["model"].named_parameters():
                if "layers.2.mlp.down_proj.lora_B" in name:
                    parameter.grad[0, 0] = torch.nan
        return honest(self, args, state, control, **kwargs)

    monkeypatch.setattr(PruneCallback, "on_pre_optimizer_step", spoiled)
    message = refused(spec=JOINT, kept="checkpoint-2")
    assert "group 'model.layers.2.mlp/mlp.channel': the gradient of" in message
    assert "is NaN or infinite at step 3" in message
