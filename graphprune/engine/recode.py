"""4-bit layers that lose scattered inputs while they are trained: they are coded anew, of the original weights.

Coding what the codes say a second time would add one error to another.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection

import torch
from torch import nn

from graphprune.engine.original import Source, find_original
from graphprune.engine.present import Present
from graphprune.graph import DependencyGraph
from graphprune.names import bare, resolve_tensor
from graphprune.packed import packed
from graphprune.plan import PrunePlan
from graphprune.reshape.codes import encoded
from graphprune.reshape.cut import cut_tensor, plan_cuts
from graphprune.reshape.stacks import renaming

#: Gives the full-precision model of which a quantised one was made, each time it is needed.
Originals = Callable[[], nn.Module]

#: On the CPU bitsandbytes takes wrong scales for some layers whose inputs are no multiple of this.
_WIDTH = 64


def reader(model: nn.Module, given: str | os.PathLike[str] | Source | nn.Module | None) -> Originals:
    """Reads the original of a quantised model: a model in memory, or a checkpoint anew each time.

    Raises:
        SpecError: if nothing says where it is, or it is another model.
        CheckpointError: if it cannot be read.
    """
    if isinstance(given, nn.Module):
        return lambda: given
    source = find_original(bare(model), given)
    return lambda: source.load()[0]


@torch.no_grad()
def recode(
    model: nn.Module, layers: Collection[nn.Module], graph: DependencyGraph, gone: PrunePlan, originals: Originals
) -> None:
    """Gives 4-bit ``layers`` of a model the codes of their original weights, once they have the shapes of these.

    Args:
        model: bare or wrapped, without the units of ``gone``.
        layers: some of its quantised layers, without wrappers.
        graph: the graph of the model as it was before anything was cut.
        gone: all that was cut since, in terms of ``graph``.
        originals: reads the model that ``graph`` is of, in full precision.
    """
    wanted, called, source = set(map(id, layers)), renaming(graph, gone), originals()
    for name, dims in plan_cuts(graph, gone).items():
        now = called(name)
        codes = packed(model, now) if now is not None else None
        if codes is not None and id(codes.layer) in wanted:
            values = cut_tensor(resolve_tensor(source, name).detach(), dims)
            codes.layer._parameters["weight"] = encoded(codes, values)


def unfit(model: nn.Module, before: Present, gone: PrunePlan) -> set[str]:
    """Groups that 4-bit layers on a CPU would be left with inputs of that it cannot compute with.

    Args:
        model: bare or wrapped.
        before: what is there of it now.
        gone: what would be gone next, in terms of the graph of the beginning.
    """
    graph, found = before.start, set[str]()
    now, then = renaming(graph, before.gone), renaming(graph, gone)
    for name, dims in plan_cuts(graph, gone).items():
        called = now(name) if then(name) is not None else None
        codes = packed(model, called) if called is not None else None
        if codes is None or codes.kind == "int8" or codes.layer.get_parameter("weight").device.type != "cpu":
            continue
        inputs = 0 if codes.transposed else 1
        if inputs in dims and len(dims[inputs]) % _WIDTH:
            found |= {g for g in gone.removed for m in graph.by_name[g].members if (m.tensor, m.dim) == (name, inputs)}
    return found
