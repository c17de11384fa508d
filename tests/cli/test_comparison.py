"""Studies in the terminal."""

import io
from pathlib import Path

from rich.console import Console

from graphprune.cli.comparison import print_comparison
from graphprune.report import Measures, Report
from graphprune.study.records import CellRecord
from graphprune.study.results import Results
from graphprune.study.schema import Study

SIZE = Measures(parameters=1, weight_bytes=1, sequence_length=1)


def cell(seed, criterion, ratio, perplexity, tuned=None, model="m", **parts):
    labels = {"model": model, "criterion": criterion, "ratio": str(ratio)}
    report = Report(model="m", before=SIZE, after=SIZE, perplexity_pruned=perplexity, perplexity_tuned=tuned)
    given = {"key": "k", "labels": labels, "values": {"ratio": ratio}, "seed": seed, "spec": {}, "report": report}
    return CellRecord(**{**given, **parts})


def printed(cells, missing=0, **study):
    study = Study(title="t", vary={"ratio": [0.2, 0.5], "criterion": ["a", "b"]}, **{"series": "criterion", **study})
    console = Console(file=io.StringIO(), width=100)
    print_comparison(Results(study, tuple(cells), (), Path("x"), missing), console)
    return [" ".join(line.split()) for line in console.file.getvalue().splitlines()]


def test_means_over_seeds_of_what_comes_out():
    cells = [cell(s, "a", r, 90.0, 10.0 + s) for s in (0, 1, 2) for r in (0.2, 0.5)]
    cells += [cell(0, "b", 0.2, 7.0)]
    lines = printed(cells)
    assert "m, perplexity" in lines and "criterion ratio 0.2 ratio 0.5" in lines
    assert "a 11.00 ± 1.00 11.00 ± 1.00" in lines and "b 7.00 -" in lines


def test_every_model_has_a_table_and_failures_are_told():
    broken = cell(1, "b", 0.5, 1.0, model="n", status="failed", report=None, error="OutOfMemoryError: 3 GiB\nmore")
    lines = printed([cell(0, "a", 0.2, 3.0), cell(0, "a", 0.2, 4.0, model="n"), broken], missing=2)
    assert "n, perplexity" in lines and "a 4.00" in lines
    assert "failed: seed 1, n, b, 0.5: OutOfMemoryError: 3 GiB (key k)" in lines
    assert "2 cells have not been run" in lines


def test_without_an_axis_to_follow_there_is_one_column():
    study = Study(title="t", vary={"criterion": ["a"]})
    console = Console(file=io.StringIO(), width=100)
    only = cell(0, "a", 0.2, 3.0).model_copy(update={"labels": {"model": "m", "criterion": "a"}, "values": {}})
    print_comparison(Results(study, (only,), (), Path("x")), console)
    assert "a 3.00" in [" ".join(line.split()) for line in console.file.getvalue().splitlines()]
