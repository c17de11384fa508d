"""The page of the coverage table, from results made by hand."""

from __future__ import annotations

from graphprune.prove import ProofRow
from graphprune.testing.coverage import Result
from graphprune.testing.parts import PartRow
from graphprune.testing.table import render


def row(role, fate="exact", **more):
    values = {"difference": 2e-6, "scale": 2.0, "generates": True, "reloads": True, "tier": "hf"}
    return ProofRow(role=role, fate=fate, groups=3, units=9, **({} if fate == "frozen" else values | more))


def case(name, *rows, **more):
    return Result(case=name, sources="", rows=rows, **more)


RESULTS = (
    case("first", row("mlp.channel"), row("layer", difference=0.0), row("together", tier="graphprune")),
    case(
        "second@variant",
        row("mlp.channel"),
        row("mlp.channel", "frozen"),
        row("moe.expert", problem="masked and reshaped differ"),
        parts=(
            PartRow(part="experts", role="moe.channel", count=2, prunable=1, frozen=0, missing=("layers.0.experts",)),
            PartRow(part="mlp", role="mlp.channel|rank", count=3, prunable=2, frozen=1, reasons=("in layers.3.mlp",)),
            PartRow(part="model", role="layer", count=1, prunable=0, frozen=0, missing=("",)),
        ),
    ),
    case("third", failure="took longer than 180 s"),
)
LINES = render(RESULTS).splitlines()


def cells(start):
    line = next(line for line in LINES if line.startswith(start))  # the tables of reasons come later
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_counts_by_role():
    assert cells("| `mlp.channel` |") == ["`mlp.channel`", "1", "1", "0", "0", "1.0e-06"]
    assert cells("| `moe.expert` |")[1:5] == ["0", "0", "0", "1"]
    assert any(line.startswith("2 architectures and 1 variants; 2 traced and tried") for line in LINES)


def test_the_matrix():
    head = cells("| case |")
    first, second = (dict(zip(head, cells(f"| {name} |"), strict=True)) for name in ("first", "second@variant"))
    assert (first["mlp.channel"], first["layer"], first["hidden"], first["folder"]) == ("1e-6", "0", "·", "gp")
    assert (second["mlp.channel"], second["moe.expert"]) == ("1e-6 +f", "✗")
    assert cells("| third |")[-1] == "took longer than 180 s"


def test_what_fails_is_listed():
    assert "* **second@variant**, moe.expert: masked and reshaped differ" in LINES
    assert "* **third**: took longer than 180 s" in LINES


def test_promises_that_are_not_kept_are_listed():
    assert "* **second@variant**: no `moe.channel` of experts in 1 of 2, such as layers.0.experts" in LINES
    assert "* **second@variant**: `mlp.channel` or `rank` of mlp frozen in 1 of 3: in layers.#.mlp" in LINES
    assert "* **second@variant**: no `layer` of model in 1 of 1, such as the model" in LINES
