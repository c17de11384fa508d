"""What is wrong with a file of ours, in words."""

import pytest
from pydantic import BaseModel, ConfigDict, Field

from graphprune.errors import SpecError
from graphprune.problems import did_you_mean, file_text, validated


class Inner(BaseModel):
    model_config = ConfigDict(extra="forbid")
    count: int = Field(1, description="How many.")


class Outer(BaseModel):
    model_config = ConfigDict(extra="forbid")
    name: str
    inner: Inner = Inner()


def problems(value, lines=None):
    with pytest.raises(SpecError) as caught:
        validated(Outer, value, lines or {}, "file.yaml", required="name")
    assert caught.value.source == "file.yaml"
    return caught.value.problems


def test_every_problem_with_its_line():
    lines = {("inner",): 2, ("inner", "count"): 3, ("inner", "cuont"): 4}
    assert problems({"inner": {"count": "x", "cuont": 2}}, lines) == (
        "name: expected, but missing",
        "inner.count (line 3): expected a valid integer, got 'x'. How many.",
        "inner.cuont (line 4): unknown key. Did you mean 'count'? Known here: count",
    )


def test_what_is_no_mapping():
    assert problems(None) == ("expected a mapping with at least the key 'name', got nothing",)
    assert problems([1]) == ("expected a mapping with at least the key 'name', got list",)


def test_a_value_that_is_right():
    assert validated(Outer, {"name": "a"}, {}, "file.yaml", required="name").inner.count == 1


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(SpecError, match=r"found no such file\. Perhaps"):
        file_text(str(tmp_path / "nowhere.yaml"), " Perhaps")
    with pytest.raises(SpecError, match="found a folder"):
        file_text(str(tmp_path))
    (tmp_path / "latin.yaml").write_bytes(b"\xe9")
    with pytest.raises(SpecError, match="text file in UTF-8"):
        file_text(str(tmp_path / "latin.yaml"))


def test_a_near_name():
    assert did_you_mean("lorra", ["lora", "taylor"]) == " Did you mean 'lora'?"
    assert did_you_mean("zzz", ["lora"]) == ""
