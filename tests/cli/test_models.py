"""Structures of checkpoints."""

import pytest
import torch

from graphprune.cli.models import check_file, check_name, device_of, graph_of
from graphprune.errors import CheckpointError, DataError, GraphPruneError


def test_a_graph_needs_the_config_only(tiny, tmp_path):
    (tmp_path / "config.json").write_text((tiny / "config.json").read_text())
    graph = graph_of(str(tmp_path))
    assert len(graph.select(role="mlp.channel")) == graph.layers == 3


def test_a_folder_without_a_config_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match=r"has no config\.json\. Is it a model folder\?"):
        graph_of(str(tmp_path))


def test_a_config_of_something_else_is_refused(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "nothing-known"}')
    with pytest.raises(CheckpointError, match="expected a model"):
        graph_of(str(tmp_path))


@pytest.mark.parametrize("name", ["./nowhere", "/nowhere", "~/nowhere", "a/b/c", "nowhere/"])
def test_a_path_is_not_looked_up_on_the_hub(name):
    with pytest.raises(CheckpointError, match="no such folder"):
        check_name(name)


@pytest.mark.parametrize("name", ["gpt2", "some/model", "."])
def test_a_hub_id_may_be(name):
    check_name(name)


def test_devices_are_those_of_this_machine():
    assert device_of("cpu") == torch.device("cpu")
    assert device_of(None).type in {"cpu", "cuda", "mps", "xpu"}
    for name in ("nope", "cuda:99", "meta:x"):
        with pytest.raises(GraphPruneError, match=f"expected a device of this machine, got '{name}'"):
            device_of(name)


def test_a_text_that_is_not_there_is_named(tmp_path):
    with pytest.raises(DataError, match="no text file at"):
        check_file(tmp_path)
