"""The report says what the records say, in every form; what a study has no data for is not there."""

import base64
import re
import sys
from dataclasses import replace
from html.parser import HTMLParser
from importlib import import_module

import pytest

from graphprune.errors import MissingExtraError
from graphprune.study.findings import Findings
from graphprune.study.report import sections, write_report
from graphprune.study.report.answer import limits, sentence
from tests.study.builder import build


class Page(HTMLParser):
    """Tables, images and texts of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.rows, self.images, self.words, self.addresses, self._row = [], [], [], [], None
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        if tag == "tr":
            self._row = []
        elif tag == "img":
            self.images.append(attrs)
        self.addresses += [attrs[name] for name in ("src", "href", "srcset") if attrs.get(name)]

    def handle_endtag(self, tag):
        if tag == "tr":
            self.rows.append(self._row)
            self._row = None

    def handle_data(self, data):
        if data.strip():
            self.words.append(data.strip())
            if self._row is not None:
                self._row.append(data.strip())


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study")
    results = build(folder, series=3, ratios=(0.2, 0.5), broken=(17,))
    write_report(results, folder)
    return results, folder, Page((folder / "report.html").read_text(encoding="utf-8"))


def test_every_file_is_there(written):
    _, folder, _ = written
    names = {file.name for file in folder.iterdir()}
    assert {"report.html", "report.md", "results.csv", "results.parquet", "summary.csv", "figures"} <= names
    stems = {file.stem for file in (folder / "figures").glob("*.png")}
    assert {"quality-perplexity-final", "resources", "similarity-layers", "importance", "training", "cost"} <= stems
    for stem in stems:
        assert (folder / "figures" / f"{stem}.svg").exists() and (folder / "figures" / f"{stem}-narrow.svg").exists()


def test_every_number_of_every_run_is_on_the_page(written):
    results, _, page = written
    rows = {row[-1]: row for row in page.rows if row}
    for cell in results.cells:
        row = rows[cell.key]
        assert row[:3] == [cell.labels["criterion"], cell.labels["ratio"], str(cell.seed)]
        if cell.status == "failed":
            assert row[3] == "failed"
        else:
            assert row[3] == f"{cell.report.perplexity_tuned:.2f}"
            assert row[4] == f"{cell.report.perplexity_pruned:.2f}"
            assert row[6] == f"{100 * cell.evaluation.tasks['arc_easy=/data/arc_easy.jsonl'].metrics['acc_norm']:.1f} %"


def test_failures_have_their_reasons(written):
    results, folder, page = written
    (failed,) = [cell for cell in results.cells if cell.status == "failed"]
    assert any(failed.error in row for row in page.rows)
    assert failed.error in (folder / "report.md").read_text(encoding="utf-8")
    assert any("1 run of 18 failed (magnitude)" in words for words in page.words)


def test_the_page_needs_nothing_else(written):
    _, _, page = written
    for address in page.addresses:
        assert address.startswith(("#", "data:")), address[:80]
    for image in page.images:
        svg = base64.b64decode(image["src"].partition("base64,")[2]).decode()
        assert svg.lstrip().startswith("<?xml") and not re.search(r'href="(?!#|data:)', svg)
        assert len(image["alt"]) > 30


def test_each_run_can_be_repeated_from_the_page(written):
    results, folder, page = written
    text = "\n".join(page.words)
    for cell in results.cells:
        assert cell.command in text
    assert "torch 2.13.0" in text and "https://arxiv.org/abs/2305.18403" in text
    assert "title: Criteria at equal steps" in text and "title: Criteria" in (folder / "report.md").read_text()


def test_the_answer_is_what_the_statistics_say(written):
    results, _, page = written
    findings = Findings(results)
    for place in findings.places:
        standing = findings.standing(findings.metrics[0], place)
        words = sentence(findings, findings.metrics[0], place)
        best = standing.estimates[standing.best]
        assert words in page.words and f"{standing.best} " in words and f"{best.mean:.2f}" in words
        for name in standing.group[1:]:
            assert name in words.partition("cannot be told")[0] or "none of the others" in words
        for name, found in standing.comparisons.items():
            assert (f"{name} (" in words.partition("worse:")[2]) == (found.verdict == "worse")


def test_markdown_has_the_same_answer(written):
    results, folder, _ = written
    text = (folder / "report.md").read_text(encoding="utf-8")
    findings = Findings(results)
    assert all(sentence(findings, findings.metrics[0], place) in text for place in findings.places)
    for name in re.findall(r"\]\((figures/[^)]+)\)", text):
        assert (folder / name).exists()


def test_alt_texts_have_the_numbers(written):
    results, _, page = written
    findings = Findings(results)
    (quality,) = [i["alt"] for i in page.images if i["alt"].startswith("Perplexity along ratio: ")]
    for place in findings.places:
        found = findings.standing(findings.metrics[0], place).estimates
        assert all(f"{found[name].mean:.2f}" in quality for name in ("taylor", "lora"))


def test_one_seed_gets_no_verdict(tmp_path):
    findings = Findings(build(tmp_path, series=3, seeds=1))
    for place in findings.places:
        words = sentence(findings, findings.metrics[0], place)
        assert "no verdict (one seed)" in words and "best" not in words and "worse" not in words
    assert "No claim is made" in " ".join(limits(findings, findings.metrics[0]))


def test_only_what_there_is(tmp_path):
    findings = Findings(build(tmp_path, series=2, seeds=1, ratios=(0.5,), modes=("none",), measured=False))
    names = [section.name for section in sections(findings)]
    assert "training" not in names and "cost" not in names and names[0] == "answer" and names[-1] == "reproduce"


def test_nothing_but_failures(tmp_path):
    results = build(tmp_path, series=2, seeds=1, ratios=(0.5,), broken=(0, 1))
    write_report(results, tmp_path)
    page = Page((tmp_path / "report.html").read_text(encoding="utf-8"))
    assert "No quality is known: of 2 runs 2 failed, the others measured none." in page.words
    assert [section.name for section in sections(Findings(results))] == ["answer", "runs", "reproduce"]


def test_a_study_that_has_only_begun(tmp_path):
    results = build(tmp_path, series=2, seeds=1, ratios=(0.5,))
    begun = replace(results, cells=(), dense=(), missing=2)
    write_report(begun, tmp_path)
    page = Page((tmp_path / "report.html").read_text(encoding="utf-8"))
    assert "No quality is known: of 0 runs 0 failed, the others measured none." in page.words
    half = Findings(replace(results, cells=results.cells[:1], missing=1))
    assert "1 run more is to come" in " ".join(limits(half, half.metrics[0]))


def test_texts_cannot_break_the_page(tmp_path):
    results = build(tmp_path, series=2, seeds=1, ratios=(0.5,))
    study = results.study.model_copy(update={"title": "<script>alert(1)</script> & more"})
    write_report(replace(results, study=study), tmp_path)
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "<script>alert" not in text and "&lt;script&gt;alert(1)&lt;/script&gt; &amp; more" in text


def test_without_the_extra_it_is_named_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr(
        import_module("graphprune.study.report"),
        "find_spec",
        lambda name: None if name == "matplotlib" else sys.modules,
    )
    with pytest.raises(MissingExtraError, match=r"matplotlib.*graphprune\[report\]"):
        write_report(build(tmp_path / "study", series=2, seeds=1), tmp_path / "out")
    assert not (tmp_path / "out").exists()
