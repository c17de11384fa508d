"""The text of the demo decoder: the standard library of the running CPython and pydoc's help topics.

Kept are files without any copyright or licence line but the Python Software Foundation's, so that excerpts
may be passed on under the PSF licence. Names, not contents, decide what is held out and in which order the
rest goes.
"""

from __future__ import annotations

import hashlib
import re
import sysconfig
from dataclasses import dataclass
from pathlib import Path

PSF = "Python Software Foundation"
EXCLUDED_FOLDERS = {"test", "tests", "idle_test", "site-packages"}  # repetitive, or not CPython's
EXCLUDED_FOLDERS |= {"distutils", "lib2to3"}  # gone from newer versions
EXCLUDED_FOLDERS |= {"encodings", "pydoc_data"}  # mostly tables; the topics are read from the module
# Written by the build of this one interpreter: not the same text elsewhere.
EXCLUDED_FILES = re.compile(r"^(_sysconfigdata|python-config)")
COPYRIGHT = re.compile(r"copyright\s.*?(?:\(c\)|\d{4}|by\s)[^\n]*", re.IGNORECASE)


@dataclass(frozen=True)
class Document:
    """One file (or one help topic) of the corpus; ``key`` decides its split and its order."""

    name: str
    text: str

    @property
    def key(self) -> int:
        """A number below 2**32 that depends on the name only, so that a file never changes its split."""
        return int(hashlib.sha256(self.name.encode()).hexdigest()[:8], 16)

    @property
    def held_out(self) -> bool:
        """Whole files are held out; help topics are not, because some repeat each other."""
        return self.name.endswith(".py") and self.key % 24 == 0


def standard_library() -> list[Document]:
    """Sources of the standard library and pydoc's help topics, sorted by ``Document.key``."""
    from pydoc_data.topics import topics

    root = Path(sysconfig.get_path("stdlib"))
    documents = [Document(f"topic:{name}", text.strip() + "\n") for name, text in topics.items()]
    for path in root.rglob("*.py"):
        relative = path.relative_to(root)
        folders = relative.parts[:-1]
        if EXCLUDED_FOLDERS.intersection(folders) or any("-" in folder for folder in folders):
            continue
        text = path.read_text(encoding="utf-8")
        if text.strip() and not EXCLUDED_FILES.match(path.name) and is_psf_only(text):
            documents.append(Document(relative.as_posix(), text))
    return sorted(documents, key=lambda document: (document.key, document.name))


def is_psf_only(text: str) -> bool:
    """No copyright or licence line other than the Python Software Foundation's."""
    return "SPDX-" not in text and all(PSF in notice for notice in COPYRIGHT.findall(text))


def take(documents: list[Document], limit: int, longest: int) -> str:
    """Whole documents of at most ``longest`` bytes, in order, as long as they fit into ``limit`` bytes."""
    chosen: list[str] = []
    for document in documents:
        length = len(document.text.encode())
        if length <= longest and limit >= length:
            chosen.append(document.text)
            limit -= length
    return "\n".join(chosen)
