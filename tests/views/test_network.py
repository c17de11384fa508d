"""The networkx view leaves nothing out, and GraphML brings it to other programs."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path
from typing import Any

import networkx as nx
import pytest

import graphprune as gp
from graphprune.graph import Axis, ConstantSlice, MaskSite, NormScale, Numbering, SizeRule, Stack
from graphprune.views import graphml
from tests.decoders import tiny

NAMES = ("qwen3_moe", "bloom", "olmo2", "llama-tied-bias")


@pytest.fixture(scope="module", params=NAMES)
def graph(request) -> gp.DependencyGraph:
    return gp.trace(tiny(request.param))


def rebuilt(view: nx.MultiDiGraph) -> gp.DependencyGraph:
    """The graph again, from documented attributes alone."""

    def only(data: dict[str, Any], kind: type) -> dict[str, Any]:
        return {name: data[name] for name in kind.model_fields if name in data}

    nodes: dict[str, dict[str, list]] = {k: {} for k in ("group", "tensor", "integer", "constant")}
    for key, data in view.nodes(data=True):
        nodes[data["kind"]][key] = data
    members: dict[str, list] = {key: [] for key in nodes["group"]}
    constants = []
    for group, target, data in view.edges(data=True):
        if data["relation"] == "slice":
            members[group].append({**only(data, gp.Member), "tensor": view.nodes[target]["name"]})
        elif data["relation"] == "constant":
            told, axis = view.nodes[target], only(data, Axis)
            told = {"group": group, "module": told["module"], **{k: told[k] for k in ("argument", "buffer")}}
            constants.append({**told, "dim": data["dim"], "axis": axis})
    fields = {
        "groups": [{**only(data, gp.Group), "members": members[key]} for key, data in nodes["group"].items()],
        "rules": [only(data, SizeRule) for data in nodes["integer"].values()],
        "constants": constants,
        "shapes": {data["name"]: data["shape"] for data in nodes["tensor"].values()},
        "tied": {alias: data["name"] for data in nodes["tensor"].values() for alias in data["aliases"]},
        "untraced": [data["name"] for data in nodes["tensor"].values() if data["frozen"]],
        "readers": {data["name"]: data["readers"] for data in nodes["tensor"].values() if data["readers"]},
        **{name: view.graph[name] for name in ("notes", "layers", "declared")},
    }
    return gp.DependencyGraph.model_validate_json(json.dumps(fields))


def test_nothing_is_lost(graph):
    again = rebuilt(graph.nx)
    assert again.model_copy(update={"constants": ()}) == graph.model_copy(update={"constants": ()})
    assert set(again.constants) == set(graph.constants)
    assert graph.nx.graph["fingerprint"] == graph.fingerprint


AXIS = Axis(size=2, length=4, blocks=(gp.Block(start=0, unit_stride=2, loops=((2, 1),)),))
HAND_MADE = gp.DependencyGraph(
    groups=(
        gp.Group(
            name="hidden",
            role="hidden",
            layer=None,
            size=2,
            members=(gp.Member(tensor="hidden", dim=0, consumes=True, **dict(AXIS)),),
            sites=(MaskSite(kind="logits", module="m", axis=AXIS, function="topk", call=1),),
            exact=False,
            inexact_reason="a norm",
            minimum=2,
            essential=((0, 1),),
            norms=(NormScale(tensor="hidden", owner="m", epsilon="eps"),),
            stacks=(Stack(path="m", size=2, numbering=(Numbering(owner="", attribute="i", scale=1, start=0),)),),
        ),
        gp.Group(name="m/vocab", role="vocab", layer=0, size=3, members=(), frozen="token ids"),
    ),
    rules=(SizeRule(owner="m", attribute="n", reader="m", constant=1, terms=((3, ("hidden", "m/vocab")),)),),
    constants=(
        ConstantSlice(group="hidden", module="m", argument="bias", dim=-1, axis=AXIS),
        ConstantSlice(group="hidden", module="m", argument="table", dim=-1, axis=AXIS, buffer=True),
    ),
    shapes={"hidden": (4, 3), "eyes": (5,)},
    tied={"other": "hidden"},
    untraced=("eyes",),
    notes=("no rule for 'blur'",),
    layers=1,
)


def test_what_must_stay_and_why_is_there():
    view = HAND_MADE.nx
    assert rebuilt(view) == HAND_MADE
    assert view.nodes["m/vocab"]["frozen"] == "token ids"
    assert view.nodes["hidden"]["inexact_reason"] == "a norm" and view.nodes["hidden"]["minimum"] == 2
    assert view.nodes["eyes"]["frozen"] == "the traced forward pass never used it"
    assert view.nodes["hidden (tensor)"]["aliases"] == ["other"], "a tensor with the name of a group is not that group"
    assert view.graph["notes"] == ["no rule for 'blur'"]


def test_edges_say_what_goes_and_what_follows():
    view = HAND_MADE.nx
    told = {d["relation"]: (target, d) for _, target, d in view.edges("hidden", data=True)}
    target, data = told["slice"]
    assert target == "hidden (tensor)" and (data["dim"], data["consumes"], data["elements"]) == (0, True, 2)
    assert data["rescaled"] and data["blocks"] == [{"start": 0, "unit_stride": 2, "loops": [[2, 1]]}]
    integer, _ = told["integer"]
    assert (view.nodes[integer]["name"], view.nodes[integer]["value"]) == ("m.n", 1 + 3 * 2 * 3)
    assert view.has_edge("m/vocab", integer)
    constants = {view.nodes[to]["name"]: d["dim"] for _, to, d in view.edges(data=True) if d["relation"] == "constant"}
    assert constants == {"m(bias)": -1, "m.table": -1}


def test_the_view_is_made_anew_for_a_changed_copy():
    assert HAND_MADE.nx is HAND_MADE.nx
    assert HAND_MADE.model_copy(update={"layers": 7}).nx.graph["layers"] == 7


def test_networkx_json_can_be_dumped(graph):
    text = json.dumps(nx.node_link_data(graph.nx, edges="edges"))
    again = nx.node_link_graph(json.loads(text), edges="edges", multigraph=True, directed=True)
    assert rebuilt(again).groups == graph.groups


def test_graphml_comes_back_with_every_attribute(graph):
    view, again = graph.nx, nx.read_graphml(io.BytesIO(graphml(graph).encode()), force_multigraph=True)
    assert isinstance(again, nx.MultiDiGraph)
    assert again.graph["fingerprint"] == graph.fingerprint

    def decoded(data: dict[str, Any], like: dict[str, Any]) -> dict[str, Any]:
        assert all(isinstance(value, str | int | bool) for value in data.values())
        full = {k: json.loads(v) if isinstance(like[k], list | dict) else v for k, v in data.items()}
        return {**{k: None for k, v in like.items() if v is None}, **full}

    assert list(again) == list(view)
    for key, data in view.nodes(data=True):
        assert decoded(again.nodes[key], data) == data
    for theirs, ours in zip(again.edges(data=True), view.edges(data=True), strict=True):
        assert (theirs[0], theirs[1], decoded(theirs[2], ours[2])) == ours


def test_graphml_is_well_formed_whatever_names_and_reasons_hold():
    """XML has no way to write most control characters; they are spelled out."""
    odd = 'a\x01<b> & "c"\n\N{GREEK SMALL LETTER GAMMA}'
    member = gp.Member(tensor=odd, dim=0, size=2, length=2, blocks=(gp.Block(start=0, unit_stride=1),))
    group = gp.Group(name=f"{odd}/x", role="x", layer=None, size=2, members=(member,), frozen=odd)
    again = nx.parse_graphml(graphml(gp.DependencyGraph(groups=(group,), shapes={odd: (2,)}, notes=(odd,))))
    spelled = 'a\\u0001<b> & "c"\n\N{GREEK SMALL LETTER GAMMA}'
    assert [data["frozen"] for _, data in again.nodes(data=True) if data["kind"] == "group"] == [spelled]
    assert list(again.edges) == [(f"{spelled}/x", spelled)]
    assert json.loads(again.graph["notes"]) == [odd]


def test_every_attribute_is_documented(repository: Path):
    """Each kind of node and edge has a table of its own in docs/graph.md."""
    text = (repository / "docs" / "graph.md").read_text(encoding="utf-8")
    view = HAND_MADE.nx
    found: dict[str, set[str]] = {"graph": set(view.graph)}
    for _, data in view.nodes(data=True):
        found.setdefault(f"{data['kind']} node", set()).update(data)
    for _, _, data in view.edges(data=True):
        found.setdefault(f"{data['relation']} edge", set()).update(data)
    for kind, names in found.items():
        section = re.split(r"\n#", text.split(f"### {kind}\n")[1])[0]
        cells = "".join(re.findall(r"^\| (`.+?) \|", section, re.MULTILINE))
        told = set(re.findall(r"`(\w+)`", cells))
        assert told == names, f"docs/graph.md, {kind}: {told ^ names}"
