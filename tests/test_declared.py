"""Declarations as values: what a spec may say, and with which words the rest is refused."""

import jsonschema
import pytest

from graphprune.declared import DeclaredGroup, coefficients, shipped
from graphprune.errors import SpecError
from graphprune.schema import PruneSpec, json_schema
from graphprune.specfile import dump_spec, load_spec

TARGETS = [{"role": "moe.expert", "count": 1}]
UP = {"tensor": "layers.{layer}.up"}
GROUP = {"role": "moe.expert", "members": [UP], "sizes": {"layers.{layer}.n": "2*size + 1"}}


def problems(*groups):
    with pytest.raises(SpecError) as caught:
        load_spec({"targets": TARGETS, "groups": list(groups)})
    return caught.value.problems


@pytest.mark.parametrize(
    ("formula", "expected"),
    [
        ("size", (1, 0)),
        ("8*size", (8, 0)),
        ("size * 8", (8, 0)),
        ("2 * size + 3", (2, 3)),
        ("size - 1", (1, -1)),
        ("8*size + rest", (8, None)),
    ],
)
def test_formulas(formula, expected):
    assert coefficients(formula) == expected


def test_what_is_dumped_loads_as_the_same_spec(tmp_path):
    spec = load_spec({"targets": TARGETS, "groups": [GROUP]})
    (tmp_path / "spec.yaml").write_text(dump_spec(spec))
    assert load_spec(tmp_path / "spec.yaml") == spec
    assert spec.groups[0].members[0].tensor == "layers.{layer}.up"


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"members": [{"tensor": "l.{block}.up"}]}, "members[0].tensor: unknown placeholder {block} in 'l.{block}.up'"),
        ({"members": [{"tensor": "l.{layer.up"}]}, "members[0].tensor: a brace without its partner in 'l.{layer.up'"),
        ({"members": [{"tensor": "l.{unit}.up"}]}, "members[0].tensor: {unit} has no meaning here, got 'l.{unit}.up'"),
        (
            {"members": [{**UP, "start": 0, "blocks": [{"unit_stride": 1}]}]},
            "members[0]: expected either start, length",
        ),
        ({"members": [{**UP, "length": "size + rest"}]}, "members[0].length: expected a number of indices, 'size',"),
        ({"members": []}, ": expected members, or entries of a module list, that go with a unit; got neither"),
        ({"sizes": {"n": "size/2"}}, "sizes.n: expected 'size', '8*size', '8*size + 4' or 'size + rest', got"),
        ({"mask": [{}]}, "mask[0]: expected exactly one of input, weight and logits, got none of them"),
        ({"mask": [{"input": "a", "dim": 1}]}, "mask[0]: an input is masked along its last dimension; leave dim out"),
        ({"mask": [{"logits": "a", "length": 4}]}, "mask[0]: units of logits are their whole dimension,"),
        ({"size": 1}, "size: expected two units or more, or the path of an integer that says how many, got 1"),
        ({"completes": 3}, "completes: expected true, false, or the name of a traced group, got 3"),
        ({"completes": "l.{layr}/x"}, "completes: unknown placeholder {layr} in 'l.{layr}/x'"),
        ({"size": "l.{unit}.n"}, "size: {unit} has no meaning here, got 'l.{unit}.n'"),
        ({"compeltes": True}, "compeltes: unknown key. Did you mean 'completes'?"),
    ],
)
def test_what_cannot_be_meant_is_refused_with_its_path(change, problem):
    (found,) = problems({**GROUP, **change})
    dot = "" if problem.startswith(":") else "."
    assert found.startswith(f"groups[0]{dot}{problem}")


def test_shipped_groups_have_a_name():
    assert shipped()
    for name in shipped():
        spec = load_spec({"targets": TARGETS, "groups": f"architecture:{name}"})
        assert spec.groups == PruneSpec(targets=spec.targets, groups=[f"architecture:{name}"]).groups
        assert all(isinstance(group, DeclaredGroup) for group in spec.groups)


def test_unknown_names_list_the_known_ones():
    with pytest.raises(SpecError) as caught:
        load_spec({"targets": TARGETS, "groups": "architecture:nothing"})
    assert "groups: expected a declared group, or the name of shipped ones (architecture:" in str(caught.value)
    with pytest.raises(SpecError, match=r"got 'nothing'"):
        load_spec({"targets": TARGETS, "groups": ["nothing"]})


def test_editors_know_declared_groups():
    schema = json_schema()
    jsonschema.validate({"targets": TARGETS, "groups": [GROUP, {**GROUP, "completes": "a/b", "size": "n"}]}, schema)
    jsonschema.validate({"targets": TARGETS, "groups": "architecture:dbrx"}, schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({"targets": TARGETS, "groups": [{**GROUP, "sise": 4}]}, schema)
