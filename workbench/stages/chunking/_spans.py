"""Shared arithmetic of the chunkers: token counts by offset, cuts in order of preference, greedy packing.

A document is tokenised once. After that every question is about sorted arrays of offsets: a *cut* is an
offset where a chunk may end and the next begin, its *ordinal* is the number of tokens that start before
it, and the size of a span is the difference of two ordinals, so nothing is counted twice.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from workbench.models.protocols import Tokenizer
from workbench.models.tokenizers import Characters

Spans = list[tuple[int, int]]
Positions = NDArray[np.int64]
"""Sorted offsets, no two alike."""
Level = Callable[[str], Positions]
"""Where a text may be cut, for one level of preference: sorted offsets, computed only when needed."""


class Cuts(NamedTuple):
    """Sorted cuts and their ordinals: memory views, which `bisect` reads without a copy to a list."""

    positions: Sequence[int]
    ordinals: Sequence[int]


class Ruler:
    """Counts the tokens of any span of one text: those whose start lies within it."""

    def __init__(self, text: str, tokenizer: Tokenizer) -> None:
        self.text = text
        # Where each code point is a token, an offset is its own ordinal and no array is needed.
        self._starts = None if isinstance(tokenizer, Characters) else np.ascontiguousarray(tokenizer.spans(text)[:, 0])

    @property
    def tokens(self) -> int:
        """Tokens of the whole text."""
        return len(self.text) if self._starts is None else len(self._starts)

    def cuts(self, positions: Positions) -> Cuts:
        """Cuts at sorted offsets."""
        if self._starts is None:
            return Cuts(_view(positions), _view(positions))
        ordinals = np.searchsorted(self._starts, positions, "left").astype(np.int64, copy=False)
        return Cuts(_view(positions), _view(ordinals))

    def token_cuts(self) -> Cuts:
        """Cuts at the start of each token; tokens that start together cannot be cut apart."""
        if self._starts is None:
            return Cuts(range(len(self.text)), range(len(self.text)))
        ordinals = np.flatnonzero(np.diff(self._starts, prepend=-1)).astype(np.int64, copy=False)
        return Cuts(_view(self._starts[ordinals]), _view(ordinals))


def _view(values: NDArray[np.int64]) -> Sequence[int]:
    return values.data


class Packer:
    """Packs one text into spans of at most `size` tokens, cutting at the first level that helps.

    A span that is too long is cut at the cuts of the next level that has one inside it. Neighbouring
    pieces are joined greedily from the left; a piece that is itself too long goes one level down. The
    last level is always the start of a token, so only a single character that is more than `size`
    tokens can exceed it. With `overlap`, a span starts with as many whole trailing pieces of the span
    before it as have at most `overlap` tokens together and leave room for one more piece; where a
    level ends there is none.
    """

    def __init__(self, ruler: Ruler, levels: Sequence[Level], size: int, overlap: int) -> None:
        self._ruler, self._levels, self._size, self._overlap = ruler, levels, size, overlap
        self._cuts: list[Cuts] = []
        self._spans: Spans = []

    def pack(self) -> Spans:
        """The spans, in order, with ends that grow; without overlap they are a partition of the text."""
        if self._ruler.text:
            self._cut(0, len(self._ruler.text), 0, self._ruler.tokens, 0)
        return self._spans

    def _level(self, depth: int) -> Cuts:
        while len(self._cuts) <= depth:
            at = len(self._cuts)
            last = at == len(self._levels)
            self._cuts.append(
                self._ruler.token_cuts() if last else self._ruler.cuts(self._levels[at](self._ruler.text))
            )
        return self._cuts[depth]

    def _cut(self, start: int, end: int, first: int, last: int, depth: int) -> None:
        """Pack text[start:end], whose tokens have the ordinals [first, last)."""
        size, overlap, spans = self._size, self._overlap, self._spans
        if last - first <= size:
            spans.append((start, end))
            return
        while True:
            if depth > len(self._levels):  # one character of more than `size` tokens
                spans.append((start, end))
                return
            positions, ordinals = self._level(depth)
            here = bisect_right(positions, start)
            stop = bisect_left(positions, end, here)
            if here < stop:
                break
            depth += 1
        while last - first > size:
            if here == stop:
                self._cut(start, end, first, last, depth + 1)
                return
            far = bisect_right(ordinals, first + size, here, stop) - 1
            if far < here:
                self._cut(start, positions[here], first, ordinals[here], depth + 1)
                start, first, here = positions[here], ordinals[here], here + 1
                continue
            spans.append((start, positions[far]))
            again = far
            if overlap:
                after = ordinals[far + 1] if far + 1 < stop else last
                room = max(ordinals[far] - overlap, after - size)
                if room <= ordinals[far]:
                    again = bisect_left(ordinals, room, here, far)
            start, first, here = positions[again], ordinals[again], again + 1
        spans.append((start, end))


def trimmed(text: str, spans: Spans) -> Spans:
    """Spans without blanks at either end; blank ones, and ones that lie within a neighbour, are left out.

    `spans` must be ordered, none empty, with ends that grow.
    """
    kept: Spans = []
    for start, end in spans:
        piece = text[start:end]
        if piece[0].isspace():
            start += len(piece) - len(piece.lstrip())
        if piece[-1].isspace():
            end -= len(piece) - len(piece.rstrip())
        if start >= end:
            continue
        if kept and end <= kept[-1][1]:
            continue
        if kept and start <= kept[-1][0]:
            kept.pop()
        kept.append((start, end))
    return kept


def not_blank(text: str, spans: Spans) -> Spans:
    """Spans that hold at least one character that is not blank; none is empty."""
    return [(start, end) for start, end in spans if not text[start:end].isspace()]


def after_each(text: str, separator: str) -> Positions:
    """Offsets just after each occurrence of a separator, found from the left without overlap."""
    parts = text.split(separator)
    lengths = np.fromiter(map(len, parts), np.int64, len(parts))
    return np.cumsum(lengths + len(separator))[:-1]
