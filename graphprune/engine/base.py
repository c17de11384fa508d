"""Whether the base of a run is quantised, and everything that follows from it before and after the run."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import nn

from graphprune.engine.original import Original, Source, find_original, placed
from graphprune.engine.quantise import check_available, quantisable, settings_of
from graphprune.errors import SpecError
from graphprune.graph import DependencyGraph
from graphprune.schema import Quantization


class QuantisedBase:
    """The quantised base of a run, or that there is none.

    Args:
        settings: what the spec says.
        source: the checkpoint that the run loads; None where the caller gives a model.

    Raises:
        MissingExtraError: bitsandbytes is needed and not installed.
        SpecError: it does not run on this machine's device.
    """

    def __init__(self, settings: Quantization | None, source: Source | None) -> None:
        self.settings = settings
        self.packed = False
        self._source = source
        accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        self.device = (source.device if source else None) or accelerator or torch.device("cpu")
        self._held = False
        if settings is not None:
            check_available(settings, self.device)

    def check(self, model: nn.Module, original: str | os.PathLike[str] | Source | None) -> None:
        """Finds out whether ``model`` came quantised, and where its full-precision weights are then.

        Raises:
            SpecError: if they cannot be found, or what was asked for contradicts what ``model`` is.
            CheckpointError: if the checkpoint they should be in cannot be read.
        """
        found = settings_of(model)
        self.packed = found is not None
        if found is None:
            self._held = self._source is None
            if original is not None:
                raise SpecError(
                    "original: expected with a model that is quantised already, got one in full precision, which is "
                    "the original itself. Leave it out."
                )
            return
        if self.settings is not None and self.settings.kind != found.kind:
            raise SpecError(
                f"quantization: asks for {self.settings.kind}, and this {type(model).__name__} is quantised to "
                f"{found.kind} already. Leave quantization out, or give the model in full precision."
            )
        skipped = self.settings.skip_modules if self.settings is not None else None
        self.settings = found.model_copy(update={"skip_modules": skipped})
        self.device = next(model.parameters()).device
        check_available(self.settings, self.device)
        self._source = find_original(model, original, self._source)

    def original(
        self, model: nn.Module, graph: DependencyGraph, before: Callable[[nn.Module], None]
    ) -> Original | None:
        """What the result is cut from, where ``model`` is, or is going to be, quantised.

        Args:
            model: the base as it came.
            graph: its dependency graph.
            before: measures the original where that could not be done yet.

        Raises:
            SpecError: if no layer can be quantised.
        """
        if self.settings is None:
            return None
        if not self.packed and not quantisable(model, graph, self.settings, self.device):
            raise SpecError(
                f"quantization: expected linear layers that can be quantised to {self.settings.kind} on {self.device}, "
                f"got a {type(model).__name__} that has none. Leave quantization out."
            )
        return Original(
            settings=self.settings,
            graph=graph,
            device=self.device,
            source=self._source,
            held=model if self._held else None,
            owned=not self.packed,
            trainable=frozenset(n for n, p in model.named_parameters() if p.requires_grad),
            seen=before if self.packed else None,
        )

    @contextmanager
    def visiting(self, model: nn.Module) -> Iterator[None]:
        """Evaluates a model that is going to be quantised on the device, if it fits; it is back home afterwards."""
        if self.settings is None:
            yield
            return
        home = next(model.parameters()).device
        placed(model, self.device)
        try:
            yield
        finally:
            model.to(home)

    @property
    def notes(self) -> tuple[str, ...]:
        """For the report: what was quantised, and which model the numbers are of."""
        if self.settings is None:
            return ()
        where = f"the weights of {self._source.name}" if self._source is not None else "the weights that were given"
        note = (
            f"scored and tuned on the base in {self.settings}; the result is cut from {where} in their own precision, "
            "and all sizes and perplexities are of these"
        )
        return (note,)
