"""Contexts that are the document's own words: its title, its first tokens."""

from __future__ import annotations

from collections.abc import Sequence

from workbench.models.protocols import Tokenizer
from workbench.records import Document


def titles(document: Document, spans: Sequence[tuple[int, int]]) -> list[str]:
    """The title for each span; empty where the document has none."""
    return [document.title or ""] * len(spans)


def leads(tokens: int, tokenizer: Tokenizer, document: Document, spans: Sequence[tuple[int, int]]) -> list[str]:
    """The text up to the end of its first `tokens` tokens; empty for a span that lies inside them."""
    ends = tokenizer.spans(document.text)[:tokens, 1]
    end = int(ends.max()) if len(ends) else 0
    return ["" if last <= end else document.text[:end] for _, last in spans]
