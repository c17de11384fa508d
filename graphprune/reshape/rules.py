"""Setting the integers that a forward pass reads: attributes of modules and of the config."""

from __future__ import annotations

from typing import Any

from torch import nn
from transformers import PreTrainedModel

from graphprune.errors import ReshapeError
from graphprune.graph import DependencyGraph, SizeRule
from graphprune.names import bare, plain, resolve_module
from graphprune.plan import PrunePlan
from graphprune.reshape.view import ConfigView, give_view


def changed_rules(graph: DependencyGraph, plan: PrunePlan) -> list[tuple[SizeRule, int, int]]:
    """The rules whose integer ``plan`` changes, with the integer before and after."""
    before, after = plan.sizes, plan.sizes_after()
    values = [(rule, rule.value(before), rule.value(after)) for rule in graph.rules]
    return [(rule, old, new) for rule, old, new in values if old != new]


def check_rules(model: nn.Module, graph: DependencyGraph, plan: PrunePlan) -> None:
    """Raises :class:`ReshapeError` unless every integer that must change has the value it was traced with."""
    problems = []
    for rule, old, _ in changed_rules(graph, plan):
        holder = _seen_by(model, rule)
        got = getattr(holder, rule.attribute, None)
        if got != old:
            where = f"{rule.owner}.{rule.attribute}, read in {rule.reader or 'the model'}"
            problems.append(f"{where}: expected {old}, got {got}")
    if problems:
        raise ReshapeError(
            "these sizes are not what the graph was traced with:\n  - "
            + "\n  - ".join(problems)
            + "\nTrace the model again and make the plan again."
        )


def apply_rules(model: nn.Module, graph: DependencyGraph, plan: PrunePlan) -> None:
    """Sets every integer that ``plan`` changes.

    An attribute of the config is set for the modules that read it, each through a :class:`ConfigView`; only
    where a whole model reads it, and all its readers agree, it is set in the config itself.

    Raises:
        ReshapeError: if readers that share one config need different values.
    """
    changed = changed_rules(graph, plan)
    for rule, _, new in changed:
        if not _in_config(rule):
            setattr(_owner(model, rule.owner), rule.attribute, new)
            continue
        config, reader = _owner(model, rule.owner), plain(resolve_module(model, rule.reader))
        if not isinstance(reader, PreTrainedModel) and give_view(reader, config, {rule.attribute: new}):
            continue
        wanted = {v for r, _, v in changed if (r.owner, r.attribute) == (rule.owner, rule.attribute)}
        if len(wanted) > 1:
            raise ReshapeError(
                f"'{rule.attribute}' of the config would have to be {sorted(wanted)} at once, because "
                f"{rule.reader or 'the model'} reads it for all layers. Prune the layers alike."
            )
        setattr(config, rule.attribute, new)


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
            if isinstance(value, ConfigView) and value._base is holder:
                return value
    return holder
