"""The files of ``graphprune trace``: written as asked for, refused before anything is traced."""

from __future__ import annotations

import pytest

from graphprune.cli.models import graph_of
from graphprune.views import dot, graphml, html


def test_every_format_is_written(run, tiny, tmp_path):
    files = {name: tmp_path / f"graph.{name}" for name in ("json", "graphml", "dot", "html")}
    result = run("trace", tiny, *(word for name, file in files.items() for word in (f"--{name}", file)))
    assert result.exit_code == 0, result.output
    assert [line for line in result.stdout.splitlines() if line.startswith("wrote")] == [
        f"wrote {f}" for f in files.values()
    ]
    graph = graph_of(str(tiny))
    assert files["graphml"].read_text(encoding="utf-8") == graphml(graph)
    assert files["dot"].read_text(encoding="utf-8") == dot(graph)
    assert files["html"].read_text(encoding="utf-8") == html(graph, str(tiny))


def test_files_are_overwritten_only_on_demand(run, refused, tiny, tmp_path):
    file = tmp_path / "graph.dot"
    file.write_text("mine")
    assert f"{file} exists already. Choose another name, or pass --force" in refused("trace", tiny, "--dot", file)
    assert file.read_text() == "mine"
    assert run("trace", tiny, "--dot", file, "--force").exit_code == 0
    assert file.read_text().startswith("digraph")


@pytest.fixture
def untraced(monkeypatch):
    """Tracing would fail."""
    monkeypatch.setattr("graphprune.cli.models.graph_of", None)


def test_everything_is_refused_at_once_and_before_the_trace(untraced, refused, tiny, tmp_path):
    (tmp_path / "there.json").write_text("")
    one, none = tmp_path / "one", tmp_path / "none" / "graph.html"
    wanted = ("--json", tmp_path / "there.json", "--graphml", one, "--dot", one, "--html", none)
    message = refused("trace", tiny, *wanted)
    assert "there.json exists already" in message
    assert f"--graphml and --dot both name {one}" in message
    assert f"--html: there is no folder {tmp_path / 'none'}" in message
    assert list(tmp_path.iterdir()) == [tmp_path / "there.json"]


def test_a_folder_is_no_file(untraced, refused, tiny, tmp_path):
    assert f"--html: expected a file, got the folder {tmp_path}" in refused(
        "trace", tiny, "--html", tmp_path, "--force"
    )
