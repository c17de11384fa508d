"""Similarity of plans, by hand."""

import math

import pytest

from graphprune.study.layout import Layout, Place
from graphprune.study.masks import kind, kinds, similarity
from graphprune.study.records import CellRecord, GroupRecord
from graphprune.study.results import Results
from graphprune.study.schema import Study


def layout(*plans: dict[str, tuple[int, ...]], tmp_path, seed: int = 0) -> Layout:
    """One setting per plan; groups ``LAYER/ROLE`` of ten units."""
    cells = []
    for number, plan in enumerate(plans):
        groups = {
            name: GroupRecord(role=name.split("/")[1], layer=int(name[0]), size=10, removed=removed)
            for name, removed in plan.items()
        }
        labels = {"model": "m", "criterion": f"c{number}"}
        cells.append(CellRecord(key=str(number), labels=labels, seed=seed, spec={}, groups=groups))
    study = Study(title="t", vary={"criterion": [f"c{n}" for n in range(len(plans))]})
    return Layout.of(Results(study=study, cells=tuple(cells), dense=(), folder=tmp_path))


def test_jaccard_agreement_and_chance(tmp_path):
    found = similarity(
        layout({"0/mlp.channel": (1, 2, 3)}, {"0/mlp.channel": (2, 3, 4, 5)}, tmp_path=tmp_path),
        Place(("m",), ""),
        "mlp",
    )
    assert found is not None and found.layers == (0,)
    assert found.jaccard[0, 0, 1] == pytest.approx(2 / 5) and found.jaccard[0, 0, 0] == 1
    assert found.agreement[0, 0, 1] == pytest.approx(7 / 10)
    assert found.chance[0, 0, 1] == pytest.approx(1.2 / (7 - 1.2))  # 3·4/10 in common by chance


def test_kinds_are_apart_and_groups_of_a_layer_are_averaged(tmp_path):
    one = {"0/attention.group": (0,), "1/mlp.channel": (0, 1), "0/mlp.channel": (4,), "0/mlp.rank": (1,)}
    two = {"0/attention.group": (1,), "1/mlp.channel": (0, 1), "0/mlp.channel": (4,), "0/mlp.rank": (2,)}
    both = layout(one, two, tmp_path=tmp_path)
    assert kinds(both.cells) == ("attention", "mlp") and kind("mlp.channel") == "mlp"
    attention = similarity(both, Place(("m",), ""), "attention")
    mlp = similarity(both, Place(("m",), ""), "mlp")
    assert attention.jaccard[0, 0, 1] == 0 and mlp.layers == (0, 1)
    assert mlp.jaccard[:, 0, 1] == pytest.approx([0.5, 1.0])
    assert mlp.overall(mlp.jaccard)[0, 1] == pytest.approx(0.75)


def test_nothing_removed_is_no_similarity(tmp_path):
    both = layout(
        {"0/mlp.channel": (), "1/mlp.channel": (1,)}, {"0/mlp.channel": (), "1/mlp.channel": (2,)}, tmp_path=tmp_path
    )
    found = similarity(both, Place(("m",), ""), "mlp")
    assert math.isnan(found.jaccard[0, 0, 1]) and found.agreement[0, 0, 1] == 1
    assert found.overall(found.jaccard)[0, 1] == 0
    empty = layout({"0/mlp.channel": ()}, {"0/mlp.channel": ()}, tmp_path=tmp_path)
    assert kinds(empty.cells) == () and similarity(empty, Place(("m",), ""), "mlp") is None


def test_one_setting_alone_has_none(tmp_path):
    alone = layout({"0/mlp.channel": (1,)}, tmp_path=tmp_path)
    assert similarity(alone, Place(("m",), ""), "mlp") is None
