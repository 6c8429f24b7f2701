"""The door of scoring: every input is checked, then hits are laid out as one ranking of spans a query."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import polars as pl

from workbench.errors import FrameError
from workbench.records import Chunk, Evidence, Hit, Query, check_frame, frame

STAGE = "score"


@dataclass(frozen=True, slots=True)
class Rankings:
    """All hits as three parallel columns, ordered by query and rank; `rows` says where a query's hits are."""

    docs: list[str]
    starts: list[int]
    ends: list[int]
    rows: Mapping[str, tuple[int, int]]

    def of(self, query_id: str) -> list[tuple[str, int, int]]:
        """A query's retrieved spans (doc_id, start, end); the one at index i has rank i + 1."""
        first, last = self.rows.get(query_id, (0, 0))
        return list(zip(self.docs[first:last], self.starts[first:last], self.ends[first:last], strict=True))


def enter(
    hits: pl.DataFrame, chunks: pl.DataFrame, queries: Sequence[Query], texts: Mapping[str, str]
) -> tuple[Rankings, pl.DataFrame]:
    """Check all inputs of scoring; return the rankings and the checked chunks.

    Args:
        hits: Hit frame; each query's ranks are 1..n without gaps, each chunk at most once.
        chunks: Chunk frame.
        queries: with unique ids; only positive span evidence is held against the texts.
        texts: doc_id -> text, for every document that chunks or span evidence name.

    Raises:
        FrameError: with all faults of the first input that does not fit.
    """
    lengths = {doc_id: len(text) for doc_id, text in texts.items()}
    chunks = check_frame(Chunk, chunks, stage=STAGE, text_lengths=lengths)
    hits = check_frame(Hit, hits, stage=STAGE)
    check_queries(queries)
    evidence = [
        (q.query_id, e.doc_id, e.start, e.end, e.grade, e.unit)
        for q in queries
        for e in q.evidence
        if e.unit == "span" and e.grade > 0
    ]
    check_frame(Evidence, frame(Evidence, evidence), stage=STAGE, text_lengths=lengths)

    joined = hits.join(chunks, on="chunk_no", how="left").sort("query_id", "rank")
    known = {q.query_id for q in queries}
    groups = joined.group_by("query_id", maintain_order=True).agg(
        pl.len(),
        pl.col("rank").min().alias("first"),
        pl.col("rank").max().alias("last"),
        pl.col("chunk_no").n_unique().alias("distinct"),
    )
    faults = [f"unknown chunk_no {n}" for n in joined.filter(pl.col("doc_id").is_null())["chunk_no"].unique().head(20)]
    rows: dict[str, tuple[int, int]] = {}
    offset = 0
    for query_id, count, first, last, distinct in groups.iter_rows():
        if query_id not in known:
            faults.append(f"unknown query_id {query_id!r}")
        if first != 1 or last != count:
            faults.append(f"ranks of query {query_id!r} are not 1..{count}")
        if distinct != count:
            faults.append(f"query {query_id!r} holds a chunk twice")
        rows[query_id] = (offset, offset + count)
        offset += count
    if faults:
        raise FrameError("Hit frame does not fit", faults[:60], where=STAGE)
    return Rankings(joined["doc_id"].to_list(), joined["start"].to_list(), joined["end"].to_list(), rows), chunks


def check_queries(queries: Sequence[Query]) -> None:
    """Refuse queries that share an id (FrameError)."""
    doubled = [query_id for query_id, times in Counter(q.query_id for q in queries).items() if times > 1]
    if doubled:
        raise FrameError("queries do not fit", [f"duplicate query_id {q!r}" for q in doubled[:20]], where=STAGE)
