"""Tiny models of every causal-LM architecture that transformers registers, built offline from config classes alone.

For tests of criteria, of other people's code on top of graphprune, and of graphprune itself::

    from graphprune.testing import cases, example_inputs, tiny_model

    for case in cases():
        model = tiny_model(case)
        logits = model(**example_inputs(model)).logits
"""

from graphprune.testing.configs import tiny_config
from graphprune.testing.models import example_inputs, tiny_model
from graphprune.testing.parts import PartRow, parts_of
from graphprune.testing.zoo import ZooError, architectures, cases, unavailable

__all__ = [
    "PartRow",
    "ZooError",
    "architectures",
    "cases",
    "example_inputs",
    "parts_of",
    "tiny_config",
    "tiny_model",
    "unavailable",
]
