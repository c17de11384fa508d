"""Where the units of a declared group are silenced."""

from __future__ import annotations

from torch import nn
from transformers.pytorch_utils import Conv1D

from graphprune.declare.bind import place_units
from graphprune.declare.join import Joint, carried_axis
from graphprune.declare.patterns import Found, fill
from graphprune.declare.values import Context, Place
from graphprune.declared import DeclaredMask
from graphprune.errors import ReshapeError
from graphprune.graph import Axis, Block, Group, MaskSite
from graphprune.names import plain, resolve_module


def mask_sites(joint: Joint, absorbed: list[Group], context: Context) -> tuple[MaskSite, ...]:
    """The declared places; by default those of the joined groups, and the weights that consume the group.

    A weight that sums over the units is silenced by zeroing their slice of it, whatever module it belongs to.
    """
    bound = joint.bound
    if bound.declared.mask:
        sites = [
            site
            for i, mask in enumerate(bound.declared.mask)
            for site in _declared(joint, mask, f"{bound.path}.mask[{i}]", context)
        ]
        return tuple(dict.fromkeys(sites))
    sites, served = [], set[Place]()
    silent_writers = any(_silences_writers(group) for group in absorbed)
    for group in absorbed:
        for site in group.sites:
            axis = carried_axis(site.axis, joint.absorbed[group.name], bound.size)
            if axis is None:
                text = f"the place where '{group.name}' is silenced cannot be divided among the units. Give 'mask'"
                context.problems.add(f"{bound.path}.mask", "carried", text)
            else:
                sites.append(site.model_copy(update={"axis": axis}))
        if group.sites:
            served |= {(m.tensor, m.dim) for m in group.members}
    for place, cut in joint.cuts.items():
        if (cut.consumes or silent_writers) and place not in served:
            axis = Axis(size=bound.size, length=len(cut.owner), blocks=cut.blocks)
            sites += _weight_sites(place, axis, context)
    if not sites:
        text = (
            "expected a place where units can be silenced, so that removing can be checked, but no member consumes and "
            "nothing that joined has one. Mark a member 'consumes: true', or give 'mask'"
        )
        context.problems.add(f"{bound.path}.mask", "nowhere", text)
    return tuple(dict.fromkeys(sites))


def _silences_writers(group: Group) -> bool:
    """Whether units of a traced group are silenced where they are written too: something averages over them."""
    writers = {(m.tensor, m.dim) for m in group.members if not m.consumes}
    return any(site.kind == "weight" and (site.module, site.dim) in writers for site in group.sites)


def _declared(joint: Joint, mask: DeclaredMask, path: str, context: Context) -> list[MaskSite]:
    if mask.weight is not None:
        return _weights(joint, mask, mask.weight, path, context)
    field, name = ("input", mask.input) if mask.input is not None else ("logits", mask.logits)
    assert name is not None
    module = fill(name, joint.bound.layer)
    try:
        found = plain(resolve_module(context.model, module))
    except ReshapeError as error:
        context.problems.add(f"{path}.{field}", "module", str(error))
        return []
    if field == "logits":
        size = joint.bound.size
        axis = Axis(size=size, length=size, blocks=(Block(start=0, unit_stride=1),))
        dim = -1 if mask.dim is None else mask.dim
        return [MaskSite(kind="logits", module=module, axis=axis, dim=dim, function=mask.function, call=mask.call)]
    axis_of_input = _input_axis(joint, mask, module, found, path, context)
    return [] if axis_of_input is None else [MaskSite(kind="input", module=module, axis=axis_of_input)]


def _weights(joint: Joint, mask: DeclaredMask, pattern: str, path: str, context: Context) -> list[MaskSite]:
    size, dim = joint.bound.size, mask.dim or 0
    found = context.names.find(pattern, joint.bound.layer)
    if not found:
        name = fill(pattern, joint.bound.layer)
        text = f"expected a parameter, but no name matches '{name}'{context.names.near(name)}"
        context.problems.add(f"{path}.weight", "missing", text)
    if "{unit}" in pattern:
        return _whole_weights(joint, pattern, found, path, context)
    sites = []
    for tensor in dict.fromkeys(f.tensor for f in found):
        shape = context.graph.shapes[tensor]
        if dim >= len(shape):
            text = f"expected a dimension of '{tensor}', which has shape {shape}, got {dim}"
            context.problems.add(f"{path}.dim", "dim", text)
            continue
        known = joint.cuts.get((tensor, dim))
        if known is not None and mask.as_in_weight:
            blocks: tuple[Block, ...] | None = known.blocks
        else:
            placed = place_units(mask, size, shape[dim], f"dimension {dim} of '{tensor}'", path, context.problems)
            blocks = None if placed is None else placed[0]
        if blocks is not None:
            axis = Axis(size=size, length=shape[dim], blocks=blocks)
            sites += _weight_sites((tensor, dim), axis, context)
    return sites


def _weight_sites(place: Place, axis: Axis, context: Context) -> list[MaskSite]:
    """One per module that reads the tensor: it is masked while that module runs."""
    tensor, dim = place
    owner = tensor.rpartition(".")[0]
    return [
        MaskSite(kind="weight", module=tensor, axis=axis, dim=dim, reader="" if reader == owner else reader)
        for reader in context.graph.readers.get(tensor, (owner,))
    ]


def _whole_weights(joint: Joint, pattern: str, found: list[Found], path: str, context: Context) -> list[MaskSite]:
    """Silences a unit by zeroing whole tensors that it has to itself."""
    size = joint.bound.size
    missing = set(range(size)) - {f.unit for f in found if f.unit is not None}
    if found and missing:
        text = f"expected a tensor of every unit, but none matches '{pattern}' for unit {min(missing)}"
        context.problems.add(f"{path}.weight", "units", text)
    sites = []
    for f in found:
        if f.unit is not None and f.unit < size:
            shape = context.graph.shapes[f.tensor]
            length = shape[0] if shape else 1
            whole = Block(start=0, unit_stride=length, loops=((length, 1),) if length > 1 else ())
            axis = Axis(size=size, length=length, blocks=(whole,), only=f.unit)
            sites += _weight_sites((f.tensor, 0), axis, context)
    return sites


def _input_axis(
    joint: Joint, mask: DeclaredMask, module: str, found: nn.Module, path: str, context: Context
) -> Axis | None:
    """Where the units lie in the input of a linear layer: as in its weight, unless the spec says otherwise."""
    if not isinstance(found, (nn.Linear, Conv1D)):
        text = (
            f"expected a linear layer, whose input has a known length, got a {type(found).__name__} at '{module}'. "
            "Mask the weight that sums over the units instead"
        )
        context.problems.add(f"{path}.input", "kind", text)
        return None
    tensor = context.names.find(f"{module}.weight")[0].tensor
    dim = 1 if isinstance(found, nn.Linear) else 0
    length = context.graph.shapes[tensor][dim]
    known = joint.cuts.get((tensor, dim))
    if known is not None and mask.as_in_weight:
        return Axis(size=joint.bound.size, length=length, blocks=known.blocks)
    placed = place_units(mask, joint.bound.size, length, f"the input of '{module}'", path, context.problems)
    return None if placed is None else Axis(size=joint.bound.size, length=length, blocks=placed[0])
