"""Output folders are whole or absent, whatever ends the process that writes them."""

import os
import signal
import time
import traceback
from pathlib import Path

import pytest

from graphprune.checkpoint import load, save
from graphprune.checkpoint.manifest import Manifest
from graphprune.errors import CheckpointError
from tests.checkpoint.test_save import assert_same, pruned

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")


def in_child(action):
    """Runs ``action`` in a process of its own; its number."""
    child = os.fork()
    if child:
        return child
    try:
        action()
        os._exit(0)
    finally:
        traceback.print_exc()
        os._exit(1)


def die(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)


class Deadly:
    """A report that ends the process when it is written."""

    def save(self, folder):
        die()


def killed_at(place):
    """How a save ends when its process is killed at ``place``."""

    def action(model, target):
        rename = Path.rename
        if place == "before its name":
            Path.rename = die
        elif place == "after its name":
            Path.rename = lambda self, new: (rename(self, new), die())
        elif place == "at the manifest":
            Manifest.write = die
        ends = {"report": Deadly()} if place == "at the report" else {}
        save(model, target, **ends, proof=die if place == "at the proof" else None)

    return action


PLACES = ["at the report", "at the manifest", "at the proof", "before its name", "after its name"]


@pytest.mark.parametrize("place", PLACES)
def test_a_killed_save_leaves_all_or_nothing_and_can_be_repeated(place, tmp_path):
    model, target = pruned("llama"), tmp_path / "out"
    child = in_child(lambda: killed_at(place)(model, target))
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
    if place == "after its name":
        assert_same(load(target), model)
        return
    assert not target.exists()
    (left,) = tmp_path.iterdir()
    assert left.name == f".out.{child}.partial"
    save(model, target)
    assert list(tmp_path.iterdir()) == [target], "what was left is gone"
    assert_same(load(target), model)


@pytest.mark.parametrize("seconds", [0.02, 0.1, 0.3, 0.6, 1.0])
def test_killed_at_any_moment(seconds, tmp_path):
    model, target = pruned("gpt2"), tmp_path / "out"
    child = in_child(lambda: save(model, target))
    time.sleep(seconds)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    if not target.exists():
        save(model, target)
    Manifest.read(target).check(target)
    assert_same(load(target), model)


@pytest.mark.parametrize("tier", ["hf-remote-code", "graphprune"])
@pytest.mark.parametrize("most", [100, 3000, 20000])
def test_a_full_disk_is_said_and_leaves_nothing(tier, most, tmp_path):
    """A limit on the size of files gives what a full disk gives: writing fails in the middle of a file."""
    resource = pytest.importorskip("resource")
    model = pruned("llama")

    def action():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
        with pytest.raises(CheckpointError, match=r"out cannot be written: .*\. Nothing is left of it"):
            save(model, tmp_path / "new" / "out", targets=[tier])

    assert os.waitpid(in_child(action), 0)[1] == 0
    assert list(tmp_path.iterdir()) == []
    save(model, tmp_path / "new" / "out", targets=[tier])
