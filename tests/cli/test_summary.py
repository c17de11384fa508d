"""The table in the terminal: complete at 80 columns, wrapped but not cut below."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

import graphprune as gp
from graphprune.cli.summary import print_summary, short


def printed(graph: gp.DependencyGraph, width: int = 80, *, terminal: bool = True) -> list[str]:
    """The lines without colour."""
    options = {"markup": False, "highlight": False, "soft_wrap": True, "color_system": None}
    console = Console(file=io.StringIO(), width=width, force_terminal=terminal, **options)
    print_summary(graph, console)
    return [line.rstrip() for line in console.file.getvalue().splitlines()]


def group(role: str, layer: int | None, size: int, **extra: object) -> gp.Group:
    where = "hidden.state" if layer is None else f"m.layers.{layer}.w"
    member = gp.Member(tensor=where, dim=0, size=size, length=2 * size, blocks=(gp.Block(start=0, unit_stride=2),))
    return gp.Group(name=f"{where}/{role}", role=role, layer=layer, size=size, members=(member,), **extra)


def graph_of(*groups: gp.Group, **extra: object) -> gp.DependencyGraph:
    shapes = {m.tensor: (m.length, 1000) for g in groups for m in g.members}
    return gp.DependencyGraph(groups=groups, shapes=shapes, layers=100, **extra)


LARGE = graph_of(
    *(group("attention.qk_dim", n, 64 if n % 2 else 128) for n in range(100)),
    group("vocab", None, 129280, frozen="units are token ids; " + "removing one would change the tokenizer " * 3),
)


def test_a_row_fits_into_eighty_columns():
    lines = printed(LARGE)
    assert max(map(len, lines)) <= 80
    assert lines[0] == "101 groups in 100 layers"
    assert "attention.qk_dim     100  64 to 128         1.00K  0-99     exact" in lines
    assert "vocab                  1     129280         1.00K  outside  frozen [1]" in lines


@pytest.mark.parametrize("width", [40, 60])
def test_narrow_terminals_wrap_and_lose_nothing(width):
    lines = printed(LARGE, width)
    assert max(map(len, lines)) <= width
    assert not any("…" in line for line in lines)
    notes = " ".join(line.strip() for line in lines[lines.index(next(x for x in lines if x.startswith("[1]"))) :])
    assert notes == f"[1] frozen: {LARGE.groups[-1].frozen}".strip()


def test_without_a_terminal_reasons_stay_on_one_line():
    assert f"[1] frozen: {LARGE.groups[-1].frozen}".strip() in printed(LARGE, terminal=False)


def test_reasons_that_differ_in_their_layer_alone_share_a_note():
    why = "no rule for 'blur' (called in m.layers.{}.mixer)"
    groups = [group("mlp.channel", n, 4, frozen=why.format(n)) for n in range(3)]
    other = group("rank", 0, 4, exact=False, inexact_reason="a norm")
    lines = printed(graph_of(*groups, other, notes=tuple(why.format(n) for n in range(3))))
    assert [line for line in lines if line.startswith(("[", "note"))] == [
        "[1] inexact: a norm",
        "[2] frozen: no rule for 'blur' (called in m.layers.*.mixer)",
        "note: no rule for 'blur' (called in m.layers.*.mixer) (layers 0-2)",
    ]
    assert len([line for line in lines if line.startswith("mlp.channel")]) == 1


def test_groups_that_run_through_layers_say_through_which():
    parts = [group("x", n, 4).members[0] for n in (0, 1, 2, 5)]
    hidden = gp.Group(name="hidden", role="hidden", layer=None, size=4, members=tuple(parts))
    lines = printed(graph_of(hidden, group("mlp.channel", 3, 4)))
    assert any(line.startswith("hidden") and "across 0-2, 5" in line for line in lines)


def test_groups_without_a_unit_to_spare_are_named():
    frozen = group("vocab", None, 4, minimum=4, frozen="units are token ids")
    experts = [group("moe.expert", n, 8, minimum=8) for n in (1, 2)]
    lines = printed(graph_of(*experts, group("moe.expert", 3, 8, minimum=7), group("attention.group", 0, 1), frozen))
    assert [line for line in lines if line.startswith("note")] == [
        "note: moe.expert (layers 1-2): all 8 units must stay, so none can go",
        "note: attention.group (layer 0): the only unit must stay, so none can go",
    ]


def test_parameters_that_were_never_used_are_named():
    lines = printed(graph_of(untraced=tuple(f"eye.{n}" for n in range(12))), width=200)
    shown = ", ".join(f"eye.{n}" for n in range(10))
    assert lines[-1] == f"note: 12 parameters never used by the traced forward: {shown}, ..."


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0, "0"),
        (512, "512"),
        (999.4, "999"),
        (999.9, "1.00K"),
        (24576, "24.6K"),
        (524288, "524K"),
        (1_048_576, "1.05M"),
    ],
)
def test_counts_have_three_digits(number, text):
    assert short(number) == text
