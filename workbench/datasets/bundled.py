"""The `python-reference` dataset: Python's own reference topics, read from the running interpreter.

Its gold is given by pairs of short anchors, because the text is not ours to copy and shifts by a few
characters between Python versions. A question whose anchors this version lacks is left out and noted.
"""

from __future__ import annotations

import platform
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import Field

from workbench.datasets.files import Card, Reading
from workbench.datasets.rows import Faults, Row, read_jsonl
from workbench.datasets.texts import loose_occurrences, shortened
from workbench.records import Document, Evidence, Query

QUESTIONS = "questions.jsonl"


class AnchorRow(Row):
    """A span of a topic: from the start of one anchor to the end of the first other one after it."""

    doc_id: str
    first: str = Field(alias="from")
    last: str = Field(alias="to")


class QuestionRow(Row):
    query_id: str
    text: str
    evidence: list[AnchorRow] = Field(default_factory=list)
    answer: str | None = None
    metadata: dict[str, Any] = Field(default_factory=dict)


def topics() -> dict[str, str]:
    """Topic name -> its text in this interpreter's `pydoc_data` (about 0.5 million characters)."""
    from pydoc_data.topics import topics as texts

    return dict(texts)


def read_topics(folder: Path, card: Card, faults: Faults, texts: Mapping[str, str] | None = None) -> Reading:
    """The topics (or `texts`, for another Python's) as documents, with the folder's questions."""
    texts = topics() if texts is None else texts
    version = f"Python {platform.python_version()}"
    card = card.model_copy(update={"source": f"{card.source} of {version}".removeprefix(" of ")})
    reading = Reading(folder, card, faults=faults)
    reading.documents = [Document(key, texts[key], _title(texts[key])) for key in sorted(texts) if texts[key].strip()]
    reading.queries = list(_questions(reading, texts))
    return reading


def _title(text: str) -> str | None:
    return next((line.strip() for line in text.splitlines() if line.strip()), None)


def _questions(reading: Reading, texts: Mapping[str, str]) -> Iterator[Query]:
    seen: dict[str, str] = {}
    path = reading.folder / QUESTIONS
    for placed in read_jsonl(path, QuestionRow, reading.faults):
        row, where = placed.row, placed.where
        if first := seen.get(row.query_id):
            reading.faults.add(where, f"query_id {row.query_id!r} is taken by {first}")
        seen.setdefault(row.query_id, where)
        if not row.text.strip():
            reading.faults.add(where, f"text of {row.query_id!r} is blank")
        spans = [span(texts.get(anchor.doc_id), anchor) for anchor in row.evidence]
        lacking = [found for found in spans if isinstance(found, str)]
        if lacking:
            reading.notes.append(f"{row.query_id} is left out: {'; '.join(lacking)}")
            continue
        evidence = tuple(found for found in spans if isinstance(found, Evidence))
        yield Query(row.query_id, row.text, evidence, row.answer, row.metadata)


def span(text: str | None, anchor: AnchorRow) -> Evidence | str:
    """The evidence that a pair of anchors marks, or why this text does not hold it."""
    if text is None:
        return f"this Python has no topic {anchor.doc_id!r}"
    starts = list(loose_occurrences(text, anchor.first))
    if len(starts) != 1:
        times = f"stands {len(starts)} times" if starts else "does not stand"
        return f"{shortened(anchor.first)} {times} in topic {anchor.doc_id!r}"
    start, after = starts[0]
    end = next((stop for _, stop in loose_occurrences(text, anchor.last, after)), None)
    if end is None:
        return f"{shortened(anchor.last)} does not follow {shortened(anchor.first)} in topic {anchor.doc_id!r}"
    return Evidence(anchor.doc_id, start, end)
