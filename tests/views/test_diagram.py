"""DOT text: what Graphviz itself reads from it is what the graph has."""

from __future__ import annotations

import json
import re
import shutil
import subprocess

import pytest

import graphprune as gp
from graphprune.views import dot
from graphprune.views.diagram import quoted
from tests.decoders import tiny

GRAPHVIZ = shutil.which("dot")


@pytest.fixture(scope="module")
def graph() -> gp.DependencyGraph:
    return gp.trace(tiny("qwen3_moe"))


def parsed(text: str) -> dict:
    """What Graphviz makes of it, or skips the test."""
    if GRAPHVIZ is None:
        pytest.skip("needs the program 'dot' of Graphviz to parse DOT, not found")
    done = subprocess.run([GRAPHVIZ, "-Tjson"], input=text, capture_output=True, text=True, check=True)
    assert done.stderr == ""
    return json.loads(done.stdout)


def test_graphviz_reads_one_frame_for_all_layers_that_are_alike(graph):
    drawn = parsed(dot(graph))
    frames = [o["label"] for o in drawn["objects"] if o["name"].startswith("cluster")]
    assert frames == ["layers 0-2  (3 alike)"]
    labels = [o["label"] for o in drawn["objects"] if "nodes" not in o]
    assert labels.count("moe.expert\\n5 units, exact") == 1
    assert "self_attn.o_proj.weight\\n48 × 48" in labels and "lm_head.weight\\n97 × 48" in labels


def test_every_layer_can_be_drawn(graph):
    drawn = parsed(dot(graph, each_layer=True))
    frames = [o["label"] for o in drawn["objects"] if o["name"].startswith("cluster")]
    assert frames == ["layer 0", "layer 1", "layer 2"]
    names = {o["_gvid"]: o.get("label", "") for o in drawn["objects"]}
    slices = [
        (names[e["tail"]].split("\\n")[0], names[e["head"]].split("\\n")[0], e["label"], e["arrowhead"])
        for e in drawn["edges"]
        if e.get("label", "").startswith("dim")
    ]
    stack = [g for g in graph.groups if g.role != "layer"]
    assert len(slices) == sum(len(g.members) for g in stack)
    assert ("moe.channel", "mlp.experts.down_proj", "dim 2", "empty") in slices  # it sums over the channels
    assert ("moe.expert", "mlp.gate.weight", "dim 0", "normal") in slices


def test_whole_layers_get_one_edge_a_frame(graph):
    text = dot(graph, each_layer=True)
    assert [re.search(r"lhead=(\w+)", line)[1] for line in text.splitlines() if '"whole"' in line] == [
        "cluster_0",
        "cluster_1",
        "cluster_2",
    ]


def test_reasons_are_told_on_hover(graph):
    drawn = parsed(dot(graph))
    told = [o["tooltip"].split("\\n") for o in drawn["objects"] if o.get("tooltip")]
    (reason,) = [" ".join(lines[1:]) for lines in told if lines[0] == "lm_head/vocab"]
    assert reason == graph.by_name["lm_head/vocab"].frozen


HOSTILE = 'a"b\\c{d}<e>|f;g->h\\'


def test_names_may_contain_anything():
    member = gp.Member(tensor=HOSTILE, dim=0, size=2, length=2, blocks=(gp.Block(start=0, unit_stride=1),))
    group = gp.Group(name=HOSTILE, role="mlp.channel", layer=None, size=2, members=(member,))
    graph = gp.DependencyGraph(groups=(group,), shapes={HOSTILE: (2, 3), "eyes": ()}, untraced=("eyes",))
    drawn = parsed(dot(graph))
    labels = {o["label"] for o in drawn["objects"]}
    assert labels == {
        "mlp.channel\\n2 units, exact",
        HOSTILE.replace("\\", "\\\\") + "\\n2 × 3",
        "eyes\\nscalar\\nnever used by the traced forward",
    }
    assert len(drawn["edges"]) == 1


def test_quoting():
    assert quoted('a"b') == '"a\\"b"'
    assert quoted("a\\") == '"a\\\\"'
    assert quoted("a\nb") == '"a\\nb"'


def test_a_graph_without_groups_is_a_diagram_too():
    assert parsed(dot(gp.DependencyGraph(groups=(), shapes={})))["name"] == "graphprune"
