"""How figures are made: two sizes, colours that everybody can tell apart, text that is measured before it is placed.

Each figure is drawn twice, for a laptop and for a phone, on a canvas as wide as it is shown, so that text is never
scaled. Axes are placed in inches rather than by an automatic layout: the same on every machine, and fast.
"""

from __future__ import annotations

import io
import itertools
import math
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Okabe & Ito, Color Universal Design (2008), https://jfly.uni-koeln.de/color/, without yellow, faint on white."""
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "p")
LINES = ("-", "--", "-.")
GREY, INK, FAINT = "#b4b4b4", "#222222", "#666666"
MAPS = "cividis"
"""Nuñez, Anderton & Renslow, PLOS ONE 13 (2018): the same to people with and without colour blindness."""
MANY = 10
"""More settings than this do not share a panel in colours; each gets one, the others behind it in grey."""
DIRECT = 3
"""So many settings are labelled at the end of their lines."""


@dataclass(frozen=True)
class Canvas:
    """One of the two sizes: ``width`` in inches of 96 CSS pixels, and the size of text in points (4/3 pixels)."""

    name: str
    width: float
    font: float

    @property
    def wide(self) -> bool:
        """Whether this is the one for laptops."""
        return self.name == "wide"


WIDE, NARROW = Canvas("wide", 10.6, 9.5), Canvas("narrow", 3.54, 8.6)


@dataclass(frozen=True)
class Picture:
    """A figure of the report.

    Attributes:
        name: of its files.
        alt: what it says, with numbers, for those who do not see it.
        caption: how to read it.
        draw: makes it for a canvas.
    """

    name: str
    alt: str
    caption: str
    draw: Callable[[Canvas], Figure]

    def save(self, folder: Path) -> dict[str, str]:
        """Writes NAME.png, NAME.svg and NAME-narrow.svg; gives the SVG texts by canvas."""
        found = {}
        for canvas, stem in ((WIDE, self.name), (NARROW, f"{self.name}-narrow")):
            with drawing(canvas):
                figure = self.draw(canvas)
                text = io.StringIO()
                figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
                found[canvas.name] = _shorter(text.getvalue())
                if canvas.wide:
                    figure.savefig(folder / f"{stem}.png", dpi=160, metadata={"Software": None})
            (folder / f"{stem}.svg").write_text(found[canvas.name], encoding="utf-8")
        return found


def _shorter(svg: str) -> str:
    """Paths with two decimals instead of six: a hundredth of a point cannot be seen, and is half of the file."""
    paths = re.compile(r'(?<= d=")[^"]*')
    return paths.sub(lambda path: re.sub(r"(\.\d\d)\d+", r"\1", path[0]), svg)


@contextmanager
def drawing(canvas: Canvas) -> Iterator[None]:
    """Inside, figures look alike; what the caller has set elsewhere is left alone."""
    from matplotlib import rc_context

    style: dict[str, Any] = {
        "font.family": "DejaVu Sans",
        "font.size": canvas.font,
        "axes.titlesize": canvas.font,
        "axes.labelsize": canvas.font,
        "axes.titlelocation": "left",
        "axes.titley": 1.0,
        "axes.edgecolor": FAINT,
        "axes.linewidth": 0.7,
        "axes.labelcolor": INK,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "text.color": INK,
        "xtick.color": FAINT,
        "ytick.color": FAINT,
        "xtick.labelcolor": INK,
        "ytick.labelcolor": INK,
        "xtick.labelsize": canvas.font - 1,
        "ytick.labelsize": canvas.font - 1,
        "lines.linewidth": 1.6,
        "lines.markersize": 5,
        "legend.frameon": False,
        "legend.fontsize": canvas.font,
        "figure.facecolor": "white",
        "svg.hashsalt": "graphprune",
        "svg.fonttype": "path",
        "path.simplify": False,
        "text.parse_math": False,
        "axes.unicode_minus": True,
    }
    with rc_context():
        from matplotlib import rcdefaults, rcParams

        rcdefaults()
        for name, value in style.items():
            rcParams[name] = value  # type: ignore[index]
        yield


# --- looks of the settings ------------------------------------------------------------------------------


def look(index: int) -> dict[str, Any]:
    """Colour, line and marker of the setting with that number, different in at least two of the three."""
    return {
        "color": PALETTE[index % len(PALETTE)],
        "linestyle": LINES[index // len(PALETTE) % len(LINES)],
        "marker": MARKERS[index % len(MARKERS)],
    }


# --- text -----------------------------------------------------------------------------------------------


@lru_cache(maxsize=8192)
def width_of(text: str, points: float) -> float:
    """Inches that a line of text takes."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import text_to_path

    font = FontProperties(family="DejaVu Sans", size=points)
    return max(text_to_path.get_text_width_height_descent(line, font, False)[0] for line in text.split("\n")) / 72


def fit(text: str, inches: float, points: float) -> str:
    """The text, with … in its middle where it would be wider."""
    if width_of(text, points) <= inches:
        return text
    for keep in range(len(text) - 1, 1, -1):
        short = text[: math.ceil(keep / 2)] + "…" + text[len(text) - keep // 2 :]
        if width_of(short, points) <= inches:
            return short
    return "…"


def fit_all(texts: Sequence[str], inches: float, points: float) -> list[str]:
    """Every text cut to the same width; those that would be alike then get a number."""
    short = [fit(text, inches, points) for text in texts]
    if len(set(short)) == len(set(texts)):
        return short
    return [
        text if short.count(text) == 1 else fit(f"{index}: {full}", inches, points)
        for index, (text, full) in enumerate(zip(short, texts, strict=True), start=1)
    ]


def wrap(text: str, inches: float, points: float, lines: int = 2) -> str:
    """The text broken at spaces and hyphens into at most so many lines, the last one cut to fit."""
    found: list[str] = []
    rest = text
    while rest and len(found) < lines - 1 and width_of(rest, points) > inches:
        breaks = [k + 1 for k, letter in enumerate(rest[:-1]) if letter in " -_/,"]
        good = [k for k in breaks if width_of(rest[:k].rstrip(), points) <= inches]
        if not good:
            break
        commas = [k for k in good if rest[k - 2 : k] == ", " and width_of(rest[k:], points) <= inches]
        at = (commas or good)[-1]
        found.append(rest[:at].rstrip())
        rest = rest[at:].lstrip()
    return "\n".join([*found, fit(rest, inches, points)])


# --- places ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Grid:
    """Panels of one size on a canvas, with room around each; all in inches.

    ``left``, ``right``, ``top`` and ``bottom`` are the room of every panel for its own labels; ``head`` and ``foot``
    are above and below all of them. With a ``gutter``, panels that share their labels have these only in the first
    column, and so much room before the others.
    """

    canvas: Canvas
    count: int
    columns: int
    height: float
    left: float = 0.6
    right: float = 0.15
    top: float = 0.3
    bottom: float = 0.45
    head: float = 0.0
    foot: float = 0.0
    gutter: float | None = None

    @property
    def rows(self) -> int:
        """Of panels."""
        return max(1, math.ceil(self.count / self.columns))

    @property
    def panel_width(self) -> float:
        """Of the inside of a panel."""
        return (
            self.canvas.width - sum(self._before(column) + self.right for column in range(self.columns))
        ) / self.columns

    def _before(self, column: int) -> float:
        return self.left if self.gutter is None or column == 0 else self.gutter

    @property
    def figure_height(self) -> float:
        """Of everything."""
        return self.rows * (self.top + self.height + self.bottom) + self.head + self.foot

    def make(self) -> tuple[Figure, list[Axes]]:
        """The figure, and its panels row by row."""
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        width, height = self.canvas.width, self.figure_height
        figure = Figure(figsize=(width, height), dpi=96)
        FigureCanvasAgg(figure)
        panels = []
        for index in range(self.count):
            row, column = divmod(index, self.columns)
            x = sum(self._before(k) for k in range(column + 1)) + column * (self.panel_width + self.right)
            y = height - self.head - (row + 1) * (self.top + self.height + self.bottom) + self.bottom
            box = (x / width, y / height, self.panel_width / width, self.height / height)
            panels.append(figure.add_axes(box))
        return figure, panels


def legend_height(labels: Sequence[str], canvas: Canvas) -> float:
    """Inches that :func:`add_legend` needs."""
    _, rows = _legend_shape(labels, canvas)
    return rows * canvas.font / 72 * 1.75 + 0.12


def add_legend(figure: Figure, handles: Sequence[Any], labels: Sequence[str], canvas: Canvas) -> None:
    """A legend above all panels, in as many columns as fit."""
    columns, _ = _legend_shape(labels, canvas)
    room = canvas.width / columns - 0.6
    figure.legend(
        handles,
        fit_all(labels, room, canvas.font),
        ncols=columns,
        loc="upper left",
        bbox_to_anchor=(0.0, 1.0),
        borderaxespad=0.2,
        handlelength=2.6,
        columnspacing=1.2,
        labelspacing=0.45,
    )


def _legend_shape(labels: Sequence[str], canvas: Canvas) -> tuple[int, int]:
    widest = max((width_of(label, canvas.font) for label in labels), default=0.0) + 0.7
    columns = max(1, min(len(labels), int(canvas.width / widest)))
    return columns, math.ceil(len(labels) / columns)


def spread(positions: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """The positions moved apart to at least ``gap``, in their order, within bounds as far as there is room."""
    order = sorted(range(len(positions)), key=lambda i: positions[i])
    moved = list(positions)
    for before, after in itertools.pairwise(order):
        moved[after] = max(moved[after], moved[before] + gap)
    over = moved[order[-1]] - high if order else 0.0
    if over > 0:
        limit = high
        for index in reversed(order):
            moved[index] = min(moved[index], limit)
            limit = moved[index] - gap
    if order and moved[order[0]] < low:
        shift = low - moved[order[0]]
        moved = [value + shift for value in moved]
    return moved
