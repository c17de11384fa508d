"""Checkpoint folders: written whole or not at all, safetensors only, each with the line of code that loads it."""

from graphprune.checkpoint.folder import check_output_folder
from graphprune.checkpoint.load import load
from graphprune.checkpoint.save import save
from graphprune.checkpoint.source import load_model
from graphprune.checkpoint.verify import prove_folder, verify_folder

__all__ = ["check_output_folder", "load", "load_model", "prove_folder", "save", "verify_folder"]
