"""Runs that are killed, anywhere and often, and continued: the result is that of the run that nobody disturbed."""

import random
import signal
import time

import pytest

from tests.engine.resuming import finish, make_spec, result, start

KILLED = -signal.SIGKILL


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The results of whole runs by mode, and how long they took."""
    found = {}

    def of(mode):
        if not found:  # the first process waits until the server has imported everything
            finish(tmp_path_factory.mktemp("first"), make_spec("none"))
        if mode not in found:
            folder = tmp_path_factory.mktemp(mode)
            begun = time.monotonic()
            assert finish(folder, make_spec(mode), resume=False) == 0
            found[mode] = (result(folder), time.monotonic() - begun)
            assert [entry.name for entry in folder.iterdir()] == ["small"]
        return found[mode]

    return of


def killed_at_random(folder, mode, seed, kills, duration):
    """Kills a run at random moments; resumes it every time, and lets the last one end. Where it stood each time."""
    dice, stood = random.Random(seed), []
    for _ in range(kills):
        process = start(folder, make_spec(mode))
        process.join(dice.uniform(0.1, 0.9) * duration)
        process.kill()
        process.join()
        stood.append(sorted(e.name for e in folder.glob("small.run/checkpoint-*")))
        if (folder / "small").exists():
            break
    if not (folder / "small").exists():
        assert finish(folder, make_spec(mode)) == 0
    return stood


@pytest.mark.parametrize(("mode", "kills"), [("joint", 2), ("separate", 1)])
def test_a_run_killed_at_random_moments_ends_in_the_same_weights(mode, kills, undisturbed, tmp_path):
    expected, duration = undisturbed(mode)
    stood = killed_at_random(tmp_path, mode, 1, kills, duration)
    assert result(tmp_path) == expected, stood


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["joint", "separate"])
@pytest.mark.parametrize("seed", range(5))
def test_many_kills(mode, seed, undisturbed, tmp_path):
    expected, duration = undisturbed(mode)
    stood = killed_at_random(tmp_path, mode, seed, 4, duration)
    assert result(tmp_path) == expected, stood


PLACES = {
    "first checkpoint, weights only": "transformers:Trainer._save_optimizer_and_scheduler:1",
    "a checkpoint without the engine's state": "graphprune.engine.state:save_file:2",
    "a checkpoint without its mark": "graphprune.engine.state:mark:3",
    "right after a checkpoint": "graphprune.engine.state:mark:3:after",
    "in the middle of a step": "graphprune.engine.pruner:Pruner.advance:7:after",
    "trained, not yet cut": "graphprune.engine.modes:reshape:1",
    "output without its name": "graphprune.checkpoint.save:records:1",
}


@pytest.mark.parametrize("place", ["a checkpoint without its mark", "in the middle of a step", "trained, not yet cut"])
def test_a_run_killed_where_it_hurts(place, undisturbed, tmp_path):
    assert finish(tmp_path, make_spec(), die_at=PLACES[place]) == KILLED
    assert finish(tmp_path, make_spec()) == 0
    assert result(tmp_path) == undisturbed("joint")[0]
    assert [entry.name for entry in tmp_path.iterdir()] == ["small"]


@pytest.mark.slow
@pytest.mark.parametrize("place", PLACES)
def test_every_place(place, undisturbed, tmp_path):
    test_a_run_killed_where_it_hurts(place, undisturbed, tmp_path)
