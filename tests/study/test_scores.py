"""Scores on disk."""

import os

import pytest
import torch

from graphprune.errors import CheckpointError
from graphprune.report.stages import Stage
from graphprune.study.scores import read_scores, read_scores_and_stage, write_scores


def test_they_come_back_with_what_they_took(tmp_path):
    file, stage = tmp_path / "a.safetensors", Stage(name="score", seconds=1.5, peak_rss_bytes=3)
    scores = {"b/x": torch.rand(3), "a": torch.rand(4)[::2]}
    write_scores(file, scores, stage)
    found, took = read_scores_and_stage(file)
    assert took == stage and all(torch.equal(found[name], value) for name, value in scores.items())
    assert [f.name for f in tmp_path.iterdir()] == ["a.safetensors"]
    write_scores(file, scores, None)
    assert read_scores_and_stage(file)[1] is None and set(read_scores(file)) == set(scores)


def test_nothing_half_written_remains(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "replace", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write_scores(tmp_path / "a.safetensors", {"a": torch.ones(1)}, None)
    assert not list(tmp_path.iterdir())


def test_what_is_damaged_is_said(tmp_path):
    (tmp_path / "a").write_bytes(b"x")
    with pytest.raises(CheckpointError, match=r"the scores in .*a cannot be read"):
        read_scores(tmp_path / "a")
