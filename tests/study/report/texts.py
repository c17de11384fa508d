"""What a reader would complain about in a figure: texts over each other, and texts that leave the canvas."""

from __future__ import annotations

from contextlib import contextmanager
from itertools import combinations

from matplotlib.text import Text

from graphprune.study.report.figures import NARROW, WIDE, Picture, drawing


@contextmanager
def _drawn(boxes: list):
    """Every text that is really drawn, with its box in pixels."""
    original = Text.draw

    def draw(self, renderer, *args, **kwargs):
        if self.get_visible() and self.get_text().strip():
            boxes.append((self.get_text(), Text.get_window_extent(self, renderer)))
        return original(self, renderer, *args, **kwargs)

    Text.draw = draw
    try:
        yield
    finally:
        Text.draw = original


def faults(picture: Picture) -> list[str]:
    """In both sizes; pixels are those of the page."""
    found = []
    for canvas in (WIDE, NARROW):
        boxes: list = []
        with drawing(canvas):
            figure = picture.draw(canvas)
            with _drawn(boxes):
                figure.canvas.draw()
        width, height = figure.bbox.width, figure.bbox.height
        where = f"{picture.name}, {canvas.name}"
        for text, box in boxes:
            if box.x0 < -0.5 or box.y0 < -0.5 or box.x1 > width + 0.5 or box.y1 > height + 0.5:
                found.append(f"{where}: “{text}” leaves the canvas")
        for (one, a), (other, b) in combinations(boxes, 2):
            dx = min(a.x1, b.x1) - max(a.x0, b.x0)
            dy = min(a.y1, b.y1) - max(a.y0, b.y0)
            if dx > 1 and dy > 2.5:
                found.append(f"{where}: “{one}” and “{other}” overlap by {dx:.0f} × {dy:.0f}")
    return found
