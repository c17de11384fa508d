"""Specs from files: what is read, and with which words the rest is refused."""

import jsonschema
import pytest
import yaml

from graphprune.errors import SpecError
from graphprune.schema import PruneSpec, json_schema
from graphprune.specfile import dump_spec, load_spec, recipe_text, recipes

MINIMAL = "targets:\n  - {role: mlp.channel, ratio: 0.5}\n"


@pytest.fixture
def problems(tmp_path):
    """Writes a text to spec.yaml, loads it, and gives the problems that were reported."""

    def refused(text):
        file = tmp_path / "spec.yaml"
        file.write_text(text)
        with pytest.raises(SpecError) as caught:
            load_spec(file)
        assert caught.value.source == str(file)
        return caught.value.problems

    return refused


def test_a_spec_is_read_from_a_file_a_dictionary_or_as_it_is(tmp_path):
    file = tmp_path / "spec.yaml"
    file.write_text(MINIMAL)
    spec = load_spec(file)
    assert spec == load_spec(str(file)) == load_spec({"targets": [{"role": "mlp.channel", "ratio": 0.5}]})
    assert load_spec(spec) is spec
    assert spec.targets[0].ratio == 0.5


def test_what_is_dumped_loads_as_the_same_spec(tmp_path):
    spec = load_spec("recipe:loraprune")
    (tmp_path / "again.yaml").write_text(dump_spec(spec))
    assert load_spec(tmp_path / "again.yaml") == spec
    assert "average: 0.9" in dump_spec(spec)


def test_text_that_is_no_yaml(problems):
    (problem,) = problems("targets: [")
    assert problem.startswith("expected YAML, but it cannot be parsed (line 1")


@pytest.mark.parametrize(
    ("text", "got"), [("", "nothing"), ("# only a comment", "nothing"), ("[1, 2]", "list"), ("text", "str")]
)
def test_what_is_no_mapping(problems, text, got):
    assert problems(text) == (f"expected a mapping with at least the key 'targets', got {got}",)


def test_an_unknown_key_gets_the_nearest_known_one(problems):
    found = problems(MINIMAL + "trainig: {steps: 2}\nlora: {rank: 4, alhpa: 2}\n")
    assert found[0].startswith("lora.rank (line 4): unknown key.")
    assert found[1].startswith("lora.alhpa (line 4): unknown key. Did you mean 'alpha'? Known here: r, alpha,")
    assert found[2].startswith("trainig (line 3): unknown key. Did you mean 'training'?")


def test_every_problem_is_reported_at_once_with_path_and_line(problems):
    found = problems(
        "targets:\n"
        "  - {role: mlp.channel, ratio: 50}\n"
        "  - role: attention.group\n"
        "    ratoi: 0.5\n"
        "  - {role: 5, keep: 2}\n"
        "schedule: {warmup: 0.6, cooldown: 0.6}\n"
        "training: {steps: 0, mode: jiont}\n"
        "seed: x\n"
    )
    assert [p.split(":")[0] for p in found] == [
        "targets[0].ratio (line 2)",
        "targets[1].ratoi (line 4)",
        "targets[2].role (line 5)",
        "schedule (line 6)",
        "training.mode (line 7)",
        "training.steps (line 7)",
        "seed (line 8)",
    ]
    assert "expected less than 1, got 50 (a percentage? write 0.5)" in found[0]
    assert "expected a list, got 5. Role or roles" in found[2]
    assert "expected a sum below 1, got 0.6 + 0.6" in found[3]
    assert "expected 'joint', 'separate' or 'none', got 'jiont'" in found[4]
    assert "expected a valid integer, got 'x'" in found[6]


@pytest.mark.parametrize("ratio", ["1", "1.0", "-0.1", ".nan", "half"])
def test_a_ratio_outside_of_0_to_1_is_refused(problems, ratio):
    (problem,) = problems(f"targets: [{{role: mlp.channel, ratio: {ratio}}}]")
    assert problem.startswith("targets[0].ratio (line 1): expected")
    assert "Fraction of the units to remove, in [0, 1)." in problem


def test_targets_are_required(problems):
    assert problems("seed: 0") == ("targets: expected, but missing. What to remove.",)
    (problem,) = problems("targets: []")
    assert problem.startswith("targets (line 1): ")
    assert "at least 1 item" in problem


def test_an_unknown_criterion_gets_the_nearest_known_one(problems):
    (problem,) = problems(MINIMAL + "criterion: {name: magnitud}")
    assert problem.startswith("criterion (line 3): unknown criterion 'magnitud'. Did you mean 'magnitude'?")
    assert problem == problems(MINIMAL + "criterion: magnitud")[0]


def test_wrong_options_of_a_criterion_are_told_as_the_spec_writes_them(problems):
    (problem,) = problems(MINIMAL + "criterion: {name: magnitude, agregate: sum}")
    assert problem.startswith("criterion.agregate (line 3): unknown key. Did you mean 'aggregate'? Known here: name")
    (problem,) = problems(MINIMAL + "criterion: {name: magnitude, average: 1.5}")
    assert problem.startswith("criterion.average (line 3): expected less than 1, got 1.5")


def test_a_key_written_twice_is_refused(problems):
    (problem,) = problems(MINIMAL + "seed: 1\nseed: 2\n")
    assert problem.startswith("seed (line 4): written a second time, first on line 3")


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(SpecError, match="expected a YAML file, found no such file") as caught:
        load_spec(tmp_path / "loraprune.yaml")
    assert "There is a recipe of that name: 'recipe:loraprune'" in str(caught.value)
    with pytest.raises(SpecError, match="found a folder"):
        load_spec(tmp_path)
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(SpecError, match="UTF-8"):
        load_spec(tmp_path / "binary.yaml")


def test_an_unknown_recipe_gets_the_nearest_known_one():
    with pytest.raises(SpecError, match=r"unknown recipe\. Did you mean 'loraprune'\?"):
        load_spec("recipe:lora-prune")


def test_the_promised_recipes_are_there():
    promised = {"gate", "llm-pruner", "loraprune", "magnitude", "quickstart", "random", "wanda-sp"}
    assert promised <= set(recipes())


@pytest.mark.parametrize("name", recipes())
def test_a_recipe_loads_names_its_paper_and_satisfies_the_json_schema(name):
    text = recipe_text(name)
    assert "https://arxiv.org/abs/" in text.split("targets:")[0]
    assert isinstance(load_spec(f"recipe:{name}"), PruneSpec)
    jsonschema.validate(yaml.safe_load(text), json_schema())


@pytest.mark.parametrize(
    "wrong",
    [
        {},
        {"targets": []},
        {"targets": [{"role": "a", "ratio": 1}]},
        {"targets": [{"role": "a", "ratio": 0.5}], "criterion": "nope"},
        {"targets": [{"role": "a", "ratio": 0.5}], "criterion": {"name": "magnitude", "nope": 1}},
        {"targets": [{"role": "a", "ratio": 0.5}], "nope": 1},
    ],
)
def test_the_json_schema_refuses_what_the_loader_refuses(wrong):
    with pytest.raises(SpecError):
        load_spec(wrong)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(wrong, json_schema())
