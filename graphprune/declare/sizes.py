"""Integers that a declaration says must follow: found on the model, and compared with what it says."""

from __future__ import annotations

from typing import Any

from torch import nn

from graphprune.declare.patterns import fill
from graphprune.declare.values import Bound, Context
from graphprune.declared import coefficients
from graphprune.errors import ReshapeError
from graphprune.graph import SizeRule
from graphprune.names import bare, plain, resolve_module
from graphprune.reshape.view import is_view
from graphprune.trace.integers import configs_of


def declared_rules(bound: Bound, name: str, context: Context) -> list[SizeRule]:
    """The rules that a declaration gives for its group ``name``; a problem for every one that cannot be."""
    rules = []
    for pattern, formula in bound.declared.sizes.items():
        path = f"{bound.path}.sizes['{pattern}']"
        place = fill(pattern, bound.layer)
        found = find_integer(context.model, place)
        if isinstance(found, str):
            context.problems.add(path, "place", f"expected the path of an integer, got '{place}': {found}")
            continue
        owner, attribute, reader, value = found
        coefficient, constant = coefficients(formula)
        if constant is None and type(value) is int and value >= coefficient * bound.size:
            constant = value - coefficient * bound.size
        constant = constant or 0
        rule = SizeRule(
            owner=owner, attribute=attribute, reader=reader, constant=constant, terms=((coefficient, (name,)),)
        )
        expected = rule.value({name: bound.size})
        if value != expected:
            text = f"expected {formula} = {expected} with {bound.size} units, but '{place}' is {value!r}. Correct one"
            context.problems.add(path, "value", text)
            continue
        rules.append(rule)
    return rules


def find_integer(model: nn.Module, place: str) -> tuple[str, str, str, Any] | str:
    """(owner, attribute, reader, value) of an attribute's path, or why there is none.

    The path leads to a module and its attribute, or through the attribute in which a module keeps the config
    (``layers.3.attention.config.num_heads``): then the attribute is that config's, as this module reads it.
    """
    base = bare(model)
    path, _, attribute = place.rpartition(".")
    configs = {id(config): owner for owner, config in configs_of(base)}
    if path == "config" or path.startswith("config."):
        owner = next((o for o in configs.values() if o == path), None)
        config = next((c for o, c in configs_of(base) if o == path), None)
        return _value(owner, attribute, "", config) if owner is not None else f"the model has no '{path}'"
    try:
        return _value(path, attribute, path, plain(resolve_module(base, path)))
    except ReshapeError as missing:
        reader, config = _reader(base, path)
        if config is None:
            return str(missing)
    config = config._base if is_view(config) else config
    if id(config) not in configs:
        return f"'{path}' is neither a module nor the model's config"
    return _value(configs[id(config)], attribute, reader, config)


def _reader(base: nn.Module, path: str) -> tuple[str, Any]:
    """The module at the beginning of ``path``, and what it keeps under the rest of it; None where there is nothing."""
    parts = path.split(".")
    for count in range(len(parts) - 1, 0, -1):
        reader = ".".join(parts[:count])
        try:
            found: Any = plain(resolve_module(base, reader))
        except ReshapeError:
            continue
        for name in parts[count:]:
            found = vars(found).get(name) if hasattr(found, "__dict__") else None
        return reader, found
    return "", None


def _value(owner: str, attribute: str, reader: str, holder: Any) -> tuple[str, str, str, Any] | str:
    attribute = getattr(holder, "attribute_map", {}).get(attribute, attribute)
    if attribute not in vars(holder):
        known = sorted(n for n, v in vars(holder).items() if type(v) is int and not n.startswith("_"))
        return f"no attribute '{attribute}' there; integers are {', '.join(known) or 'none'}"
    value = vars(holder)[attribute]
    return owner, attribute, reader, value
