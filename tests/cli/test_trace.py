"""``graphprune trace``."""

from graphprune.cli.models import graph_of
from graphprune.graph import DependencyGraph


def test_the_table_has_roles_sizes_and_fates(run, tiny):
    result = run("trace", tiny)
    assert result.exit_code == 0, result.output
    rows = {cells[0]: cells for line in result.stdout.splitlines() if (cells := line.split())}
    assert rows["mlp.channel"] == ["mlp.channel", "3", "40", "144", "0-2", "exact"]
    assert rows["attention.group"][1:3] == ["3", "4"]
    assert rows["vocab"][-2:] == ["frozen", "[1]"]


def test_reasons_stand_below_the_table(run, tiny):
    vocab = graph_of(str(tiny)).select(role="vocab", frozen=True).groups[0]
    assert f"[1] frozen: {vocab.frozen}\n" in run("trace", tiny).stdout


def test_the_graph_is_written_as_json(run, refused, tiny, tmp_path):
    file = tmp_path / "graph.json"
    assert run("trace", tiny, "--json", file).exit_code == 0
    assert DependencyGraph.load(file) == graph_of(str(tiny))
    assert "exists already" in refused("trace", tiny, "--json", file)


def test_a_proof_on_the_own_weights(run, tiny):
    result = run("trace", tiny, "--prove")
    assert result.exit_code == 0, result.output
    assert "Proved on its own weights" in result.stdout
    rows = {line.split()[1]: line for line in result.stdout.splitlines() if "alike" in line}
    assert {"attention.group", "attention.query", "mlp.channel", "together"} <= set(rows)
    assert all(line.split("│")[-2].strip() == "ok" for line in rows.values())


def test_a_proof_on_random_weights_where_there_are_none(run, tiny, tmp_path):
    (tmp_path / "config.json").write_text((tiny / "config.json").read_text())
    result = run("trace", tmp_path, "--prove")
    assert result.exit_code == 0, result.output
    assert "Proved on random weights" in result.stdout


def test_what_is_disproved_exits_with_1(run, tiny, monkeypatch):
    from graphprune.reshape import apply

    monkeypatch.setattr(apply, "cut_tensor", lambda tensor, dims: _flipped(tensor, dims))
    result = run("trace", tiny, "--prove")
    assert result.exit_code == 1
    assert "disproved: mlp.channel: masked and reshaped differ" in result.stdout


def _flipped(tensor, dims):
    """Cuts the last dimension at the wrong end."""
    for dim, kept in dims.items():
        tensor = tensor.index_select(dim, kept if dim == 0 else tensor.shape[dim] - 1 - kept)
    return tensor.contiguous()
