"""The dependency graph as one HTML file that needs no network: style, script and data are all inside."""

from __future__ import annotations

import json
import re
from html import escape
from importlib.resources import files
from typing import TYPE_CHECKING

from graphprune.views.page_data import page_data

if TYPE_CHECKING:
    from graphprune.graph import DependencyGraph

_SCRIPTS = ("blocks.js", "model.js", "matrix.js", "detail.js", "search.js", "main.js")


def html(graph: DependencyGraph, title: str) -> str:
    """A page that shows every group, what goes with each of its units, and why some must stay.

    Write it to a file and open that in a browser. What is selected stands in the address after ``#``:
    ``#group=NAME&unit=3`` or ``#search=PARAMETER``.

    Args:
        graph: any graph.
        title: the page's heading, the model's name for example.
    """
    folder = files("graphprune.views") / "assets"
    text = json.dumps(page_data(graph, title), ensure_ascii=False, separators=(",", ":"))
    parts = {
        "title": escape(title),
        "style": (folder / "page.css").read_text(encoding="utf-8"),
        "data": text.replace("<", "\\u003c"),  # no text of the graph can end the script element
        "script": "\n".join((folder / name).read_text(encoding="utf-8") for name in _SCRIPTS),
    }
    page = (folder / "page.html").read_text(encoding="utf-8")
    return re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], page)
