"""gp.study: the cells of a grid, kept as they finish."""

import json
import logging

import pytest
import torch

import graphprune as gp
from graphprune.engine.interrupts import Interrupted
from graphprune.engine.run import prune
from graphprune.errors import CheckpointError, NonFiniteError, SpecError
from graphprune.evaluate import Questions, evaluate
from graphprune.study import cell as cell_module
from graphprune.study import run as run_module
from graphprune.study.folder import ResultsFolder
from graphprune.study.results import Results
from graphprune.study.run import Work, study
from graphprune.study.shares import Shares
from graphprune.study.texts import read_texts

MODES = ["none", "separate", "joint"]


@pytest.fixture
def runs(monkeypatch):
    """The calls of gp.prune, as (spec, arguments)."""
    calls = []

    def counted(model, spec, **more):
        calls.append((spec, more))
        return prune(model, spec, **more)

    monkeypatch.setattr(cell_module, "prune", counted)
    return calls


@pytest.fixture
def go(tiny, ids, tmp_path):
    """Runs a study into one folder."""

    def run(wanted, folder="out", **more):
        given = {"models": {"tiny": tiny}, "data": ids, "device": "cpu", "progress": False, **more}
        return study(wanted, tmp_path / folder, **given)

    return run


def stages(cell):
    return [stage.name for stage in cell.report.stages]


def test_a_study_is_kept_and_read_back(go, small, runs, tmp_path):
    found = go(small(vary={"criterion": ["magnitude", "taylor"], "mode": MODES}, seeds=2))
    assert len(runs) == len(found.cells) == 12 and found.missing == 0
    assert [c.status for c in found.cells] == ["done"] * 12
    assert Results.read(tmp_path / "out") == found
    cell = found.cells[5]
    assert cell.labels == {"model": "tiny", "criterion": "taylor", "mode": "joint"} and cell.seed == 0
    assert cell.report.perplexity_tuned > 0 and len(cell.events) == 3 and cell.log[-1]["step"] == 3
    assert set(cell.segments) == {"dense", "pruned", "tuned"}
    tuned = torch.tensor(cell.segments["tuned"], dtype=torch.float64).mean().exp().item()
    assert tuned == pytest.approx(cell.report.perplexity_tuned)
    removed = {name: len(group.removed) for name, group in cell.groups.items()}
    assert removed == {f"model.layers.{i}.mlp/mlp.channel": 6 for i in (0, 1)}
    assert {name: scores.shape for name, scores in found.scores(cell).items()} == dict.fromkeys(removed, (24,))
    assert cell.evaluation.size.parameters == cell.report.after.parameters
    (dense,) = found.dense
    assert dense.model == "tiny" and dense.evaluation.size.parameters == cell.report.before.parameters


def test_a_cell_is_what_gp_prune_gives(go, small, tiny, ids):
    wanted = small(vary={"criterion": ["taylor"], "mode": MODES}, seeds=[3])
    for cell in go(wanted).cells:
        spec = gp.PruneSpec.model_validate(cell.spec)
        texts = read_texts([spec], None, None, ids, None)
        alone = prune(tiny, spec, train_data=texts.of_seed(3), evaluation=texts.evaluation, progress=False)
        plan = {name: group.removed for name, group in cell.groups.items() if group.removed}
        assert plan == alone.plan.removed
        for name in ("perplexity_before", "perplexity_pruned", "perplexity_tuned", "data_fingerprint", "evaluation"):
            assert getattr(cell.report, name) == getattr(alone.report, name), (cell.labels, name)
        assert cell.report.spec_fingerprint == alone.report.spec_fingerprint


def test_nothing_is_computed_twice(go, small, runs):
    vary = {"criterion": ["magnitude"], "ratio": [0.25, 0.5]}
    first = go(small(vary=vary))
    assert len(runs) == 2
    assert go(small(vary=vary)).cells == first.cells and len(runs) == 2
    more = go(small(vary={"criterion": ["magnitude", "gate"], "ratio": [0.25, 0.5]}))
    assert [spec.criterion.name for spec, _ in runs[2:]] == ["gate", "gate"]
    assert more.cells[:2] == first.cells
    renamed = go(small(vary={"how": {"by size": {"criterion": "magnitude"}}, "ratio": [0.25, 0.5]}))
    assert len(runs) == 4 and renamed.cells[0].labels == {"model": "tiny", "how": "by size", "ratio": "0.25"}


def test_other_weights_or_text_are_another_cell(go, small, runs, ids, tmp_path):
    wanted = small(vary={"criterion": ["taylor"]})
    go(wanted)
    go(wanted, data=ids[1:])
    go(wanted, evaluation=ids[:3])
    assert len(runs) == 3
    from tests.engine.conftest import make_llama

    make_llama(num_hidden_layers=2).half().save_pretrained(tmp_path / "other")
    go(wanted, models={"tiny": str(tmp_path / "other")})
    assert len(runs) == 4


def test_scores_are_computed_once_for_all_ratios_scopes_and_modes(go, small, runs):
    vary = {"ratio": [0.25, 0.5], "scope": ["layer", "global"], "mode": MODES}
    found = go(small(vary=vary), folder="shared")
    given = [more["scores"] is not None for _, more in runs]
    joint = [spec.training.mode == "joint" for spec, _ in runs]
    assert given == [not j and n > 0 for n, j in enumerate(joint)]  # all but the first, and no joint one
    once = [c for c in found.cells if c.labels["mode"] != "joint"]
    assert len({c.scores for c in once}) == 1 and len({c.scores for c in found.cells}) == 5
    timed = {next(s for s in c.report.stages if s.name == "score") for c in once}
    assert len(timed) == 1  # what it took is told in each, as it was measured
    assert all("rank" not in stages(c) for c in found.cells)


@pytest.mark.parametrize("criterion", ["taylor", "lora"])
def test_shared_scores_give_the_same_as_their_own(criterion, go, small):
    wanted = small(vary={"ratio": [0.25, 0.5], "mode": ["none", "separate"]})
    wanted["spec"]["criterion"] = criterion
    shared = go(wanted).cells
    for alone in go(wanted, folder="separate", only=[shared[-1].key]).cells:  # the last one, without those before it
        cell = next(c for c in shared if c.key == alone.key)
        assert cell.groups == alone.groups and cell.segments == alone.segments


def test_the_same_run_under_two_names_is_computed_once(go, small, runs):
    found = go(small(vary={"schedule": ["linear", "cubic"], "mode": ["none", "joint"]}))
    assert len(runs) == 3 and len(found.cells) == 4
    assert [c.labels["schedule"] for c in found.cells] == ["linear", "linear", "cubic", "cubic"]
    assert found.cells[0].key == found.cells[2].key
    assert found.notes == ("'schedule' changes nothing in 2 cells (mode none): what is the same run is computed once",)


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (NonFiniteError("group 'x' is NaN"), "NonFiniteError: group 'x' is NaN"),
        (torch.OutOfMemoryError("out of memory"), "OutOfMemoryError: out of memory"),
        (ZeroDivisionError(), "ZeroDivisionError"),
    ],
)
def test_a_cell_that_fails_is_put_down_and_the_grid_goes_on(error, told, go, small, monkeypatch, tmp_path, caplog):
    def failing(model, spec, **more):
        if spec.criterion.name == "taylor":
            raise error
        return prune(model, spec, **more)

    monkeypatch.setattr(cell_module, "prune", failing)
    wanted = small(vary={"criterion": ["taylor", "magnitude"]})
    with caplog.at_level(logging.INFO, "graphprune"):
        found = go(wanted)
    assert [(c.status, c.error) for c in found.cells] == [("failed", told), ("done", "")]
    log = (tmp_path / "out" / "study.log").read_text()
    assert f"FAILED, {told}" in log
    assert "Traceback" in log
    surprises = [r for r in caplog.records if r.exc_info and r.levelno == logging.ERROR]
    assert len(surprises) == isinstance(error, ZeroDivisionError)  # which is told on the terminal, too
    monkeypatch.setattr(cell_module, "prune", prune)
    assert go(wanted).cells[0].status == "failed"
    assert go(wanted, retry=True).cells[0].status == "done"


def test_a_model_that_gives_no_numbers_fails_by_itself(go, small, tiny, tmp_path):
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny)
    with torch.no_grad():
        model.lm_head.weight.fill_(float("nan"))
    model.save_pretrained(tmp_path / "broken")
    models = {"broken": str(tmp_path / "broken"), "tiny": tiny}
    found = go(small(vary={"criterion": ["magnitude"]}), models=models)
    assert [c.status for c in found.cells] == ["failed", "done"]
    assert found.cells[0].error.startswith("NonFiniteError: the loss of segment 0 is not finite")


def test_a_study_that_was_broken_off_goes_on(go, small, monkeypatch, runs):
    def interrupted(model, spec, **more):
        if spec.criterion.name == "gate":
            raise KeyboardInterrupt
        return prune(model, spec, **more)

    wanted = small(vary={"criterion": ["magnitude", "gate", "taylor"]})
    with monkeypatch.context() as patched:
        patched.setattr(cell_module, "prune", interrupted)
        with pytest.raises(
            Interrupted, match=r"stopped: 1 of 3 cells are done and kept in .*out; the same command goes"
        ):
            go(wanted)
    assert len(go(wanted).cells) == 3 and len(runs) == 2


def test_one_cell_alone(go, small, runs, tmp_path, monkeypatch):
    wanted = small(vary={"criterion": ["magnitude", "gate"]})
    cells = go(wanted).cells
    again = go(wanted, folder="again", only=[cells[1].key])
    assert [c.key for c in again.cells] == [cells[1].key] and again.missing == 1
    monkeypatch.setattr(cell_module, "prune", lambda *a, **k: 1 / 0)
    failed = go(wanted, folder="failed").cells
    monkeypatch.setattr(cell_module, "prune", prune)
    assert [c.status for c in go(wanted, folder="failed", only=[failed[1].key]).cells] == ["failed", "done"]
    with pytest.raises(SpecError, match="no cell has the key 'nothing'"):
        go(wanted, only=["nothing"])


def test_the_command_of_a_cell_repeats_it(small, tiny, tmp_path, ids):
    text = tmp_path / "rows.jsonl"
    wanted = small(vary={"criterion": ["magnitude"]}, models={"tiny": tiny}, data={"text": str(text)})
    folder = tmp_path / "out"
    work = Work.of(wanted, folder, data=ids, device="cpu")
    assert work.command(work.cells[0][1]) == ""  # its text is in no file
    work.in_memory = False
    key = work.cells[0][1].cell
    expected = f"graphprune compare {folder}/study.yaml --out again --device cpu --only {key}"
    assert work.command(work.cells[0][1]) == expected


def test_results_are_measured_like_the_model_as_it_came(go, small, tiny, ids, monkeypatch):
    asked = []

    def counted(model, tokenizer, questions, **more):
        asked.append(questions)
        return evaluate(model, tokenizer, questions, **more)

    monkeypatch.setattr(cell_module, "evaluate", counted)
    monkeypatch.setattr(run_module, "evaluate", counted)
    measure = {"latency": True, "prompt_tokens": 8, "new_tokens": 2, "trials": 1}
    found = go(small(vary={"criterion": ["magnitude"]}, measure=measure))
    assert asked == [Questions.model_validate(measure)] * 2
    assert found.cells[0].evaluation.latency.prompt_tokens == found.dense[0].evaluation.latency.prompt_tokens == 8


def test_a_folder_with_other_things_is_refused_before_anything_is_read(go, small, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("")
    with pytest.raises(CheckpointError, match="holds other things"):
        go(small(vary={"ratio": [0.5]}), models={"x": "no/such/model"})


def test_what_cannot_be_is_told_before_anything_runs(go, small, runs, tmp_path):
    wanted = small(vary={"role": {"heads": {"targets": [{"role": "attention.gruop", "ratio": 0.5}]}, "none": {}}})
    with pytest.raises(SpecError, match=r"1 cell \(role heads\): targets\[0\]: selects no group .*attention.group"):
        go(wanted)
    assert not runs and not (tmp_path / "out").exists()


def test_text_that_is_missing_is_told_before_anything_runs(go, small, runs):
    wanted = small(vary={"criterion": ["magnitude", "taylor"]}, measure={"texts": ["nowhere.txt"]})
    with pytest.raises(SpecError, match=r"measure.texts: expected a text file or one of wikitext2, ptb"):
        go(wanted)
    with pytest.raises(SpecError, match=r"1 cell \(criterion taylor\): needs text to train or calibrate on"):
        go({**wanted, "measure": {}}, data=None)
    assert not runs


def test_texts_cannot_be_measured_without_a_tokenizer(go, small, tmp_path):
    (tmp_path / "a.txt").write_text("text")
    with pytest.raises(SpecError, match=r"model tiny: measure.texts needs a tokenizer, and there is none with it"):
        go(small(vary={"ratio": [0.5]}, measure={"texts": [str(tmp_path / "a.txt")]}))


def test_cells_that_another_process_has_taken_are_left_to_it(small, tiny, ids, tmp_path, runs):
    class Other(Shares):
        def take(self, key):
            return key != taken

    work = Work.of(small(vary={"criterion": ["magnitude", "gate"]}, models={"tiny": tiny}), tmp_path / "o", data=ids)
    taken = work.cells[0][1].cell
    found = run_module.run_study(work, work.pending(), Other(), progress=False)
    assert len(runs) == 1 and [c.labels["criterion"] for c in found.cells] == ["gate"]


def test_results_of_another_version_are_not_mixed(go, small, tmp_path):
    go(small(vary={"ratio": [0.5]}))
    index = tmp_path / "out" / "results.json"
    index.write_text(json.dumps({**json.loads(index.read_text()), "format": 99}))
    for refused in (lambda: go(small(vary={"ratio": [0.5]})), lambda: Results.read(tmp_path / "out")):
        with pytest.raises(CheckpointError, match=r"holds results in format 99, and this version .* writes format 1"):
            refused()


def test_a_damaged_record_is_computed_again(go, small, runs, tmp_path):
    wanted = small(vary={"ratio": [0.25, 0.5]})
    cells = go(wanted).cells
    (tmp_path / "out" / "cells" / f"{cells[1].key}.json").write_text("{")
    (tmp_path / "out" / cells[0].scores).write_bytes(b"nothing")
    assert ResultsFolder(tmp_path / "out").cell(cells[1].key) is None
    assert [c.groups for c in go(wanted).cells] == [c.groups for c in cells] and len(runs) == 3
