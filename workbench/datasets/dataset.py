"""One corpus with its queries: the frames the stages read and the fingerprints they are known by."""

from __future__ import annotations

import dataclasses
import hashlib
import html
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import polars as pl

from workbench.datasets.rows import listed
from workbench.datasets.texts import bad_character
from workbench.errors import DatasetError
from workbench.records import Document, Evidence, Query, frame
from workbench.specs import canonical_json


def document_digest(text: str) -> str:
    """SHA-256 of a text in UTF-8, as 64 hexadecimal digits: equal texts, and only they, have equal digests."""
    return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True)
class Dataset:
    """Documents, queries and gold evidence that fit each other, however they were made.

    `folder` is where a `given` chunk file is looked for. `notes` are findings that stop nothing,
    such as a question that was left out because this Python's documentation lacks its answer.

    Raises:
        DatasetError: two documents or queries of one id, blank or unstorable text, a span that
            names no document or lies outside it; all faults at once.
    """

    name: str
    documents: tuple[Document, ...]
    queries: tuple[Query, ...] = ()
    licence: str = "unknown"
    source: str = ""
    description: str = ""
    folder: Path | None = None
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if faults := _record_faults(self.documents, self.queries):
            raise DatasetError("the records do not fit each other", listed(faults), where=self.name)

    @cached_property
    def documents_frame(self) -> pl.DataFrame:
        """One row a document, in order; columns as `SCHEMAS[Document]`, metadata as canonical JSON text."""
        rows = ((d.doc_id, d.text, d.title, d.uri, canonical_json(dict(d.metadata))) for d in self.documents)
        return frame(Document, rows)

    @cached_property
    def queries_frame(self) -> pl.DataFrame:
        """One row a query, in order; columns as `SCHEMAS[Query]`, evidence as a list of structs."""
        rows = (
            (
                q.query_id,
                q.text,
                [dataclasses.asdict(e) for e in q.evidence],
                q.answer,
                canonical_json(dict(q.metadata)),
            )
            for q in self.queries
        )
        return frame(Query, rows)

    @cached_property
    def evidence_frame(self) -> pl.DataFrame:
        """One row an evidence, in order; columns as `SCHEMAS[Evidence]`; unanswerable queries have no row."""
        rows = ((q.query_id, e.doc_id, e.start, e.end, e.grade, e.unit) for q in self.queries for e in q.evidence)
        return frame(Evidence, rows)

    @cached_property
    def corpus_fingerprint(self) -> str:
        """Identity of the documents and their order: what everything up to the index depends on."""
        return _fold([d.doc_id, document_digest(d.text), d.title, d.uri, dict(d.metadata)] for d in self.documents)

    @cached_property
    def queries_fingerprint(self) -> str:
        """Identity of the questions' ids and texts and their order: what retrieval depends on."""
        return _fold([q.query_id, q.text] for q in self.queries)

    @cached_property
    def gold_fingerprint(self) -> str:
        """Identity of evidence, answers and query metadata: what scores depend on."""
        return _fold(
            [q.query_id, [dataclasses.asdict(e) for e in q.evidence], q.answer, dict(q.metadata)] for q in self.queries
        )

    def asking(self, queries: tuple[Query, ...]) -> Dataset:
        """The same corpus under other queries; its fingerprint is not computed again."""
        other = dataclasses.replace(self, queries=queries)
        if "corpus_fingerprint" in self.__dict__:
            other.__dict__["corpus_fingerprint"] = self.corpus_fingerprint
        return other

    def limited(self, n: int | None) -> Dataset:
        """The first `n` queries (None: all of them) over the whole corpus.

        Raises:
            DatasetError: `n` is negative.
        """
        if n is None or n >= len(self.queries):
            return self
        if n < 0:
            raise DatasetError(f"a limit of {n} queries is negative", [], where=self.name)
        return self.asking(self.queries[:n])

    def first_documents(self, n: int) -> Dataset:
        """The first `n` documents, whole, with the queries that they answer alone; unanswerable ones stay.

        Raises:
            DatasetError: `n` is less than one.
        """
        if n < 1:
            raise DatasetError(f"{n} documents are no corpus", [], where=self.name)
        kept = self.documents[:n]
        names = {d.doc_id for d in kept}
        queries = tuple(q for q in self.queries if all(e.doc_id in names for e in q.evidence))
        return dataclasses.replace(self, documents=kept, queries=queries)

    def __repr__(self) -> str:
        return f"Dataset({self.name!r}, {len(self.documents)} documents, {len(self.queries)} queries)"

    def _repr_html_(self) -> str:
        unanswerable = sum(not q.evidence for q in self.queries)
        rows = {
            "documents": f"{len(self.documents):,} ({sum(len(d.text) for d in self.documents):,} characters)",
            "queries": f"{len(self.queries):,} ({unanswerable:,} unanswerable)",
            "evidence": f"{sum(len(q.evidence) for q in self.queries):,}",
            "licence": self.licence,
            "source": self.source,
            "notes": "; ".join(self.notes),
        }
        body = "".join(f"<tr><th>{key}</th><td>{html.escape(value)}</td></tr>" for key, value in rows.items() if value)
        return f"<table><caption>{html.escape(self.name)}</caption>{body}</table>"


def _fold(rows: Iterable[Any]) -> str:
    """SHA-256 of one line of canonical JSON a row: a large corpus is never one string.

    Canonical JSON holds no raw line break, so the framing is unambiguous.
    """
    state = hashlib.sha256()
    for row in rows:
        state.update(canonical_json(row).encode() + b"\n")
    return state.hexdigest()


def _record_faults(documents: Sequence[Document], queries: Sequence[Query]) -> list[str]:
    faults: list[str] = []
    for kind, ids in (("doc_id", [d.doc_id for d in documents]), ("query_id", [q.query_id for q in queries])):
        faults += [f"{kind} {name!r} occurs {n} times" for name, n in Counter(ids).items() if n > 1]
    texts = {d.doc_id: d.text for d in documents}
    for d in documents:
        faults += _text_faults(f"document {d.doc_id!r}", d.text)
    for q in queries:
        faults += _text_faults(f"query {q.query_id!r}", q.text)
        for e in dict.fromkeys(q.evidence):
            faults += [f"query {q.query_id!r}: {fault}" for fault in evidence_faults(e, texts.get(e.doc_id))]
        if len(set(q.evidence)) < len(q.evidence):
            faults.append(f"query {q.query_id!r} names the same evidence twice")
    return faults


def _text_faults(what: str, text: str) -> list[str]:
    bad = bad_character(text)
    return [f"{what}: {bad}"] if bad else [] if text.strip() else [f"{what}: its text is blank"]


def evidence_faults(evidence: Evidence, text: str | None) -> list[str]:
    """What is wrong with one evidence, given its document's text (None: no such document)."""
    e = evidence
    if text is None:
        return [f"unknown document {e.doc_id!r}"]
    if e.grade <= 0:
        return [f"grade {e.grade} is no evidence"]
    if e.unit == "document":
        whole = (e.start, e.end) == (0, len(text))
        return [] if whole else [f"unit 'document' spans 0:{len(text)}, not {e.start}:{e.end}"]
    if not 0 <= e.start < e.end:
        return [f"span {e.start}:{e.end} of {e.doc_id!r} is empty, reversed or negative"]
    if e.end > len(text):
        return [f"span {e.start}:{e.end} of {e.doc_id!r} ends after its {len(text)} characters"]
    if not text[e.start : e.end].strip():
        return [f"span {e.start}:{e.end} of {e.doc_id!r} holds only white space"]
    return []
