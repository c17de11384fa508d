"""``graphprune trace``."""

from graphprune.cli.models import graph_of
from graphprune.graph import DependencyGraph


def test_the_table_has_roles_sizes_and_fates(run, tiny):
    result = run("trace", tiny)
    assert result.exit_code == 0, result.output
    rows = {line.split()[1]: line for line in result.stdout.splitlines() if line.startswith("│")}
    assert [cell.strip() for cell in rows["mlp.channel"].split("│")[2:6]] == ["3", "40", "layers 0-2", "exact"]
    assert [cell.strip() for cell in rows["attention.group"].split("│")[2:4]] == ["3", "4"]
    assert "frozen" in rows["vocab"]


def test_reasons_stand_below_the_table(run, tiny):
    vocab = graph_of(str(tiny)).select(role="vocab", frozen=True).groups[0]
    assert f"frozen: vocab (outside the layers): {vocab.frozen}" in run("trace", tiny).stdout


def test_the_graph_is_written_as_json(run, refused, tiny, tmp_path):
    file = tmp_path / "graph.json"
    assert run("trace", tiny, "--json", file).exit_code == 0
    assert DependencyGraph.model_validate_json(file.read_text()) == graph_of(str(tiny))
    assert "exists already" in run("trace", tiny, "--json", file).stderr
