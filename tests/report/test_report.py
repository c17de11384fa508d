"""The report: nothing lost in JSON, readable as Markdown."""

import pytest

from graphprune.errors import CheckpointError
from graphprune.report import Measures, Report, Stage

REPORT = Report(
    model="owner/name",
    before=Measures(
        parameters=6_738_415_616,
        weight_bytes=13_476_831_232,
        sequence_length=512,
        macs=3_500_000_000_000,
        cache_bytes=512 * 524_288,
    ),
    after=Measures(
        parameters=3_369_207_808,
        weight_bytes=6_738_415_616,
        sequence_length=512,
        macs=1_750_000_000_000,
        notes=("the cache was not measured: x",),
    ),
    perplexity_before=12.3456,
    perplexity_tuned=15.0,
    evaluation="WikiText-2, segments of 128 tokens",
    stages=(Stage(name="score", seconds=93.4, peak_rss_bytes=3 << 30),),
    plan={
        "mlp.channel": {
            "groups": 2,
            "removed": 30,
            "of": 120,
            "ratio": 0.25,
            "all_groups": 4,
            "all_of": 240,
            "all_ratio": 0.125,
        },
        "moe.expert": {"groups": 1, "removed": 1, "of": 4},
    },
    versions={"torch": "2.9"},
    seed=7,
    tier="hf",
    load="model = load('x')",
    notes=("rounded | up",),
)


def test_json_brings_everything_back(tmp_path):
    REPORT.save(tmp_path)
    assert Report.read(tmp_path / "report.json") == REPORT
    assert (tmp_path / "report.md").read_text() == REPORT.to_markdown()


def test_markdown_reads_well():
    text = REPORT.to_markdown()
    lines = text.splitlines()
    assert lines[0] == "# Pruning report: owner/name"
    assert "model = load('x')" in lines
    assert "| parameters       |   6.74 G |  3.37 G | 50.0% |" in lines
    assert "| weights          | 12.6 GiB | 6.3 GiB | 50.0% |" in lines
    assert "| MACs, 512 tokens |    3.5 T |  1.75 T | 50.0% |" in lines
    assert not any("KV cache" in line for line in lines), "a number that is missing on one side is left out"
    assert "| perplexity | before | tuned |" in lines
    assert "|            |  12.35 | 15.00 |" in lines
    assert "| mlp.channel |      2 |      30 (25%) | 120 |          240 |   12.5% |" in lines
    assert "| moe.expert  |      1 |       1 (25%) |   4 |            – |       – |" in lines, "of an older version"
    assert "| parameters  |        |               |     |       6.74 G |   50.0% |" in lines
    assert "| score | 1 min 33 s |     3.0 GiB |              – |" in lines
    assert "- rounded | up" in lines
    assert "- the cache was not measured: x" in lines
    for table in text.split("\n\n"):
        if table.startswith("|"):
            assert len({len(line) for line in table.splitlines()}) == 1, "columns are padded"


def test_a_short_report_has_no_empty_sections():
    measures = Measures(parameters=999, weight_bytes=100, sequence_length=8)
    text = Report(model="m", before=measures, after=measures).to_markdown()
    assert "##" not in text
    assert "| parameters |    999 |   999 | 100.0% |" in text
    assert "| weights    |  100 B | 100 B | 100.0% |" in text


def test_other_files_are_no_reports(tmp_path):
    (tmp_path / "x.json").write_text("{}")
    for name in ("x.json", "y.json"):
        with pytest.raises(CheckpointError, match="is no report"):
            Report.read(tmp_path / name)


def test_a_perplexity_without_bound_is_kept(tmp_path):
    report = REPORT.model_copy(update={"perplexity_tuned": float("inf")})
    report.save(tmp_path)
    assert Report.read(tmp_path / "report.json") == report
