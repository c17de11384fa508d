"""The coverage page: verdicts, counts, reasons, and what is missing."""

from __future__ import annotations

from graphprune.prove import ProofRow
from graphprune.testing.parts import PartRow
from graphprune.testing.remedies import BY_DESIGN, remedy
from graphprune.testing.results import Result
from graphprune.testing.table import anywhere, general, render, verdict


def row(role="mlp.channel", fate="exact", **more):
    more.setdefault("difference", None if fate == "frozen" else 2e-6)
    return ProofRow(role=role, fate=fate, groups=1, units=4, scale=2.0, **more)


FROZEN = row(fate="frozen", reason="no rule for the operation 'x' in a.layers.0.b")


def test_verdicts():
    assert verdict([row()]) == "exact"
    assert verdict([row(), FROZEN]) == "partly"
    assert verdict([FROZEN]) == "frozen"
    assert verdict([row(), row(fate="inexact", reason="r")]) == "inexact"
    assert verdict([row(), FROZEN, row(problem="p")]) == "✗"


def test_the_page_says_what_is_exact_frozen_missing_and_wrong():
    missing = PartRow(
        part="mlp", role="mlp.channel|rank", count=3, prunable=1, frozen=1, missing=("x",), reasons=("r",)
    )
    page = render(
        [
            Result(
                case="a",
                sources="",
                seconds=0.5,
                rows=(row(generates=True), row("together", tier="hf")),
                notes=("n 1",),
            ),
            Result(case="b", sources="", seconds=0.25, rows=(FROZEN,), parts=(missing,)),
            Result(
                case="b@v", sources="", seconds=0.25, rows=(row(problem="/tmp/graphprune-x_1/model is wrong"), FROZEN)
            ),
            Result(case="c", sources="", failure="ended"),
        ]
    )
    lines = page.splitlines()
    assert any(
        line.startswith("3 architectures and 1 variants; 3 traced and tried, 2 of them without a note")
        for line in lines
    )
    assert "| `mlp.channel` | 1 | 0 | 0 | 1 | 0 | 2.0e-06 | 1.0e-06 |" in lines
    matrix = {line.split(" | ")[0][2:]: line for line in lines if line.count("|") > 15}
    assert "| 1e-6 |" in matrix["a"] and matrix["a"].endswith("| hf | cache | · |")
    assert "| f |" in matrix["b"] and "**MISSING** mlp, `mlp.channel` or `rank`" in matrix["b"]
    assert "| ✗ |" in matrix["b@v"] and matrix["c"].count("✗") == 14
    assert "* **b@v**: mlp.channel: the folder is wrong" in lines and "* **c**: ended" in lines
    assert "| b | mlp | `mlp.channel` or `rank` | 1 of 3 | r; not found |" in lines
    frozen = "| frozen | no rule for the operation 'x' | `mlp.channel` | b, b@v | "
    assert f"{frozen}A rule for the operation, in `graphprune/trace/rules`. |" in lines
    assert "* a: n #" in lines


def test_an_empty_page_is_a_page():
    page = render([])
    assert "Nothing." in page and "None." in page and "0 architectures" in page


def test_reasons_lose_their_numbers():
    assert general("in a.layers.12.b, an axis of 3") == "in a.layers.#.b, an axis of #"


def test_reasons_lose_their_places():
    reason = "the forward of a.layers.3.b gives this axis the length of another one"
    assert anywhere(reason) == "the forward of a module gives this axis the length of another one"
    assert (
        anywhere("'view' regroups 4 in a.layers.3; it comes out of 'x', in b.2")
        == "'view' regroups #; it comes out of 'x'"
    )
    assert anywhere("units take part in a product of two") == "units take part in a product of two"


def test_remedies():
    assert remedy("units are token ids (or classes); removing one would change what the model reads") == BY_DESIGN
    assert remedy("never heard of") == "Not known yet."
