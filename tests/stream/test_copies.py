"""What says how text becomes tokens is copied as it is; nothing is copied that nobody meant to share."""

import pytest

from graphprune.errors import CheckpointError
from graphprune.stream.copies import SideFiles

COPIED = {
    "tokenizer.json": "{}",
    "tokenizer_config.json": "{}",
    "special_tokens_map.json": "{}",
    "chat_template.jinja": "{{ messages }}",
    "additional_chat_templates/tool_use.jinja": "{{ tools }}",
    "preprocessor_config.json": "{}",
    "processor_config.json": "{}",
    "vocab.json": "{}",
    "merges.txt": "a b",
    "spiece.model": "proto",
    "LICENSE": "Apache",
}
LEFT = ["model.safetensors", "pytorch_model.bin", "tokenizer.py", "config.json", "README.md", "optimizer.pt", ".env"]


@pytest.fixture
def folder(tmp_path):
    for name, text in {**COPIED, **dict.fromkeys(LEFT, "no")}.items():
        file = tmp_path / "model" / name
        file.parent.mkdir(exist_ok=True, parents=True)
        file.write_text(text)
    (tmp_path / "small").mkdir()
    return tmp_path


def written(folder):
    small = folder / "small"
    return {p.relative_to(small).as_posix(): p.read_text() for p in small.rglob("*") if p.is_file()}


def test_these_are_copied_and_no_others(folder):
    SideFiles(folder / "model").save_pretrained(folder / "small")
    assert written(folder) == COPIED


def test_links_into_the_cache_of_the_hub_are_followed(folder):
    snapshot = folder / "models--owner--name" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    blob = snapshot.parents[1] / "blobs" / "123"
    blob.parent.mkdir()
    blob.write_text("{}")
    (snapshot / "tokenizer.json").symlink_to("../../blobs/123")
    SideFiles(snapshot).save_pretrained(folder / "small")
    assert written(folder) == {"tokenizer.json": "{}"}
    assert not (folder / "small" / "tokenizer.json").is_symlink()


def test_other_links_are_refused(folder):
    (folder / "secret").write_text("password")
    (folder / "model" / "tokenizer.json").unlink()
    (folder / "model" / "tokenizer.json").symlink_to(folder / "secret")
    with pytest.raises(CheckpointError, match=r"tokenizer\.json is a link to .*secret, outside of the checkpoint"):
        SideFiles(folder / "model")
