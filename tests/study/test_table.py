"""The tidy table holds what the records hold, and shows what is missing."""

import math
import sys

import pandas as pd
import pytest

from graphprune.errors import MissingExtraError
from graphprune.study.findings import Findings
from graphprune.study.table import frame, summary, write_tables
from tests.study.builder import build


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    return build(tmp_path_factory.mktemp("study"), series=3, ratios=(0.2, 0.5), broken=(2,))


def test_a_row_per_cell_with_its_numbers(results):
    table = frame(results)
    assert list(table.key) == [cell.key for cell in results.cells]
    for row, cell in zip(table.to_dict("records"), results.cells, strict=True):
        assert (row["model"], row["criterion"], row["ratio"]) == tuple(cell.labels.values())
        assert row["ratio_value"] == cell.values["ratio"] and row["seed"] == cell.seed
        if cell.status == "failed":
            continue
        assert row["perplexity_final"] == row["perplexity_tuned"] == cell.report.perplexity_tuned
        assert row["perplexity[/texts/wiki_valid.txt]"] == cell.evaluation.perplexity["/texts/wiki_valid.txt"]
        assert row["acc_norm[arc_easy=/data/arc_easy.jsonl]"] == pytest.approx(
            cell.evaluation.tasks["arc_easy=/data/arc_easy.jsonl"].metrics["acc_norm"]
        )
        assert row["parameters_after"] == cell.report.after.parameters < row["parameters_before"]
        assert row["prefill_seconds"] == cell.evaluation.latency.prefill.median
        assert row["seconds_train"] == next(s.seconds for s in cell.report.stages if s.name == "train")
        assert row["peak_rss_bytes"] == max(s.peak_rss_bytes for s in cell.report.stages)
        assert row["dense prefill_seconds"] == results.dense[0].evaluation.latency.prefill.median
        assert row["units_removed"] == sum(len(g.removed) for g in cell.groups.values())


def test_failures_stay_visible(results):
    (failed,) = frame(results).query("status == 'failed'").to_dict("records")
    assert failed["error"].startswith("NonFiniteError") and math.isnan(failed["perplexity_final"])
    assert math.isnan(failed["units_removed"])


def test_files_give_the_table_back(results, tmp_path):
    write_tables(Findings(results), tmp_path)
    table = frame(results)
    for read in (pd.read_parquet(tmp_path / "results.parquet"), pd.read_csv(tmp_path / "results.csv")):
        assert list(read.columns) == list(table.columns)
        assert read.perplexity_final.to_numpy() == pytest.approx(table.perplexity_final.to_numpy(), nan_ok=True)
    assert "NaN" in (tmp_path / "results.csv").read_text()


def test_the_summary_has_every_setting_at_every_place(results):
    found = summary(Findings(results))
    final = found[found.metric == "perplexity_final"]
    assert len(final) == 3 * 2 and set(final.verdict) <= {"best", "tie", "worse"}
    by_hand = frame(results).query("criterion == 'lora' and ratio == '0.5'").perplexity_final
    row = final.query("criterion == 'lora' and ratio == '0.5'").iloc[0]
    assert row["mean"] == pytest.approx(math.exp(by_hand.map(math.log).mean()))
    assert row["smallest"] == by_hand.min() and row["low"] < row["mean"] < row["high"]
    assert final.query("criterion == 'taylor' and ratio == '0.2'").seeds.item() == 2  # one of three failed


def test_without_the_extra_it_is_named(results, monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(MissingExtraError, match=r"graphprune\[report\]"):
        frame(results)
