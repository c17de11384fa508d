"""Declarative, graph-based structured pruning of Hugging Face decoders."""

__version__ = "0.1.0.dev0"
