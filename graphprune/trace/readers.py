"""Who reads a number of the config: the module that runs, or one whose method it calls.

While the forward of one module runs, it may call a method of a submodule that reads the config which both hold. What
is seen is the module that runs. A pruned model gives its readers views of the config, so the submodule needs one too.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator

from torch import nn
from transformers import PreTrainedModel

from graphprune.graph import SizeRule
from graphprune.trace.integers import Source, configs_of


def called_readers(model: nn.Module, rules: Iterable[SizeRule], read: Collection[tuple[str, Source]]) -> list[SizeRule]:
    """The rules on the config once more, for every submodule of their readers that may have read it for them.

    Args:
        model: the traced model.
        rules: what was found for the modules that ran.
        read: every module with every integer that was read while it ran: these read for themselves.
    """
    configs = dict(configs_of(model))
    by_reader: dict[tuple[str, Source], list[SizeRule]] = defaultdict(list)
    sources: dict[str, dict[Source, None]] = defaultdict(dict)
    for rule in rules:
        if rule.owner in configs:
            by_reader[rule.reader, (rule.owner, rule.attribute)].append(rule)
            sources[rule.owner][rule.owner, rule.attribute] = None
    known = {*read, *by_reader}
    found = []
    for path, module in model.named_modules():
        for owner in _held(module, configs):
            for source in sources[owner]:
                reader = _caller(model, path, source, known)
                if reader is not None:
                    found += [rule.model_copy(update={"reader": path}) for rule in by_reader[reader, source]]
    return found


def _held(module: nn.Module, configs: dict[str, object]) -> Iterator[str]:
    """The names of the configs that a module has as an attribute; a whole model's config is set itself."""
    if not isinstance(module, PreTrainedModel):
        # In a model that was pruned before, a module may hold a view, which keeps the config as its base.
        values = {id(getattr(value, "__dict__", {}).get("_base", value)) for value in vars(module).values()}
        yield from (owner for owner, config in configs.items() if id(config) in values)


def _caller(model: nn.Module, path: str, source: Source, known: Collection[tuple[str, Source]]) -> str | None:
    """The nearest module around ``path`` that read the number while it ran; None where ``path`` did so itself, or
    where that is a whole model, whose config is changed for all.
    """
    if (path, source) in known:
        return None
    outer = path
    while outer:
        outer = outer.rpartition(".")[0]
        if (outer, source) in known:
            return None if isinstance(model.get_submodule(outer), PreTrainedModel) else outer
    return None
