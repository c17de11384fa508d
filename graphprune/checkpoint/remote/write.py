"""Writing what a self-contained folder has beside its weights: the config with its recipe, and the modelling file."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch

from graphprune.checkpoint.remote import modeling_graphprune
from graphprune.checkpoint.remote.recipe import KEY, Recipe

MODELING = "modeling_graphprune.py"


def write_remote(folder: Path, recipe: Recipe, dtype: torch.dtype, constants: dict[str, torch.dtype]) -> None:
    """Writes ``config.json`` and the modelling file.

    Args:
        folder: that has the weights, or will have them.
        recipe: of the model.
        dtype: of the weights.
        constants: the dtypes of the cut constants among the weights.
    """
    config = {**recipe.config, "dtype": _name(dtype)}
    if constants:
        config[KEY] = {**config[KEY], "constants": {name: _name(kind) for name, kind in constants.items()}}
    (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    shutil.copyfile(modeling_graphprune.__file__, folder / MODELING)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
