"""The spec's shape: defaults, cross-field checks, amounts."""

import pytest
from pydantic import ValidationError

from graphprune.schema import CriterionSpec, PruneSpec, Target, Training, json_schema


def spec(**parts):
    return PruneSpec.model_validate({"targets": [{"role": "mlp.channel", "ratio": 0.5}], **parts})


def test_only_targets_are_required_and_defaults_are_the_documented_ones():
    value = spec()
    assert (value.scope, value.seed, value.data) == ("layer", 0, None)
    assert (value.criterion.name, value.criterion.average) == ("lora", 0.9)
    assert (value.schedule.kind, value.schedule.warmup, value.schedule.cooldown) == ("cubic", 0.1, 0.1)
    assert (value.lora.r, value.lora.alpha, value.lora.target_modules) == (8, 16, None)
    assert value.training.mode == "joint"
    assert value.export.targets == ("hf", "hf-remote-code", "graphprune")
    with pytest.raises(ValidationError, match="targets"):
        PruneSpec.model_validate({})


def test_a_spec_is_a_value():
    value = spec(seed=3)
    assert value == spec(seed=3) != spec(seed=4)
    assert PruneSpec.model_validate_json(value.model_dump_json()) == value
    with pytest.raises(ValidationError, match="frozen"):
        value.seed = 5


@pytest.mark.parametrize(
    ("target", "size", "kept"),
    [
        ({"ratio": 0.5}, 8, 4),
        ({"ratio": 0.5}, 9, 5),  # floor(4.5) removed
        ({"ratio": 0.29}, 100, 71),  # 0.29 · 100 is 28.999999999999996
        ({"ratio": 0.0}, 7, 7),
        ({"ratio": 0.999}, 4, 1),
        ({"ratio": 0.5, "multiple_of": 64}, 172, 128),  # 86 kept, rounded up
        ({"ratio": 0.1, "multiple_of": 64}, 172, 172),  # 155 would round to 192, more than there is
        ({"count": 3}, 8, 5),
        ({"count": 9}, 8, 0),
        ({"count": 1, "multiple_of": 4}, 8, 8),
        ({"keep": 3}, 8, 3),
        ({"keep": 30}, 8, 8),
        ({"keep": 3, "multiple_of": 4}, 8, 4),
    ],
)
def test_amounts(target, size, kept):
    assert Target(role="mlp.channel", **target).kept(size) == kept


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ({"role": "a"}, "exactly one of ratio, count and keep, got none of them"),
        ({"role": "a", "ratio": 0.1, "keep": 2}, "exactly one of ratio, count and keep, got ratio and keep"),
        ({"ratio": 0.1}, "a role or a name pattern"),
        ({"role": "a", "ratio": 1.0}, "less than 1"),
        ({"role": "a", "ratio": -0.1}, "greater than or equal to 0"),
        ({"role": "a", "keep": 0}, "greater than or equal to 1"),
        ({"role": "a", "keep": 2, "layers": "three"}, "slice such as '3:-1', got 'three'"),
        ({"role": "a", "keep": 2, "layers": True}, "slice such as '3:-1', got True"),
        ({"role": "a", "keep": 2, "layers": []}, "slice such as '3:-1', got ()"),
        ({"role": [], "keep": 2}, "at least one non-empty text"),
    ],
)
def test_a_target_that_makes_no_sense_is_refused(target, message):
    with pytest.raises(ValidationError) as caught:
        Target.model_validate(target)
    assert message in str(caught.value)


def test_layers_may_be_an_index_a_slice_or_a_list_of_both():
    for layers in (3, -1, "3:-1", "0,2,4:", (0, "2:4", -1)):
        assert Target(role="a", ratio=0.1, layers=layers).layers == layers


def test_batches_must_divide():
    assert Training(batch_size=12, micro_batch_size=4).accumulation == 3
    assert Training(batch_size=12).micro_batch == 12
    with pytest.raises(ValidationError, match="must divide batch_size 12, got 5"):
        Training(batch_size=12, micro_batch_size=5)


def test_a_schedule_needs_steps_to_prune_in():
    with pytest.raises(ValidationError, match=r"below 1, got 0.5 \+ 0.5"):
        spec(schedule={"warmup": 0.5, "cooldown": 0.5})


def test_data_comes_from_one_place():
    with pytest.raises(ValidationError, match="exactly one of text, jsonl and dataset, got text and jsonl"):
        spec(data={"text": "a", "jsonl": "b"})
    assert spec(data={"jsonl": "b"}).data.field == "text"


def test_the_criterion_has_a_shorthand_and_averaging_is_no_option_of_its_own():
    assert spec(criterion="magnitude").criterion.name == "magnitude"
    read = CriterionSpec.model_validate({"name": "magnitude", "average": 0.5})
    assert read.average == 0.5
    assert "average" not in read.options
    assert CriterionSpec.model_validate(read.model_dump()) == read


def test_the_json_schema_documents_every_field():
    schema = json_schema()
    assert schema["required"] == ["targets"]
    for name, part in {"": schema, **schema["$defs"]}.items():
        for key, field in part.get("properties", {}).items():
            assert "description" in field, (name, key)


def test_quantization_is_a_kind_or_a_kind_with_options():
    targets = [{"role": "mlp.channel", "ratio": 0.5}]
    short = PruneSpec.model_validate({"targets": targets, "quantization": "nf4"})
    assert short.quantization.double and str(short.quantization) == "nf4, double quantisation"
    options = {"kind": "int8", "skip_modules": "down_proj"}
    long = PruneSpec.model_validate({"targets": targets, "quantization": options})
    assert long.quantization.skip_modules == ("down_proj",) and str(long.quantization) == "int8"
    for spec in (short, long):
        assert PruneSpec.model_validate(spec.model_dump(mode="json")) == spec
    assert PruneSpec.model_validate({"targets": targets}).quantization is None
    with pytest.raises(ValidationError, match=r"quantization\.kind\n.*'int8', 'nf4' or 'fp4'"):
        PruneSpec.model_validate({"targets": targets, "quantization": "int4"})
