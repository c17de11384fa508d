"""Axis expressions against the plain positions they stand for."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from graphprune.trace.axes import (
    UNIT,
    AxisConflict,
    atoms,
    concat,
    cut,
    fresh,
    length,
    narrow,
    regroup,
    resolve,
    split,
    strided,
    unify,
)
from graphprune.trace.places import places, polynomial


def units(expr, atom):
    """Indices of every unit of ``atom`` along ``expr``, as sets."""
    blocks = places(expr)[atom.root()]
    return [sorted(int(i) for b in blocks for i in b.offsets() + u * b.unit_stride) for u in range(atom.size)]


def test_a_view_splits_an_axis_and_every_holder_sees_it():
    rows = fresh(24)
    heads, dim = regroup([rows], [4, 6])
    assert [f.size for f in resolve(rows)] == [4, 6]
    assert units(rows, atoms(heads)[0])[1] == list(range(6, 12))
    assert units(rows, atoms(dim)[0])[2] == [2, 8, 14, 20]


def test_repeated_key_heads_refine_the_query_heads():
    query = fresh(48)
    heads, _ = regroup([query], [8, 6])
    groups, repeat = fresh(4), fresh(2)
    unify(heads, groups + repeat)
    assert units(query, atoms(groups)[0])[3] == list(range(36, 48))
    assert units(query, atoms(repeat)[0])[1] == [i for g in range(4) for i in range(12 * g + 6, 12 * g + 12)]


def test_pieces_of_a_fused_projection_are_cut_and_tied():
    fused = fresh(20)
    gate, up = cut(fused, 10)
    unify(gate, up)
    (atom,) = atoms(fused)
    assert units(fused, atom)[3] == [3, 13]


def test_rotary_halves_tie_to_each_other():
    dim = fresh(8)
    first, second = cut(dim, 4)
    unify(concat([second, first]), dim)
    (atom,) = atoms(dim)
    assert units(dim, atom) == [[0, 4], [1, 5], [2, 6], [3, 7]]


def test_interleaved_channels_make_the_stride_structural():
    fused = fresh(12)
    gate, up = strided(fused, 0, 2), strided(fused, 1, 2)
    unify(gate, up)
    (atom,) = atoms(gate)
    assert units(fused, atom)[2] == [4, 5]


def test_a_concatenation_written_down_twice_is_one_axis():
    """Heads of queries and keys, laid end to end once for each of two convolutions."""
    groups, repeat, dim = fresh(2), fresh(4), fresh(10)
    heads = [(groups, repeat), (groups,)]
    once, twice = (concat([sum(h, ()) for h in heads]) for _ in range(2))
    inner, other = fresh(3), fresh(3)
    whole = concat([once + inner, twice + inner])
    assert [f.size for f in whole] == [2, 10, 3]  # both pieces end in the same heads, which are pulled out
    unify(once + dim + inner, twice + dim + other)
    assert [a.size for a in atoms(once)] == [2, 4]  # nothing was split to make equal what was equal
    assert atoms(inner) == atoms(other)


def test_pieces_of_one_position_divide_into_runs():
    """Query heads that are normalised one by one, and key heads likewise, each repeated for two query heads."""
    dim, repeat = fresh(6), fresh(2)
    queries, keys, values = (concat([UNIT] * 8) + dim, concat([UNIT] * 4) + repeat + fresh(6), fresh(24))
    unify(queries, keys)
    assert [f.size for f in resolve(keys)] == [4, 2, 6]
    assert atoms(queries) == atoms(keys) == atoms(dim)
    heads, _ = regroup([values], [4, 6])
    unify(heads, concat([UNIT] * 4))
    assert [f.size for f in resolve(values)] == [4, 6]


def test_runs_go_across_pieces():
    first, rest = fresh(3), fresh(5)
    outer, inner = split(concat([first, rest])[0], 4)
    assert (length(outer), length(inner)) == (4, 2)
    assert [length(e) for e in (first, rest)] == [3, 5]


def test_common_inner_factors_have_one_spelling():
    dim = fresh(6)
    one = concat([fresh(4) + dim, fresh(2) + dim])
    assert len(one) == 2 and one[-1] is dim[0]
    heads, inner = regroup([one], [6, 6])
    assert inner == dim and length(heads) == 6


@pytest.mark.parametrize(
    ("operation", "message"),
    [
        (lambda: unify(fresh(4), fresh(6)), "4 and 6 positions"),
        (lambda: cut(fresh(4) + fresh(3), 2), "inside a run of 3"),
        (lambda: split(fresh(6)[0], 4), "6 cannot be split into 4"),
        (lambda: regroup([fresh(4, "stored"), fresh(9)], [6, 6]), "regroups 4 across"),
        (lambda: strided(fresh(7), 0, 2), "no regular sub-axis"),
    ],
)
def test_what_does_not_fit_is_a_conflict(operation, message):
    with pytest.raises(AxisConflict, match=message):
        operation()


@st.composite
def programs(draw):
    """An axis and a few view and slice operations on it, with the positions that numbers take through them."""
    sizes = draw(st.lists(st.integers(2, 4), min_size=2, max_size=4))
    steps = draw(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), max_size=4))
    return sizes, steps


@settings(deadline=None, max_examples=150)
@given(programs())
def test_positions_follow_the_same_views_and_slices_as_numbers(program):
    sizes, steps = program
    axis = fresh(int(torch.tensor(sizes).prod()))
    numbers = torch.arange(length(axis)).reshape(sizes)
    dims = regroup([axis], sizes)
    for which, at in steps:
        d = which % len(dims)
        size = numbers.shape[d]
        if 0 < at < size:
            numbers = numbers.narrow(d, at, size - at)
            dims[d] = narrow(dims[d], at, size)
    for d, expr in enumerate(dims):
        for atom in atoms(expr):
            mine, whole = units(expr, atom), units(axis, atom)
            for unit in range(atom.size):
                seen = numbers.index_select(d, torch.tensor(mine[unit])).flatten().tolist()
                assert set(seen) <= set(whole[unit])


def test_sizes_become_polynomials_of_named_atoms():
    heads, pad = fresh(5), fresh(2)
    expr = concat([heads + fresh(3), pad])
    assert polynomial(expr, lambda a: "h" if a is heads[0].root() else None) == {("h",): 3, (): 2}
