"""Evaluations side by side."""

import io

import pytest
from rich.console import Console

from graphprune.cli.scores import print_evaluations
from graphprune.evaluate import Evaluation, Latency, TaskScore
from graphprune.evaluate.latency import Timing
from graphprune.report.measures import Measures


def evaluation(name, scale, **more):
    time = Timing(median=0.5 * scale, smallest=0.1, largest=1.0)
    return Evaluation(
        name=name,
        dtype="bfloat16",
        device="cpu",
        size=Measures(
            parameters=int(1000 * scale), weight_bytes=2**21, sequence_length=64, macs=10**6, cache_bytes=6400
        ),
        length=32,
        perplexity={"texts/news.txt": 10.0 / scale},
        tasks={"arc_easy": TaskScore(metrics={"acc": 0.5, "acc_norm": 0.25}, errors={}, samples=4, few_shot=5)},
        latency=Latency(
            prompt_tokens=64, new_tokens=2, batch_size=1, trials=3, prefill=time, decode=None, device="cpu"
        ),
        **more,
    )


@pytest.fixture
def told():
    def tell(*evaluations):
        stream = io.StringIO()
        print_evaluations(evaluations, Console(file=stream, width=120, markup=False, highlight=False))
        return [" ".join(line.split()) for line in stream.getvalue().splitlines()]

    return tell


def test_the_first_model_is_what_the_others_are_compared_with(told):
    lines = told(evaluation("runs/base", 1.0), evaluation("runs/pruned", 0.5))
    assert lines[0] == "base pruned"
    assert "perplexity, news.txt, 32 tokens 10.000 20.000 (2.00)" in lines
    assert "arc_easy, acc_norm, 5-shot 25.00 25.00 (1.00)" in lines
    assert "parameters 1,000 500 (0.50)" in lines
    assert "cache, bytes per token 100 100 (1.00)" in lines
    assert "reading 64 tokens, ms 500.0 250.0 (0.50)" in lines
    assert not any("writing" in line for line in lines)
    assert lines[-1].startswith("bfloat16 on cpu; operations and cache of 64 tokens. In brackets: relative to")


def test_one_model_is_compared_with_nothing(told):
    lines = told(evaluation("runs/base", 1.0))
    assert "parameters 1,000" in lines
    assert "brackets" not in lines[-1]


def test_folders_of_one_name_keep_their_path(told):
    assert told(evaluation("a/pruned", 1.0), evaluation("b/pruned", 1.0))[0] == "a/pruned b/pruned"


def test_what_was_not_measured_of_one_model_is_a_dash(told):
    other = evaluation("b", 1.0).model_copy(update={"tasks": {}, "latency": None})
    lines = told(evaluation("a", 1.0), other)
    assert "arc_easy, acc_norm, 5-shot 25.00 -" in lines
    assert "reading 64 tokens, ms 500.0 -" in lines
