"""Which axis is compared, which is followed, which stand apart."""

import pytest

from graphprune.study.findings import Findings
from graphprune.study.layout import Layout, Place
from graphprune.study.records import CellRecord
from graphprune.study.results import Results
from graphprune.study.schema import Study


def results(tmp_path, *, axes: dict[str, tuple], **options) -> Results:
    study = Study(title="t", vary={axis: list(labels) for axis, labels in axes.items() if axis != "model"}, **options)
    cells = [{}]
    for axis, labels in {"model": ("m",), **axes}.items():
        cells = [{**cell, axis: label} for cell in cells for label in labels]
    made = []
    for number, labels in enumerate(cells):
        values = {axis: float(v) for axis, v in labels.items() if isinstance(v, float)}
        text = {axis: str(v) for axis, v in labels.items()}
        made.append(CellRecord(key=str(number), labels=text, values=values, seed=0, spec={}))
    return Results(study=study, cells=tuple(made), dense=(), folder=tmp_path)


def test_the_first_axis_is_compared_along_the_ratio(tmp_path):
    axes = {"criterion": ("a", "b"), "mode": ("joint", "separate"), "ratio": (0.5, 0.2)}
    found = Layout.of(results(tmp_path, axes=axes))
    assert (found.series, found.across, found.rest) == ("criterion", "ratio", ("model", "mode"))
    assert found.points == ("0.2", "0.5") and found.positions == (0.2, 0.5) and found.numeric
    assert found.facets == (("m", "joint"), ("m", "separate")) and found.settings == ("a", "b")
    assert [found.title(facet) for facet in found.facets] == ["mode joint", "mode separate"]
    assert found.where(Place(("m", "joint"), "0.5")) == "mode joint, ratio 0.5"
    assert len(found.select(("m", "joint"), "0.5", "a")) == 1 and len(found.select(("m", "joint"))) == 4


def test_the_study_says_otherwise(tmp_path):
    axes = {"criterion": ("a", "b"), "ratio": (0.2, 0.5)}
    found = Layout.of(results(tmp_path, axes=axes, series="ratio", across="criterion"))
    assert (found.series, found.across, found.numeric) == ("ratio", "criterion", False)
    assert found.positions == (0.0, 1.0)


@pytest.mark.parametrize(("axes", "expected"), [
    ({"criterion": ("a", "b")}, ("criterion", None)),
    ({"ratio": (0.2, 0.5)}, ("ratio", None)),
    ({"ratio": (0.2, 0.5), "scope": ("layer", "global")}, ("ratio", "scope")),
    ({"every": (1.0, 10.0), "criterion": ("a", "b")}, ("every", "criterion")),
])  # fmt: skip
def test_defaults(tmp_path, axes, expected):
    found = Layout.of(results(tmp_path, axes=axes))
    assert (found.series, found.across) == expected
    assert found.points == ("",) if found.across is None else len(found.points) == 2


def test_models_can_be_compared(tmp_path):
    axes = {"model": ("m", "n"), "ratio": (0.2, 0.5)}
    found = Layout.of(results(tmp_path, axes=axes, series="model"))
    assert (found.series, found.across, found.rest) == ("model", "ratio", ()) and found.facets == ((),)
    assert found.model(()) is None and found.title(()) == ""


def test_verdicts_are_not_about_ratios_where_something_else_is_compared(tmp_path):
    axes = {"average": (0.0, 0.9), "ratio": (0.2, 0.5)}
    found = Findings(results(tmp_path, axes=axes, series="ratio", across="average"))
    assert (found.layout.series, found.layout.across) == ("ratio", "average")
    assert (found.judging.layout.series, found.judging.layout.across) == ("average", "ratio")
    plain = Findings(results(tmp_path, axes=axes))
    assert plain.judging is plain and plain.layout.series == "average"
    alone = Findings(results(tmp_path, axes={"ratio": (0.2, 0.5)}))
    assert alone.judging is alone
