"""What a result depends on."""

import json

import pytest
import torch

from graphprune.evaluate import Questions
from graphprune.schema import PruneSpec
from graphprune.study.keys import (
    cell_key,
    effective,
    idle_axes,
    questions_fingerprint,
    scores_key,
    weights_fingerprint,
)
from tests.engine.conftest import make_llama


def spec(mode="none", criterion="taylor", training=None, **parts):
    return PruneSpec.model_validate(
        {
            "targets": [{"role": "mlp.channel", "ratio": 0.5}],
            "criterion": criterion,
            "training": {"mode": mode, **(training or {})},
            **parts,
        }
    )


def same(first, second):
    return cell_key(first, "m", "d", "e", "q") == cell_key(second, "m", "d", "e", "q")


def test_what_a_mode_does_not_read_does_not_count():
    schedule, average = {"schedule": {"every": 3}}, {"name": "taylor", "average": 0.1}
    for mode in ("none", "separate"):
        assert same(spec(mode), spec(mode, **schedule)) and same(spec(mode), spec(mode, average))
        assert not same(spec(mode), spec(mode, training={"rounds": 2}))
    assert not same(spec("joint"), spec("joint", **schedule))
    assert not same(spec("joint"), spec("joint", average))
    assert same(spec("joint"), spec("joint", training={"calibration_batches": 3}))
    assert same(spec("none"), spec("none", training={"steps": 3}))
    assert not same(spec("separate"), spec("separate", training={"steps": 3}))


def test_adapters_count_where_they_are_looked_at_or_trained():
    lora = {"lora": {"r": 2}}
    assert same(spec("none"), spec("none", **lora))
    assert not same(spec("none", "lora"), spec("none", "lora", **lora))
    assert not same(spec("separate"), spec("separate", **lora))


def test_batches_count_by_what_goes_through_the_model_at_once():
    assert same(spec(training={"batch_size": 8}), spec(training={"batch_size": 16, "micro_batch_size": 8}))


def test_text_counts_where_it_is_read():
    assert cell_key(spec(), "m", "d", "e", "q") != cell_key(spec(), "m", "other", "e", "q")
    blind = spec(criterion="magnitude")
    assert cell_key(blind, "m", "d", "e", "q") == cell_key(blind, "m", "other", "e", "q")
    assert cell_key(blind, "m", "d", "e", "q") != cell_key(blind, "m", "d", "other", "q")


def test_scores_serve_every_ratio_scope_and_mode_that_scores_once():
    def key(spec, data="d", groups=("a",)):
        return scores_key(spec, "m", data, groups)

    tuned = spec("separate", {"name": "taylor", "average": 0.2}, scope="global", schedule={"every": 3})
    assert key(spec()) == key(tuned)
    assert key(spec()) == key(spec(targets=[{"role": "mlp.channel", "ratio": 0.1}]))
    assert key(spec()) != key(spec(), groups=("a", "b"))
    assert key(spec()) != key(spec(), data="other")
    assert key(spec()) != key(spec(training={"calibration_batches": 3}))
    assert key(spec()) == key(spec(lora={"r": 2})) and key(spec(criterion="lora")) != key(
        spec(criterion="lora", lora={"r": 2})
    )
    assert key(spec(criterion="magnitude")) == key(spec(criterion="magnitude"), data="other")
    assert key(spec("joint")) is None and key(spec(training={"rounds": 2})) is None


def test_weights_are_told_apart_by_any_bit():
    model = make_llama()
    first = weights_fingerprint(model)
    assert weights_fingerprint(make_llama()) == first
    model.config._name_or_path = "moved/elsewhere"
    assert weights_fingerprint(model) == first
    with torch.no_grad():
        model.model.norm.weight[3] += 1e-6
    assert weights_fingerprint(model) != first
    assert weights_fingerprint(make_llama().half()) not in (first, weights_fingerprint(make_llama().bfloat16()))


def test_what_is_measured_counts_with_the_contents_of_files(tmp_path):
    text, rows = tmp_path / "a.txt", tmp_path / "rows.jsonl"
    text.write_text("one")
    rows.write_text("{}")
    questions = Questions(texts=(str(text),), tasks=(f"multiple_choice={rows}",))
    cpu = torch.device("cpu")
    first = questions_fingerprint(questions, cpu)
    assert questions_fingerprint(questions, torch.device("cuda")) != first  # seconds are those of a device
    for file in (text, rows):
        file.write_text("other")
        assert questions_fingerprint(questions, cpu) != first
        first = questions_fingerprint(questions, cpu)


def test_an_axis_that_changes_nothing_is_said(cells, small):
    grid = cells(small(vary={"mode": ["none", "joint"], "schedule": ["linear", "cubic"], "ratio": [0.2, 0.5]}))
    assert idle_axes(grid) == [
        "'schedule' changes nothing in 4 cells (mode none): what is the same run is computed once"
    ]


@pytest.mark.parametrize("mode", ["none", "separate", "joint"])
def test_what_counts_is_plain(mode):
    assert json.loads(json.dumps(effective(spec(mode)))) == effective(spec(mode))
