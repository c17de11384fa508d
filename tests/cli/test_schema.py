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
