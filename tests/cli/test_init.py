"""``graphprune init``."""

from graphprune.specfile import load_spec


def test_what_init_writes_validates(run, tiny, tmp_path):
    result = run("init", tiny, "--out", tmp_path / "spec.yaml")
    assert result.exit_code == 0, result.output
    assert [t.role for t in load_spec(tmp_path / "spec.yaml").targets] == [("attention.group",), ("mlp.channel",)]
    assert load_spec(tmp_path / "spec.yaml").training.sequence_length == 64  # all that this model reads
    result = run("validate", tmp_path / "spec.yaml", tiny)
    assert result.exit_code == 0, result.output
    assert "targets[0]: attention.group, 3 groups, layers 0-2: 12 -> 9 units" in result.stdout


def test_without_out_the_spec_is_printed_and_nothing_else(run, tiny, tmp_path):
    result = run("init", tiny)
    (tmp_path / "spec.yaml").write_text(result.stdout)
    assert load_spec(tmp_path / "spec.yaml").targets[1].ratio == 0.25
    assert str(tiny) in result.stdout.splitlines()[0]


def test_a_file_that_exists_is_not_overwritten_unasked(run, refused, tiny, tmp_path):
    file = tmp_path / "spec.yaml"
    file.write_text("mine")
    assert "exists already. Choose another name, or pass --force" in refused("init", tiny, "--out", file)
    assert file.read_text() == "mine"
    assert run("init", tiny, "--out", file, "--force").exit_code == 0
    assert load_spec(file)


def test_a_folder_that_is_not_there_is_named(refused, tiny, tmp_path):
    assert "cannot write" in refused("init", tiny, "--out", tmp_path / "nowhere" / "spec.yaml")


def test_a_model_that_is_not_there_is_named(refused, tmp_path):
    told = refused("init", tmp_path / "nowhere")
    assert "expected a model as a hub id, a local folder or a config file" in told
    assert "no such folder" in told
