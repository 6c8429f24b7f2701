"""Report and inspector in a real browser: exact text, phone width, silence, inert scripts, dark mode."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from workbench.reports.inspector import inspect
from workbench.sweeps.results import SweepResult

pytestmark = pytest.mark.slow

GOLD = """() => { const found = {}; for (const mark of document.querySelectorAll('mark.gold[data-evidence]'))
 for (const number of mark.dataset.evidence.split(' ')) found[number] = (found[number] || '') + mark.textContent;
 return found; }"""
WIDEST = "() => document.scrollingElement.scrollWidth"
COLOURS = """() => { const page = getComputedStyle(document.body); return [page.color, page.backgroundColor]; }"""


@pytest.fixture(params=["one", "two"])
def inspection(request: pytest.FixtureRequest, swept: SweepResult, tmp_path: Path) -> Path:
    other = swept.trials[3] if request.param == "two" else None
    return inspect(swept.trials[0], "evil", other).write(tmp_path / "evil.html")


def luminance(colour: str) -> float:
    parts = [int(c) / 255 for c in re.findall(r"\d+", colour)[:3]]
    r, g, b = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts)
    return 0.2126 * r + 0.7152 * g + 0.0722 * b


def quiet(found: object) -> None:
    assert found.console == []  # type: ignore[attr-defined]
    assert found.requests == []  # type: ignore[attr-defined]
    assert found.ask("() => window.__pwned") is None  # type: ignore[attr-defined]


def test_marked_text_equals_the_gold_in_a_browser(visit: Callable, swept: SweepResult, inspection: Path) -> None:
    opened = visit(inspection)
    texts = {d.doc_id: d.text for d in swept.dataset.documents}
    query = next(q for q in swept.dataset.queries if q.query_id == "evil")
    wanted = {str(n): texts[e.doc_id][e.start : e.end] for n, e in enumerate(query.evidence, 1)}
    assert any(ord(c) > 0xFFFF for c in wanted["1"])
    assert "\r" in wanted["2"]
    assert opened.ask(GOLD) == wanted
    quiet(opened)


def test_the_whole_document_is_there_letter_for_letter(visit: Callable, swept: SweepResult, inspection: Path) -> None:
    script = "() => [...document.querySelectorAll('article .wb-text')].map(e => e.textContent).join('')"
    text = next(d.text for d in swept.dataset.documents if d.doc_id.startswith("evil"))
    assert visit(inspection).ask(script) == text


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [320, 390, 768, 1280])
def test_pages_are_quiet_and_fit_every_width(
    visit: Callable, inspection: Path, rendered: Path, width: int, scheme: str
) -> None:
    for path in (inspection, rendered):
        opened = visit(path, width, scheme)
        opened.ask("() => document.querySelectorAll('details').forEach(d => { d.open = true; })")
        assert opened.ask(WIDEST) <= width, path.name
        ink, paper = opened.ask(COLOURS)
        bright, dark = sorted((luminance(ink), luminance(paper)), reverse=True)
        assert (bright + 0.05) / (dark + 0.05) >= 7, path.name
        assert (luminance(paper) < 0.2) == (scheme == "dark"), path.name
        quiet(opened)


def test_each_chart_is_drawn_for_its_width(visit: Callable, rendered: Path) -> None:
    shown = "() => [...document.querySelectorAll('svg.wb-chart')].filter(s => s.getBoundingClientRect().width > 0)"
    phone, desk = visit(rendered, 390), visit(rendered, 1280)
    few, many = phone.ask(f"{shown}.length"), phone.ask("() => document.querySelectorAll('svg.wb-chart').length")
    assert few == desk.ask(f"{shown}.length") == many / 2 >= 3
    assert phone.ask(f"{shown}.every(s => s.getBoundingClientRect().width > 250)") is not None


def test_headings_landmarks_and_names(visit: Callable, inspection: Path, rendered: Path) -> None:
    for path in (inspection, rendered):
        opened = visit(path)
        assert opened.ask("() => document.querySelectorAll('main').length") == 1
        assert opened.ask("() => document.querySelectorAll('h1').length") == 1
        assert opened.ask("() => document.documentElement.lang") == "en"
        levels = opened.ask("() => [...document.querySelectorAll('h1,h2,h3,h4')].map(h => +h.tagName[1])")
        assert all(b - a <= 1 for a, b in itertools.pairwise(levels)), (path.name, levels)
        scrollers = "() => [...document.querySelectorAll('.wb-scroll')].every(e => e.tabIndex === 0 && e.ariaLabel)"
        assert opened.ask(scrollers)
        ids = opened.ask("() => [...document.querySelectorAll('[id]')].map(e => e.id)")
        assert len(ids) == len(set(ids)), path.name
