"""The page in a real browser: what it shows is what the graph says, and it can be read and used.

Needs Chromium; each test is skipped where there is none.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlencode

import pytest

import graphprune as gp
from graphprune.views import html
from tests.views import browser as chromium
from tests.views.browser import LAPTOP, PHONE

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def browser(tmp_path_factory) -> Iterator[chromium.Browser]:
    yield from chromium.running(tmp_path_factory.mktemp("profile"))


@pytest.fixture
def show(browser, tmp_path) -> Iterator[Callable[..., chromium.Browser]]:
    """Opens the page of a graph from a file, with a state in its address; afterwards nothing may have gone wrong."""
    browser.problems.clear()

    def call(graph: gp.DependencyGraph, *, screen: dict = LAPTOP, dark: bool = False, **state: object):
        file = tmp_path / "page.html"
        file.write_text(html(graph, "a model"), encoding="utf-8")
        browser.open(f"{file.as_uri()}#{urlencode(state)}", dark=dark, **screen)
        return browser

    yield call
    browser.evaluate("1")
    assert browser.problems == []


def runs(indices: list[int]) -> str:
    """Indices as the page's strips have them: ``0-24 48-72``, ends excluded."""
    out: list[list[int]] = []
    for i in indices:
        if out and out[-1][1] == i:
            out[-1][1] += 1
        else:
            out.append([i, i + 1])
    return " ".join(f"{first}-{end}" for first, end in out)


SHOWN = """[...document.querySelectorAll('#slices li')].map(
    e => [e.dataset.tensor, Number(e.dataset.dim), e.querySelector('svg').dataset.runs])"""


def expected(group: gp.Group, unit: int) -> list[list]:
    return [[m.tensor, m.dim, runs(m.indices(unit).tolist())] for m in group.members if m.only in (None, unit)]


# --- what is shown is what the graph says ---------------------------------------------------------------


@pytest.mark.parametrize("name", ["qwen3_moe", "falcon-grouped", "gpt2", "phi3", "bloom"])
def test_a_chosen_unit_shows_every_slice_that_goes_with_it(show, traced, name):
    graph = traced(name)
    page = show(graph)
    for group in graph.select(layers="1", frozen=None):
        for unit in {0, group.size // 2, group.size - 1}:
            state = urlencode({"group": group.name, "unit": unit})
            page.evaluate(f"location.hash = {json.dumps('#' + state)}")
            page.wait(f"drawn.unit === {unit} && drawn.chosen.includes({json.dumps(json.dumps(group.name))})")
            assert page.evaluate(SHOWN) == expected(group, unit)


def test_a_unit_that_is_a_layer_shows_the_whole_layer(show, traced):
    graph = traced("llama")
    (group,) = graph.select(role="layer")
    assert sorted(show(graph, group=group.name, unit=2).evaluate(SHOWN)) == sorted(expected(group, 2))


def test_slices_of_all_layers_are_shown_once_and_counted(show, traced):
    graph = traced("llama")
    group = graph.by_name["hidden"]
    page = show(graph, group="hidden", unit=5)
    assert page.text("#slices h3") == f"Goes with unit 5: {len(group.members)} tensor slices"
    (queries,) = [t for t in page.texts("#slices li") if t.startswith("model.layers.*.self_attn.q_proj.weight")]
    assert "layers 0–2" in queries and "48 × 48" in queries and "summed over" in queries


def test_fates_and_reasons_are_told(show, traced):
    graph = traced("olmo2")
    (frozen,) = [g for g in graph.groups if g.role == "attention.qk_dim" and g.layer == 2]
    page = show(graph, group=frozen.name)
    assert page.text(".fate").split(":", 1)[1].strip() == frozen.frozen
    inexact = graph.groups[1].model_copy(
        update={"exact": False, "inexact_reason": "a norm runs over it", "frozen": None}
    )
    changed = graph.model_copy(update={"groups": (graph.groups[0], inexact, *graph.groups[2:])})
    page = show(changed, group=inexact.name)
    assert page.text(".fate") == "◐ inexact: a norm runs over it"
    assert "inexact: a norm runs over it." in page.text("#remarks")


def test_what_follows_is_told(show, traced):
    page = show(traced("qwen3_moe"), group="model.layers.1.mlp/moe.expert")
    told = page.text("#detail")
    assert "model.layers.1.mlp.gate.num_experts: 5 → 4 without one unit" in told
    assert "Silenced instead of removed" in told and "−∞ in what call" in told
    page = show(traced("bloom"), group="transformer.h.0.self_attention/attention.group")
    told = page.text("#detail")
    assert "Constants that are cut" in told and "of transformer.h.0, dim -3" in told


def test_groups_that_speak_of_another_layer_keep_their_slices_and_shapes(show, traced):
    """They cannot be folded, and must be found all the same: by parameter, and from the groups beside them."""
    graph = traced("llama")
    why = "runs together with model.layers.2.mlp"
    changed = tuple(
        g.model_copy(update={"frozen": why}) if g.role == "mlp.channel" and g.layer == 1 else g for g in graph.groups
    )
    graph = graph.model_copy(update={"groups": changed})
    tensor = "model.layers.1.mlp.down_proj.weight"
    page = show(graph, group="model.layers.1.mlp/mlp.channel", search=tensor)
    assert page.text(".fate").endswith(why) and page.evaluate(SHOWN) == expected(
        graph.by_name[page.text("#detail p")], 0
    )
    found = page.evaluate("[...document.querySelectorAll('#results .link')].map(e => e.dataset.group)")
    assert sorted(found) == sorted(g.name for g, _ in graph.cut(tensor))
    (card,) = [t for t in page.texts("#slices li") if t.startswith(tensor)]
    assert "48 × 40" in card and "also cut by" in card and "hidden 48 · dim 0" in card
    page = show(graph, group="model.layers.0.mlp/mlp.channel", search="0 down_proj")
    assert "whole" not in page.text("#results") and page.evaluate("document.querySelectorAll('#slices li').length") == 3


def test_integers_of_all_layers_follow_groups_that_are_not_folded(show, traced):
    graph = traced("qwen3_moe")
    experts = [g for g in graph.groups if g.role == "moe.expert"]
    odd = {g.name: f"as model.layers.{(g.layer + 1) % 3}.mlp" for g in experts}
    groups = tuple(g.model_copy(update={"frozen": odd.get(g.name, g.frozen)}) for g in graph.groups)
    rules = tuple(
        gp.graph.SizeRule(
            owner=f"model.layers.{g.layer}", attribute="n", reader=f"model.layers.{g.layer}",
            constant=0, terms=((1, ("hidden", g.name)),),
        )
        for g in experts
    )  # fmt: skip
    page = show(graph.model_copy(update={"groups": groups, "rules": rules}), group="hidden")
    assert "model.layers.*.n: 240 → 235 without one unit layers 0–2" in page.text("#detail")


def test_groups_without_a_unit_to_spare_say_so(show, traced):
    graph = traced("mixtral")
    page = show(graph, group="model.layers.0.mlp/moe.expert")
    assert "at least 2" in page.text("#detail dl")
    groups = tuple(g.model_copy(update={"minimum": g.size}) for g in graph.groups)
    page = show(graph.model_copy(update={"groups": groups}), group="model.layers.0.mlp/moe.expert")
    assert "all: none can go" in page.text("#detail dl")


def test_an_unknown_group_in_the_address_is_told(show, traced):
    page = show(traced("llama"), group="nobody/mlp.channel")
    assert page.text("#detail .note") == "This graph has no group nobody/mlp.channel."


def test_a_graph_without_groups(show):
    assert (
        show(gp.DependencyGraph(groups=(), shapes={"w": (3,)}), search="w").text("#detail")
        == "This graph has no groups."
    )


def test_names_are_text(show):
    evil = '<img src=x onerror="document.title=1">\'"&'
    member = gp.Member(tensor=evil, dim=0, size=2, length=2, blocks=(gp.Block(start=0, unit_stride=1),))
    group = gp.Group(name=evil, role="mlp.channel", layer=None, size=2, members=(member,))
    page = show(gp.DependencyGraph(groups=(group,), shapes={evil: (2,)}, notes=(evil,)), group=evil, search="img")
    assert page.evaluate("document.querySelectorAll('img').length") == 0
    assert page.text("#slices code") == evil and page.text("#results code") == evil
    page.click("#results .link")
    assert page.evaluate("readState().group.name") == evil


# --- finding --------------------------------------------------------------------------------------------


def test_a_parameter_is_found_with_the_groups_that_cut_it(show, traced):
    graph = traced("llama")
    page = show(graph, search="2 o_proj")
    assert page.texts("#results code") == ["model.layers.2.self_attn.o_proj.weight"]
    found = page.evaluate("[...document.querySelectorAll('#results .link')].map(e => e.dataset.group)")
    assert sorted(found) == sorted(g.name for g, _ in graph.cut("model.layers.2.self_attn.o_proj.weight"))
    page.click("#results .link[data-group$='attention.group']")
    assert page.evaluate("readState().group.name") == "model.layers.2.self_attn/attention.group"
    assert page.text("#detail h2") == "attention.group layer 2"


def test_a_number_finds_that_layer_and_no_other(show, traced):
    page = show(many_layers(traced("llama"), 24), search="2 down_proj")
    assert page.texts("#results code") == ["model.layers.2.mlp.down_proj.weight"]


def test_typing_finds_and_escape_ends_it(show, traced):
    page = show(traced("llama"))
    page.press("/", *"norm")
    assert page.text("#results h2") == "7 parameters found"
    assert "search=norm" in page.evaluate("location.hash")
    page.press("Escape")
    assert page.text("#results") == "" and page.evaluate("document.getElementById('search').value") == ""
    page.press(*"xyz")
    assert page.text("#results") == "No parameter has “xyz” in its name."


def test_tied_and_unused_parameters_are_found(show, traced):
    graph = traced("llama-tied-bias")
    (alias,) = graph.tied
    assert f"also {alias}" in show(graph, search=alias).text("#results")
    unused = graph.model_copy(update={"untraced": ("model.norm.weight",)})
    page = show(unused, search="model.norm")
    assert "never used by the traced forward pass" in page.text("#results")
    assert "model.norm.weight" in page.text("#remarks")


# --- using ----------------------------------------------------------------------------------------------


def test_the_mouse_chooses_a_group_and_the_way_back_is_open(show, traced):
    page = show(traced("llama"))
    before = page.text("#detail h2")
    page.click("#matrix .cell[data-group='model.layers.0.mlp/mlp.channel']")
    assert page.text("#detail h2") == "mlp.channel layer 0"
    assert page.evaluate("document.querySelector('#matrix [aria-pressed=true]').dataset.group").endswith("mlp.channel")
    page.click("[data-step=next]")
    assert page.text("#detail h2") == "mlp.channel layer 1"
    page.evaluate("history.back(), history.back()")
    page.wait(f"document.querySelector('#detail h2').innerText === {json.dumps(before)}")


def test_the_keyboard_is_enough(show, traced):
    page = show(traced("llama"))
    focused = "document.activeElement.dataset.group"
    page.evaluate("document.querySelector('#matrix [tabindex=\"0\"]').focus()")
    start = page.evaluate(focused)
    page.press("ArrowDown")
    assert page.evaluate(focused) != start
    page.press("ArrowUp")
    assert page.evaluate(focused) == start
    page.press("ArrowDown", "Enter")
    chosen = page.evaluate("readState().group.value.role")
    assert chosen == page.text("#detail h2").split()[0] != start.split("/")[-1]
    page.press("]", "]", "[", ".", ",", ".")
    assert page.evaluate("[readState().group.layer, readState().unit]") == [1, 1]
    assert page.text("#slices h3").startswith("Goes with unit 1:")
    assert page.evaluate("document.querySelectorAll('#matrix [tabindex=\"0\"]').length") == 1


def test_the_slider_and_the_number_are_one(show, traced):
    page = show(traced("llama"), group="model.layers.0.mlp/mlp.channel")
    page.evaluate("document.getElementById('unit-range').focus()")
    page.press("ArrowRight", "ArrowRight")
    assert page.evaluate("document.getElementById('unit').value") == "2" and "unit=2" in page.evaluate("location.hash")
    page.evaluate("document.getElementById('unit').select()")
    page.press("3", "9")
    assert page.evaluate("document.getElementById('unit-range').value") == "39"
    page.press("9")  # there is no unit 399
    assert page.evaluate("readState().unit") == 39


def test_filters(show, traced):
    graph = traced("llama")
    page = show(graph)
    roles = page.texts("#matrix tbody th")
    assert set(roles) == {g.role for g in graph.groups}
    page.click("#fates input[value=frozen]")
    assert set(page.texts("#matrix tbody th")) == {g.role for g in graph.groups if g.frozen is None}
    page = show(graph, role="mlp.channel", hide="exact")
    assert page.text("#matrix tbody") == "No group has this role and this fate."
    assert page.evaluate("document.getElementById('role').value") == "mlp.channel"


def test_layers_that_are_alike_unfold(show, traced):
    graph = traced("llama")
    page = show(graph)
    assert page.texts("#matrix thead th")[1:] == ["layers 0–2\n3 alike"]
    page.click("#each")
    assert page.texts("#matrix thead th")[1:] == ["layer 0", "layer 1", "layer 2"]
    assert page.evaluate("document.querySelectorAll('#matrix .cell').length") == len(graph.groups)


def test_many_slices_come_on_demand(show):
    block = (gp.Block(start=0, unit_stride=1),)
    members = tuple(gp.Member(tensor=f"experts.{i}.up", dim=0, size=4, length=4, blocks=block) for i in range(100))
    group = gp.Group(name="experts/moe.channel", role="moe.channel", layer=None, size=4, members=members)
    page = show(gp.DependencyGraph(groups=(group,), shapes={m.tensor: (4, 2) for m in members}))
    assert len(page.texts("#slices li")) == 24
    page.click("#more")
    assert len(page.texts("#slices li")) == 100


# --- reading --------------------------------------------------------------------------------------------

LAYOUT = (Path(__file__).parent / "layout.js").read_text(encoding="utf-8")


def faults(page: chromium.Browser) -> list[str]:
    """Texts that overlap or are cut off, too little contrast, and a page that is wider than the screen."""
    return page.evaluate(f"({LAYOUT})()")


def many_layers(graph: gp.DependencyGraph, count: int) -> gp.DependencyGraph:
    """The first layer's groups over again, each layer with a size of its own."""
    first = [g for g in graph.groups if g.layer == 0]
    groups = [g for g in graph.groups if g.layer is None]
    for layer in range(count):
        for g in first:
            text = g.model_dump_json().replace(".layers.0.", f".layers.{layer}.")
            copy = gp.Group.model_validate_json(text)
            groups.append(copy.model_copy(update={"layer": layer, "size": copy.size + layer % 11}))
    tensors = {t.replace(".layers.0.", f".layers.{n}."): s for n in range(count) for t, s in graph.shapes.items()}
    return graph.model_copy(update={"groups": tuple(groups), "shapes": tensors, "layers": count})


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("screen", [LAPTOP, PHONE], ids=["laptop", "phone"])
@pytest.mark.parametrize(
    "state",
    [{"group": "model.layers.1.mlp/moe.expert"}, {"group": "hidden", "search": "weight"}, {"layers": "each"}],
    ids=["group", "search", "each"],
)
def test_everything_can_be_read(show, traced, screen, dark, state):
    assert faults(show(traced("qwen3_moe"), screen=screen, dark=dark, **state)) == []


@pytest.mark.parametrize("screen", [LAPTOP, PHONE], ids=["laptop", "phone"])
def test_eighty_layers_of_different_sizes_can_be_read(show, traced, screen):
    page = show(many_layers(traced("llama"), 80), screen=screen)
    assert faults(page) == []
    assert page.evaluate("document.querySelectorAll('#matrix .narrow .cell').length") > 5 * 80
    if screen is LAPTOP:
        assert page.evaluate("(s => s.scrollWidth <= s.clientWidth)(document.querySelector('.scroll'))")


def test_faults_are_noticed(show, traced):
    page = show(traced("llama"))
    page.evaluate("document.querySelector('#summary').style.marginTop = '-14px'")
    assert any("overlap" in fault for fault in faults(page))
    page = show(traced("llama"))
    page.evaluate("document.querySelector('#summary').style.color = '#bbb'")
    assert any("contrast" in fault for fault in faults(page))
    page = show(traced("llama"), screen=PHONE)
    page.evaluate("document.querySelector('h1').style.width = '900px'")
    assert any("wider" in fault for fault in faults(page))
