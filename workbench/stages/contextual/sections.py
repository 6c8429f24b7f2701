"""Sections of Markdown, reStructuredText and plain text: what stands between one heading and the next of its rank."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Sequence

from workbench.stages.chunking.markdown import blocks
from workbench.stages.contextual._parts import Part

_Heading = tuple[int, int, str]
"""First line, rank from 1, text."""
_ADORNMENT = re.compile(r"([!-/:-@\[-`{-~])\1{2,}")
_MARKUP = re.compile(r"!?\[([^\]]*)\](?:\([^)]*\)|\[[^\]]*\])|\s*\{#[^}]*\}\s*$|[*`]|(?<!\w)_|_(?!\w)")


def sections(text: str) -> list[Part]:
    """The sections of a text, each from its heading on; two of them are nested or apart.

    Headings are those of CommonMark 0.31. Where no line begins with the number signs of one, they are those of
    docutils: a line underlined by as many punctuation marks, or more; marks rank in the order they come up.
    """
    lines = text.split("\n")
    found = list(_marked(lines))
    if not any(lines[line].lstrip().startswith("#") for line, _, _ in found):
        found = list(_underlined(lines))
    offsets = [0, *itertools.accumulate(len(line) + 1 for line in lines)]
    parts: list[Part] = []
    opened: list[tuple[int, int, str]] = []  # start, rank, name
    for line, rank, name in [*found, (len(lines), 0, "")]:
        start = min(offsets[line], len(text))
        while opened and opened[-1][1] >= rank:
            first, _, title = opened.pop()
            parts.append(Part(first, start, title))
        opened.append((start, rank, name))
    return [part for part in parts if part.name]


def _marked(lines: Sequence[str]) -> Iterator[_Heading]:
    for block in blocks(lines):
        if block.kind == "heading":
            single = block.stop == block.first + 1
            name = lines[block.first].strip().strip("#") if single else " ".join(lines[block.first : block.stop - 1])
            yield block.first, block.level, " ".join(_MARKUP.sub(r"\1", name).split())


def _underlined(lines: Sequence[str]) -> Iterator[_Heading]:
    ranks: dict[tuple[str, bool], int] = {}
    for at in range(1, len(lines)):
        title, below = lines[at - 1].rstrip(), lines[at].rstrip()
        if not (_ADORNMENT.fullmatch(below) and title and len(below) >= len(title)) or _ADORNMENT.fullmatch(title):
            continue
        above = lines[at - 2].rstrip() if at > 1 else ""
        over = above == below
        if over or not (above or title[0].isspace()):
            rank = ranks.setdefault((below[0], over), len(ranks) + 1)
            yield at - 1 - over, rank, " ".join(title.split())
