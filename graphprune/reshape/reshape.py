"""The one verb: make a model physically smaller."""

from __future__ import annotations

from typing import TypeVar

from torch import nn

from graphprune.graph import DependencyGraph
from graphprune.plan import PrunePlan
from graphprune.reshape.config import settle_config
from graphprune.reshape.further import cut_further
from graphprune.reshape.history import graph_of

Model = TypeVar("Model", bound=nn.Module)


def reshape(model: Model, plan: PrunePlan, graph: DependencyGraph | None = None) -> Model:
    """Removes the units of ``plan`` from ``model``, in place, and returns it.

    For groups that are ``exact`` the result gives the outputs of the masked model to rounding. Where a config of the
    model's own class describes the result, the model's config is set to it and the model can be saved as a plain
    checkpoint; otherwise :func:`graphprune.save` writes one that :func:`graphprune.load` reads. Where units lie
    under a root-mean-square norm, its scale is corrected. Of a plan that a training has begun to apply, what is left is
    removed (:class:`graphprune.PruneCallback`).

    Args:
        model: a transformers model, bare or wrapped with LoRA adapters, which are cut alike. Optimizers hold the old
            parameters; :func:`graphprune.reshape.cut_model` returns what they need to follow.
        plan: the units to remove.
        graph: the graph the plan was made for; traced again where it is not given.

    Raises:
        PlanError: if the plan belongs to another graph.
        ReshapeError: if the model is not the one that was traced. It is untouched then.
    """
    graph = graph_of(model, graph, plan)
    cut_further(model, graph, plan)
    settle_config(model)
    return model
