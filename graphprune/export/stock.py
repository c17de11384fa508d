"""Which sizes the class of a model accepts: found out by building it, never by its name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from torch import nn
from transformers import PreTrainedModel

from graphprune.errors import GraphPruneError
from graphprune.export.kinds import example
from graphprune.graph import DependencyGraph
from graphprune.names import bare
from graphprune.reshape.apply import cut_model
from graphprune.reshape.candidates import Path
from graphprune.reshape.config import StockConfig, find_stock_config, impossible
from graphprune.reshape.history import History, Step, history_of
from graphprune.reshape.search import Search, searches, solutions, target_shapes


class Stock:
    """Asks the class of a model, and the classes that may stand in for it, which sizes their configs can describe.

    Args:
        model: with or without weights; it is not changed.
        graph: its dependency graph.
    """

    def __init__(self, model: nn.Module, graph: DependencyGraph) -> None:
        self._model = model
        self._graph = graph
        self._history = _before(history_of(model), graph)
        self._searches = list(searches(model, self._history)) if isinstance(bare(model), PreTrainedModel) else []
        self._paths: dict[int, set[Path]] = {}
        self._proved: dict[tuple[tuple[str, int], ...], StockConfig] = {}
        self._known: dict[tuple[tuple[tuple[str, int], ...], bool], bool] = {}

    @property
    def name(self) -> str:
        """The name of the class."""
        return type(bare(self._model)).__name__

    def impossible(self, sizes: Mapping[str, int]) -> str:
        """Why no config can describe these sizes, such as layers that differ; empty where only building can tell."""
        return impossible(self._model, self._then(sizes))

    def accepts(self, sizes: Mapping[str, int], *, quick: bool = False) -> bool:
        """Whether some config gives every tensor the shape that it has with these numbers of units.

        Args:
            sizes: of groups that lose units, by name.
            quick: try only fields of the config that have helped with other sizes.
        """
        key = (tuple(sorted(sizes.items())), quick)
        if key not in self._known:
            self._known[key] = self._accepts(sizes, quick)
        return self._known[key]

    def _accepts(self, sizes: Mapping[str, int], quick: bool) -> bool:
        history = self._then(sizes)
        if impossible(self._model, history):
            return False
        return any(self._described(n, search, history, quick) for n, search in enumerate(self._searches))

    def _described(self, number: int, search: Search, history: History, quick: bool) -> bool:
        shapes, paths = search.shapes({}), self._paths.setdefault(number, set())
        if shapes is None or (quick and not paths):
            return False
        target = target_shapes(shapes, history.steps)
        found = next(solutions(search, history.steps, shapes, target, paths if quick else None), None)
        if found is not None:
            paths.update(found)
        return found is not None

    def objection(self, sizes: Mapping[str, int]) -> str:
        """Why no config describes a model of these sizes, its structure included; empty where one does."""
        return self._found(sizes).reason

    def doubt(self, sizes: Mapping[str, int]) -> str:
        """What only weights can tell about the config that describes a model of these sizes; empty without doubt."""
        if self._found(sizes).exact:
            return ""
        return (
            "a stock config cannot give the pruned norms epsilons of their own; whether the result loads with stock "
            "from_pretrained depends on whether that changes its logits"
        )

    def _found(self, sizes: Mapping[str, int]) -> StockConfig:
        key = tuple(sorted(sizes.items()))
        if key not in self._proved:
            self._proved[key] = self._prove(sizes)
        return self._proved[key]

    def _prove(self, sizes: Mapping[str, int]) -> StockConfig:
        history = self._then(sizes)
        try:
            twin = self._searches[0].model({})
            for step in history.steps:
                cut_model(twin, step.graph, step.plan)
        except GraphPruneError as error:
            return StockConfig(reason=str(error))
        except Exception as error:  # noqa: BLE001 - a class may refuse to be built without weights in any way it likes
            return StockConfig(reason=f"{self.name} cannot be built without weights: {error}")
        return find_stock_config(twin, history)

    def _then(self, sizes: Mapping[str, int]) -> History:
        return self._history.then(Step(self._graph, example(self._graph, dict(sizes))))


def _before(history: History, graph: DependencyGraph) -> History:
    """The history without an unfinished pruning of ``graph``, whose units it speaks of."""
    underway = history.underway
    if underway is None or underway.step.plan.fingerprint != graph.fingerprint:
        return history
    return replace(history, steps=underway.before, underway=None)
