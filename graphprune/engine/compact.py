"""Making a model smaller while it is trained: its tensors, gradients, optimizer state and data-parallel wrapper.

Cut out instead of silenced, units cost nothing any more, and the run goes on as it would have under masks: the slices
that go had no gradient there, and an optimizer that works element by element treats the others as before. What others
do is found out by a trial (:mod:`.trial`).
"""

from __future__ import annotations

import gc
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from transformers import TrainingArguments

from graphprune.divided import is_divided
from graphprune.engine.moments import cut_state, strange
from graphprune.engine.present import Present
from graphprune.engine.recode import Originals, recode, unfit
from graphprune.engine.trial import tried
from graphprune.engine.zero import engine_of
from graphprune.errors import ReshapeError
from graphprune.graph import DependencyGraph, Group
from graphprune.names import bare, resolve_tensor
from graphprune.packed import packed
from graphprune.plan import PrunePlan
from graphprune.reshape.apply import Replacement
from graphprune.reshape.codes import scattered
from graphprune.reshape.further import cut_further
from graphprune.reshape.history import Underway, history_of

_PROCESSES = ("NO", "MULTI_")
"""How kinds of distribution begin in which every process has the whole model."""


def obstacle(
    model: nn.Module, groups: Iterable[Group], optimizer: Any, arguments: TrainingArguments | None = None
) -> str | None:
    """Why ``model`` must keep its shapes while it is trained; None if it can be cut.

    Args:
        model: as the Trainer hands it to callbacks.
        groups: what will be cut, of the model's present graph.
        optimizer: the Trainer's, wrapped or not.
        arguments: the Trainer's, if there is one.
    """
    kind = _distribution()
    if not kind.startswith(_PROCESSES):
        return f"{kind} spreads every tensor over processes"
    parameters = list(model.parameters())
    if any(is_divided(p) for p in parameters):
        return "its tensors are spread over processes"
    if engine_of(model, optimizer) is not None:
        return "DeepSpeed keeps the optimizer's state in flat pieces"
    devices = {p.device for p in parameters}
    if len(devices) > 1 or any(d.type == "meta" for d in devices):
        return f"it lies on several devices ({', '.join(sorted(map(str, devices)))})"
    if arguments is not None and arguments.n_gpu > 1:
        return "torch.nn.DataParallel copies it to several devices at every step"
    if _compiled(model) or (arguments is not None and arguments.torch_compile):
        return "it is compiled, and would be compiled anew for every new size"
    if arguments is not None and arguments.load_best_model_at_end:
        return "load_best_model_at_end would load a checkpoint of other sizes into it"
    for name in dict.fromkeys(m.tensor for g in groups for m in g.members):
        tensor = resolve_tensor(model, name)
        if packed(model, name) is None and isinstance(tensor, nn.Parameter) and not tensor.is_floating_point():
            return f"'{name}' is quantised, and could not be cut exactly"
    return tried(_raw(optimizer)).obstacle


def differs(optimizer: Any) -> str | None:
    """How a training with this optimizer differs from one under masks, if more than in rounding."""
    return tried(_raw(optimizer)).difference


def stays_masked(group: Group, model: nn.Module, *, anew: bool = False) -> str | None:
    """Why a group is silenced until the end although others are cut; None if its units can be cut at once.

    With ``anew``, 4-bit layers may be coded anew.
    """
    if not group.exact:
        return "removing its units is not exactly silencing them"
    if any(resolve_tensor(model, norm.tensor).requires_grad for norm in group.norms):
        return "a norm over its units is trained, whose scale would have to change"
    chosen = any(site.kind == "logits" for site in group.sites)
    if chosen and getattr(getattr(bare(model), "config", None), "output_router_logits", False):
        return "a loss is taken over the router's choices"
    if not anew and needs_recoding(group, model):
        return "its units are scattered over blocks of inputs that share a scale in 4 bits"
    return None


def needs_recoding(group: Group, model: nn.Module) -> bool:
    """Whether 4-bit layers cannot be cut exactly to what is left of the group."""
    found = ((packed(model, m.tensor), m) for m in group.members if m.only is None)
    return any(codes is not None and scattered(codes, m.dim, m) for codes, m in found)


class Compactor:
    """Cuts a model while it is trained.

    Args:
        model: bare or wrapped by PEFT, as the Trainer hands it to callbacks.
        graph: the graph of the model before anything of it was cut.
        optimizer: the Trainer's, wrapped or not; None where there is none.
        originals: of a model in 4 bits the full-precision weights, so that layers can be coded anew; None leaves
            groups masked for which this would be needed.
    """

    def __init__(
        self, model: nn.Module, graph: DependencyGraph, optimizer: Any = None, originals: Originals | None = None
    ) -> None:
        self._model = model
        self._originals = originals
        self._optimizer = _raw(optimizer)
        self._parallel = list(_data_parallel(model))
        self.present = Present(graph, begun(model, graph))
        free = [g for g in graph.groups if g.frozen is None]
        self._masked = {
            g.name
            for g in free
            for now in self.present.groups([g])
            if stays_masked(now, model, anew=originals is not None) is not None
        }

    def cut(self, plan: PrunePlan) -> Present:
        """Removes the units of ``plan``, which is for the graph of the beginning, from model and optimizer.

        Gradients are cut as well, so that an optimizer step may follow. Hooks on tensors that are replaced are lost.

        Returns:
            What is there now; without the units of groups that stay masked, or have to for the time being.

        Raises:
            ReshapeError: if the model cannot be cut, or the optimizer's state cannot be told apart into elements;
                both are untouched then.
        """
        now = {name: units for name, units in plan.removed.items() if units and name not in self._masked}
        for name in unfit(self._model, self.present, plan.model_copy(update={"removed": now})):
            now[name] = self.present.gone.removed.get(name, ())
        now = {name: units for name, units in now.items() if units}
        if now == dict(self.present.gone.removed):
            return self.present
        gone = plan.model_copy(update={"removed": now, "notes": ()})
        present = Present(self.present.start, gone)
        _ = present.graph  # may refuse; nothing has been changed
        _check_states(self._optimizer)
        before, follow = self.present, _Follower(self._optimizer)
        cut_and_recode(self._model, before.start, gone, self._originals, follow=follow, present=before.graph)
        for wrapper in self._parallel:
            wrap_again(wrapper)
        self.present = present
        return present


def begun(model: nn.Module, graph: DependencyGraph) -> PrunePlan:
    """What a training has cut out of ``model`` so far, in units of ``graph``."""
    underway: Underway | None = history_of(model).underway
    if underway is not None and underway.step.graph.fingerprint == graph.fingerprint:
        return underway.step.plan
    return PrunePlan.remove(graph, {})


def cut_and_recode(
    model: nn.Module, graph: DependencyGraph, gone: PrunePlan, originals: Originals | None, **how: Any
) -> None:
    """:func:`cut_further`, of which more may come; 4-bit layers get codes of the original weights where they must."""
    layers: list[nn.Module] | None = None if originals is None else []
    cut_further(model, graph, gone, more=True, anew=None if layers is None else layers.append, **how)
    if layers and originals is not None:
        recode(model, layers, graph, gone, originals)


def resume(model: nn.Module, graph: DependencyGraph, gone: PrunePlan, originals: Originals | None = None) -> nn.Module:
    """Cuts a fresh model to where a training was that had removed the units ``gone``; do so before a Trainer is built.

    Args:
        model: as it was before that training began, with its adapters if it had some.
        graph: its graph.
        gone: :attr:`graphprune.PruneCallback.compacted` of that training.
        originals: as in :class:`Compactor`.

    Raises:
        PlanError: if the plan belongs to another graph.
        ReshapeError: if the model is not the one that was traced; it is untouched then.
    """
    cut_and_recode(model, graph, gone, originals)
    return model


class _Follower:
    """Makes an optimizer follow tensors that take the place of others; it lets go of each old one at once."""

    def __init__(self, optimizer: torch.optim.Optimizer | None) -> None:
        self._state: dict[torch.Tensor, Any] = {} if optimizer is None else optimizer.state
        lists = [] if optimizer is None else [group["params"] for group in optimizer.param_groups]
        self._places = {id(p): (held, i) for held in lists for i, p in enumerate(held)}

    def __call__(self, replaced: Replacement) -> None:
        held, index = self._places.get(id(replaced.old), ([], -1))
        if index < 0 or held[index] is not replaced.old:
            return
        held[index] = replaced.new
        state = self._state.pop(replaced.old, None)
        if state is not None:
            self._state[replaced.new] = cut_state(state, tuple(replaced.old.shape), replaced.dims)


def _check_states(optimizer: torch.optim.Optimizer | None) -> None:
    """Every state is of a form that can be cut."""
    for parameter, state in {} if optimizer is None else optimizer.state.items():
        name = strange(state, tuple(parameter.shape))
        if name is not None:
            value = state[name]
            found = f"{tuple(value.shape)} of {value.dtype}" if isinstance(value, torch.Tensor) else f"a {type(value)}"
            raise ReshapeError(
                f"the state '{name}' of {type(optimizer).__name__} was expected to have the shape "
                f"{tuple(parameter.shape)} of its parameter, or to be made of that in a known way, got {found}. "
                "Use AdamW, or train under masks (training.compact: never)."
            )


def wrap_again(wrapper: DistributedDataParallel) -> None:
    """Makes a data-parallel wrapper take in the new parameters of its module; every process must call it.

    In place, because the training loop holds it.
    """
    hooks, training = list(wrapper._comm_hooks), wrapper.training
    wrapper.__init__(  # type: ignore[misc]
        wrapper.module,
        device_ids=wrapper.device_ids,
        output_device=wrapper.output_device,
        dim=wrapper.dim,
        broadcast_buffers=wrapper.broadcast_buffers,
        process_group=wrapper.process_group,
        find_unused_parameters=wrapper.find_unused_parameters,
        gradient_as_bucket_view=wrapper.gradient_as_bucket_view,
        static_graph=wrapper.static_graph,
    )
    wrapper.training = training
    for hook, state in hooks:
        wrapper.register_comm_hook(state, hook)


def _data_parallel(model: nn.Module) -> Iterator[DistributedDataParallel]:
    """The data-parallel wrappers of ``model``, which callbacks are not given."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return
    for thing in gc.get_objects():
        if issubclass(type(thing), DistributedDataParallel) and bare(thing) is bare(model):
            yield thing


def _distribution() -> str:
    from accelerate.state import PartialState

    return str(PartialState().distributed_type.value) if PartialState._shared_state else "NO"


def _compiled(model: nn.Module) -> bool:
    return any("_orig_mod" in module._modules or module._compiled_call_impl is not None for module in model.modules())


def _raw(optimizer: Any) -> Any:
    while optimizer is not None and not isinstance(optimizer, torch.optim.Optimizer):
        optimizer = getattr(optimizer, "optimizer", None)
    inner = getattr(optimizer, "optimizer", None)
    return _raw(inner) if isinstance(inner, torch.optim.Optimizer) else optimizer
