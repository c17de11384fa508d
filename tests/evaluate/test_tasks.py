"""Tasks by lm-eval on local rows, against log-likelihoods computed here; and what cannot be run."""

import json
import sys

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer

from graphprune import demo
from graphprune.errors import DataError, MissingExtraError
from graphprune.evaluate import run_tasks
from graphprune.evaluate.tasks import TaskScore, check_tasks, templates

ROWS = [
    {"query": "def add(a, b):\n    return", "choices": ["a + b", "import os", "class"], "gold": 0},
    {"query": "for i in", "choices": ["range(10):", "None None", "else"], "gold": 0},
    {"query": "import", "choices": ["): (", "os"], "gold": 1},
    {"query": "if x is not", "choices": ["None:", "class def"], "gold": 1},
]


@pytest.fixture(scope="module")
def demo_model():
    return AutoModelForCausalLM.from_pretrained(demo.model_path()), AutoTokenizer.from_pretrained(demo.model_path())


@pytest.fixture
def rows(tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in ROWS), encoding="utf-8")
    return file


def direct(model, tokenizer, prompt):
    """Accuracy, plain and with the log-likelihood divided by the characters of the answer."""
    right = [0, 0]
    for row in ROWS:
        plain, normalised = [], []
        for choice in row["choices"]:
            start = tokenizer(prompt.format(row["query"]))["input_ids"]
            ids = torch.tensor([[*tokenizer(prompt.format(row["query"]) + " " + choice)["input_ids"]]])
            with torch.no_grad():
                logs = model(input_ids=ids).logits[0].log_softmax(-1)
            value = sum(logs[i - 1, ids[0, i]].item() for i in range(len(start), ids.shape[1]))
            plain.append(value)
            normalised.append(value / len(choice))
        for i, values in enumerate((plain, normalised)):
            right[i] += values.index(max(values)) == row["gold"]
    return right[0] / len(ROWS), right[1] / len(ROWS)


@pytest.mark.parametrize(("template", "prompt"), [("arc_easy", "Question: {}\nAnswer:"), ("openbookqa", "{}")])
def test_scores_are_those_of_a_direct_computation(demo_model, rows, template, prompt):
    pytest.importorskip("lm_eval", reason="needs the extra 'eval'")
    model, tokenizer = demo_model
    model.train()
    score = run_tasks(model, tokenizer, [f"{template}={rows}"])[template]
    assert model.training
    model.eval()
    assert (score.metrics["acc"], score.metrics["acc_norm"]) == direct(model, tokenizer, prompt)
    assert score.samples == len(ROWS) and score.errors.keys() == {"acc", "acc_norm"}
    assert score.headline == "acc_norm"


def test_a_task_file_finds_its_data_beside_it_and_may_be_limited(demo_model, rows):
    pytest.importorskip("lm_eval", reason="needs the extra 'eval'")
    task = {
        "task": "mine",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": rows.name}},
        "output_type": "multiple_choice",
        "test_split": "test",
        "doc_to_text": "query",
        "doc_to_target": "gold",
        "doc_to_choice": "choices",
        "metric_list": [{"metric": "acc"}],
    }
    (rows.parent / "mine.yaml").write_text(yaml.safe_dump(task))
    score = run_tasks(*demo_model, [str(rows.parent / "mine.yaml")], limit=2)["mine"]
    assert score.samples == 2 and score.headline == "acc"


@pytest.mark.parametrize(
    ("task", "told"),
    [
        ("no_such_task", "got 'no_such_task'"),
        ("arc_easy=nowhere.jsonl", "task arc_easy: no file at nowhere.jsonl"),
        ("my_task=rows.jsonl", "with NAME one of arc_easy, multiple_choice, openbookqa"),
        ("nowhere.yaml", "nowhere.yaml cannot be read"),
    ],
)
def test_a_task_that_is_not_there_is_refused_before_a_model_is_needed(task, told):
    pytest.importorskip("lm_eval", reason="needs the extra 'eval'")
    with pytest.raises(DataError, match=told):
        check_tasks([task])


def test_a_task_whose_data_cannot_be_reached_is_named_with_the_local_alternative(demo_model):
    pytest.importorskip("lm_eval", reason="needs the extra 'eval'")
    with pytest.raises(DataError, match=r"task 'openbookqa' could not be run: .*openbookqa=FILE\.jsonl"):
        run_tasks(*demo_model, ["openbookqa"], limit=1)


def test_without_lm_eval_the_extra_is_named(demo_model, monkeypatch):
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    monkeypatch.setitem(sys.modules, "lm_eval.tasks", None)
    for ask in (lambda: run_tasks(*demo_model, ["arc_easy"]), lambda: check_tasks(["arc_easy"])):
        with pytest.raises(MissingExtraError, match=r"pip install 'graphprune\[eval\]'"):
            ask()


def test_every_shipped_task_reads_the_same_fields():
    assert templates() == ["arc_easy", "multiple_choice", "openbookqa"]


def test_the_headline_is_the_first_metric_where_none_is_normalised():
    assert TaskScore(metrics={"exact_match": 1.0}, errors={}, samples=1, few_shot=5).headline == "exact_match"


def test_data_that_cannot_be_had_is_named_with_the_local_way(rows, tmp_path):
    pytest.importorskip("lm_eval", reason="needs the extra 'eval'")
    from graphprune.evaluate.tasks import check_data

    assert check_data([f"multiple_choice={rows}"]) == []
    first, second = check_data(["arc_easy", f"arc_easy={tmp_path / 'nowhere.jsonl'}"])
    assert first.startswith("task 'arc_easy' could not be run: ") and "give local rows as arc_easy=FILE.jsonl" in first
    assert second.startswith("task arc_easy: no file at ")
