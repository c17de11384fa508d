"""What it would take to prune what is frozen or inexact, by what the reason says."""

from __future__ import annotations

import re

BY_DESIGN = "Nothing: by design."

REMEDIES = (
    ("token ids", BY_DESIGN),
    ("positions in the text", BY_DESIGN),
    ("real and imaginary parts", BY_DESIGN),
    ("stored table assigns", "A new assignment of token ids, which no importance score gives."),
    ("query/key dimensions", "Pairs of dimensions that a rotation keeps together, and a scale of its own per head."),
    ("value dimensions of single heads", "One group per head, or units that are cut from every head alike."),
    ("state dimensions", "A mask on both factors of the product that makes the state."),
    ("do not tell what this axis is", "Nothing, where it is a kernel, a state or a code of fixed length; else a role."),
    ("never used it", "Inputs that run it (`example_inputs`)."),
    ("did not run in the traced", "Inputs that run it (`example_inputs`)."),
    ("constant that is not in the checkpoint", "Pruned checkpoints that keep such constants."),
    ("divides a tensor among the layers", "A rule for the tensors of running states that are divided so."),
    ("(portion of layer|portions of the layers)", "Another forward; the portions do not stay apart."),
    ("besides the residual stream", "Units of layers that belong together; each of them computes for another one."),
    ("(look layers up|some layers) by their numbers", "Proof that the forward asks for the numbers of layers in turn."),
    ("no rule for the operation", "A rule for the operation, in `graphprune/trace/rules`."),
    ("(number written in its code|length of another one)", "Another forward; no attribute can be changed to say it."),
    ("computes with the number of units", "Another forward; no attribute can be changed to say it."),
    ("only the router's rows", "Groups declared by hand; `specs/architectures` has some."),
    ("numbers that it computes", "Units of a whole row or column of the grid that the numbers point into."),
    ("positions are mixed|regroups|cannot be split|could not be followed|falls inside", "A finer rule for it."),
    ("statistic|reduced without a weight", "A mask for this way of averaging."),
)
"""Regular expressions on reasons, and what to do; the first that is found counts."""


def remedy(reason: str) -> str:
    """What it would take, in a sentence."""
    return next((told for pattern, told in REMEDIES if re.search(pattern, reason)), "Not known yet.")
