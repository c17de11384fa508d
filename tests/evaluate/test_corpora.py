"""Texts by name and by file, joined as the literature joins them."""

import json

import pytest

from graphprune.errors import DataError
from graphprune.evaluate import read_corpus


def test_a_text_file_is_read_as_it_is(tmp_path):
    (tmp_path / "a.txt").write_text("one\n\n two\n", encoding="utf-8")
    assert read_corpus(str(tmp_path / "a.txt")) == "one\n\n two\n"


def test_rows_are_joined_by_blank_lines_empty_ones_included(tmp_path):
    rows = ["", " = Title = \n", "first\n", "", "second\n"]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps({"text": row}) + "\n" for row in rows))
    assert read_corpus(str(tmp_path / "rows.jsonl")) == "\n\n".join(rows)


def test_the_rows_of_wikitext_give_the_text_that_papers_evaluate_on(shared_data):
    file = shared_data / "texts" / "wikitext2-raw" / "test.rows.jsonl"
    rows = [json.loads(row)["text"] for row in file.read_text(encoding="utf-8").splitlines()]
    assert len(rows) == 4358  # of the published test split
    assert read_corpus(str(file)) == "\n\n".join(rows)


def test_what_is_neither_a_file_nor_a_corpus_is_refused():
    with pytest.raises(DataError, match="expected a text file or one of wikitext2, ptb, got 'nothing'"):
        read_corpus("nothing")


def test_a_corpus_that_cannot_be_reached_is_named_with_the_local_alternative(monkeypatch):
    datasets = pytest.importorskip("datasets", reason="needs the extra 'eval'")

    def unreachable(*args, **kwargs):
        raise ConnectionError("no network")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    with pytest.raises(DataError, match=r"corpus 'ptb' .* cannot be reached: no network.*local \.jsonl file"):
        read_corpus("ptb")
