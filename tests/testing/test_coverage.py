"""``python -m graphprune.testing.coverage``: cases measured apart, kept, and measured again where sources changed."""

from __future__ import annotations

import os
import signal
import time

import pytest

from graphprune.testing import coverage
from graphprune.testing.coverage import Result, measure, measure_all, measured_apart


def test_a_case_is_measured_whole():
    found = measure("gpt2")
    assert not found.failure and all(row.ok for row in found.rows)
    assert all(row.reloads and row.generates for row in found.rows if row.fate != "frozen")
    assert {part.part: (part.prunable, part.count) for part in found.parts} == {
        "attention": (3, 3),
        "mlp": (3, 3),
        "model": (1, 1),
    }


def test_a_case_that_does_not_exist_is_a_failure():
    assert "unknown architecture 'nonsense'" in measure("nonsense").failure


def test_a_crash_is_a_failure(monkeypatch):
    monkeypatch.setattr(coverage, "measure", lambda case: os.kill(os.getpid(), signal.SIGKILL))
    assert measured_apart("gpt2").failure == "its process ended with code -9"


def test_a_hang_is_a_failure(monkeypatch):
    monkeypatch.setattr(coverage, "LIMIT", 0.2)
    monkeypatch.setattr(coverage, "measure", lambda case: time.sleep(60))
    assert measured_apart("gpt2").failure == "took longer than 0 s"


def test_too_much_memory_is_a_failure(monkeypatch):
    def hungry(case):
        try:
            bytearray(coverage.MEMORY)
        except MemoryError:
            return Result(case=case, sources="", failure="no memory")
        return Result(case=case, sources="")

    monkeypatch.setattr(coverage, "measure", hungry)
    assert measured_apart("gpt2").failure == "no memory"


@pytest.mark.parametrize(("sources", "again"), [("same", []), ("other", ["b"])])
def test_what_is_up_to_date_is_not_measured_again(monkeypatch, sources, again):
    ran = []
    monkeypatch.setattr(coverage, "fingerprint", lambda: "same")
    monkeypatch.setattr(coverage, "measured_apart", lambda case: ran.append(case) or Result(case=case, sources="same"))
    known = (Result(case="a", sources="same", seconds=7.0), Result(case="b", sources=sources))
    found = list(measure_all(["b", "a"], known, 1))
    assert [r.case for r in found] == ["b", "a"] and found[1].seconds == 7.0
    assert ran == again


def test_the_fingerprint_does_not_depend_on_the_page():
    assert coverage.fingerprint() == coverage.fingerprint() and len(coverage.fingerprint()) == 16
