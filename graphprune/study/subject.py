"""A model that a study is about: loaded once to be known, and anew for every cell."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from graphprune.declare import declare
from graphprune.engine.data import fingerprint
from graphprune.engine.documents import TrainData
from graphprune.engine.original import Source
from graphprune.errors import GraphPruneError, SpecError
from graphprune.graph import DependencyGraph
from graphprune.schema import PruneSpec
from graphprune.study.grid import Cell, Grid
from graphprune.study.keys import cell_key, dense_key, scores_key, weights_fingerprint
from graphprune.study.texts import Texts, read_texts
from graphprune.trace import trace
from graphprune.validate import resolve_targets


@dataclass(frozen=True)
class Keys:
    """Under which names the results of a cell are kept.

    Attributes:
        cell: of its record.
        scores: of its one-shot scores; None where there are none.
    """

    cell: str
    scores: str | None


@dataclass(frozen=True)
class Subject:
    """What all cells of a model share.

    Attributes:
        label: of the model in the study.
        source: where every cell loads it from: a small part of what a cell takes, and no second copy in memory.
        tokenizer: its tokenizer.
        graphs: its dependency graph, by the groups that specs declare.
        fingerprint: of its weights.
        texts: by what in a spec they depend on.
        measured: fingerprint of what is measured.
    """

    label: str
    source: Source
    tokenizer: Any
    graphs: dict[str, DependencyGraph]
    fingerprint: str
    texts: dict[str, Texts]
    measured: str

    @classmethod
    def of(
        cls, label: str, source: Source, grid: Grid, measured: str, data: TrainData | None, evaluation: TrainData | None
    ) -> Subject:
        """Loads a model, looks at it, and reads its texts.

        Raises:
            SpecError: naming what is wrong with its text.
            CheckpointError: it cannot be loaded.
        """
        model, tokenizer = source.load()
        asked = [name for name in ("texts", "tasks") if getattr(grid.study.measure, name)]
        if asked and tokenizer is None:
            raise SpecError(
                f"model {label}: measure.{asked[0]} needs a tokenizer, and there is none with it", grid.file.name
            )
        embedding = model.get_input_embeddings()
        vocabulary = None if embedding is None else int(embedding.weight.shape[0])
        weights, traced = weights_fingerprint(model), trace(model)
        graphs: dict[str, DependencyGraph] = {}
        specs: dict[str, list[PruneSpec]] = {}
        for spec in (cell.spec for cell in grid.cells if cell.model == label):
            specs.setdefault(_text_of(spec), []).append(spec)
            if _declared_by(spec) not in graphs:
                graphs[_declared_by(spec)] = declare(traced, spec, model)
        del model
        try:
            texts = {key: read_texts(of, tokenizer, vocabulary, data, evaluation) for key, of in specs.items()}
        except GraphPruneError as error:
            raise SpecError(f"model {label}: {error}", grid.file.name) from None
        return cls(label, source, tokenizer, graphs, weights, texts, measured)

    def text(self, spec: PruneSpec) -> Texts:
        """The text of a cell with this spec."""
        return self.texts[_text_of(spec)]

    @property
    def dense_key(self) -> str:
        """The key of the record of the model as it came."""
        return dense_key(self.fingerprint, self.measured)

    def keys(self, cell: Cell) -> Keys:
        """The names of what a cell leaves behind."""
        text, spec = self.text(cell.spec), cell.spec
        train = text.of_seed(cell.seed)
        data = "" if train is None else fingerprint(train)
        judged = "" if text.evaluation is None else text.evaluation.fingerprint
        groups = (g.name for target in resolve_targets(spec, self.graph(spec)) for g in target.groups)
        return Keys(
            cell_key(spec, self.fingerprint, data, judged, self.measured),
            scores_key(spec, self.fingerprint, data, groups),
        )

    def graph(self, spec: PruneSpec) -> DependencyGraph:
        """The dependency graph with what a spec declares."""
        return self.graphs[_declared_by(spec)]


def subjects(
    grid: Grid,
    sources: dict[str, Source],
    measured: str,
    data: TrainData | None = None,
    evaluation: TrainData | None = None,
) -> dict[str, Subject]:
    """All models of a study, by label; errors as :meth:`Subject.of`."""
    return {label: Subject.of(label, s, grid, measured, data, evaluation) for label, s in sources.items()}


def _declared_by(spec: PruneSpec) -> str:
    return json.dumps(spec.model_dump(mode="json", include={"groups"}))


def _text_of(spec: PruneSpec) -> str:
    data = None if spec.data is None else spec.data.model_dump(mode="json")
    return json.dumps([spec.training.sequence_length, data])
