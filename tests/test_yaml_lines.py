"""YAML with lines: numbers as they are meant, keys where they stand."""

import math

from graphprune.yaml_lines import path_text, read_yaml


def value(text):
    return read_yaml(text)[0]


def test_numbers_are_those_of_yaml_1_2():
    assert value("layers: 3:10") == {"layers": "3:10"}  # 190 in YAML 1.1
    assert value("{a: 1e-4, b: 1.0e-4, c: -3, d: 0x10, e: .5, f: 5., g: 010, h: +2}") == {
        "a": 1e-4, "b": 1e-4, "c": -3, "d": 16, "e": 0.5, "f": 5.0, "g": 10, "h": 2,
    }  # fmt: skip
    assert type(value("a: 3")["a"]) is int
    assert value("a: .inf")["a"] == math.inf
    assert value("[3:-1, '::2', '5', 1-2, true, null]") == ["3:-1", "::2", "5", "1-2", True, None]


def test_lines_are_those_of_keys_and_items():
    text = "# comment\ntargets:\n  - role: a\n    ratio: 0.5\n  - {role: b,\n     keep: 2}\nseed: 0\n"
    _, lines, problems = read_yaml(text)
    assert problems == []
    assert lines[("targets",)] == 2
    assert lines[("targets", 0)] == lines[("targets", 0, "role")] == 3
    assert lines[("targets", 0, "ratio")] == 4
    assert lines[("targets", 1, "keep")] == 6
    assert lines[("seed",)] == 7


def test_a_key_written_twice_is_a_problem():
    _, _, problems = read_yaml("seed: 1\nlora: {r: 8}\nseed: 2\nlora: {r: 9}\n")
    assert problems == [
        "seed (line 3): written a second time, first on line 1; remove one of them",
        "lora (line 4): written a second time, first on line 2; remove one of them",
    ]


def test_text_that_is_no_yaml_is_a_problem_with_its_place():
    got, _, (problem,) = read_yaml("targets:\n  - {role: a\nseed: 0\n")
    assert got is None
    assert problem.startswith("expected YAML, but it cannot be parsed (line 3, column 5)")
    assert "cannot be parsed" in read_yaml("a: \x00")[2][0]
    assert "cannot be parsed" in read_yaml("a: 1\n---\nb: 2")[2][0]
    assert "cannot be parsed" in read_yaml("a: !!python/object/apply:os.system ['true']")[2][0]


def test_empty_text_and_aliases():
    assert read_yaml("# nothing\n") == (None, {}, [])
    assert value("a: &x {r: 1}\nb: *x") == {"a": {"r": 1}, "b": {"r": 1}}
    assert read_yaml("a: &x [*x]")[2] == []  # contains itself; does not hang


def test_paths_read_as_python_would_write_them():
    assert path_text(("targets", 2, "ratio")) == "targets[2].ratio"
    assert path_text(("seed",)) == "seed"
