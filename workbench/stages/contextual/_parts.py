"""Named parts of a document, one inside another: sections of a text, definitions of a program."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable
from typing import NamedTuple


class Part(NamedTuple):
    """text[start:end] in code points, and what it is called."""

    start: int
    end: int
    name: str


class Parts:
    """The parts of one document; two of them are nested or apart."""

    def __init__(self, parts: Iterable[Part]) -> None:
        self._parts = sorted(parts, key=lambda part: (part.start, -part.end))
        self._starts = [part.start for part in self._parts]
        self._parents: list[int] = []
        at = -1
        for number, part in enumerate(self._parts):
            while at >= 0 and self._parts[at].end <= part.start:
                at = self._parents[at]
            self._parents.append(at)
            at = number

    def around(self, offset: int) -> list[str]:
        """Names of the parts that hold a character, the outermost first."""
        at = bisect_right(self._starts, offset) - 1
        names = []
        while at >= 0:
            if offset < self._parts[at].end:
                names.append(self._parts[at].name)
            at = self._parents[at]
        return names[::-1]

    def beginning(self, start: int, end: int) -> list[str]:
        """Names of the parts that begin after `start` and before `end`, in order."""
        return [p.name for p in self._parts[bisect_right(self._starts, start) : bisect_left(self._starts, end)]]
