"""Which architectures can be saved as self-contained folders: cut unevenly, and loaded where graphprune is not.

``python -m graphprune.testing.remote [CASE ...]`` prints a line per case, and how many of them pass; without cases it
tries all. Each is cut in a process of its own; one more, which cannot import graphprune, loads the folders and compares
logits and eight greedy tokens with those of the model in memory.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from graphprune.checkpoint.fresh import Question, ask
from graphprune.checkpoint.greedy import Continuation, continuation
from graphprune.checkpoint.save import save
from graphprune.errors import TraceError
from graphprune.graph import DependencyGraph
from graphprune.plan import PrunePlan
from graphprune.prove.plans import removable
from graphprune.prove.subject import distance, magnitude
from graphprune.reshape.apply import cut_model
from graphprune.sample import output_of
from graphprune.testing.models import example_inputs, tiny_model
from graphprune.testing.zoo import cases
from graphprune.trace import trace

SHARES = (0.0, 0.15, 0.3, 0.45)
"""What of a group goes, drawn anew for every group."""
TOLERANCE = 1e-4
"""How far logits may be apart, as a fraction of the largest one."""
AT_ONCE = 16
"""Folders that one process loads."""


@dataclass(frozen=True)
class Outcome:
    """What became of one case.

    Attributes:
        case: its name.
        problem: why it has no such folder, or what is wrong with it; empty where it passes.
        distance: the largest difference of a logit, as a fraction of the largest one.
        text: why no text was compared; empty where it was.
    """

    case: str
    problem: str = ""
    distance: float = 0.0
    text: str = ""

    def __str__(self) -> str:
        said = self.problem or f"passes, logits differ by {self.distance:.1e}"
        return f"{self.case}: {said}{f' (no text: {self.text})' if self.text else ''}"


@dataclass(frozen=True, eq=False)
class Made:
    """A folder, and what it has to answer."""

    question: Question
    logits: torch.Tensor
    text: Continuation | str


def uneven_plan(graph: DependencyGraph, seed: int = 0) -> PrunePlan:
    """A plan that takes another share of every group, layers included."""
    generator = torch.Generator().manual_seed(seed)
    removed: dict[str, list[int]] = {}
    for group in graph.select():
        share = SHARES[int(torch.randint(len(SHARES), (1,), generator=generator))]
        order = torch.randperm(group.size, generator=generator).tolist()
        chosen: set[int] = set()
        for unit in order if share and group.exact else ():
            if len(chosen) < removable(group, share) and not any({*chosen, unit} >= set(k) for k in group.essential):
                chosen.add(unit)
        removed[group.name] = sorted(chosen)
    return PrunePlan.remove(graph, removed)


def make(case: str, folder: Path) -> Made | str:
    """The folder of a case; where it has none, why."""
    try:
        model = tiny_model(case)
        inputs = example_inputs(model)
        try:
            graph = trace(model)
        except TraceError:  # inputs of its own
            graph = trace(model, example_inputs=inputs)
        cut_model(model, graph, uneven_plan(graph))
        with torch.no_grad():
            logits = output_of(model(**inputs))
        text = continuation(model, inputs)
        save(model, folder, targets=["hf-remote-code"])
    except Exception as error:  # noqa: BLE001 - a case that fails is an outcome
        return f"{type(error).__name__}: {error}"
    return Made(Question(folder, inputs, {} if isinstance(text, str) else text.prompt), logits, text)


def outcomes(names: Sequence[str]) -> Iterator[Outcome]:
    """One outcome per name."""
    for start in range(0, len(names), AT_ONCE):
        with tempfile.TemporaryDirectory(prefix="graphprune-") as temporary:
            made = {case: make(case, Path(temporary) / case) for case in names[start : start + AT_ONCE]}
            asked = {case: found.question for case, found in made.items() if isinstance(found, Made)}
            answers = dict(zip(asked, ask(list(asked.values())), strict=True))
        for case, found in made.items():
            yield Outcome(case, found) if isinstance(found, str) else _compared(case, found, answers[case])


def _compared(case: str, made: Made, answer: dict[str, torch.Tensor] | str) -> Outcome:
    if isinstance(answer, str):
        return Outcome(case, f"does not load: {answer}")
    scale = magnitude(made.logits)
    found = distance(made.logits.float(), answer["logits"])
    if not isinstance(made.text, str):
        found = max(found, made.text.distance(answer["tokens"], answer["steps"]))
    problem = "" if found <= TOLERANCE * scale else f"logits differ by {found:.2g}, the largest is {scale:.2g}"
    return Outcome(case, problem, found / scale, made.text if isinstance(made.text, str) else "")


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m graphprune.testing.remote", description=__doc__)
    parser.add_argument("cases", nargs="*", help="cases to try; all of them without")
    names = parser.parse_args(arguments).cases or cases()
    torch.set_num_threads(1)
    passed = 0
    for outcome in outcomes(names):
        print(outcome, flush=True)  # noqa: T201
        passed += not outcome.problem
    print(f"{passed} of {len(names)} pass")  # noqa: T201


if __name__ == "__main__":
    main()
