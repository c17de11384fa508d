"""Writing a model as one of another class, which computes the same and whose config describes it."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from graphprune.reshape.history import History


@contextmanager
def stood_in(base: Any, history: History, folder: Path) -> Iterator[None]:
    """Weights that are written inside of the block are written beside the config of the stand-in, where there is one.

    Args:
        base: the bare model.
        history: what was done to it.
        folder: where the block writes its config.
    """
    other = history.stand_in
    if other is None:
        yield
        return
    live = base.config
    base.config = copy.deepcopy(other.config)
    base.config.dtype = live.dtype
    try:
        yield
    finally:
        base.config = live
    file = folder / "config.json"  # what writes a model names the class that it is
    values = {**json.loads(file.read_text(encoding="utf-8")), "architectures": [other.architecture]}
    file.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n", encoding="utf-8")
