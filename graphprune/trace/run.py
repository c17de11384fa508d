"""``trace``: prepares a model, runs its forward passes without touching its weights, and builds the graph."""

from __future__ import annotations

import logging
import os
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from graphprune.errors import TraceError
from graphprune.graph import DependencyGraph
from graphprune.trace.axes import atoms
from graphprune.trace.constants import register_buffers
from graphprune.trace.functions import watching
from graphprune.trace.groups import build_graph
from graphprune.trace.inputs import Call, Example, calls_of, others
from graphprune.trace.integers import traced_numbers
from graphprune.trace.lookups import watched_lookups
from graphprune.trace.passages import Passages, named_leaves
from graphprune.trace.portions import Portions
from graphprune.trace.record import Kind
from graphprune.trace.stack import LayerStack, counts
from graphprune.trace.substitutes import experts_in_batches, fake, real, unpacked, untouched, weight_bytes, with_values
from graphprune.trace.tracer import Tracer, following, register_parameters

_HERE = f"{Path(__file__).parents[1]}{os.sep}"


def trace(model: nn.Module, *, example_inputs: Example | list[Example] | None = None) -> DependencyGraph:
    """The dependency graph of a model, from a forward pass on fake tensors, without and with a cache.

    Works on real, fake and meta-device models alike; weights are neither read nor changed. Where a forward pass cannot
    run without values (it reads a number out of a tensor, say), it is run on the model's own tensors, or on made-up
    ones if it has none and is small. A model whose weights are quantised is traced through its unquantised twin.

    Args:
        model: a module whose inputs can be told (:func:`graphprune.trace.inputs.default_call`) or are given.
        example_inputs: keyword arguments of the forward as a mapping, or positional ones as a tuple; only their shapes
            and dtypes matter. By default one short sequence of token ids, or whatever the model asks for. A list of
            several is traced one after the other into one graph: axes that meet in any of them are tied.

    Raises:
        TraceError: if the forward raises, with the module in which it happened and the original error; or if the
            model's inputs cannot be told.
    """
    model = unpacked(model)
    calls = calls_of(model, example_inputs)
    with untouched(model), _prepared(model):
        try:
            subject, tracer = model, _followed_as_far(model, calls, fake)
        except TraceError as failure:
            subject, tracer = _followed_with_values(model, calls, failure)
    return build_graph(tracer, subject, _aliases(subject))


def _followed_as_far(model: nn.Module, calls: list[Call], stand_in: Callable[[torch.Tensor], torch.Tensor]) -> Tracer:
    """Runs every call; those that are only tried, such as one with a cache, may fail: the last of them first."""
    try:
        return _followed(model, calls, stand_in)
    except TraceError:
        if not calls[-1].optional:
            raise
        return _followed_as_far(model, calls[:-1], stand_in)


def _followed(model: nn.Module, calls: list[Call], stand_in: Callable[[torch.Tensor], torch.Tensor]) -> Tracer:
    """Runs every call, with other tensors in place of the model's.

    Runs them again where the largest stack had no part in it, and where its layers turn out to be spread over lists.
    """
    stack = LayerStack(model)
    while True:
        tracer = _follow(model, calls, stand_in, stack)
        if stack.path is not None and not any(stack.layer(name) is not None for name in tracer.touched):
            stack = LayerStack(model, stack.idle | {stack.path})
            continue
        spread = tracer.passages.spread()
        if spread in ((), stack.lists):
            return tracer
        stack = LayerStack(model, stack.idle, spread)


def _follow(
    model: nn.Module, calls: list[Call], stand_in: Callable[[torch.Tensor], torch.Tensor], stack: LayerStack
) -> Tracer:
    tracer = Tracer(Passages(stack), Portions(stack.count, frozenset(counts(model, stack.count))))
    mode = FakeTensorMode(allow_non_fake_inputs=True) if stand_in is fake else nullcontext()
    with mode:
        tensors = {n: stand_in(t) if stand_in is fake else t for n, t in model.named_parameters()}
        tensors.update((n, stand_in(t)) for n, t in model.named_buffers())
        persistent = model.state_dict(keep_vars=True).keys()
        register_parameters(tracer, {n: t for n, t in tensors.items() if n in persistent})
        register_buffers(tracer, {n: t for n, t in tensors.items() if n not in persistent})
        device = next((t.device for t in tensors.values()), torch.device("cpu"))
        for call in calls:
            given = call.map(lambda t: stand_in(t).to(device))
            _register_inputs(tracer, given)
            outputs = _run(tracer, model, tensors, given)
            _mark_ends(tracer, dict(given.tensors()), outputs)
    return tracer


def _followed_with_values(model: nn.Module, calls: list[Call], failure: TraceError) -> tuple[nn.Module, Tracer]:
    """The second try, where fake tensors failed; the model that was followed, and what was found.

    Raises:
        TraceError: what failed now, or ``failure`` where there is nothing to try.
    """
    subject = with_values(model)
    if subject is None:
        raise TraceError(
            f"{failure} If it needs values, which stand-ins do not have: this model has "
            f"{weight_bytes(model) / 1e9:.0f} GB of weights, too many to make them up. Load it with its weights "
            "(from_pretrained) and trace that."
        ) from failure.__cause__
    with untouched(subject), _prepared(subject):
        tracer = _followed_as_far(subject, calls, real)
    cause = failure.__cause__
    tracer.notes.append(
        f"traced on tensors with values, because fake ones failed ({type(cause).__name__} in {failure.where}); what "
        "the forward pass does for other values was not seen"
    )
    return subject, tracer


def _register_inputs(tracer: Tracer, given: Call) -> None:
    """Numbers that are no indices are activations; no plan may cut what the caller hands in."""
    for name, tensor in given.tensors():
        info = tracer.records.get(tensor)
        if tensor.is_floating_point():
            tracer.records.put(tensor, replace(info, kind=Kind.ACTIVATION))
            tracer.frozen.extend((expr, f"it is an axis of the input '{name}'") for expr in info.dims)


def _run(tracer: Tracer, model: nn.Module, tensors: dict[str, torch.Tensor], given: Call) -> Any:
    try:
        with (
            torch.no_grad(),
            traced_numbers(model),
            following(tracer, model),
            watching(tracer),
            watched_lookups(model, tracer.portions.count, lambda: tracer.passages.current, tracer.lookups),
            _told_once(),
        ):
            return torch.func.functional_call(model, tensors, given.args, given.kwargs)
    except Exception as error:
        where = tracer.where or type(model).__name__
        also = others(model, given)
        raise TraceError(
            f"the forward pass raised {type(error).__name__} in module '{where}': {error}{_line(error)}. "
            f"It was called with {given}; pass example_inputs if it needs others"
            f"{' of ' + ', '.join(also) if also else ''}.",
            where,
        ) from error


def _line(error: Exception) -> str:
    """The file and line of the innermost frame that is neither torch's nor ours."""
    frames = traceback.extract_tb(error.__traceback__)
    outside = [f for f in frames if f"{os.sep}torch{os.sep}" not in f.filename and not f.filename.startswith(_HERE)]
    return f" ({Path(outside[-1].filename).name}, line {outside[-1].lineno})" if outside else ""


def _aliases(model: nn.Module) -> dict[str, str]:
    """Tied parameters and persistent buffers: every further name of a tensor, with its first name."""
    persistent = model.state_dict(keep_vars=True).keys()
    named = (*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False))
    first: dict[int, str] = {}
    aliases = {}
    for name, tensor in named:
        if id(tensor) in first:
            aliases[name] = first[id(tensor)]
        elif name in persistent:
            first[id(tensor)] = name
    return aliases


@contextmanager
def _prepared(model: nn.Module) -> Iterator[None]:
    """Evaluation mode, and experts computed in a batch so that their weights are followed."""
    training = model.training
    model.eval()
    try:
        with experts_in_batches(model):
            yield
    finally:
        model.train(training)


@contextmanager
def _told_once() -> Iterator[None]:
    """Fake tensors log what they then raise; the error alone is enough."""
    logger = logging.getLogger("torch._subclasses.fake_tensor")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)


def _mark_ends(tracer: Tracer, inputs: Mapping[str, Any], outputs: Any) -> None:
    """Marks token ids and the model's outputs, which no plan may cut."""
    for value in inputs.values():
        if isinstance(value, torch.Tensor):
            info = tracer.records.get(value)
            for atom in atoms(info.values) if info.values is not None else []:
                atom.flags.add("tokens")
    logits = outputs.get("logits") if isinstance(outputs, Mapping) else None
    for _, tensor in named_leaves(outputs if logits is None else logits):
        for expr in tracer.records.get(tensor).dims:
            if logits is None:
                tracer.frozen.append((expr, "it is an axis of what the model hands out"))
            for atom in atoms(expr):
                atom.flags.add("output")
