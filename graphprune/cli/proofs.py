"""``graphprune trace --prove``: the model to prove things on, and the table of what was found."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.table import Table

from graphprune.checkpoint import load_model
from graphprune.cli.console import out, working
from graphprune.cli.models import structure
from graphprune.graph import DependencyGraph
from graphprune.prove import Proof, ProofRow, prove
from graphprune.prove.instance import check_memory, random_instance

_WEIGHTS = ("*.safetensors", "*.bin", "*.pt", "*.pth")


def proved(name: str, graph: DependencyGraph, *, task: str | None = None, trust_remote_code: bool = False) -> bool:
    """Prints a proof for the checkpoint ``name``, on its own weights or on random ones; whether it holds.

    Raises:
        GraphPruneError: if the weights do not fit into memory.
        CheckpointError: if they cannot be read.
    """
    empty: Any = structure(name, task=task, trust_remote_code=trust_remote_code)
    check_memory(empty, name)
    folder = Path(name)
    own = folder.is_dir() and any(next(folder.glob(pattern), None) for pattern in _WEIGHTS)
    with working(f"proving {name} on {'its own' if own else 'random'} weights"):
        if own:
            model = load_model(name, dtype="float32", task=task, trust_remote_code=trust_remote_code)[0]
        else:
            model = random_instance(empty.config, task=task, trust_remote_code=trust_remote_code)
        proof = prove(model, graph, generate=True)
    for line in (_table(proof, "its own weights" if own else "random weights"), *_lines(proof)):
        out().print(line)
    return proof.ok


def _table(proof: Proof, weights: str) -> Table:
    title = f"{'Proved' if proof.ok else 'Disproved'} on {weights}: masked against cut, difference by the largest logit"
    table = Table(title=title, title_justify="left")
    for name in ("role", "groups", "removal", "difference", "gradients", "text", "proof"):
        table.add_column(name, overflow="fold")
    for row in proof.rows:
        if row.fate != "frozen":
            table.add_row(*_cells(row))
    return table


def _cells(row: ProofRow) -> tuple[str, ...]:
    generates = {None: "–", True: "alike", False: "differently"}[row.generates]
    return (
        row.role,
        str(row.groups),
        row.fate,
        "–" if row.relative is None else f"{row.relative:.1e}",
        f"{len(row.alive)} alive" if row.alive else "none",
        generates,
        "ok" if row.ok else "FAILS",
    )


def _lines(proof: Proof) -> list[str]:
    problems = [f"disproved: {problem}" for problem in proof.problems]
    notes = [f"note: {row.role}: {note}" for row in proof.rows for note in row.notes]
    return [*problems, *notes]
