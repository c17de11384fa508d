"""A name becomes a folder; the Hub is never asked for a pickle."""

import pytest

from graphprune.errors import CheckpointError
from graphprune.stream import fetch


def test_a_folder_is_itself(tmp_path):
    assert fetch.fetched(tmp_path) == tmp_path


@pytest.mark.parametrize("name", ["./nowhere", "/no/where", "a/b/c"])
def test_a_path_that_is_not_there_is_no_hub_id(name):
    with pytest.raises(CheckpointError, match="no model folder at"):
        fetch.fetched(name)


def test_without_network_the_error_says_so():
    with pytest.raises(CheckpointError, match="'no-such-owner/no-such-model' cannot be fetched from the Hub"):
        fetch.fetched("no-such-owner/no-such-model")


@pytest.mark.parametrize("trusted", [False, True])
def test_weights_settings_and_tokenizers_are_fetched_code_on_request(monkeypatch, tmp_path, trusted):
    asked = {}
    monkeypatch.setattr(fetch, "snapshot_download", lambda name, **how: asked.update(how, name=name) or tmp_path)
    assert fetch.fetched("owner/name", trust_remote_code=trusted) == tmp_path
    assert asked["name"] == "owner/name"
    assert ("*.py" in asked["allow_patterns"]) is trusted
    assert {"*.safetensors", "config.json", "tokenizer*"} <= set(asked["allow_patterns"])
    assert not any(p.endswith((".bin", ".pt", "*")) and p in {"*", "*.*"} for p in asked["allow_patterns"])
