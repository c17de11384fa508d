"""Tiny configs of any architecture: a rule per field name, then what the architecture's own data says."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import transformers
from transformers import CONFIG_MAPPING, PreTrainedConfig

from graphprune.testing.zoo import Fields, ZooError, did_you_mean, find, read_sizes

LAYERS = "num_hidden_layers"


def tiny_config(case: str, **changes: Any) -> PreTrainedConfig:
    """The config of a tiny model.

    Args:
        case: a name that :func:`graphprune.testing.cases` lists.
        changes: fields to set on top; a mapping changes fields of a sub-config. A field that only the decoder's
            sub-config has (in a multimodal wrapper) goes there.

    Raises:
        ZooError: for an unknown case, or a field that the config does not have.
    """
    found = find(case)
    named = found.entry.config_class
    kind: type[PreTrainedConfig] = getattr(transformers, named) if named else CONFIG_MAPPING[found.architecture]
    own = _merged(found.entry.config, found.variant)
    with _quiet():
        default = kind()
        return _built(default, own, _placed(changes, default, case), tower=False)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """No advice of transformers on full-size defaults, which nobody asked for, or on sizes that are tiny on purpose."""
    before = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity(logging.ERROR)
    try:
        yield
    finally:
        transformers.logging.set_verbosity(before)


def _built(default: PreTrainedConfig, own: Fields, changes: Fields, *, tower: bool) -> PreTrainedConfig:
    """A tiny config of the class of ``default``; ``own`` is the architecture's data, ``changes`` the caller's."""
    kind = type(default)
    text = default.get_text_config(decoder=True)
    parts = {name: part for name, part in vars(default).items() if isinstance(part, PreTrainedConfig)}
    for name, below in default.sub_configs.items():  # towers that are off by default
        if name not in parts and isinstance(own.get(name, changes.get(name)), Mapping):
            parts[name] = below()
    values = _sizes(kind, tower=tower) | _without(own, parts) | _without(changes, parts)
    values |= _layer_lists(default, values, own, changes)
    for name, part in parts.items():
        below = own.get(name, {}), changes.get(name, {})
        if all(isinstance(value, Mapping) for value in below):
            values[name] = _built(part, *below, tower=part is not text)
        else:
            values[name] = changes.get(name, own.get(name))
    return kind(**values)


def _sizes(kind: type[PreTrainedConfig], *, tower: bool) -> Fields:
    """The tiny values of the fields that a config class has, by their own or by their common name."""
    table = read_sizes()
    sizes = table.sizes | table.towers if tower else dict(table.sizes)
    names = {field.name for field in dataclasses.fields(kind)}
    for name, beside in table.beside.items():
        sizes |= beside if name in names else {}
    common = {own: name for name, own in kind.attribute_map.items()}
    values = {}
    for field in dataclasses.fields(kind):
        name = field.name if field.name in sizes else common.get(field.name, field.name)
        on = field.default not in (None, 0) or {name, field.name} & table.even_if_off or name.endswith("token_id")
        if name in sizes and (on or name == "is_decoder"):
            values[field.name] = sizes[name]
    return values


def _layer_lists(default: PreTrainedConfig, values: Fields, own: Fields, changes: Fields) -> Fields:
    """Lists with one kind per layer, for the tiny number of layers, so that every kind occurs.

    Kinds that alternate in the full-size default alternate here, each twice or more, so that a model remains that runs
    when a layer goes; kinds of which the first leads and the last follows (dense blocks before sparse ones) do so here.
    """
    names = {default.attribute_map.get(LAYERS, LAYERS), LAYERS}
    full = getattr(default, LAYERS, None)
    lists = {
        name: value
        for name, value in vars(default).items()
        if isinstance(value, list | tuple) and len(value) == full and all(isinstance(v, str) for v in value)
    }
    fields = {field.name for field in dataclasses.fields(default)}
    lists = {name: kinds for name, kinds in lists.items() if name in fields and len(set(kinds)) > 1}
    given = next((source[n] for source in (changes, own) for n in names if n in source), None)
    twice = [2 * len(set(kinds)) for kinds in lists.values() if not _led(kinds)]
    count = given or max([next((values[n] for n in names if n in values), 0) + bool(lists), *twice])
    made: Fields = {}
    if lists and given is None:
        made |= {n: count for n in names if n in values}
    made |= {name: pattern(kinds, count) for name, kinds in lists.items() if name not in own and name not in changes}
    for name, value in own.items():  # patterns in the data follow a changed number of layers
        if name not in changes and isinstance(value, list) and names & set(changes) and len(value) == own.get(LAYERS):
            made[name] = [value[i % len(value)] for i in range(count)]
    return made


def pattern(kinds: Sequence[str], count: int) -> list[str]:
    """``count`` kinds of layers in the manner of the longer list ``kinds``, each at least once where there is room."""
    distinct = list(dict.fromkeys(kinds))
    if _led(kinds):
        return (distinct + [distinct[-1]] * count)[:count]
    return [distinct[i % len(distinct)] for i in range(count)]


def _led(kinds: Sequence[str]) -> bool:
    """Whether each kind is one run of layers: leading kinds, then the one that the rest of the layers has."""
    return sum(a != b for a, b in itertools.pairwise(kinds)) < len(set(kinds))


def _placed(changes: Mapping[str, Any], default: PreTrainedConfig, case: str) -> Fields:
    """The caller's changes, those that only the decoder's sub-config knows moved into it."""
    text = default.get_text_config(decoder=True)
    home = next((name for name, part in vars(default).items() if part is text), None)
    placed: Fields = {}
    for name, value in changes.items():
        if name in _known(default):
            placed[name] = _merged(placed.get(name, {}), value) if isinstance(value, Mapping) else value
        elif home is not None and name in _known(text):
            placed[home] = _merged(placed.get(home, {}), {name: value})
        else:
            hint = did_you_mean(name, sorted(_known(default) | _known(text)))
            raise ZooError(f"the config of '{case}' ({type(default).__name__}) has no field '{name}'.{hint}")
    return placed


def _known(config: PreTrainedConfig) -> set[str]:
    fields = {field.name for field in dataclasses.fields(config)}
    return fields | set(config.attribute_map) | set(config.sub_configs) | {"attn_implementation", "rope_theta"}


def _without(values: Mapping[str, Any], names: Mapping[str, Any]) -> Fields:
    return {name: value for name, value in values.items() if name not in names}


def _merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> Fields:
    """Two nested mappings in one; ``above`` wins."""
    merged = dict(below)
    for name, value in above.items():
        old = merged.get(name)
        merged[name] = _merged(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return merged
