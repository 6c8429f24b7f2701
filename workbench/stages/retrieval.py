"""Retrieval without a store: the analyzer that turns text into terms, and the fusion of rankings."""

from __future__ import annotations

import functools
import importlib.metadata
import re
from collections.abc import Callable, Mapping, Sequence

from workbench.specs import Hybrid, Lexical

ANALYZER_VERSION = 2
"""Raised when the terms of a text change; part of a lexical index's identity."""


def analyzer_identity(spec: Lexical) -> dict[str, str | int]:
    """What beside the spec determines the terms of a text and their scores: our code and the libraries'."""
    packages = ["bm25s"] + (["pystemmer"] if spec.stemmer != "none" else [])
    return {"code": ANALYZER_VERSION, **{name: importlib.metadata.version(name) for name in packages}}


Ranking = tuple[Sequence[int], Sequence[float]]
"""Chunk numbers and scores of one query, best first."""

_WORD = re.compile(r"\w+")
_PARTS = re.compile(r"A+(?!a)|A?a+|x+|0+")


def analyzer(spec: Lexical) -> Callable[[str], list[str]]:
    """A function from text to terms: runs of word characters in lower case, at least `min_length` long.

    With `split_identifiers` a word of parts (camelCase, snake_case, letters and digits, of any alphabet)
    gives its parts beside itself, as code search engines do. Stop words go before stemming (Snowball English).
    """
    stop = _stopwords() if spec.stopwords == "english" else frozenset()
    stem = _stemmer() if spec.stemmer == "english" else None

    def analyze(text: str) -> list[str]:
        words = _WORD.findall(text)
        if spec.split_identifiers:
            words = [part for word in words for part in _with_parts(word)]
        terms = [w for word in words if len(w := word.lower()) >= spec.min_length and w not in stop]
        return stem(terms) if stem else terms

    return analyze


def _with_parts(word: str) -> list[str]:
    if word.isascii() and word.isalpha() and word.islower():
        return [word]
    parts = [word[m.start() : m.end()] for m in _PARTS.finditer("".join(map(_class, word)))]
    return [word, *parts] if parts != [word] else parts


def _class(character: str) -> str:
    """A upper case, a lower case, 0 a digit, x a letter without case, of any alphabet; _ what joins parts."""
    if character.isupper():
        return "A"
    if character.islower():
        return "a"
    return "0" if character.isnumeric() else "x" if character.isalpha() else "_"


@functools.cache
def _stopwords() -> frozenset[str]:
    from bm25s.stopwords import STOPWORDS_EN

    return frozenset(STOPWORDS_EN)


@functools.cache
def _stemmer() -> Callable[[list[str]], list[str]]:
    import Stemmer

    stem: Callable[[list[str]], list[str]] = Stemmer.Stemmer("english").stemWords
    return stem


def fuse(spec: Hybrid, rankings: Mapping[str, Ranking]) -> tuple[list[int], list[float]]:
    """One ranking of at most `spec.k` chunks from the first `spec.depth` of each leg, ties by chunk number.

    rrf: sum over legs of weight / (rrf_k + rank) (Cormack, Clarke & Büttcher 2009, section 2).
    weighted: sum over legs of weight times the score scaled to 0..1 within the leg's list; a chunk that
    a leg does not list gets nothing from it.
    """
    weights = dict(zip(spec.legs, spec.weights or (1.0,) * len(spec.legs), strict=True))
    # Each chunk's shares are added in the order of the spec's legs: the sum does not depend on who came first.
    fused: dict[int, float] = {}
    for leg in spec.legs:
        chunk_nos, scores = rankings[leg][0][: spec.depth], rankings[leg][1][: spec.depth]
        if spec.fusion == "rrf":
            shares = [weights[leg] / (spec.rrf_k + rank) for rank in range(1, len(chunk_nos) + 1)]
        else:
            low, high = (min(scores), max(scores)) if scores else (0.0, 1.0)
            width = high - low
            shares = [weights[leg] * ((score - low) / width if width else 1.0) for score in scores]
        for chunk_no, share in zip(chunk_nos, shares, strict=True):
            fused[chunk_no] = fused.get(chunk_no, 0.0) + share
    best = sorted(fused.items(), key=lambda item: (-item[1], item[0]))[: spec.k]
    return [chunk_no for chunk_no, _ in best], [score for _, score in best]
