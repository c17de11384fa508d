"""Trying architectures as self-contained folders."""

import pytest

from graphprune.testing import tiny_model
from graphprune.testing.remote import main, outcomes, uneven_plan
from graphprune.trace import trace


def test_the_plan_takes_another_share_of_every_layer():
    graph = trace(tiny_model("qwen3"))
    after = uneven_plan(graph).sizes_after()
    assert len({after[g.name] for g in graph.select(role="mlp.channel")}) > 1
    assert all(after[g.name] >= g.minimum for g in graph)


@pytest.mark.slow
def test_cases_pass_or_say_why_not(capsys):
    good, bad = outcomes(["gpt2", "no such thing"])
    assert not good.problem and good.distance < 1e-5 and not good.text
    assert "unknown architecture 'no such thing'" in bad.problem
    main(["gpt2"])
    assert capsys.readouterr().out == "gpt2: passes, logits differ by 0.0e+00\n1 of 1 pass\n"


@pytest.mark.slow
def test_files_that_number_a_weight_from_the_second_layer_on_are_found_again_without_the_first():
    (found,) = outcomes(["inkling2_text"])
    assert not found.problem
