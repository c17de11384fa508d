"""YAML text to plain values, with the line of every key and every problem at once."""

from __future__ import annotations

import re
from typing import Any

import yaml

Path = tuple[str | int, ...]  # ("targets", 2, "ratio")


class _Loader(yaml.SafeLoader):
    """Safe YAML with the numbers of YAML 1.2.

    YAML 1.1 reads ``layers: 3:10`` as the base-60 integer 190 and ``1e-4`` as a text: silent mistakes both.
    """


_NUMBERS = {"tag:yaml.org,2002:int", "tag:yaml.org,2002:float"}
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag not in _NUMBERS]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:int", re.compile(r"[-+]?(?:0|[1-9][0-9]*|0x[0-9a-fA-F]+)$"), list("-+0123456789")
)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"(?:[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.inf|\.nan)$"),
    list("-+.0123456789"),
)


def read_yaml(text: str) -> tuple[Any, dict[Path, int], list[str]]:
    """Parses one YAML document.

    Returns:
        The value (None for an empty document), the 1-based line of every key and list item by path, and
        problems: one for text that is no YAML (the value is then None), or one per key that is written twice.
    """
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            return None, {}, []
        lines: dict[Path, int] = {}
        problems: list[str] = []
        _walk(node, (), lines, problems, set())
        return loader.construct_document(node), lines, problems
    except yaml.YAMLError as error:
        return None, {}, [_not_yaml(error)]


def path_text(path: Path) -> str:
    """``targets[2].ratio`` for ``("targets", 2, "ratio")``."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else str(part)
    return text


def _walk(node: yaml.Node, path: Path, lines: dict[Path, int], problems: list[str], met: set[int]) -> None:
    if id(node) in met:  # an alias: it keeps the lines of its anchor, and may even contain itself
        return
    met.add(id(node))
    if isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            lines[(*path, index)] = item.start_mark.line + 1
            _walk(item, (*path, index), lines, problems, met)
    elif isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            here = (*path, str(key.value))
            line = key.start_mark.line + 1
            if here in lines:
                problems.append(
                    f"{path_text(here)} (line {line}): written a second time, first on line {lines[here]}; "
                    "remove one of them"
                )
                continue
            lines[here] = line
            _walk(value, here, lines, problems, met)


def _not_yaml(error: yaml.YAMLError) -> str:
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        mark = error.problem_mark
        told = ", ".join(part for part in (error.context, error.problem) if part)
        where = f" (line {mark.line + 1}, column {mark.column + 1})"
    else:
        told, where = str(error), ""
    return f"expected YAML, but it cannot be parsed{where}: {told}"
