"""Asking architectures whether pruned models load with stock loaders, and the page about it."""

import pytest

from graphprune.testing import stock
from graphprune.testing.stock import main, measure
from graphprune.testing.stock_results import StockResult, StockRow, read_stock
from graphprune.testing.stock_table import general, render, verdict


@pytest.mark.parametrize(
    ("case", "expected"),
    [
        ("qwen3_moe", dict.fromkeys(["heads", "query heads", "channels", "experts", "layers", "all"], "as asked")),
        ("gpt2", {"heads": "refused", "channels": "as asked", "layers": "as asked", "all": "refused"}),
    ],
)
def test_a_case_is_pruned_and_loaded(case, expected):
    result = measure(case)
    found = {row.kind: verdict(row) for row in result.rows}
    assert not result.failure
    assert {kind: found[kind] for kind in expected} == expected


def row(**changes):
    return StockRow(**{"kind": "heads", "asked": "3 of 4 attention.group", "kept": "3 of 4 attention.group", **changes})


def test_verdicts():
    assert verdict(row(loads=True)) == "as asked"
    assert verdict(row(loads=True, stand_in="Other")) == "stand-in"
    assert verdict(row(loads=True, kept="2 of 4 attention.group")) == "rounded"
    assert verdict(row(kept="", reason="no")) == "refused"
    assert verdict(row(loads=False, reason="gives other logits")) == "fails"


def test_reasons_are_told_once_for_all_places():
    told = general(
        "attention.group: 6 of 8 units asked for, it takes no other size; a constant of 'h.0/attention.group'"
    )
    assert told == "a constant of a group `attention.group`"


def test_the_command_writes_results_and_the_page(monkeypatch, tmp_path, capsys):
    asked = []

    def quick(case):
        asked.append(case)
        refused = row(kind="channels", kept="", reason="the class is stubborn")
        return StockResult(case=case, rows=(row(loads=True), refused))

    monkeypatch.setattr(stock, "measured_apart", quick)
    monkeypatch.setattr(stock, "cases", lambda: ("gpt2", "llama"))
    raw, page = tmp_path / "raw.json", tmp_path / "page.md"
    main(["--raw", str(raw), "--out", str(page)])
    assert [r.case for r in read_stock(raw)] == ["gpt2", "llama"]
    assert "| heads | 2 | 2 | 2 | · | · | · | · |" in page.read_text()
    assert "| channels | gpt2, llama | the class is stubborn |" in page.read_text()
    main(["--keep", "--raw", str(raw), "--out", str(page)])
    assert asked == ["gpt2", "llama"]
    main(["gpt2"])
    assert "gpt2" in capsys.readouterr().out
    assert "**llama**: it hung" in render([StockResult(case="llama", failure="it hung")])


def test_what_ends_early_is_a_result(monkeypatch):
    monkeypatch.setattr(stock, "measure", lambda case: 1 / 0)
    assert stock.measured_apart("llama").failure == "ZeroDivisionError: division by zero"
