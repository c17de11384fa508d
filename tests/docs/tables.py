"""The tables of the documentation that are written from the code, so that they cannot go stale.

    python -m tests.docs.tables      # from the root of the repository: fills them in anew

On a page a table stands between ``<!-- table: KIND NAME -->`` and ``<!-- end of table -->``; kinds are ``section`` (of
a spec or a study), ``criterion`` (its options), ``verb`` (its arguments and options) and ``tasks`` (what models are
for).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import typer.main
from pydantic import BaseModel

from graphprune import declared, schema
from graphprune.cli import app
from graphprune.importance import criteria
from graphprune.study import schema as study_schema
from graphprune.tasks import TASKS

PAGES = Path(__file__).resolve().parents[2] / "docs"
TABLE = re.compile(r"(<!-- table: (\w+) ([\w-]+) -->\n).*?(<!-- end of table -->)", re.DOTALL)


def filled(page: str) -> str:
    """The page with every generated table as the code has it now."""
    return TABLE.sub(lambda m: f"{m[1]}{TABLES[m[2]](m[3])}\n{m[4]}", page)


def section_table(name: str) -> str:
    """The fields of a section of a spec, or of a study."""
    home = next(module for module in (schema, declared, study_schema) if hasattr(module, name))
    return model_table(getattr(home, name))


def criterion_table(name: str) -> str:
    """The options of a criterion."""
    return model_table(criteria.get(name).options_model)


def model_table(model: type[BaseModel]) -> str:
    """The fields of a pydantic model: what is allowed, the default, the meaning."""
    found = model.model_json_schema()
    required = found.get("required", [])
    rows = []
    for name, field in found["properties"].items():
        description = model.model_fields[name].description or ""
        default = "*required*" if name in required else _default(field.get("default"))
        rows.append((f"`{name}`", _allowed(field, found.get("$defs", {})), default, description))
    return _table(("field", "allowed", "default", "meaning"), rows) if rows else "No options."


def verb_table(name: str) -> str:
    """The arguments and options of a verb of the command line."""
    command: Any = typer.main.get_command(app)
    rows = []
    for parameter in command.commands[name].params:
        if parameter.name == "help":
            continue
        argument = parameter.param_type_name == "argument"
        shown = parameter.metavar if argument else " ".join(parameter.opts)
        default = "*required*" if parameter.required else _default(_plain(parameter.default))
        rows.append((f"`{shown}`", default, parameter.help or ""))
    return _table(("", "default", "meaning"), rows)


def tasks_table(name: str) -> str:
    """The values of an option and what they stand for; ``name`` is the option."""
    return _table((f"`--{name}`", "auto class"), ((f"`{task}`", f"`{auto}`") for task, auto in TASKS.items()))


TABLES = {"section": section_table, "criterion": criterion_table, "verb": verb_table, "tasks": tasks_table}


def _plain(value: Any) -> Any:
    """A default as it is typed: enumerations by value, paths as text, flags that are off as nothing."""
    value = getattr(value, "value", value)
    return None if value is False or value is None else str(value)


def _default(value: Any) -> str:
    if isinstance(value, dict):
        return "its own" if value else "`{}`"
    if isinstance(value, list):
        return f"`[{', '.join(map(str, value))}]`"
    return "–" if value is None else f"`{str(value).lower() if isinstance(value, bool) else value}`"


def _allowed(field: dict[str, Any], definitions: dict[str, Any]) -> str:
    if "$ref" in field:
        return "text or mapping" if "anyOf" in definitions[field["$ref"].rsplit("/", 1)[-1]] else "mapping"
    if "anyOf" in field:
        kinds = [_allowed(f, definitions) for f in field["anyOf"] if f.get("type") != "null"]
        return " or ".join(dict.fromkeys(kinds))
    if "enum" in field or "const" in field:
        return ", ".join(f"`{v}`" for v in field.get("enum", [field.get("const")]))
    if "prefixItems" in field:
        return " and ".join(_allowed(item, definitions) for item in field["prefixItems"])
    if field.get("type") == "array":
        return f"list of {_allowed(field.get('items', {}), definitions)}"
    names = {
        "string": "text",
        "number": "number",
        "integer": "integer",
        "boolean": "`true`, `false`",
        "object": "mapping",
    }
    return names.get(field.get("type", ""), "any") + _bounds(field)


def _bounds(field: dict[str, Any]) -> str:
    signs = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
    found = [f"{sign} {field[key]:g}" for key, sign in signs.items() if key in field and abs(field[key]) < 2**31]
    return f" {', '.join(found)}" if found else ""


def _table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    cells = [[cell.replace("|", "\\|") for cell in row] for row in (head, *rows)]
    lines = [f"| {' | '.join(row)} |" for row in cells]
    return "\n".join([lines[0], "|" + "---|" * len(cells[0]), *lines[1:]])


if __name__ == "__main__":
    for path in sorted(PAGES.glob("*.md")):
        path.write_text(filled(path.read_text(encoding="utf-8")), encoding="utf-8")
