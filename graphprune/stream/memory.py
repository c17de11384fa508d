"""How much memory there is for a process: of the machine, and of what the system lets it have."""

from __future__ import annotations

import resource
from contextlib import suppress
from pathlib import Path

import psutil

#: Where the system tells of control groups, and the files of limit and use in a group: of version 2, and of version 1.
_GROUPS = Path("/sys/fs/cgroup")
_FILES = (("memory.max", "anon"), ("memory/memory.limit_in_bytes", "total_rss"))


def available_memory() -> int:
    """Bytes that this process and those it starts can take: free, or in caches that give way.

    A container may have far less than its machine, and who takes more is killed without a word.
    """
    found = [int(psutil.virtual_memory().available)]
    soft, _ = resource.getrlimit(resource.RLIMIT_AS)
    if soft != resource.RLIM_INFINITY:
        found.append(soft)
    found += [left for group in _groups() for left in _left(group)]
    return max(0, min(found))


def _groups() -> list[Path]:
    """The control group of this process, and those around it."""
    path = ""
    with suppress(OSError):
        for line in Path("/proc/self/cgroup").read_text(encoding="utf-8").splitlines():
            number, _, rest = line.partition(":")
            path = rest.partition(":")[2].strip("/") if number == "0" else path
    own = _GROUPS / path
    return [own, *(parent for parent in own.parents if parent.is_relative_to(_GROUPS))]


def _left(group: Path) -> list[int]:
    """What a control group lets its processes take; nothing where it has no limit."""
    found = []
    for file, used in _FILES:
        with suppress(OSError, ValueError):  # "max" is no limit
            limit = int((group / file).read_text(encoding="utf-8"))
            stat = (group / file).with_name("memory.stat").read_text(encoding="utf-8").split()
            found.append(limit - int(stat[stat.index(used) + 1]))
    return found
