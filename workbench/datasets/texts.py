"""Finding text in text: occurrences of a quote, anchors across line breaks, shared words."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from itertools import islice

WORD = re.compile(r"\w+")
SURROGATE = re.compile(r"[\ud800-\udfff]")


def bad_character(text: str) -> str | None:
    """Why a text cannot be stored: it holds U+0000 or a lone surrogate; None when it can be."""
    at = text.find("\0")
    if at >= 0:
        return f"U+0000 at character {at}"
    try:
        # Encoding is several times faster than a search by pattern, and corpora are large.
        text.encode()
    except UnicodeEncodeError:
        lone = SURROGATE.search(text)
        at = lone.start() if lone else 0
        return f"lone surrogate U+{ord(text[at]):04X} at character {at}, which is no Unicode scalar value"
    return None


def occurrences(text: str, quote: str) -> Iterator[int]:
    """Start of every occurrence of a quote, overlapping ones included, in code points."""
    at = text.find(quote)
    while at >= 0:
        yield at
        at = text.find(quote, at + 1)


def loose_occurrences(text: str, quote: str, start: int = 0) -> Iterator[tuple[int, int]]:
    """(start, end) of every occurrence of a quote where any run of white space equals a blank."""
    words = quote.split()
    if not words:
        return
    pattern = re.compile(r"\s+".join(map(re.escape, words)))
    while match := pattern.search(text, start):
        yield match.span()
        start = match.start() + 1


def shortened(text: str, limit: int = 60) -> str:
    """A text as one quoted line of at most about `limit` characters."""
    return repr(text if len(text) <= limit else f"{text[: limit - 1]}…")


def first_heading(text: str) -> str | None:
    """The first ATX heading of a Markdown text outside code fences, without its marks."""
    fence = ""
    for line in text.splitlines():
        if opened := re.match(r" {0,3}(`{3,}|~{3,})", line):
            if not fence:
                fence = opened[1]
            elif opened[1].startswith(fence) and not line.strip().strip(fence[0]):
                fence = ""
        elif not fence and (heading := re.match(r" {0,3}#{1,6}[ \t]+(.*?)(?:[ \t]+#+)?[ \t]*$", line)) and heading[1]:
            return heading[1]
    return None


def shares_words(query: str, gold: str, n: int = 6) -> bool:
    """Whether `n` consecutive words of a query stand in its gold too (case and punctuation aside)."""
    asked, told = _grams(query, n), _grams(gold, n)
    return not set(asked).isdisjoint(told)


def _grams(text: str, n: int) -> Iterator[tuple[str, ...]]:
    words = WORD.findall(unicodedata.normalize("NFKC", text).casefold())
    return zip(*(islice(words, i, None) for i in range(n)), strict=False)
