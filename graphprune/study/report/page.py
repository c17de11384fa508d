"""The report as one HTML file that needs no network: style, script and figures are all inside."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from importlib.resources import files

import graphprune
from graphprune.study.report.section import Section


def html(title: str, sections: Sequence[Section], images: Mapping[str, Mapping[str, str]]) -> str:
    """The page.

    Args:
        title: its heading.
        sections: what it says, in order.
        images: of every figure the SVG text ``wide`` and ``narrow``, by the figure's name.
    """
    from jinja2 import Environment

    assets = files("graphprune.study.report") / "assets"
    template = Environment(autoescape=True, trim_blocks=False).from_string(
        (assets / "page.html").read_text(encoding="utf-8")
    )
    return template.render(
        title=title,
        sections=sections,
        images={name: {size: _data_uri(svg) for size, svg in both.items()} for name, both in images.items()},
        style=(assets / "page.css").read_text(encoding="utf-8"),
        script=(assets / "page.js").read_text(encoding="utf-8"),
        version=graphprune.__version__,
        kind=lambda block: type(block).__name__,
    )


def _data_uri(svg: str) -> str:
    return "data:image/svg+xml;base64," + base64.b64encode(svg.encode()).decode("ascii")
