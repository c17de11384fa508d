"""``graphprune schema``."""

import json

from graphprune.schema import json_schema


def test_it_prints_the_json_schema(run):
    result = run("schema")
    assert result.exit_code == 0
    assert json.loads(result.stdout) == json_schema()


def test_it_writes_a_file(run, tmp_path):
    result = run("schema", "--out", tmp_path / "schema.json")
    assert "yaml-language-server: $schema=" in result.stdout
    assert json.loads((tmp_path / "schema.json").read_text()) == json_schema()


def test_that_of_study_files(run, tmp_path):
    from graphprune.study.studyfile import json_schema

    assert json.loads(run("schema", "--study").stdout) == json_schema()
    assert "at the top of a study" in run("schema", "--study", "--out", tmp_path / "schema.json").stdout
