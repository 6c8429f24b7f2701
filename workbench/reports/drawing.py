"""Altair charts as SVG: offline, the same bytes for the same chart, readable on light and dark pages.

Colours are the Okabe-Ito palette (colour-blind safe); each also differs in shape or dash. In the SVG
they become CSS variables with the plain colour as fallback, and text takes the colour of its page.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from html import escape
from typing import TYPE_CHECKING, Any

from workbench.reports.page import Fragment

if TYPE_CHECKING:
    import altair as alt

BLUE, VERMILLION, GREEN, PURPLE = "#0072B2", "#D55E00", "#009E73", "#CC79A7"
INK, MUTED, FAINT = "#1B1F23", "#6A7178", "#D3D7DB"
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"

WIDE, NARROW = 820, 330
"""Each chart is drawn for a desk and for a phone: a scaled-down chart has text that nobody can read."""

_PAGE_COLOURS = {
    BLUE: f"var(--wb-blue, {BLUE})",
    VERMILLION: f"var(--wb-vermillion, {VERMILLION})",
    GREEN: f"var(--wb-green, {GREEN})",
    PURPLE: f"var(--wb-purple, {PURPLE})",
    INK: "currentColor",
    MUTED: f"var(--wb-muted, {MUTED})",
    FAINT: f"var(--wb-faint, {FAINT})",
}
_COLOUR = re.compile(r'(fill|stroke)="(' + "|".join(_PAGE_COLOURS) + ')"')
_SIZE = re.compile(r'<svg [^>]*?width="([0-9.]+)" height="([0-9.]+)"[^>]*>')

_STANDALONE = (
    f"<style>svg{{color:{INK};--wb-muted:#5C636A;--wb-faint:{FAINT}}}@media (prefers-color-scheme:dark)"
    "{svg{color:#E4E7EA;--wb-blue:#56B4E9;--wb-vermillion:#E8833A;--wb-green:#2FBF9A;--wb-muted:#A0A8B0;"
    "--wb-faint:#3C434A}}</style>"
)


def themed(chart: Any, title: str, description: str, *, left: int = 4, right: int = 4) -> Any:
    """The chart in the house style, with the title and description that a screen reader says."""
    axis = {
        "labelColor": MUTED,
        "titleColor": MUTED,
        "labelFontSize": 12,
        "titleFontSize": 12,
        "labelLimit": 260,
        "domainColor": FAINT,
        "tickColor": FAINT,
        "gridColor": FAINT,
        "gridDash": [1, 3],
        "titleFontWeight": "normal",
        "titlePadding": 12,
    }
    legend = {
        "labelColor": INK,
        "labelFontSize": 12,
        "labelLimit": 300,
        "symbolOpacity": 1,
        "columnPadding": 34,
    }
    return chart.properties(description=description, usermeta={"title": title}).configure(
        background="transparent",
        font=FONT,
        padding={"left": left, "right": right, "top": 4, "bottom": 4},
        aria=False,
        view={"stroke": None},
        axis=axis,
        legend=legend,
    )


def svg(chart: alt.TopLevelMixin, *, standalone: bool = False) -> str:
    """A chart as an SVG element that scales down to the width of its place.

    `standalone` adds the colours of both themes, for a file that is shown as an image.
    """
    import vl_convert

    spec = chart.to_dict(validate=False)  # our own charts; validation doubles the time
    drawn = vl_convert.vegalite_to_svg(spec, allowed_base_urls=[])
    found = _SIZE.search(drawn)
    assert found is not None, "vl-convert writes an svg element with its size"
    width, height = found[1], found[2]
    title = escape(str(spec.get("usermeta", {}).get("title", "Chart")))
    description = escape(str(spec.get("description", "")))
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="wb-chart" role="img" viewBox="0 0 {width} {height}"'
        f' width="100%" style="max-width:{width}px;height:auto" fill="currentColor">'
        f"<title>{title}</title><desc>{description}</desc>{_STANDALONE if standalone else ''}"
    )
    # The transparent background still is a rectangle of the chart's size: it would hide a page's own.
    body = re.sub(r'<rect width="[0-9.]+" height="[0-9.]+" fill="transparent"/>', "", drawn[found.end() :], count=1)
    return head + _COLOUR.sub(lambda m: f'{m[1]}="{_PAGE_COLOURS[m[2]]}"', body)


def figure(draw: Callable[[int], Any], caption: str) -> Fragment:
    """A chart for every width: drawn wide and narrow, the style sheet shows the one that fits its place."""
    wide, narrow = draw(WIDE), draw(NARROW)
    body = (
        f'<figure class="wb-figure"><div class="wb-wide">{svg(wide)}</div><div class="wb-narrow">{svg(narrow)}</div>'
        f"<figcaption>{escape(caption)}</figcaption></figure>"
    )
    return Fragment(body, f"{wide.description}\n{caption}")
