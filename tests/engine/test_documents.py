import json
import sys

import pytest

from graphprune.engine.documents import token_documents
from graphprune.errors import DataError, MissingExtraError
from graphprune.schema import Data


class Characters:
    """A tokenizer: <s> before every text, one id per character."""

    eos_token_id = 2

    def __call__(self, text, verbose):
        return {"input_ids": [1, *(ord(c) for c in text)]}


def ids(data, tokenizer=None):
    _, documents = token_documents(data, tokenizer or Characters())
    return [document.tolist() for document in documents]


def test_documents_get_the_special_tokens_and_the_end():
    assert ids(["ab", "c"]) == [[1, 97, 98, 2], [1, 99, 2]]


def test_the_end_is_not_doubled_and_not_invented():
    class Closed(Characters):
        def __call__(self, text, verbose):
            return {"input_ids": [*super().__call__(text, verbose)["input_ids"], 2]}

    class Endless(Characters):
        eos_token_id = None

    assert ids(["a"], Closed()) == [[1, 97, 2]]
    assert ids(["a"], Endless()) == [[1, 97]]


def test_blank_documents_are_left_out():
    assert ids(["a", "", " \n"]) == [[1, 97, 2]]


def test_a_text_file_is_one_document(tmp_path):
    file = tmp_path / "some.txt"
    file.write_text("a\n\nb", encoding="utf-8")
    assert ids(str(file)) == ids(file) == ids(Data(text=str(file))) == [[1, 97, 10, 10, 98, 2]]


def test_a_jsonl_file_is_one_document_per_line(tmp_path):
    file = tmp_path / "some.jsonl"
    file.write_text('{"text": "a", "body": "x"}\n\n{"text": "b", "body": "y"}\n', encoding="utf-8")
    assert ids(file) == [[1, 97, 2], [1, 98, 2]]
    assert ids(Data(jsonl=str(file), field="body")) == [[1, 120, 2], [1, 121, 2]]


@pytest.mark.parametrize(
    ("second", "message"),
    [
        ("{", "line 2: expected one JSON object per line"),
        ('["a"]', "line 2: expected text in the field 'text', got list"),
        ('{"body": "a"}', r"line 2: expected text in the field 'text', got the fields \['body'\]"),
        ('{"text": 3}', "line 2: expected text in the field 'text'"),
    ],
)
def test_malformed_lines_are_named(tmp_path, second, message):
    file = tmp_path / "some.jsonl"
    file.write_text(json.dumps({"text": "a"}) + "\n" + second + "\n", encoding="utf-8")
    with pytest.raises(DataError, match=message):
        ids(file)


def test_missing_files_and_binary_files_are_named(tmp_path):
    with pytest.raises(DataError, match=r"no text file at .*none\.txt"):
        ids(tmp_path / "none.txt")
    (tmp_path / "binary.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match=r"binary\.txt is not UTF-8 text"):
        ids(tmp_path / "binary.txt")


def test_text_needs_a_tokenizer():
    with pytest.raises(DataError, match="train_data is text, which needs a tokenizer: pass tokenizer="):
        token_documents(["a"], None)


def test_a_data_set_needs_its_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(MissingExtraError, match=r"needs the package 'datasets'.*graphprune\[eval\]"):
        ids(Data(dataset="some/where"))
