"""The same for every model and variant: the first is shown, the others are folded away."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from graphprune.study.layout import Facet, Layout
from graphprune.study.report.section import Block, Fold


@dataclass(frozen=True)
class Part:
    """A facet while its part of a section is made.

    Attributes:
        facet: its labels.
        suffix: of the names of its figures.
        title: to begin captions with, such as ``for stories, mode joint: ``; empty where there is only one facet.
    """

    facet: Facet
    suffix: str = ""
    title: str = ""


def per_facet(layout: Layout, make: Callable[[Part], Sequence[Block]]) -> list[Block]:
    """What ``make`` gives for every facet, those that give nothing left out."""
    if len(layout.facets) == 1:
        return list(make(Part(layout.facets[0])))
    made: list[Block] = []
    for number, facet in enumerate(layout.facets, start=1):
        title = layout.title(facet)
        blocks = make(Part(facet, f"-{number}", f"for {title}: "))
        if blocks and made:
            made.append(Fold(f"For {title}", blocks))
        else:
            made += blocks
    return made
