"""What is refused of a declaration, with which words, and that everything is told at once."""

import pytest

import graphprune as gp
from graphprune.errors import SpecError
from tests.declare.models import Experts, Opaque, decoder
from tests.declare.specs import CHANNELS, EXPERTS, HEADS, spec


def refusal(model, *groups):
    with pytest.raises(SpecError) as caught:
        gp.declare(gp.trace(model), spec(*groups), model, source="my.yaml")
    assert str(caught.value).startswith("my.yaml: ")
    return caught.value


def member(i, **changes):
    members = [dict(m) for m in HEADS["members"]]
    members[i] = {**members[i], **changes}
    return {**HEADS, "members": members}


@pytest.mark.parametrize(
    ("group", "problem"),
    [
        (
            member(1, tensor="blocks.{layer}.attention.keys.weight"),
            (
                "groups[0].members[1].tensor: expected a parameter or persistent buffer, but no name matches "
                "'blocks.0.attention.keys.weight'; nearest are blocks.0.attention.key.weight,"
            ),
        ),
        (
            member(0, dim=2),
            (
                "groups[0].members[0].dim: expected one of the 2 dimensions of "
                "'blocks.0.attention.query.weight', (24, 12), from 0 on; got 2"
            ),
        ),
        (
            {**HEADS, "size": 7},
            (
                "groups[0].members[0]: dimension 0 of 'blocks.0.attention.query.weight': 24 indices cannot be "
                "shared evenly among 7 units. Give start and length or blocks, or correct the size."
            ),
        ),
        (
            member(0, start=8, length=24),
            (
                "groups[0].members[0].length: expected a part of dimension 0 of "
                "'blocks.0.attention.query.weight', which has 24 indices, got 8..31"
            ),
        ),
        (
            member(0, blocks=[{"unit_stride": 5, "loops": [[4, 1]]}]),
            (
                "groups[0].members[0].blocks: dimension 0 of 'blocks.0.attention.query.weight', 6 units: "
                "expected places below 24, the length of the dimension, got 28"
            ),
        ),
        (
            {**HEADS, "completes": False},
            (
                "groups[0].members[0]: dimension 0 of 'blocks.0.attention.query.weight' belongs to "
                "'blocks.0.attention/other', which also runs through 'blocks.0.attention.query.bias' (dimension "
                "0); cutting only a part of it"
            ),
        ),
        (
            {**member(0, tensor="blocks.{layer}.ffn.up.weight", start=0, length=6), "completes": False},
            (
                "groups[0].members[0]: dimension 0 of 'blocks.0.ffn.up.weight' belongs to "
                "'blocks.0.ffn/mlp.channel', which was traced whole and can be pruned as it is (mlp.channel, 10 "
                "units)."
            ),
        ),
        (
            {**HEADS, "members": [*HEADS["members"], HEADS["members"][0]]},
            (
                "groups[0].members[4]: index 0 of dimension 0 of 'blocks.0.attention.query.weight' is in two "
                "members of this"
            ),
        ),
        (
            {**HEADS, "size": None},
            "groups[0].size: expected the number of units, which nothing here tells. Give 'size' (in layer 0)",
        ),
        (
            {**HEADS, "sizes": {"blocks.{layer}.attention.heads": "size"}},
            (
                "groups[0].sizes['blocks.{layer}.attention.heads']: expected the path of an integer, got "
                "'blocks.0.attention.heads': no attribute 'heads' there; integers are n_heads"
            ),
        ),
        (
            {**HEADS, "sizes": {"blocks.{layer}.attention.n_heads": "2*size"}},
            (
                "groups[0].sizes['blocks.{layer}.attention.n_heads']: expected 2*size = 12 with 6 units, but "
                "'blocks.0.attention.n_heads' is 6. Correct one"
            ),
        ),
        (
            {**HEADS, "sizes": {"blocks.{layer}.atention.n_heads": "size"}},
            (
                "groups[0].sizes['blocks.{layer}.atention.n_heads']: expected the path of an integer, got "
                "'blocks.0.atention.n_heads': the model has no module"
            ),
        ),
        (
            {**HEADS, "mask": [{"input": "blocks.{layer}.attention.norm"}]},
            "groups[0].mask[0].input: the model has no module 'blocks.0.attention.norm'",
        ),
        (
            {**HEADS, "mask": [{"input": "blocks.{layer}.norm"}]},
            (
                "groups[0].mask[0].input: expected a linear layer, whose input has a known length, got a LayerNorm "
                "at 'blocks.0.norm'."
            ),
        ),
        (
            {**HEADS, "members": HEADS["members"][:3]},
            "groups[0].mask: expected a place where units can be silenced, so that removing can be checked,",
        ),
        (
            {**HEADS, "completes": "blocks.{layer}.attention/others"},
            (
                "groups[0].completes: expected the name of a traced group, got 'blocks.0.attention/others', "
                "which is none; frozen ones are: blocks.0.attention/other, "
            ),
        ),
        (
            {**HEADS, "completes": "blocks.{layer}.ffn/mlp.channel"},
            "groups[0]: 'blocks.0.ffn/mlp.channel' has 10 units, which cannot be the 6 declared ones in dimension 0 of",
        ),
        (
            {**HEADS, "name": "blocks.{layer}.ffn/mlp.channel"},
            ("groups[0].name: expected a name of its own, got 'blocks.0.ffn/mlp.channel', which another group has"),
        ),
        ({**HEADS, "layers": "2:9,8"}, "groups[0].layers: layer 8 does not exist: the model has 3 layers"),
        ({**HEADS, "minimum": 6}, "groups[0].minimum: expected less than the 6 units there are, got 6"),
        (
            {"role": "mlp.channel", "size": 23, "members": [{"tensor": "embedding.weight", "consumes": True}]},
            "groups[0].members[0]: dimension 0 of 'embedding.weight' must not be cut: its units are token ids",
        ),
        (
            {"role": "x", "size": 2, "members": [{"tensor": "head.weight", "dim": 1, "consumes": True}], "layers": 1},
            "groups[0].layers: expected a {layer} in a name, for layers to choose among; got none.",
        ),
    ],
)
def test_every_problem_has_its_path_what_was_expected_and_what_was_got(group, problem):
    problems = refusal(decoder(), {k: v for k, v in group.items() if v is not None}).problems
    assert any(p.startswith(problem) for p in problems), "\n".join(problems)


def test_all_problems_of_all_declarations_come_at_once():
    wrong = {**member(0, dim=3), "sizes": {"blocks.{layer}.attention.n_heads": "size"}}
    problems = refusal(decoder(Opaque, Experts), wrong, {**EXPERTS, "size": 7}, {**CHANNELS, "size": 9}).problems
    assert [p.split(":")[0] for p in problems] == [
        "groups[0].members[0].dim",
        "groups[1].members[0]",
        "groups[1].members[1]",
        "groups[2].members[0].blocks",
        "groups[2].members[1].blocks",
    ]


def test_two_declarations_of_the_same_indices_contradict():
    again = {**HEADS, "name": "mine.{layer}", "sizes": {}}
    problems = refusal(decoder(), HEADS, again).problems
    assert problems[0] == (
        "groups[1].members[0]: dimension 0 of 'blocks.0.attention.query.weight' is cut by groups[0] too "
        "('blocks.0.attention/attention.group'); an index belongs to one group only. Remove one of them "
        "(and 2 more cases)"
    )


def test_units_that_were_traced_coarser_contradict():
    """Experts are whole in the router; a declaration of half-experts lies across nothing and inside nothing."""
    halves = {**EXPERTS, "size": 10, "completes": "blocks.{layer}.ffn/moe.expert", "sizes": {}}
    problems = refusal(decoder(Opaque, Experts), halves).problems
    assert any("'blocks.0.ffn/moe.expert' has 5 units, which cannot be the 10 declared ones" in p for p in problems)


def test_routers_rows_alone_complete_nothing():
    rows = {"tensor": "blocks.{layer}.ffn.router.*"}
    (problem,) = refusal(decoder(Opaque, Experts), {**EXPERTS, "members": [rows], "sizes": {}}).problems
    assert problem.startswith(
        "groups[0].members: expected members beyond those that were traced in layer 0, but 'blocks.0.ffn/moe.expert' "
        "has them all. What else goes when one of its units goes?"
    )
    assert problem.endswith("(and 2 more cases)")
