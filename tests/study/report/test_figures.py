"""Figures can be read: no text over another or outside, in both sizes, with few and with many settings."""

import hashlib

import matplotlib as mpl
import pytest

from graphprune.study.findings import Findings
from graphprune.study.report import sections
from graphprune.study.report.figures import fit, fit_all, look, spread, width_of, wrap
from tests.study.builder import build
from tests.study.report.texts import faults

STUDIES = {
    "three": {"series": 3, "seeds": 2, "ratios": (0.1, 0.2, 0.5)},
    "one seed": {"series": 3, "seeds": 1, "ratios": (0.5,), "modes": ("none",), "measured": False},
}
MANY = {
    "failures": {"series": 4, "seeds": 2, "broken": (0, 1, 5)},
    "categories": {"series": 5, "across": "mode", "modes": ("joint", "separate", "none"), "ratios": (0.2, 0.5)},
    "ratios close by": {"series": 2, "seeds": 2, "ratios": (0.1, 0.11, 0.12, 0.5, 0.9)},
    "thirty": {"series": 30, "seeds": 2},
    "ten, deep": {"series": 10, "seeds": 2, "layers": 40},
    "thirty, deeper": {"series": 30, "seeds": 1, "layers": 80, "ratios": (0.2, 0.5)},
    "models": {"series": 8, "seeds": 2, "models": ("stories", "demo"), "modes": ("joint", "separate")},
}


def check(options: dict, folder) -> None:
    pictures = [picture for part in sections(Findings(build(folder, **options))) for picture in part.pictures]
    assert pictures and [fault for picture in pictures for fault in faults(picture)] == []
    assert all(len(picture.alt) > 30 and picture.caption[0].isupper() for picture in pictures)
    assert len({picture.name for picture in pictures}) == len(pictures)


@pytest.mark.parametrize("name", STUDIES)
def test_texts_of_figures_do_not_meet(name: str, tmp_path):
    check(STUDIES[name], tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", MANY)
def test_texts_of_many_do_not_meet_either(name: str, tmp_path):
    check(MANY[name], tmp_path)


def test_figures_are_the_same_every_time_and_leave_matplotlib_alone(tmp_path):
    before = dict(mpl.rcParams)
    (picture, *_) = next(part.pictures for part in sections(Findings(build(tmp_path, series=2))) if part.pictures)
    hashes = set()
    for _ in range(2):
        picture.save(tmp_path)
        files = [tmp_path / f"{picture.name}{end}" for end in (".svg", "-narrow.svg", ".png")]
        hashes.add(hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest())
    assert len(hashes) == 1 and dict(mpl.rcParams) == before
    assert "<dc:date>" not in (tmp_path / f"{picture.name}.svg").read_text()


def test_looks_differ_in_two_of_three():
    looks = [look(number) for number in range(10)]
    for one in range(10):
        for other in range(one):
            assert sum(looks[one][key] != looks[other][key] for key in looks[0]) >= 2, (one, other)


def test_long_texts_are_cut_in_the_middle_and_stay_apart():
    assert fit("short", 2.0, 9) == "short"
    long = "a criterion with a very long name, variant 1"
    cut = fit(long, 1.0, 9)
    assert "…" in cut and width_of(cut, 9) <= 1.0 and cut.endswith("1")
    names = [f"the same beginning {'x' * k} the same end" for k in range(8, 12)]
    assert len(set(fit_all(names, 0.9, 9))) == 4
    assert wrap("two words", width_of("words", 9) + 0.05, 9) == "two\nwords"


def test_labels_are_spread_in_their_order():
    moved = spread([0.5, 0.52, 0.51], 0.2, 0.0, 1.0)
    assert sorted(moved) == [moved[0], moved[2], moved[1]]
    assert min(b - a for a, b in zip(sorted(moved), sorted(moved)[1:], strict=False)) >= 0.2 - 1e-9
    assert max(spread([0.98, 0.99], 0.1, 0.0, 1.0)) <= 1.0
