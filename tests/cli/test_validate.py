"""``graphprune validate``: every way a spec can be wrong, as the user sees it."""

import pytest

from graphprune import demo

GOOD = "targets:\n  - {role: mlp.channel, ratio: 0.5}\ntraining: {sequence_length: 32}\n"


@pytest.fixture
def spec(tmp_path):
    """Writes a spec file."""

    def write(text):
        file = tmp_path / "spec.yaml"
        file.write_text(text)
        return file

    return write


def test_a_good_spec_is_told_what_it_will_do(run, tiny, spec):
    result = run("validate", spec(GOOD), tiny)
    assert result.exit_code == 0
    assert "targets[0]: mlp.channel, 3 groups, layers 0-2: 120 -> 60 units" in result.stdout
    assert f"fits {tiny}" in result.stdout


def test_without_a_model_only_the_file_is_read(run, spec):
    result = run("validate", spec(GOOD))
    assert result.exit_code == 0
    assert "is a valid spec" in result.stdout


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("targets: [", "expected YAML, but it cannot be parsed (line 1"),
        (GOOD + "trainig: {}", "trainig (line 4): unknown key. Did you mean 'training'?"),
        (GOOD + "criterion: lorra", "unknown criterion 'lorra'. Did you mean 'lora'"),
        ("targets: [{role: mlp.channel, ratio: 1.0}]", "targets[0].ratio (line 1): expected less than 1, got 1.0"),
        ("targets: [{role: mlp.channel, ratio: 50}]", "(a percentage? write 0.5)"),
        ("targets: [{role: mlp.channel}]", "expected exactly one of ratio, count and keep, got none of them"),
    ],
)
def test_a_spec_that_is_wrong_by_itself(refused, spec, text, told):
    file = spec(text)
    message = refused("validate", file)
    assert told in message
    assert message.startswith(f"error: {file}: 1 problem\n")


@pytest.mark.parametrize(
    ("target", "told"),
    [
        ("{role: moe.expert, ratio: 0.5}", "selects no group (role moe.expert). The model has 3 layers and these"),
        ("{role: mlp.chanel, ratio: 0.5}", "Did you mean 'mlp.channel'?"),
        ("{role: mlp.channel, layers: 7, ratio: 0.5}", "layer 7 does not exist: the model has 3 layers"),
        ("{role: mlp.channel, count: 40}", "count 40 leaves 0, below the minimum 1"),
        ("{role: vocab, ratio: 0.5}", "selects only groups that must not be pruned (2)"),
    ],
)
def test_a_spec_that_does_not_fit_the_model(refused, tiny, spec, target, told):
    assert told in refused("validate", spec(f"targets: [{target}]"), tiny)


def test_frozen_groups_are_refused_with_the_tracers_reason(run, refused, tiny, spec):
    from graphprune.cli.models import graph_of

    vocab = graph_of(str(tiny)).select(role="vocab", frozen=True).groups[0]
    assert vocab.frozen in refused("validate", spec("targets: [{role: vocab, ratio: 0.5}]"), tiny)


def test_a_spec_that_is_not_there(refused, tmp_path):
    assert "found no such file" in refused("validate", tmp_path / "nowhere.yaml")
    assert "Did you mean 'loraprune'?" in refused("validate", "recipe:lora-prune")


def test_recipes_fit_by_name(run):
    result = run("validate", "recipe:quickstart", demo.model_path())
    assert result.exit_code == 0, result.output
    assert "recipe:quickstart fits" in result.stdout


def test_sequences_longer_than_the_model_reads_are_refused(refused, tiny):
    told = refused("validate", "recipe:wanda-sp", tiny)
    assert "training.sequence_length: expected at most 64, the positions this model knows, got 2048" in told


def test_a_result_that_no_stock_config_describes_is_foretold(run, tiny, spec):
    result = run("validate", spec(GOOD.replace("0.5", "0.5, layers: 0")), tiny)
    assert result.exit_code == 0, result.output
    assert "the result: tier hf-remote-code" in result.stdout
    assert "not with stock from_pretrained: layers differ" in result.stdout
    good = run("validate", spec(GOOD), tiny).stdout
    assert "note:" not in good
    assert "the result: tier hf, loads with stock from_pretrained" in good


def test_a_result_that_cannot_load_as_wanted_is_refused(refused, tiny, spec):
    told = refused(
        "validate", spec(GOOD.replace("0.5", "0.5, layers: 0") + "scope: layer\nexport: {multiple_of: 64}"), tiny
    )
    assert "targets[0]: no smaller size of a group of 40 mlp.channel units fits export.multiple_of: 64" in told
