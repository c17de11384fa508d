"""A small trained decoder and its texts, to try pruning on without a download; see `README.md`."""

from importlib.resources import files
from pathlib import Path


def model_path() -> Path:
    """The checkpoint folder (config, float16 weights, tokenizer), for `from_pretrained` or as a `MODEL`.

    The config has the weights loaded as float32. Context length 256 tokens; 6 layers, each with 512 MLP
    channels and 4 attention groups (KV heads) of 2 query heads.
    """
    return _resource("model")


def calibration_path() -> Path:
    """About 250 kB of UTF-8 text the model was trained on, for importance scores and for tuning."""
    return _resource("calibration.txt")


def held_out_path() -> Path:
    """About 50 kB of UTF-8 text from files the model was not trained on, for perplexity."""
    return _resource("held_out.txt")


def _resource(name: str) -> Path:
    """A real path: a package that lies in a zip file cannot be handed to `from_pretrained`."""
    return Path(str(files(__name__).joinpath(name)))


__all__ = ["calibration_path", "held_out_path", "model_path"]
