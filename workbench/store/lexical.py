"""Lexical legs: BM25 by bm25s, cached on local disk by fingerprint, and PostgreSQL full text."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from psycopg import Connection, sql

from workbench.errors import InputError
from workbench.specs import Lexical

ABANDONED = 3600
"""Seconds after which an unfinished index on disk belongs to nobody: building takes minutes at most."""

Analyzer = Callable[[str], list[str]]


class Bm25Index:
    """BM25 (Lucene's variant, as bm25s calls it) over the terms of chunks; chunk i is row i."""

    def __init__(self, retriever: Any, size: int) -> None:
        self._retriever, self._size = retriever, size

    @classmethod
    def open(
        cls, folder: Path, fingerprint: str, texts: Callable[[], Iterable[str]], analyze: Analyzer, spec: Lexical
    ) -> Bm25Index:
        """The index of this fingerprint from disk, or built from the texts and kept there.

        A folder appears whole by renaming, so a killed builder leaves none behind that looks finished.
        """
        place = folder / fingerprint
        if not place.exists():
            _build(place, [analyze(text) for text in texts()], spec)
        import bm25s

        if (place / "empty").exists():
            return cls(None, int((place / "empty").read_text()))
        retriever = bm25s.BM25.load(place, mmap=True)
        return cls(retriever, int(retriever.scores["num_docs"]))

    def search(self, terms: Sequence[str], k: int) -> tuple[list[int], list[float]]:
        """The k best chunks with a positive score, ties by chunk number."""
        if self._retriever is None or not terms:
            return [], []
        vocabulary = self._retriever.vocab_dict
        known = [term for term in terms if term in vocabulary]
        if not known:
            return [], []
        scores = self._retriever.get_scores(known)
        return top_k(scores, k)


def top_k(scores: np.ndarray[Any, np.dtype[Any]], k: int) -> tuple[list[int], list[float]]:
    """Positions and values of the k largest positive scores [n], ties by position.

    A partial sort would break ties anywhere; so everything at least as good as the k-th is sorted.
    """
    candidates = np.flatnonzero(scores > 0)
    if len(candidates) > k:
        kth = np.partition(scores[candidates], len(candidates) - k)[len(candidates) - k]
        candidates = candidates[scores[candidates] >= kth]
    order = candidates[np.lexsort((candidates, -scores[candidates]))][:k]
    return order.tolist(), scores[order].astype(float).tolist()


def _build(place: Path, terms: list[list[str]], spec: Lexical) -> None:
    import bm25s

    place.parent.mkdir(parents=True, exist_ok=True)
    for left in place.parent.glob(".building-*"):
        with contextlib.suppress(FileNotFoundError):  # its builder has just ended
            if time.time() - left.stat().st_mtime > ABANDONED:
                shutil.rmtree(left, ignore_errors=True)  # of a builder that was killed
    building = Path(tempfile.mkdtemp(prefix=".building-", dir=place.parent))
    try:
        if any(terms):
            retriever = bm25s.BM25(method="lucene", k1=spec.k1, b=spec.b)
            retriever.index(terms, show_progress=False)
            retriever.save(building, show_progress=False)
        else:
            (building / "empty").write_text(str(len(terms)))  # bm25s refuses an empty vocabulary
        try:
            os.rename(building, place)  # noqa: PTH104 -- atomic, fails where another process was first
        except OSError:
            if not place.exists():
                raise
    finally:
        shutil.rmtree(building, ignore_errors=True)


def fts_table(stage_id: int) -> str:
    """The table of a full-text index stage."""
    return f"fulltext_{stage_id}"


def create_fts(
    connection: Connection[Any],
    stage_id: int,
    config: str,
    chunk_stage: int,
    dataset_id: int,
    context_stage: int | None = None,
) -> int:
    """Fill and index a table of text-search vectors from the stored chunks, contexts first; returns its rows.

    Raises:
        InputError: the server has no such text-search configuration.
    """
    if connection.execute("SELECT FROM pg_ts_config WHERE cfgname = %s", [config]).fetchone() is None:
        known = ", ".join(row[0] for row in connection.execute("SELECT cfgname FROM pg_ts_config ORDER BY 1"))
        raise InputError(f"no text-search configuration {config!r}", where="retrieve.config", hint=f"known: {known}")
    table = sql.Identifier(fts_table(stage_id))
    connection.execute(sql.SQL("CREATE TABLE {} (chunk_no integer PRIMARY KEY, terms tsvector NOT NULL)").format(table))
    rows = connection.execute(
        sql.SQL(
            "INSERT INTO {} SELECT c.chunk_no, to_tsvector(%s::regconfig,"
            " concat_ws(E'\n\n', nullif(x.context, ''), substr(b.text, c.span_start + 1, c.span_end - c.span_start)))"
            " FROM chunk c JOIN dataset s ON s.dataset_id = %s"
            " JOIN document d ON d.corpus_id = s.corpus_id AND d.doc_id = c.doc_id JOIN body b USING (digest)"
            " LEFT JOIN context x ON x.stage_id = %s AND x.chunk_no = c.chunk_no"
            " WHERE c.stage_id = %s"
        ).format(table),
        [config, dataset_id, context_stage, chunk_stage],
    ).rowcount
    connection.execute(sql.SQL("CREATE INDEX ON {} USING gin (terms)").format(table))
    connection.execute(sql.SQL("ANALYZE {}").format(table))
    return rows


def search_fts(
    connection: Connection[Any], stage_id: int, config: str, queries: Sequence[str], k: int, *, match_all: bool
) -> list[tuple[list[int], list[float]]]:
    """The k best chunks of each query by ts_rank_cd with a positive score, ties by chunk number."""
    found = connection.execute(
        sql.SQL(
            "SELECT (q.no - 1)::int, h.chunk_no, h.score FROM ("
            "   SELECT no, CASE WHEN %(all)s THEN plainto_tsquery(%(config)s::regconfig, text)"
            "     ELSE replace(plainto_tsquery(%(config)s::regconfig, text)::text, ' & ', ' | ')::tsquery END AS query"
            "   FROM unnest(%(texts)s::text[]) WITH ORDINALITY t(text, no)) q"
            " CROSS JOIN LATERAL (SELECT f.chunk_no, ts_rank_cd(f.terms, q.query)::float8 AS score FROM {table} f"
            "   WHERE f.terms @@ q.query ORDER BY 2 DESC, 1 LIMIT %(k)s) h"
            " WHERE h.score > 0 ORDER BY q.no, h.score DESC, h.chunk_no"
        ).format(table=sql.Identifier(fts_table(stage_id))),
        {"all": match_all, "config": config, "texts": list(queries), "k": k},
        binary=True,
    )
    hits: list[tuple[list[int], list[float]]] = [([], []) for _ in queries]
    for no, chunk_no, score in found:
        hits[no][0].append(chunk_no)
        hits[no][1].append(score)
    return hits
