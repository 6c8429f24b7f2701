"""`workbench data check`: is this dataset sound, how large is it, and does its gold leak into its questions?"""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from workbench.datasets.catalog import find, read
from workbench.datasets.dataset import document_digest
from workbench.datasets.texts import shares_words
from workbench.records import Document, Query

SHARED_WORDS = 6


@dataclass(frozen=True)
class CheckReport:
    """Faults and counts of a dataset; counts are over what could be read.

    `leaking` are queries that share six consecutive words with their gold: copied questions flatter
    lexical search. `duplicates` are groups of documents with the same text. `notes` stop nothing.
    """

    name: str
    folder: str
    faults: tuple[str, ...]
    notes: tuple[str, ...]
    documents: int
    characters: int
    queries: int
    evidence: int
    unanswerable: int
    leaking: tuple[str, ...]
    duplicates: tuple[tuple[str, ...], ...]

    @property
    def ok(self) -> bool:
        """No faults; leaking queries, duplicates and notes are warnings."""
        return not self.faults

    def as_json(self) -> dict[str, Any]:
        """The report as JSON values, `ok` first."""
        body = {key: list(v) if isinstance(v, tuple) else v for key, v in dataclasses.asdict(self).items()}
        return {"ok": self.ok, **body, "duplicates": [list(group) for group in self.duplicates]}


def check(path: str | Path) -> CheckReport:
    """Read a dataset (a folder or a catalogue name) and report all that is wrong or remarkable.

    Raises:
        DatasetError: there is no such dataset or folder.
    """
    reading = read(find(path))
    texts = {d.doc_id: d.text for d in reading.documents}
    return CheckReport(
        name=reading.name,
        folder=str(reading.folder),
        faults=tuple(reading.faults.found),
        notes=tuple(reading.notes),
        documents=len(reading.documents),
        characters=sum(map(len, texts.values())),
        queries=len(reading.queries),
        evidence=sum(len(q.evidence) for q in reading.queries),
        unanswerable=sum(not q.evidence for q in reading.queries),
        leaking=tuple(q.query_id for q in reading.queries if leaks(q, texts)),
        duplicates=tuple(_duplicates(reading.documents)),
    )


def leaks(query: Query, texts: dict[str, str]) -> bool:
    """Whether a query shares six consecutive words with one of its gold spans."""
    return any(shares_words(query.text, texts[e.doc_id][e.start : e.end], SHARED_WORDS) for e in query.evidence)


def _duplicates(documents: Iterable[Document]) -> list[tuple[str, ...]]:
    groups: dict[str, list[str]] = defaultdict(list)
    for d in documents:
        groups[document_digest(d.text)].append(d.doc_id)
    return [tuple(ids) for ids in groups.values() if len(ids) > 1]
