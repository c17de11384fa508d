"""The report in a real browser, at the widths of a laptop and of a phone, with 3 and with 30 settings.

Needs Chromium; each test is skipped where there is none.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from graphprune.study.report import write_report
from tests.study.builder import build
from tests.views import browser as chromium
from tests.views.browser import LAPTOP, PHONE

pytestmark = pytest.mark.slow

LAYOUT = (Path(chromium.__file__).parent / "layout.js").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def tab(tmp_path_factory) -> Iterator[chromium.Browser]:
    yield from chromium.running(tmp_path_factory.mktemp("profile"))


@pytest.fixture
def browser(tab) -> Iterator[chromium.Browser]:
    """Afterwards nothing may have gone wrong, and nothing may have been asked of the network."""
    tab.problems.clear()
    yield tab
    tab.evaluate("1")
    assert tab.problems == []


@pytest.fixture(scope="module", params=[3, 30], ids=["three", "thirty"])
def address(request, tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("study")
    results = build(folder, series=request.param, broken=(4,))
    start = time.perf_counter()
    write_report(results, folder)
    print(f"written in {time.perf_counter() - start:.1f} s")
    return (folder / "report.html").as_uri()


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("screen", [LAPTOP, PHONE], ids=["laptop", "phone"])
def test_everything_can_be_read(browser, address, screen, dark):
    browser.open(address, dark=dark, **screen)
    # One of the long tables is enough to see that rows do not overlap.
    browser.evaluate("document.querySelectorAll('tbody tr:nth-child(n + 12)').forEach(row => row.remove())")
    assert browser.evaluate(f"({LAYOUT})()") == []


@pytest.mark.parametrize("screen", [LAPTOP, PHONE], ids=["laptop", "phone"])
def test_nothing_is_wider_than_the_screen_when_all_is_open(browser, address, screen):
    browser.open(address, **screen)
    browser.evaluate("document.querySelectorAll('details').forEach(part => part.open = true)")
    browser.settle()
    assert browser.evaluate("document.documentElement.scrollWidth") <= screen["width"]


@pytest.mark.parametrize("screen", [LAPTOP, PHONE], ids=["laptop", "phone"])
def test_figures_are_shown_in_the_size_they_were_drawn_in(browser, address, screen):
    """Text in them is as large as it was meant to be, give or take a few per cent."""
    browser.open(address, **screen)
    scales = browser.evaluate("[...document.images].map(i => i.getBoundingClientRect().width / i.naturalWidth)")
    assert len(scales) >= 7 and all(0.97 < scale < 1.03 for scale in scales), scales
    wide = browser.evaluate("[...document.images].map(i => i.naturalWidth)")
    assert all((width > 900) == (screen is LAPTOP) for width in wide)


def test_tables_are_sorted_and_filtered(browser, address):
    browser.open(address, **LAPTOP)
    table = "#runs .table:last-of-type"

    def column(number: int) -> list[str]:
        rows = f"[...document.querySelectorAll('{table} tbody tr:not([hidden])')]"
        return browser.evaluate(f"{rows}.map(row => row.cells[{number}].innerText)")

    assert browser.texts(f"{table} th")[3] == "perplexity"
    head = f"{table} th:nth-child(4)"
    browser.click(f"{head} button")
    up = column(3)
    assert up[-1] == "failed" and [float(v) for v in up[:-1]] == sorted(float(v) for v in up[:-1])
    browser.click(f"{head} button")
    down = [float(v) for v in column(3)[:-1]]
    assert column(3)[-1] == "failed" and down == sorted(down, reverse=True)
    assert browser.evaluate(f"document.querySelector('{head}').ariaSort") == "descending"
    browser.evaluate("document.querySelector('#runs input').focus()")
    browser.press(*"magni 0.5")
    assert 0 < len(column(0)) < len(up) and all("magnitude" in name for name in column(0))


def test_runs_can_be_opened_by_keyboard(browser, address):
    browser.open(address, **PHONE)
    browser.evaluate("document.querySelector('#reproduce details summary').focus()")
    browser.press("Enter")
    assert "title: Criteria at equal steps" in browser.text("#reproduce pre")
