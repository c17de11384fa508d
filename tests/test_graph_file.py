"""Graphs in files: equal when they come back, refused with a reason where they are none."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import graphprune as gp
from graphprune.errors import GraphError
from graphprune.graph_file import problems
from tests.decoders import tiny


@pytest.fixture(scope="module")
def graph() -> gp.DependencyGraph:
    """With experts, integers that follow groups, and a layer group."""
    return gp.trace(tiny("qwen3_moe"))


@pytest.fixture
def file(graph, tmp_path) -> Path:
    graph.save(tmp_path / "graph.json")
    return tmp_path / "graph.json"


@pytest.fixture
def edit(file) -> Callable[[Callable[[dict[str, Any]], object]], str]:
    """Edits the file, loads it, and gives the text of the error."""

    def call(change: Callable[[dict[str, Any]], object]) -> str:
        fields = json.loads(file.read_text(encoding="utf-8"))
        change(fields)
        file.write_text(json.dumps(fields), encoding="utf-8")
        with pytest.raises(GraphError) as error:
            gp.DependencyGraph.load(file)
        return str(error.value)

    return call


@pytest.mark.parametrize("name", ["gpt2", "bloom", "olmo2", "llama-tied-bias"])
def test_a_graph_that_comes_back_is_the_same(name, tmp_path):
    graph = gp.trace(tiny(name))
    graph.save(tmp_path / "graph.json")
    again = gp.DependencyGraph.load(tmp_path / "graph.json")
    assert again == graph and again.fingerprint == graph.fingerprint
    assert [p.name for p in tmp_path.iterdir()] == ["graph.json"]
    assert list(problems(graph)) == []


def test_every_group_has_a_line_of_its_own(graph, file):
    lines = [line for line in file.read_text(encoding="utf-8").splitlines() if line.startswith('{"name":')]
    assert [json.loads(line.rstrip(","))["name"] for line in lines] == [g.name for g in graph.groups]


def test_a_plan_made_for_the_file_fits_the_model(graph, file):
    again = gp.DependencyGraph.load(file)
    gp.PrunePlan.remove(again, {again.select(role="moe.expert").names[0]: [1]}).check(graph)


def test_a_missing_folder_or_file_is_named(graph, tmp_path):
    with pytest.raises(GraphError, match=r"cannot write the graph to .*none/graph.json: No such file.* folder exist"):
        graph.save(tmp_path / "none" / "graph.json")
    with pytest.raises(GraphError, match=r"no graph file at .*missing.json; graphs are written by"):
        gp.DependencyGraph.load(tmp_path / "missing.json")
    with pytest.raises(GraphError, match=r"cannot be read as JSON: .*directory"):
        gp.DependencyGraph.load(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "it cannot be read as JSON: Expecting property name"),
        ("[" * 100_000, "it cannot be read as JSON"),
        ("[1, 2]", "expected an object, got list"),
        ("{}", r"groups: Field required; shapes: Field required. Trace the model again"),
    ],
)
def test_other_files_are_refused(tmp_path, text, message):
    (tmp_path / "graph.json").write_text(text)
    with pytest.raises(GraphError, match=message):
        gp.DependencyGraph.load(tmp_path / "graph.json")


def test_an_edited_file_is_noticed_by_its_fingerprint(graph, edit):
    message = edit(lambda fields: fields["groups"][0].update(minimum=3))
    assert f"expected a graph with the fingerprint {graph.fingerprint} that the file states" in message
    assert "delete the 'fingerprint' in the file if the changes are wanted" in message


def test_edits_on_purpose_are_read(file, graph):
    fields = json.loads(file.read_text(encoding="utf-8"))
    fields["groups"][0]["minimum"] = 3
    del fields["fingerprint"]
    file.write_text(json.dumps(fields))
    assert gp.DependencyGraph.load(file).groups[0].minimum == 3


def test_a_later_format_is_refused(edit):
    assert "expected a graph of format 1, got format 2. It was written by another" in edit(lambda f: f.update(format=2))


def test_unknown_and_wrong_fields_are_named(edit):
    message = edit(lambda f: (f["groups"][1].update(colour="red"), f["groups"][2].update(size="many")))
    assert "groups.1.colour: Extra inputs are not permitted" in message
    assert "groups.2.size: Input should be a valid integer" in message


def _member(fields: dict[str, Any]) -> dict[str, Any]:
    return fields["groups"][0]["members"][0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: _member(f).update(tensor="nobody"), "tensor 'nobody': 'shapes' does not list this tensor"),
        (lambda f: _member(f).update(dim=7), r"expected a dimension in 0\.\.1, got 7"),
        (lambda f: _member(f).update(length=5), r"expected length \d+ of dimension \d, got 5"),
        (lambda f: _member(f).update(size=3), r"expected the group's \d+ units, got 3"),
        (lambda f: _member(f)["blocks"][0].update(start=1), r"its blocks lie outside of 0\.\.\d+"),
        (lambda f: _member(f)["blocks"][0].update(start=-1), r"its blocks lie outside of 0\.\.\d+"),
        (lambda f: f["groups"].append(f["groups"][0]), r"expected distinct names, got (\d+) groups with \d+ names"),
        (lambda f: f["rules"][0].update(terms=[[1, ["nobody"]]]), r"rule of .*: no group 'nobody'"),
    ],
)
def test_contradictions_are_told(edit, change, message):
    assert re.search(message, edit(change))
