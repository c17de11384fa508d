"""The coverage table's measurements: some cases always, every case among the slow tests."""

from __future__ import annotations

import os
import time

import pytest
import torch

from graphprune.testing import cases, coverage
from graphprune.testing.coverage import RELOADED, fingerprint, main, measure, measure_all, measured_apart
from graphprune.testing.results import Result, read_results, write_results

#: One case of each make, with roles that it must have exact.
FEW = {
    "llama": "hidden attention.group attention.query mlp.channel layer",
    "gpt2": "hidden attention.group mlp.channel layer",
    "bloom": "hidden attention.group mlp.channel layer",
    "gemma3_text": "hidden attention.group attention.query mlp.channel layer",
    "phi3": "hidden attention.group attention.query mlp.channel layer",
    "olmo2": "hidden attention.group attention.query mlp.channel layer",
    "mixtral": "hidden attention.group moe.expert moe.channel layer",
    "gpt_oss": "hidden attention.group moe.expert moe.channel layer",
    "deepseek_v3": "hidden mla.q_rank mla.kv_rank moe.expert moe.channel mlp.channel layer",
    "mamba2": "hidden mixer.head layer",
    "qwen3_next": "hidden attention.group moe.expert layer",
    "opt": "hidden attention.group mlp.channel layer",
}
#: The tier of a folder with everything pruned together.
SAVED = {"gpt2": "hf-remote-code", "mixtral": "hf", "opt": "hf-remote-code"}


@pytest.mark.parametrize("case", FEW)
def test_a_case_is_proved_and_has_what_names_promise(case):
    result = measure(case, RELOADED if case in SAVED else frozenset())
    assert not result.problems and not result.notes
    exact = {row.role for row in result.rows if row.fate == "exact"}
    assert exact >= {*FEW[case].split(), "together"}
    for row in result.rows:
        if row.fate == "exact":
            assert row.relative < 1e-5 and not row.alive and row.generates and row.effect > 1e-4
            assert row.reloads is (True if case in SAVED and row.role in RELOADED else None)
    assert result.parts and all(part.prunable == part.count for part in result.parts)
    (together,) = result.of("together")
    assert together.tier == SAVED.get(case)


@pytest.mark.slow
@pytest.mark.parametrize("case", cases())
def test_every_case_is_measured(case):
    result = measure(case)
    assert not result.failure
    assert {"hidden", "layer"} <= {row.role for row in result.rows}


def test_what_ends_or_hangs_is_a_result(monkeypatch):
    monkeypatch.setattr(coverage, "measure", lambda case: os._exit(3))
    assert measured_apart("llama").failure == "its process ended with code 3"
    monkeypatch.setattr(coverage, "measure", lambda case: time.sleep(60))
    monkeypatch.setattr(coverage, "LIMIT", 0.2)
    assert measured_apart("llama").failure == "took longer than 0 s"


def test_memory_is_limited(monkeypatch):
    def hoard(case):
        try:
            return Result(case=case, sources=str(torch.ones(2**34, dtype=torch.uint8).shape))
        except RuntimeError:
            return Result(case=case, sources="", failure="refused")

    monkeypatch.setattr(coverage, "measure", hoard)
    assert measured_apart("llama").failure == "refused"


def test_a_case_that_cannot_be_traced_is_a_result():
    assert measure("no_such_case").failure.startswith("ZooError: ")


def test_only_what_is_not_up_to_date_is_measured(monkeypatch):
    monkeypatch.setattr(coverage, "measured_apart", lambda case: Result(case=case, sources="new"))
    known = [Result(case="gpt2", sources=fingerprint()), Result(case="opt", sources="old")]
    found = list(measure_all(["llama", "gpt2", "opt"], known, jobs=1))
    assert [(r.case, r.sources) for r in found] == [("llama", "new"), ("gpt2", fingerprint()), ("opt", "new")]


def test_the_command_writes_results_and_the_page(monkeypatch, tmp_path, capsys):
    def quick(case):
        return Result(case=case, sources=fingerprint(), failure="not tried")

    monkeypatch.setattr(coverage, "measured_apart", quick)
    monkeypatch.setattr(coverage, "cases", lambda: ("gpt2", "llama"))
    raw, page = tmp_path / "raw.json", tmp_path / "page.md"
    main(["--raw", str(raw), "--out", str(page)])
    assert [r.case for r in read_results(raw)] == ["gpt2", "llama"]
    assert "* **llama**: not tried" in page.read_text()
    main(["gpt2"])
    assert "gpt2: traced in 0.0 s not tried" in capsys.readouterr().out


def test_results_depend_on_sources_but_not_on_the_page(monkeypatch):
    found = [fingerprint.__wrapped__()]
    for change in ("RENDERING", "SOURCES"):
        monkeypatch.setattr(coverage, change, getattr(coverage, change)[1:])
        found.append(fingerprint.__wrapped__())
    assert len(set(found)) == 3 and {len(one) for one in found} == {16}


def test_results_are_kept_whole(tmp_path):
    file = tmp_path / "results.json"
    assert read_results(file) == ()
    results = (Result(case="a", sources="x", notes=("n",)), Result(case="b", sources="y", failure="f"))
    write_results(file, results)
    assert read_results(file) == results and len(file.read_text().splitlines()) == 4
