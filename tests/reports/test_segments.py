"""Spans are cut apart without losing or doubling a character; folds are a partition."""

from __future__ import annotations

import html
import itertools
import re

from hypothesis import given
from hypothesis import strategies as st

from workbench.reports.page import exact
from workbench.reports.segments import Marked, fold, merge, segments

SPANS = st.lists(st.tuples(st.integers(0, 40), st.integers(0, 40)).map(lambda p: (min(p), max(p))), max_size=8)


@given(st.integers(0, 20), st.integers(0, 20), SPANS)
def test_segments_partition_the_range_and_know_who_covers_each_character(start: int, size: int, spans: list) -> None:
    end = start + size
    marked = [Marked(a, b, no) for no, (a, b) in enumerate(spans)]
    found = list(segments(start, end, marked))
    assert [c for s in found for c in range(s.start, s.end)] == list(range(start, end))
    for s in found:
        for at in range(s.start, s.end):
            assert s.keys == tuple(no for no, (a, b) in enumerate(spans) if a <= at < b)


def test_neighbouring_segments_differ_in_their_keys() -> None:
    spans = [Marked(2, 8, "a"), Marked(4, 6, "b"), Marked(4, 6, "c"), Marked(6, 9, "d")]
    found = [(s.start, s.end, s.keys) for s in segments(0, 10, spans)]
    assert found == [
        (0, 2, ()),
        (2, 4, ("a",)),
        (4, 6, ("a", "b", "c")),
        (6, 8, ("a", "d")),
        (8, 9, ("d",)),
        (9, 10, ()),
    ]


def test_merge_joins_what_touches_or_lies_close() -> None:
    assert merge([(5, 7), (0, 2), (2, 4)]) == [(0, 4), (5, 7)]
    assert merge([(5, 7), (0, 2), (2, 4)], gap=1) == [(0, 7)]


@given(st.text(alphabet="ab \n", max_size=300), SPANS)
def test_folds_are_a_partition_that_shows_every_span(text: str, spans: list) -> None:
    spans = [(a, min(b, len(text))) for a, b in spans if a < min(b, len(text))]
    parts = fold(text, spans, context=5, least=12)
    assert "".join(text[p.start : p.end] for p in parts) == text
    assert all(p.start < p.end for p in parts)
    assert all(not (a.shown and b.shown) for a, b in itertools.pairwise(parts))
    assert all(p.end - p.start >= 12 or len(parts) == 1 for p in parts if not p.shown)
    for a, b in spans:
        assert any(p.shown and p.start <= a and p.end >= b for p in parts)


@given(st.text())
def test_exact_text_survives_escaping(text: str) -> None:
    escaped = str(exact(text))
    assert not re.search("[<>\r\"']", escaped)
    # `html.unescape` follows the HTML rules for references, and those replace some control characters.
    assert html.unescape(escaped.replace("&#13;", "\0CR\0")).replace("\0CR\0", "\r") == text
