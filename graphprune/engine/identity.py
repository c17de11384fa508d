"""What a checkpoint belongs to: the spec, the graph, the model and the data of the run that wrote it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from itertools import chain
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict
from torch import nn

from graphprune.checkpoint.manifest import library_versions
from graphprune.divided import is_divided, shape_of
from graphprune.graph import DependencyGraph
from graphprune.names import bare
from graphprune.schema import PruneSpec

#: What a spec says about output alone: it may change between two parts of a run.
_OUTPUT_ONLY: dict[str, tuple[str, ...]] = {
    "training": ("save_every", "logging_steps"),
}
#: What of a spec decides what is pruned in somebody's Trainer.
_OF_TRAINING: dict[str, Any] = {
    **dict.fromkeys(("targets", "groups", "scope", "criterion", "schedule"), True),
    "export": {"targets", "multiple_of", "tensor_parallel", "runtimes"},
}
#: Values of each tensor that go into the fingerprint of a model.
_SAMPLED = 16
_ABSENT = "nothing"


class Identity(BaseModel):
    """What must be the same for a run to continue.

    Attributes:
        spec: the parts of the spec that matter for the result, defaults included.
        steps: optimizer steps of the whole run, where the spec does not tell.
        graph: fingerprint of the dependency graph.
        model: class and number of tensors.
        shapes: hash of the names, shapes and number formats of all tensors.
        weights: hash of a few values of every tensor that the run does not change.
        data: fingerprint of the training data, where it is known.
        scores: hash of the scores that were given to the run, where it was given some.
        versions: of what computes. A difference is said, and is no obstacle.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    spec: dict[str, Any]
    steps: int | None = None
    graph: str
    model: str
    shapes: str
    weights: str
    data: str = ""
    scores: str = ""
    versions: dict[str, str]

    @classmethod
    def of_run(cls, spec: PruneSpec, graph: DependencyGraph, model: nn.Module, data: str, scores: str = "") -> Identity:
        """The identity of a whole run: ``model`` as it came, fingerprints of its training data and given scores."""
        facts = _model_facts(model, frozen_only=False)
        used = spec_of_run(spec)
        versions = library_versions()
        return cls(spec=used, graph=graph.fingerprint, data=data, scores=scores, versions=versions, **facts)

    @classmethod
    def of_training(cls, spec: PruneSpec, steps: int, graph: DependencyGraph, model: nn.Module) -> Identity:
        """The identity of a training of ``steps`` steps in somebody's Trainer, whose data nobody knows.

        Of the model's weights only those count that are frozen.
        """
        facts = _model_facts(model, frozen_only=True)
        used = spec.model_dump(mode="json", include=_OF_TRAINING)
        return cls(spec=used, steps=steps, graph=graph.fingerprint, versions=library_versions(), **facts)

    def differences(self, now: Identity) -> list[str]:
        """Every difference between this, as a run began, and ``now``: each with what was expected and what was got."""
        found = [*spec_differences(self.spec, now.spec), *_compared("steps", self.steps, now.steps)]
        found += _compared("model", self.model, now.model)
        if self.graph != now.graph:
            found.append(f"dependency graph: expected the fingerprint {self.graph}, got {now.graph}")
        if self.model == now.model and self.shapes != now.shapes:
            found.append("model: expected the same names, shapes and number formats of its tensors, got others")
        elif self.model == now.model and self.weights != now.weights:
            found.append("model: expected the same weights, got others. Is it the same checkpoint and revision?")
        if self.scores != now.scores:
            found.append(f"scores: expected {_given(self.scores)}, got {_given(now.scores)}")
        if self.data != now.data:
            found.append(
                f"training data: expected the fingerprint {self.data[:12] or _ABSENT}, got {now.data[:12] or _ABSENT}: "
                "another text, tokenizer or sequence length"
            )
        return found

    def other_versions(self, now: Identity) -> str:
        """The libraries whose versions differ, in words; empty where none does."""
        names = sorted({*self.versions, *now.versions})
        return ", ".join(
            f"{n} {self.versions.get(n, _ABSENT)} is now {now.versions.get(n, _ABSENT)}"
            for n in names
            if self.versions.get(n) != now.versions.get(n)
        )


def spec_of_run(spec: PruneSpec) -> dict[str, Any]:
    """What of a spec decides the result: all but what is about output, and ``data``, which has a fingerprint."""
    whole = spec.model_dump(mode="json", exclude={"data"})
    for section, names in _OUTPUT_ONLY.items():
        for name in names:
            whole[section].pop(name, None)
    return whole


def spec_fingerprint(spec: PruneSpec) -> str:
    """sha256 of what of a spec decides the result: equal for specs that do the same."""
    return hashlib.sha256(json.dumps(spec_of_run(spec), sort_keys=True).encode()).hexdigest()


def spec_differences(expected: Any, got: Any, path: str = "") -> list[str]:
    """One line per value of a spec that differs, under its path as it stands in the file."""
    if isinstance(expected, Mapping) and isinstance(got, Mapping):
        keys = dict.fromkeys([*expected, *got])
        parts = (spec_differences(expected.get(k), got.get(k), f"{path}.{k}" if path else str(k)) for k in keys)
        return list(chain.from_iterable(parts))
    if isinstance(expected, list) and isinstance(got, list) and len(expected) == len(got):
        pairs = zip(expected, got, strict=True)
        return list(chain.from_iterable(spec_differences(a, b, f"{path}[{i}]") for i, (a, b) in enumerate(pairs)))
    return _compared(path, expected, got)


def _compared(what: str, expected: Any, got: Any) -> list[str]:
    return [] if expected == got else [f"{what}: expected {_shown(expected)}, got {_shown(got)}"]


def _given(scores: str) -> str:
    return f"given ones with the fingerprint {scores[:12]}" if scores else "none, as they are computed"


def _shown(value: Any) -> str:
    return _ABSENT if value is None else f"{value}"


def tuned_weights(model: nn.Module) -> str:
    """A hash of a few values of every parameter that is trained: whether a checkpoint has been loaded."""
    return _sampled_hash(p for p in model.parameters() if p.requires_grad)


def _model_facts(model: nn.Module, *, frozen_only: bool) -> dict[str, str]:
    base = bare(model)
    parameters = dict(base.named_parameters())
    shapes = "\n".join(f"{n} {tuple(shape_of(p))} {p.dtype}" for n, p in parameters.items())
    return {
        "model": f"a {type(base).__name__} with {len(parameters)} parameters",
        "shapes": hashlib.sha256(shapes.encode()).hexdigest(),
        "weights": _sampled_hash(p for p in parameters.values() if not (frozen_only and p.requires_grad)),
    }


def _sampled_hash(tensors: Iterable[torch.Tensor]) -> str:
    """Some values of every tensor, evenly spread: what tells two checkpoints apart, at next to no cost."""
    digest = hashlib.sha256()
    for tensor in tensors:
        # Offloaded tensors are not here, and a process of many holds a part: their shapes have to do.
        if tensor.device.type == "meta" or is_divided(tensor) or not tensor.numel():
            continue
        values = tensor.detach().reshape(-1).view(torch.uint8).view(tensor.numel(), -1)
        places = torch.linspace(0, len(values) - 1, min(_SAMPLED, len(values)), dtype=torch.float64).long()
        digest.update(values[places.to(values.device)].cpu().numpy().tobytes())
    return digest.hexdigest()
