"""``trace``: prepares a model, runs one forward pass without touching its weights, and builds the graph."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from graphprune.errors import TraceError
from graphprune.graph import DependencyGraph
from graphprune.trace.axes import atoms
from graphprune.trace.functions import watching
from graphprune.trace.groups import build_graph
from graphprune.trace.integers import configs_of, traced_numbers
from graphprune.trace.stack import LayerStack, Passages
from graphprune.trace.tracer import Tracer, following, register_parameters

SEQUENCE = 11
"""Length of the traced sequence: prime, so that it is not mistaken for a number of heads."""


def trace(model: nn.Module, *, example_inputs: Mapping[str, Any] | None = None) -> DependencyGraph:
    """The dependency graph of a model, from one forward pass on fake tensors.

    Works on real, fake and meta-device models alike; weights are neither read nor changed.

    Args:
        model: a module whose forward takes ``input_ids`` or the given inputs.
        example_inputs: keyword arguments of the forward; by default one short sequence of token ids.

    Raises:
        TraceError: if the forward raises, with the module in which it happened and the original error.
    """
    examples: list[Mapping[str, Any] | None]
    examples = [example_inputs] if example_inputs is not None else [None, {"use_cache": True}]
    try:
        return _trace(model, examples)
    except TraceError:
        if len(examples) == 1:
            raise
        return _trace(model, examples[:1])  # a class that cannot cache


def _trace(model: nn.Module, examples: list[Mapping[str, Any] | None]) -> DependencyGraph:
    tracer = Tracer(Passages(LayerStack(model)))
    aliases = _aliases(model)
    tensors: dict[str, torch.Tensor] = dict(model.named_parameters())
    tensors.update(model.named_buffers())
    persistent = model.state_dict(keep_vars=True).keys()
    with _prepared(model), FakeTensorMode(allow_non_fake_inputs=True):
        stand_ins = {n: _stand_in(t) for n, t in tensors.items()}
        register_parameters(tracer, {n: t for n, t in stand_ins.items() if n in persistent})
        device = next(iter(stand_ins.values())).device
        for example in examples:
            inputs = _inputs(model, example, device)
            for value in inputs.values():
                if isinstance(value, torch.Tensor):
                    tracer.records.get(value)
            outputs = _run(tracer, model, stand_ins, inputs)
            _mark_ends(tracer, inputs, outputs)
    return build_graph(tracer, model, aliases)


def _run(tracer: Tracer, model: nn.Module, tensors: dict[str, torch.Tensor], inputs: dict[str, Any]) -> Any:
    try:
        with torch.no_grad(), traced_numbers(model), following(tracer, model), watching(tracer), _told_once():
            return torch.func.functional_call(model, tensors, (), inputs)
    except Exception as error:
        where = tracer.where or type(model).__name__
        raise TraceError(
            f"the forward pass raised {type(error).__name__} in module '{where}': {error}. "
            f"It was called with {', '.join(inputs)}; pass example_inputs if it needs others."
        ) from error


def _inputs(model: nn.Module, example: Mapping[str, Any] | None, device: torch.device) -> dict[str, Any]:
    if example == {"use_cache": True}:
        return {**_inputs(model, None, device), **example}
    if example is not None:
        return {k: _stand_in(v) if isinstance(v, torch.Tensor) else v for k, v in example.items()}
    inputs: dict[str, Any] = {"input_ids": torch.zeros(1, SEQUENCE, dtype=torch.long, device=device)}
    if hasattr(model, "config"):
        inputs["use_cache"] = False
    return inputs


def _stand_in(tensor: torch.Tensor) -> torch.Tensor:
    """A fake tensor of the same shape, dtype and device; meta tensors stand for CPU tensors."""
    device = "cpu" if tensor.device.type == "meta" else tensor.device
    return torch.empty_strided(tuple(tensor.shape), tensor.stride(), dtype=tensor.dtype, device=device)


def _aliases(model: nn.Module) -> dict[str, str]:
    """Tied parameters: every further name of a parameter, with its first name."""
    first: dict[int, str] = {}
    aliases = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if id(parameter) in first:
            aliases[name] = first[id(parameter)]
        else:
            first[id(parameter)] = name
    return aliases


@contextmanager
def _prepared(model: nn.Module) -> Iterator[None]:
    """Evaluation mode, and experts computed in a batch so that their weights are followed."""
    training = model.training
    setting = "_experts_implementation_internal"
    before = [(config, vars(config)[setting]) for _, config in configs_of(model) if setting in vars(config)]
    model.eval()
    for config, _ in before:
        vars(config)[setting] = "batched_mm"
    try:
        yield
    finally:
        model.train(training)
        for config, value in before:
            vars(config)[setting] = value


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
    values = outputs.values() if isinstance(outputs, Mapping) else [outputs]
    for tensor in values:
        if isinstance(tensor, torch.Tensor):
            for expr in tracer.records.get(tensor).dims:
                for atom in atoms(expr):
                    atom.flags.add("output")
