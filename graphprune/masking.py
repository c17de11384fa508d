"""Silencing units without changing a shape: the model answers as if they were gone, and can still be trained.

A mask is one vector per group, applied once, where the group is consumed. It lives in hooks, never in the
parameters, so taking it off restores the model bit by bit.
"""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.overrides import TorchFunctionMode
from torch.utils.hooks import RemovableHandle
from typing_extensions import Self

from graphprune.compiled import forget, is_compiled
from graphprune.errors import PlanError
from graphprune.graph import Axis, DependencyGraph, Group, MaskSite
from graphprune.names import resolve_module
from graphprune.packed import packed_in
from graphprune.packed_masks import mask_packed
from graphprune.plan import PrunePlan
from graphprune.reshape.adapters import Slot, adapter_layers, adapter_slots, find_slot
from graphprune.reshape.further import outstanding
from graphprune.reshape.history import graph_of


@contextmanager
def masked(model: nn.Module, plan: PrunePlan, graph: DependencyGraph | None = None) -> Iterator[nn.Module]:
    """Inside the ``with`` block ``model`` answers as the pruned model would; nothing of it changes.

    Args:
        model: any model the graph belongs to; LoRA-wrapped models are masked with their adapters.
        plan: the units to silence; those that a training has removed already are gone.
        graph: the graph the plan was made for; traced again where it is not given.

    Raises:
        PlanError: if the plan belongs to another graph, or a group has no place where it can be silenced.
    """
    graph = graph_of(model, graph, plan)
    graph, plan = outstanding(model, graph, plan)
    groups = [name for name, units in plan.removed.items() if units]
    masks = MaskSet(model, graph, groups)
    for name in groups:
        masks.set(name, plan.removed[name])
    with masks:
        yield model


class MaskSet:
    """The masks of some groups, to be changed at will and put on and off.

    Args:
        model: the model; hooks are placed on its modules while the set is attached.
        graph: its dependency graph.
        groups: names of the groups that may be masked.

    Raises:
        PlanError: listing every group that is unknown or has no mask site.
    """

    def __init__(self, model: nn.Module, graph: DependencyGraph, groups: Iterable[str]) -> None:
        names = tuple(groups)
        problems = [p for p in (_unmaskable(graph, name) for name in names) if p]
        if problems:
            raise PlanError("these groups cannot be masked:\n" + "\n".join(f"  - {p}" for p in problems))
        self._model = model
        self._groups = {name: graph.by_name[name] for name in names}
        self._masks = {name: torch.ones(graph.by_name[name].size) for name in names}
        self._hooks: dict[str, list[RemovableHandle]] = {}
        self._attached = False

    @property
    def masks(self) -> dict[str, Tensor]:
        """Per group a float32 vector of shape ``(size,)``: 1 where the unit stays, 0 where it is silenced."""
        return {name: mask.clone() for name, mask in self._masks.items()}

    def removed(self, name: str) -> tuple[int, ...]:
        """The silenced units of group ``name``, sorted."""
        return tuple(torch.nonzero(self._masks[name] == 0).flatten().tolist())

    def set(self, name: str, removed: Iterable[int]) -> None:
        """Silences exactly the units ``removed`` of group ``name``; takes effect at the next forward."""
        if name not in self._groups:
            raise PlanError(f"group '{name}' is not in this mask set, which has {len(self._groups)} groups")
        size = self._groups[name].size
        units = sorted({int(u) for u in removed})
        if units and not 0 <= units[0] <= units[-1] < size:
            raise PlanError(f"group '{name}' has units 0..{size - 1}, got {units}")
        mask = torch.ones(size)
        mask[units] = 0.0
        self._masks[name] = mask
        if self._attached:
            self._place(name)
            self._forget()

    def attach(self) -> Self:
        """Puts the masks on. A group that keeps all its units costs nothing."""
        self._attached = True
        for name in self._groups:
            self._place(name)
        self._forget()
        return self

    def detach(self) -> None:
        """Takes all masks off."""
        self._attached = False
        for name in list(self._hooks):
            self._lift(name)
        self._forget()

    def __enter__(self) -> Self:
        return self.attach()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.detach()

    def _place(self, name: str) -> None:
        self._lift(name)
        mask = self._masks[name]
        if bool((mask == 1).all()):
            return
        handles = self._hooks.setdefault(name, [])
        for site in self._groups[name].sites:
            handles.extend(PLACERS[site.kind](self._model, site, Keep(site.axis, mask)))

    def _lift(self, name: str) -> None:
        for handle in self._hooks.pop(name, []):
            handle.remove()

    def _forget(self) -> None:
        if is_compiled(self._model):
            forget()


def _unmaskable(graph: DependencyGraph, name: str) -> str | None:
    group: Group | None = graph.by_name.get(name)
    if group is None:
        return f"unknown group '{name}'; graph.groups lists {len(graph.groups)} names"
    if not group.sites:
        return (
            f"group '{name}' cannot be masked: the tracer found no place where its units can be silenced. "
            "Leave it out, or prune it by gp.reshape without masking first"
        )
    return None


class Keep:
    """A unit mask spread over a dimension, one copy per device and dtype."""

    def __init__(self, axis: Axis, mask: Tensor) -> None:
        owner = axis.unit_of()
        self.units = mask
        self.length = axis.length
        self._keep = torch.where(owner >= 0, mask[owner.clamp(min=0)], torch.ones(()))
        self._copies: dict[tuple[torch.device, torch.dtype], Tensor] = {}

    def like(self, tensor: Tensor, dim: int) -> Tensor:
        """The mask in dtype and on device of ``tensor``, shaped to broadcast along its dimension ``dim``."""
        key = (tensor.device, tensor.dtype)
        if key not in self._copies:
            # Never an inference tensor, which a later training forward could not save for backward.
            with torch.inference_mode(False):
                self._copies[key] = self._keep.to(device=tensor.device, dtype=tensor.dtype)
        shape = [1] * tensor.ndim
        shape[dim] = self.length
        return self._copies[key].reshape(shape)


def _mask_input(model: nn.Module, site: MaskSite, keep: Keep) -> list[RemovableHandle]:
    module = resolve_module(model, site.module)

    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
        if args:
            return (args[0] * keep.like(args[0], -1), *args[1:]), kwargs
        name = _first_keyword(module, kwargs)
        return args, {**kwargs, name: kwargs[name] * keep.like(kwargs[name], -1)}

    return [module.register_forward_pre_hook(hook, with_kwargs=True)]


def _first_keyword(module: nn.Module, kwargs: dict[str, Any]) -> str:
    """The keyword that carries the module's first argument."""
    first = next(iter(inspect.signature(module.forward).parameters), "")
    if first in kwargs:
        return first
    return next(name for name, value in kwargs.items() if isinstance(value, Tensor))


def _mask_weight(model: nn.Module, site: MaskSite, keep: Keep) -> list[RemovableHandle]:
    """Masks the tensor named ``site.module``, and the low-rank factors that a LoRA layer adds to it."""
    slot = find_slot(model, site.module)
    layers = [layer for layer in adapter_layers(model, site.module) if not hasattr(layer, "parameter_name")]
    reader = resolve_module(model, site.reader) if site.reader else None
    weight = packed_in(slot.module, slot.leaf)
    if not layers and weight is None:  # none, or LoRA on a bare parameter, which turns the tensor itself into W + BA
        return _replace(reader or slot.module, slot, site.dim, keep)
    if weight is not None:
        handles = [mask_packed(weight, site.dim, keep)]
    else:
        handles = _replace(reader or layers[0], slot, site.dim, keep)
    for follower in adapter_slots(model, site.module, site.dim):
        handles.extend(_replace(reader or layers[0], follower.slot, follower.dim, keep))
    return handles


def _replace(module: nn.Module, slot: Slot, dim: int, keep: Keep) -> list[RemovableHandle]:
    """While ``module`` runs, ``slot`` holds parameter · mask; gradients reach the original parameter."""
    undo: list[Callable[[], None]] = []

    def before(_module: nn.Module, _args: Any) -> None:
        undo.append(_swap(slot, dim, keep))

    def after(_module: nn.Module, _args: Any, _output: Any) -> None:
        if undo:
            undo.pop()()

    # prepend: masks of several groups on one tensor are taken off in the reverse order.
    return [
        module.register_forward_pre_hook(before),
        module.register_forward_hook(after, always_call=True, prepend=True),
    ]


def _swap(slot: Slot, dim: int, keep: Keep) -> Callable[[], None]:
    module, leaf = slot.module, slot.leaf
    if parametrize.is_parametrized(module, leaf):  # LoRA on a bare parameter is a parametrization
        chain: Any = module.parametrizations[leaf]  # type: ignore[index]
        chain.append(_MaskParametrization(keep, dim))
        return lambda: chain.__delitem__(-1)
    for store in (module._parameters, module._buffers):
        if leaf in store:
            original = store[leaf]  # where DeepSpeed holds a part of it, asking for it is what brings the whole
            del store[leaf]
            assert original is not None
            module.__dict__[leaf] = original * keep.like(original, dim)

            def restore(store: dict[str, Any] = store, original: Tensor = original) -> None:
                del module.__dict__[leaf]
                store[leaf] = original

            return restore
    previous = module.__dict__[leaf]  # another group has masked this tensor already
    module.__dict__[leaf] = previous * keep.like(previous, dim)
    return lambda: module.__dict__.__setitem__(leaf, previous)


class _MaskParametrization(nn.Module):
    """A mask as the last link of a chain of parametrizations."""

    def __init__(self, keep: Keep, dim: int) -> None:
        super().__init__()
        self._mask = keep
        self._dim = dim

    def forward(self, weight: Tensor) -> Tensor:
        """``weight`` with the silenced slices set to zero."""
        return weight * self._mask.like(weight, self._dim)


def _mask_call(model: nn.Module, site: MaskSite, keep: Keep) -> list[RemovableHandle]:
    module = resolve_module(model, site.module)
    running: list[MaskCall] = []

    def before(_module: nn.Module, _args: Any) -> None:
        mode = MaskCall(site, keep)
        mode.__enter__()
        running.append(mode)

    def after(_module: nn.Module, _args: Any, _output: Any) -> None:
        if running:
            running.pop().__exit__(None, None, None)

    return [
        module.register_forward_pre_hook(before),
        module.register_forward_hook(after, always_call=True, prepend=True),
    ]


def mean_over(keep: Tensor, tensor: Tensor, **options: Any) -> Tensor:
    """``torch.mean`` with its ``options``, of the entries of ``tensor`` where ``keep`` is 1."""
    total: Tensor = torch.sum(tensor * keep, **options)
    return total / keep.sum().to(total.dtype)


def norm_over(
    keep: Tensor,
    tensor: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float | None = None,
    *,
    centred: bool,
) -> Tensor:
    """``layer_norm`` (``centred``) or ``rms_norm`` over the last entries where ``keep`` is 1; zero elsewhere."""
    count = keep.sum()
    wide = (tensor * keep).to(torch.promote_types(tensor.dtype, torch.float32))
    if centred:
        wide = (wide - wide.sum(-1, keepdim=True) / count) * keep
    default = 1e-5 if centred else torch.finfo(tensor.dtype).eps
    variance = wide.square().sum(-1, keepdim=True) / count
    normed = (wide * torch.rsqrt(variance + (default if eps is None else eps))).to(tensor.dtype)
    scaled = normed if weight is None else normed * weight
    return (scaled if bias is None else scaled + bias) * keep


_PARAMETERS = {
    "mean": ("input", "dim", "keepdim", "dtype"),
    "rms_norm": ("input", "normalized_shape", "weight", "eps"),
    "layer_norm": ("input", "normalized_shape", "weight", "bias", "eps"),
}
"""The parameters of the functions that average, in order."""

_THREAD = threading.local()


class MaskCall(TorchFunctionMode):
    """Masks one call of one function: removed units of logits become -inf, norms are taken over the others.

    ``torch.softmax``, ``torch.nn.functional.softmax`` and ``Tensor.softmax`` are the same function; what they
    call inside is not seen, so each counts once.
    """

    def __init__(self, site: MaskSite, keep: Keep) -> None:
        super().__init__()
        self._site = site
        self._mask = keep
        self._calls = 0
        self.target = (site.kind, site.module, site.function, site.call)

    def __enter__(self) -> Self:
        self._running().append(self)
        return super().__enter__()  # type: ignore[no-untyped-call, no-any-return]

    def __exit__(self, *error: object) -> None:
        self._running().remove(self)
        super().__exit__(*error)  # type: ignore[no-untyped-call]

    @classmethod
    def _running(cls) -> list[MaskCall]:
        """The masks that are on in this thread: several groups may mask one norm, which is then computed once."""
        if not hasattr(_THREAD, "running"):
            _THREAD.running = []
        found: list[MaskCall] = _THREAD.running
        return found

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__name__", None) == self._site.function:
            self._calls += 1
            if self._calls == self._site.call + 1:
                if self._site.kind == "norm":
                    return self._averaged(args, kwargs)
                args, kwargs = self._masked(args, kwargs)
        return func(*args, **kwargs)

    def _averaged(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        """The call, as it would be without the silenced units (:mod:`graphprune.masking`); zero there."""
        given = dict(zip(_PARAMETERS[self._site.function], args, strict=False), **kwargs)
        tensor: Tensor = given.pop("input")
        running = self._running()
        for outer in running[: running.index(self)]:  # they will not see this call, which ends here
            outer._calls += outer._site.function == self._site.function
        keep = torch.ones((), dtype=tensor.dtype, device=tensor.device)
        for mode in running:
            keep = keep * mode._mask.like(tensor, self._site.dim) if mode.target == self.target else keep
        if self._site.function == "mean":
            return mean_over(keep, tensor, **given)
        given.pop("normalized_shape")
        return norm_over(keep, tensor, **given, centred=self._site.function == "layer_norm")

    def _masked(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        if args:
            return (self._fill(args[0]), *args[1:]), kwargs
        return args, {**kwargs, "input": self._fill(kwargs["input"])}

    def _fill(self, logits: Tensor) -> Tensor:
        return logits.masked_fill(self._mask.like(logits, self._site.dim) == 0, float("-inf"))


def _skip_entries(model: nn.Module, site: MaskSite, keep: Keep) -> list[RemovableHandle]:
    """Entries of the module list that are silenced hand on what they were given."""
    gone = [u for u, stays in enumerate(keep.units.tolist()) if not stays]
    return [handle for u in gone for handle in skip_entry(model, site, u)]


def skip_entry(model: nn.Module, site: MaskSite, unit: int, share: Tensor | None = None) -> list[RemovableHandle]:
    """Makes an entry of a module list hand on what it is given, or add only ``share`` of what it changes."""
    taken: list[Tensor] = []

    def began(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], _output: Any) -> None:
        taken[:] = [_argument(module, site.argument, args, kwargs)]

    def blended(given: Tensor | None, made: Tensor | None) -> Tensor | None:
        if given is None or made is None:  # a second stream may have been left out, this time
            return given
        given = given.to(made.device)  # where layers are on several devices, it comes from the one before
        return given if share is None else given + share.to(made) * (made - given)

    def ended(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        given = taken.pop() if site.reader else _argument(module, site.argument, args, kwargs)
        if not site.output:
            return blended(given, output)
        if isinstance(output, tuple | list):
            place = int(site.output)
            if place >= len(output):
                return output
            made = [*output[:place], blended(given, output[place]), *output[place + 1 :]]
            return tuple(made) if isinstance(output, tuple) else made
        output[site.output] = blended(given, output[site.output])
        return output

    hooks = {site.module: ended, site.reader: began} if site.reader else {site.module: ended}
    return [
        resolve_module(model, f"{path}.{unit}").register_forward_hook(hook, with_kwargs=True)
        for path, hook in hooks.items()
    ]


def _argument(module: nn.Module, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """An argument by keyword or by position, however it was passed this time."""
    if name in kwargs:
        return kwargs[name]
    names = list(inspect.signature(module.forward).parameters)
    position = int(name) if name.isdigit() else names.index(name)
    return args[position] if position < len(args) else kwargs.get(names[position])


PLACERS: dict[str, Callable[[nn.Module, MaskSite, Keep], list[RemovableHandle]]] = {
    "input": _mask_input,
    "weight": _mask_weight,
    "logits": _mask_call,
    "norm": _mask_call,
    "skip": _skip_entries,
}
