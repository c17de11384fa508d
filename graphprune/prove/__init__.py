"""Proofs on a live model that removing units is what silencing them is, kind by kind."""

from graphprune.prove.proof import Proof, ProofRow
from graphprune.prove.run import prove

__all__ = ["Proof", "ProofRow", "prove"]
