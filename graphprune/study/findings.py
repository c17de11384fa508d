"""What a study has found: at every place, by every metric, which settings lead and which tie with the best."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from graphprune.study.layout import RATIO, Layout, Place
from graphprune.study.metrics import Metric, metrics
from graphprune.study.results import Results
from graphprune.study.verdicts import Comparison, Runs, Standing, against, standing


@dataclass(frozen=True)
class Findings:
    """Results with everything that is computed from them, each once."""

    results: Results
    swapped: bool = False

    @cached_property
    def layout(self) -> Layout:
        """The axes in their roles; those that are compared and followed change places where this is ``swapped``."""
        layout = Layout.of(self.results)
        return layout.swapped() if self.swapped else layout

    @cached_property
    def judging(self) -> Findings:
        """What verdicts are about: where lines are ratios, what is compared at each, not one ratio with another."""
        layout = self.layout
        return Findings(self.results, swapped=True) if layout.series == RATIO and layout.across is not None else self

    @cached_property
    def metrics(self) -> tuple[Metric, ...]:
        """What is known, what matters most first."""
        return metrics(self.results)

    @cached_property
    def places(self) -> tuple[Place, ...]:
        """Every place where settings are compared, in the order of the grid."""
        pairs = ((facet, point) for facet in self.layout.facets for point in self.layout.points)
        return tuple(Place(facet, point) for facet, point in pairs if self.layout.select(facet, point))

    def standing(self, metric: Metric, place: Place) -> Standing:
        """Settings at one place, ranked; the comparisons there are one family for Holm's correction."""
        key = (metric.column, place)
        if key not in self._standings:
            self._standings[key] = standing(self._runs(metric, place))
        return self._standings[key]

    def against_first(self, metric: Metric, place: Place) -> dict[str, Comparison]:
        """Every other setting against the first of the study, where that ran at this place."""
        runs = self._runs(metric, place)
        first = next(iter(self.layout.settings), None)
        return against(first, runs) if first in runs else {}

    @cached_property
    def _standings(self) -> dict[tuple[str, Place], Standing]:
        return {}

    def _runs(self, metric: Metric, place: Place) -> dict[str, Runs]:
        found = {}
        for setting in self.layout.settings:
            cells = self.layout.select(place.facet, place.point, setting)
            if cells:
                found[setting] = metric.runs(cells)
        return found
