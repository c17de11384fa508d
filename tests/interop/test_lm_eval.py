"""A saved model is evaluated by lm-eval's ``hf`` backend, on tasks that are files here."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import yaml
from transformers import AutoTokenizer

from graphprune.checkpoint.manifest import Manifest
from tests.interop.folders import load

lm_eval = pytest.importorskip("lm_eval", reason="needs the extra 'eval'")

LIMIT = 12


@pytest.fixture(scope="module")
def tasks(shared_data, tmp_path_factory):
    """A folder with a task of each data set; lm-eval reads it with ``include_path``."""
    place = tmp_path_factory.mktemp("tasks")
    for name in ("arc_easy", "openbookqa"):
        task = {
            "task": f"local_{name}",
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": {"test": str(shared_data / "tasks" / f"{name}.test.jsonl")}},
            "test_split": "test",
            "output_type": "multiple_choice",
            "doc_to_text": "Question: {{query}}\nAnswer:",
            "doc_to_choice": "{{choices}}",
            "doc_to_target": "{{gold}}",
            "metric_list": [{"metric": "acc"}],
        }
        (place / f"{name}.yaml").write_text(yaml.safe_dump(task), encoding="utf-8")
    return place


def evaluated(tasks, model, **options):
    """Accuracy by task."""
    from lm_eval.tasks import TaskManager

    names = [file.stem for file in sorted(tasks.glob("*.yaml"))]
    manager = TaskManager(include_path=str(tasks), include_defaults=False)
    options = {"task_manager": manager, "limit": LIMIT, "bootstrap_iters": 0, **options}
    found = lm_eval.simple_evaluate(model, tasks=[f"local_{name}" for name in names], **options)
    return {name: found["results"][f"local_{name}"]["acc,none"] for name in names}


@torch.no_grad()
def direct(model, tokenizer, file: Path) -> float:
    """Accuracy from the definition: the answer with the highest log-likelihood after the question."""
    right = 0
    for line in file.read_text(encoding="utf-8").splitlines()[:LIMIT]:
        doc = json.loads(line)
        scores = []
        for choice in doc["choices"]:
            context, both = (tokenizer(text).input_ids for text in _texts(doc["query"], choice))
            log = model(input_ids=torch.tensor([both[:-1]])).logits[0].double().log_softmax(-1)
            scores.append(sum(log[i - 1, both[i]] for i in range(len(context), len(both))))
        right += int(torch.stack(scores).argmax()) == doc["gold"]
    return right / LIMIT


def _texts(query: str, choice: str) -> tuple[str, str]:
    context = f"Question: {query}\nAnswer:"
    return context, f"{context} {choice}"


def test_a_model_of_any_tier_is_evaluated(folder, tasks, shared_data):
    from lm_eval.models.huggingface import HFLM

    model, tokenizer = load(folder), AutoTokenizer.from_pretrained(folder)
    found = evaluated(tasks, HFLM(pretrained=model, tokenizer=tokenizer, batch_size=4))
    expected = {n: direct(model, tokenizer, shared_data / "tasks" / f"{n}.test.jsonl") for n in found}
    assert found == pytest.approx(expected)


def test_a_stock_folder_is_evaluated_by_its_name(stock, tasks):
    from lm_eval.models.huggingface import HFLM

    assert Manifest.read(stock).tier == "hf"
    by_name = evaluated(tasks, "hf", model_args={"pretrained": str(stock), "dtype": "float32"}, device="cpu")
    held = HFLM(pretrained=load(stock), tokenizer=AutoTokenizer.from_pretrained(stock), batch_size=1)
    assert by_name == evaluated(tasks, held)
