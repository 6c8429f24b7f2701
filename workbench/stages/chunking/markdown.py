"""Structure of Markdown: where a chunk may end, from a first-level heading down to a blank.

One pass over the lines finds the blocks; each offset where text may be cut then has a *strength*: that
of a heading (1 to 6), between blocks, inside a block (list items, table rows, parts of code), and below
these sentences, line ends and blanks. What counts as a block follows the CommonMark specification 0.31
(2024) and the tables of GitHub Flavored Markdown; any text is accepted, plain text included.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

import numpy as np

from workbench.models.protocols import Tokenizer
from workbench.records import Document
from workbench.specs import Markdown
from workbench.stages.chunking._spans import Level, Packer, Positions, Ruler, Spans, trimmed
from workbench.stages.chunking.sentence import blank_ends, line_ends, sentence_ends

BLOCK, INSIDE, FINE = 7, 8, 9
"""Strengths below the six of headings: between blocks; items, rows and parts of code; nested items."""

_ATX = re.compile(r" {0,3}(#{1,6})(?:[ \t]|\r?$)")
_FENCE = re.compile(r"[ \t]*(`{3,}(?=[^`]*$)|~{3,})")
_UNDERLINE = re.compile(r" {0,3}(?:(=+)|-+)\s*$")
_RULE = re.compile(r" {0,3}(?:\*[ \t]*(?:\*[ \t]*){2,}|-[ \t]*(?:-[ \t]*){2,}|_[ \t]*(?:_[ \t]*){2,})\r?$")
_ITEM = re.compile(r"[ \t]*(?:[-+*•]|\d{1,9}[.)])(?:[ \t]|\r?$)")
_INTERRUPTING_ITEM = re.compile(r"[ \t]*(?:[-+*•]|1[.)])[ \t]+\S")
_DELIMITERS = re.compile(r"[ \t]*\|?[ \t]*:?-+:?[ \t]*(?:\|[ \t]*:?-+:?[ \t]*)*\|?\s*$")
_RAW = re.compile(r" {0,3}<(?:(!--)|(pre|script|style|textarea)\b)", re.IGNORECASE)
_SPECIAL = frozenset("#`~<-+*•_0123456789")
"""What the first line of a block other than a paragraph or table can start with."""
_FRONT = {"---": ("---", "..."), "+++": ("+++",)}


class Block(NamedTuple):
    """Lines [first, stop); blank lines after a block belong to it when it is cut."""

    kind: Literal["heading", "rule", "code", "table", "list", "paragraph"]
    first: int
    stop: int
    level: int = 0


def blocks(lines: Sequence[str]) -> Iterator[Block]:
    """The top-level blocks of a text's lines; front matter, fenced code and raw HTML are all "code"."""
    at = _front_matter(lines)
    if at:
        yield Block("code", 0, at)
    while at < len(lines):
        lead = lines[at].lstrip()[:1]
        if lead:
            block = _special(lines, at, lead) or _paragraph(lines, at)
            yield block
            at = block.stop
        else:
            at += 1


def _special(lines: Sequence[str], at: int, lead: str) -> Block | None:
    """The block that starts here if it is no paragraph; `lead` is the line's first character but blanks."""
    line = lines[at]
    if lead in _SPECIAL:
        if lead == "#" and (found := _ATX.match(line)):
            return Block("heading", at, at + 1, len(found[1]))
        if stop := _fenced(lines, at, lead, nested=False) or _raw(lines, at, lead):
            return Block("code", at, stop)
        if lead in "*-_" and _RULE.match(line):
            return Block("rule", at, at + 1)
        if _ITEM.match(line):
            return Block("list", at, _list_stop(lines, at))
    if "|" in line and _is_table(lines, at):
        stop = at + 2
        while stop < len(lines) and "|" in lines[stop] and not _opens(lines, stop):
            stop += 1
        return Block("table", at, stop)
    return None


def _paragraph(lines: Sequence[str], at: int) -> Block:
    stop = at + 1
    while stop < len(lines):
        line = lines[stop]
        lead = line.lstrip()[:1]
        if not lead:
            break
        if lead in "-=" and (found := _UNDERLINE.match(line)):
            return Block("heading", at, stop + 1, 1 if found[1] else 2)
        if (lead in _SPECIAL and _opens(lines, stop)) or ("|" in line and _is_table(lines, stop)):
            break
        stop += 1
    return Block("paragraph", at, stop)


def _opens(lines: Sequence[str], at: int) -> bool:
    """Whether a line that is not blank ends the paragraph above it."""
    line = lines[at]
    lead = line.lstrip()[:1]
    if lead == "#":
        return _ATX.match(line) is not None
    if lead in "`~<":
        return bool(_fenced(lines, at, lead, nested=False) or _raw(lines, at, lead))
    if lead in "-+*•_1":
        return _RULE.match(line) is not None or _INTERRUPTING_ITEM.match(line) is not None
    return False


def _front_matter(lines: Sequence[str]) -> int:
    """The line after the front matter, or 0."""
    closing = _FRONT.get(lines[0].rstrip(), ())
    if closing and len(lines) > 1 and lines[1].strip():
        for at in range(1, len(lines)):
            if lines[at].rstrip() in closing:
                return at + 1
    return 0


def _fenced(lines: Sequence[str], at: int, lead: str, *, nested: bool) -> int:
    """The line after a code block that a fence opens here, or 0; one that is never closed runs to the end."""
    if lead not in ("`", "~") or not (found := _FENCE.match(lines[at])):
        return 0
    if not nested and found.start(1) - found.start() > 3:  # deeper is a line of indented code, not a fence
        return 0
    fence = found[1]
    for stop in range(at + 1, len(lines)):
        closing = lines[stop].strip()
        if len(closing) >= len(fence) and not closing.strip(fence[0]):
            return stop + 1
    return len(lines)


def _raw(lines: Sequence[str], at: int, lead: str) -> int:
    """The line after a comment or verbatim HTML that opens here, or 0."""
    if lead != "<" or not (found := _RAW.match(lines[at])):
        return 0
    closing = "-->" if found[1] else f"</{found[2].lower()}"
    for stop in range(at, len(lines)):
        if closing in lines[stop].lower():
            return stop + 1
    return len(lines)


def _is_table(lines: Sequence[str], at: int) -> bool:
    """Whether the line, which has a bar, is followed by the row of dashes that makes it a table's header."""
    return at + 1 < len(lines) and "|" in lines[at + 1] and _DELIMITERS.match(lines[at + 1]) is not None


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip(" \t"))


def _list_stop(lines: Sequence[str], at: int) -> int:
    """The line after the last one of the list: items, what is indented below them, lazily continued lines."""
    stop, blank = at + 1, False
    at += 1
    while at < len(lines):
        line = lines[at]
        if not line or line.isspace():
            blank = True
            at += 1
            continue
        lead = line.lstrip(" \t")[:1]
        if _indent(line) >= 2:
            at = _fenced(lines, at, lead, nested=True) or at + 1
        elif _ITEM.match(line) and not _RULE.match(line):
            at += 1
        elif blank or _opens(lines, at):
            break
        else:
            at += 1
        stop, blank = at, False
    return stop


class Outline:
    """Where one text may be cut, by strength; and the spans in which sentences and lines do not end."""

    def __init__(self, text: str) -> None:
        lines = text.split("\n")
        self._lines = lines
        lengths = np.fromiter(map(len, lines), np.int64, len(lines)) + 1
        self._offsets: list[int] = [0, *np.cumsum(lengths).tolist()]
        self._cuts: dict[int, list[int]] = {}
        self._headings: list[tuple[int, int]] = []
        self._solid: list[tuple[int, int]] = []
        self._place(list(blocks(lines)))

    def level(self, strength: int) -> Positions:
        """Sorted cuts of one strength."""
        return np.array(self._cuts.get(strength, ()), dtype=np.int64)

    def sentences(self, text: str) -> Positions:
        """Ends of sentences in prose: not in code or tables, not between a heading and its text."""
        return _outside(sentence_ends(text), sorted(self._headings + self._solid))

    def lines(self, text: str) -> Positions:
        """Ends of lines, but for those of headings."""
        return _outside(line_ends(text), self._headings)

    def _cut(self, line: int, strength: int) -> None:
        self._cuts.setdefault(strength, []).append(self._offsets[line])

    def _place(self, found: Sequence[Block]) -> None:
        """Cuts between the blocks and inside them.

        A heading stays with the text below it, and headings that follow each other at once are one, of
        the highest level among them. A rule ends what stands above it. What a colon introduces is
        parted from it only where it must be.
        """
        run: tuple[int, int] | None = None  # first line and level of headings without text so far
        introduced = False
        for number, block in enumerate(found):
            following = found[number + 1].first if number + 1 < len(found) else len(self._lines)
            if block.kind == "heading":
                first, level = run or (block.first, block.level)
                run = first, min(level, block.level)
                self._headings.append((self._offsets[block.first], self._offsets[following]))
                continue
            if block.kind == "rule":
                continue
            if run:
                self._cut(*run)
            else:
                self._cut(block.first, INSIDE if introduced else BLOCK)
            run = None
            introduced = block.kind == "paragraph" and self._lines[block.stop - 1].rstrip().endswith(":")
            if block.kind in ("code", "table"):
                self._solid.append((self._offsets[block.first], self._offsets[following]))
            self._inside(block)
        if run:
            self._cut(*run)

    def _inside(self, block: Block) -> None:
        lines, first, stop = self._lines, block.first, block.stop
        if block.kind == "table":
            for at in range(first + 3, stop):  # the first row stays with the header
                self._cut(at, INSIDE)
        elif block.kind == "code":
            for at in range(first + 2, stop):
                if not lines[at - 1].strip() and lines[at].strip():
                    self._cut(at, INSIDE)
        elif block.kind == "list":
            self._items(first, stop)

    def _items(self, first: int, stop: int) -> None:
        lines, margin, at = self._lines, _indent(self._lines[first]) + 1, first + 1
        while at < stop:
            line = lines[at]
            code = _fenced(lines, at, line.lstrip(" \t")[:1], nested=True)
            if _ITEM.match(line):
                self._cut(at, INSIDE if _indent(line) <= margin else FINE)
            elif line.strip() and not lines[at - 1].strip():
                self._cut(at, FINE)
            if code:
                self._solid.append((self._offsets[at], self._offsets[min(code, stop)]))
            at = code or at + 1


def _outside(positions: Positions, spans: Sequence[tuple[int, int]]) -> Positions:
    """Positions that lie in none of the sorted spans; a span's start is outside it, its end is not."""
    if not spans:
        return positions
    edges = np.array(spans, dtype=np.int64)
    inside = np.searchsorted(edges[:, 0], positions, "left") > np.searchsorted(edges[:, 1], positions, "left")
    kept: Positions = positions[~inside]
    return kept


def levels(text: str) -> list[Level]:
    """The levels of one text: six of headings, blocks, inside blocks, sentences, lines, blanks."""
    outline = Outline(text)

    def of(strength: int) -> Level:
        return lambda _: outline.level(strength)

    def fine(text: str) -> Positions:
        return np.union1d(outline.level(FINE), outline.sentences(text))

    return [*map(of, range(1, FINE)), fine, outline.lines, blank_ends]


def sections(spec: Markdown, tokenizer: Tokenizer, document: Document) -> Spans:
    """Sections, tables, lists and code blocks, whole where they fit in `spec.tokens`, packed up to it.

    A section that fits is never parted; neighbouring sections share a chunk only whole, and only where
    they have the same parent, so the end of a long section is never joined with the next heading. A
    section that is too long is cut at its subsections, then between its blocks, then between list
    items, table rows and parts of code, then at sentences, lines, blanks and last the start of a token.
    """
    ruler = Ruler(document.text, tokenizer)
    cuts = levels(document.text) if ruler.tokens > spec.tokens else ()
    return trimmed(document.text, Packer(ruler, cuts, spec.tokens, 0).pack())
