"""Cuts overlapping spans of a text into segments, and a long text into what is shown and what is folded away."""

from __future__ import annotations

import itertools
from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass

Range = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Marked:
    """A span with the key of what it marks."""

    start: int
    end: int
    key: Hashable


@dataclass(frozen=True, slots=True)
class Segment:
    """A stretch over which nothing begins or ends; `keys` are of the spans that cover it, in their given order."""

    start: int
    end: int
    keys: tuple[Hashable, ...]


def segments(start: int, end: int, spans: Sequence[Marked]) -> Iterator[Segment]:
    """Cut [start, end) at every border of a span: the segments are a partition, in order.

    Spans may nest, overlap, repeat and reach beyond the range; empty ones cover nothing.
    """
    inside = [s for s in spans if s.start < end and s.end > start and s.start < s.end]
    cuts = sorted({start, end, *(max(start, s.start) for s in inside), *(min(end, s.end) for s in inside)})
    for a, b in itertools.pairwise(cuts):
        yield Segment(a, b, tuple(s.key for s in inside if s.start <= a and s.end >= b))


def merge(ranges: Iterable[Range], gap: int = 0) -> list[Range]:
    """The union as disjoint ranges in order; those closer than `gap` become one."""
    merged: list[Range] = []
    for start, end in sorted(ranges):
        if merged and start <= merged[-1][1] + gap:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((start, end))
    return merged


@dataclass(frozen=True, slots=True)
class Part:
    """A stretch of a document that is shown, or folded away."""

    start: int
    end: int
    shown: bool


def fold(text: str, around: Iterable[Range], context: int = 300, least: int = 240) -> list[Part]:
    """Show the given ranges with `context` characters on each side and fold the rest.

    Edges move outwards to a blank (at most 40 characters), and a fold shorter than `least` is shown.
    The parts are a partition of the text.
    """
    wide = ((_left(text, max(0, a - context)), _right(text, min(len(text), b + context))) for a, b in around)
    parts: list[Part] = []
    at = 0
    for start, end in merge(wide, gap=least):
        start = 0 if start < least else start
        end = len(text) if len(text) - end < least else end
        if start > at:
            parts.append(Part(at, start, shown=False))
        parts.append(Part(start, end, shown=True))
        at = end
    if at < len(text):
        parts.append(Part(at, len(text), shown=False))
    return parts


def _left(text: str, at: int) -> int:
    return next((i for i in range(at, max(0, at - 40), -1) if text[i - 1].isspace()), at)


def _right(text: str, at: int) -> int:
    return next((i for i in range(at, min(len(text), at + 40)) if text[i].isspace()), at)
