"""Setting the integers that a forward pass reads: attributes of modules and of the config."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from graphprune.errors import ReshapeError
from graphprune.graph import DependencyGraph, SizeRule
from graphprune.names import bare, plain, resolve_module
from graphprune.packed import packed_in
from graphprune.reshape.history import History, Step
from graphprune.reshape.view import give_view, holds, is_view

Change = tuple[SizeRule, int, int]
"""A rule with its integer before and after."""


def changed_rules(graph: DependencyGraph, before: dict[str, int], after: dict[str, int]) -> list[Change]:
    """The rules whose integer changes when group sizes go from ``before`` to ``after``.

    Where several rules are about one integer as one module reads it, all of them, if any changes: they must agree.
    """
    values = [(rule, rule.value(before), rule.value(after)) for rule in graph.rules]
    moved = {(rule.owner, rule.attribute, rule.reader) for rule, old, new in values if old != new}
    return [change for change in values if (change[0].owner, change[0].attribute, change[0].reader) in moved]


def all_changes(before: History, after: History, step: Step) -> list[Change]:
    """What ``step``, which leads from one history to the other, changes.

    Where both prunings are one plan for the first graph, that graph's rules hold with the sizes of the composed plan. A
    second trace would see less: modules may read an integer from a view of the config by then.
    """
    if before.steps and len(before.steps) == len(after.steps):
        first = after.steps[-1]
        return changed_rules(first.graph, before.steps[-1].plan.sizes_after(), first.plan.sizes_after())
    return changed_rules(step.graph, step.plan.sizes, step.plan.sizes_after())


def rule_edits(model: nn.Module, changed: list[Change]) -> list[Callable[[], None]]:
    """What has to be done to set every integer that changes; nothing is changed before they are called.

    An attribute of the config is set for the modules that read it, each through a
    :class:`graphprune.reshape.view.ConfigView`; only where a whole model reads it is it set in the config itself.

    Raises:
        ReshapeError: if an integer is not what it was when traced, or a model reads one for readers that disagree.
    """
    changed = [change for change in changed if not _is_packed(model, change[0])]
    problems = [p for rule, old, _ in changed if (p := _misfit(model, rule, old))]
    if problems:
        listed = "\n  - ".join(problems)
        raise ReshapeError(f"these sizes do not fit the plan:\n  - {listed}\nTrace the model again and plan again.")
    edits: list[Callable[[], None]] = []
    for rule, _, new in changed:
        owner = _owner(model, rule.owner)
        if _in_config(rule):
            reader = plain(resolve_module(model, rule.reader))
            whole = not rule.reader or isinstance(reader, PreTrainedModel)
            if not whole and holds(reader, owner):
                edits.append(partial(give_view, reader, owner, {rule.attribute: new}))
                continue
            _check_agreement(rule, changed)
        edits.append(partial(write, owner, rule.attribute, new))
    return edits


def read(owner: Any, attribute: str) -> Any:
    """The integer ``attribute`` of ``owner``, ``name`` or ``name[i]``; None if there is none."""
    name, _, index = attribute.rstrip("]").partition("[")
    value = getattr(owner, name, None)
    return value[int(index)] if index and isinstance(value, tuple) else value


def write(owner: Any, attribute: str, value: int) -> None:
    """Sets the integer ``attribute`` of ``owner``, ``name`` or ``name[i]``."""
    name, _, index = attribute.rstrip("]").partition("[")
    if index:
        items = list(getattr(owner, name))
        items[int(index)] = value
        setattr(owner, name, tuple(items))
    else:
        setattr(owner, name, value)


def _misfit(model: nn.Module, rule: SizeRule, expected: int) -> str | None:
    got = read(_seen_by(model, rule), rule.attribute)
    if got == expected:
        return None
    where = f"{rule.owner}.{rule.attribute}, read in {rule.reader or 'the model'}"
    return f"{where}: expected {expected}, which was traced, got {got}"


def _is_packed(model: nn.Module, rule: SizeRule) -> bool:
    """Whether a quantised layer, whose sizes follow its weight, took the place of the one that had the integer."""
    owner = None if _in_config(rule) else _owner(model, rule.owner)
    return owner is not None and packed_in(owner) is not None and read(owner, rule.attribute) is None


def _check_agreement(rule: SizeRule, changed: list[Change]) -> None:
    wanted = {new for r, _, new in changed if (r.owner, r.attribute) == (rule.owner, rule.attribute)}
    if len(wanted) > 1:
        raise ReshapeError(
            f"'{rule.attribute}' of the config would have to be {sorted(wanted)} at once, because "
            f"{rule.reader or 'the model'} reads it for all layers. Prune the layers alike."
        )


def _in_config(rule: SizeRule) -> bool:
    return rule.owner == "config" or rule.owner.startswith("config.")


def _owner(model: nn.Module, owner: str) -> Any:
    if owner == "config" or owner.startswith("config."):
        found: Any = bare(model)
        for name in owner.split("."):
            found = getattr(found, name)
        return found
    return plain(resolve_module(model, owner))


def _seen_by(model: nn.Module, rule: SizeRule) -> Any:
    """The object that the rule's reader reads: its own view of the config where it has one."""
    holder = _owner(model, rule.owner)
    if _in_config(rule):
        for value in vars(plain(resolve_module(model, rule.reader))).values():
            if is_view(value) and value._base is holder:
                return value
    return holder
