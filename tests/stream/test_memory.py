"""How much memory there is for a process."""

import resource
from types import SimpleNamespace

import pytest

from graphprune.stream import memory
from graphprune.stream.memory import available_memory


@pytest.fixture(autouse=True)
def machine(monkeypatch, tmp_path):
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(available=9000))
    monkeypatch.setattr(memory, "_GROUPS", tmp_path)


def group(folder, limit, used, *, first=False):
    folder = folder / "memory" if first else folder
    folder.mkdir(parents=True, exist_ok=True)
    (folder / ("memory.limit_in_bytes" if first else "memory.max")).write_text(f"{limit}\n")
    name = "total_rss" if first else "anon"
    (folder / "memory.stat").write_text(f"cache 700\n{name} {used}\nfile 500\n")


def test_without_limits_it_is_that_of_the_machine(tmp_path):
    assert available_memory() == 9000
    group(tmp_path, "max", 100)
    assert available_memory() == 9000


@pytest.mark.parametrize("first", [False, True])
def test_a_container_has_less_than_its_machine(tmp_path, first):
    group(tmp_path, 3000, 500, first=first)
    assert available_memory() == 2500
    group(tmp_path, 3000, 4000, first=first)
    assert available_memory() == 0


def test_a_group_is_held_by_those_around_it(tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "_groups", lambda: [tmp_path / "a" / "b", tmp_path / "a", tmp_path])
    group(tmp_path / "a", 2000, 500)
    group(tmp_path / "a" / "b", 5000, 500)
    assert available_memory() == 1500


def test_a_limit_of_addresses_counts(monkeypatch):
    monkeypatch.setattr(resource, "getrlimit", lambda _: (1234, resource.RLIM_INFINITY))
    assert available_memory() == 1234
