"""Recursive splitting at a list of separators."""

from __future__ import annotations

import functools

from workbench.models.protocols import Tokenizer
from workbench.records import Document
from workbench.specs import Recursive
from workbench.stages.chunking._spans import Level, Packer, Ruler, Spans, after_each, trimmed


def levels(separators: tuple[str, ...]) -> list[Level]:
    """One level a separator, up to the empty one (the start of a token), which always ends the list."""
    named = separators[: separators.index("")] if "" in separators else separators
    return [functools.partial(after_each, separator=separator) for separator in named]


def pieces(spec: Recursive, cuts: list[Level], tokenizer: Tokenizer, document: Document) -> Spans:
    """Split at the first separator that occurs, join neighbours up to `spec.tokens`, recurse into what is too long.

    The idea is LangChain's RecursiveCharacterTextSplitter (Chase 2022), said in offsets, with three
    differences: a separator always stays at the end of the piece on its left, so no character is lost
    but blanks at the edges; occurrences are those of the whole text, read from the left without overlap;
    and the last resort is the start of a token, so no chunk has more than `spec.tokens` tokens unless a
    single character has.
    """
    ruler = Ruler(document.text, tokenizer)
    return trimmed(document.text, Packer(ruler, cuts, spec.tokens, spec.overlap).pack())
