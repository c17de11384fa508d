"""The page: one file with everything inside, however large the model."""

from __future__ import annotations

import json
import re

import pytest
import torch
from transformers import AutoModelForCausalLM, DeepseekV3Config, LlamaConfig

import graphprune as gp
from graphprune.views import html
from graphprune.views.page_data import page_data


def data_of(page: str) -> dict:
    """What the page's script reads."""
    (text,) = re.findall(r'<script id="data" type="application/json">(.*?)</script>', page, re.DOTALL)
    return json.loads(text)


def test_one_file_that_asks_for_nothing_else(traced):
    page = html(traced("mixtral"), "a model")
    assert page.startswith("<!DOCTYPE html>") and "<title>a model · dependency graph</title>" in page
    assert not re.findall(r"\{\{\w+\}\}", page), "every placeholder is filled in"
    assert not re.search(r"(src|href)=|@import|url\(|https?:", page), "nothing is loaded from elsewhere"
    assert "default-src 'none'" in page


def test_names_cannot_break_out_of_the_page():
    evil = "</script><script>alert(1)</script>{{data}}<!--"
    member = gp.Member(tensor=evil, dim=0, size=2, length=2, blocks=(gp.Block(start=0, unit_stride=1),))
    group = gp.Group(name=evil, role="mlp.channel", layer=None, size=2, members=(member,), frozen=evil)
    page = html(gp.DependencyGraph(groups=(group,), shapes={evil: (2,)}, notes=(evil,)), evil)
    assert page.count("</script>") == 2, "of the data, and of the page's own script"
    assert "<title>&lt;/script&gt;&lt;script&gt;alert(1)&lt;/script&gt;{{data}}" in page
    data = data_of(page)
    assert data["title"] == evil and data["groups"][0]["value"]["frozen"] == evil
    assert data["tensors"][0]["value"]["name"] == evil and data["notes"][0]["value"] == evil


@pytest.mark.parametrize("name", ["qwen3_moe", "gpt2", "bloom", "llama-tied-bias"])
def test_unfolded_the_data_is_the_graph(traced, name):
    graph = traced(name)
    data = page_data(graph, "t")
    slices = {}
    for group in data["groups"]:
        value = group["value"]
        for layer in group["layers"] or [None]:
            where = slices[value["name"].replace("{layer}", str(layer))] = []
            for item in value["members"]:
                m = item["value"]
                for own in item["layers"] or [layer]:
                    tensor = m["tensor"].replace("{layer}", str(own))
                    where.append((tensor, m["dim"], own if m["only"] == "{layer}" else m["only"]))
    assert slices.keys() == graph.by_name.keys()
    for group in graph.groups:
        assert sorted(slices[group.name]) == sorted((m.tensor, m.dim, m.only) for m in group.members)
    tensors = {
        t["value"]["name"].replace("{layer}", str(layer)): tuple(t["value"]["shape"])
        for t in data["tensors"]
        for layer in t["layers"] or [None]
    }
    assert tensors == graph.shapes


def test_layers_that_are_alike_are_in_it_once(traced):
    data = page_data(traced("llama"), "t")
    (channels,) = [g for g in data["groups"] if g["value"]["role"] == "mlp.channel"]
    assert channels["layers"] == [0, 1, 2]
    assert channels["value"]["name"] == "model.layers.{layer}.mlp/mlp.channel"
    (hidden,) = [g["value"] for g in data["groups"] if g["value"]["role"] == "hidden"]
    (queries,) = [m for m in hidden["members"] if "q_proj" in m["value"]["tensor"]]
    assert queries["layers"] == [0, 1, 2]


def test_integers_and_constants_stand_with_their_groups(traced):
    moe = page_data(traced("qwen3_moe"), "t")
    (experts,) = [g["value"] for g in moe["groups"] if g["value"]["role"] == "moe.expert"]
    assert "num_experts" in {r["value"]["attribute"] for r in experts["rules"]}
    (heads,) = [
        g["value"] for g in page_data(traced("bloom"), "t")["groups"] if g["value"]["role"] == "attention.group"
    ]
    assert heads["constants"][0]["value"]["module"] == "transformer.h.{layer}"


def test_a_graph_without_groups_is_a_page_too():
    assert data_of(html(gp.DependencyGraph(groups=(), shapes={}), "empty"))["groups"] == []


@pytest.mark.slow
@pytest.mark.parametrize(
    "config",
    [
        LlamaConfig(
            hidden_size=8192,
            num_hidden_layers=80,
            num_attention_heads=64,
            num_key_value_heads=8,
            intermediate_size=28672,
            vocab_size=128256,
        ),
        DeepseekV3Config(),
    ],
    ids=["70B, 80 layers", "671B, 61 layers of 256 experts"],
)
def test_the_page_of_a_large_model_is_small(config):
    with torch.device("meta"):
        graph = gp.trace(AutoModelForCausalLM.from_config(config))
    size = len(html(graph, "large").encode())
    print(f"{graph}: {size / 1000:.0f} kB")
    assert size < 150_000
