"""Typed reads and writes of data and stage outputs: records and frames on one side, rows on the other."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from typing import Any

import polars as pl
from psycopg import Connection, sql
from psycopg.types.json import Json

from workbench.datasets import Dataset
from workbench.records import SCHEMAS, Chunk, Document, Evidence, Hit, Query, Score


def copy_rows(
    connection: Connection[Any], table: str, columns: Sequence[str], types: Sequence[str], rows: Iterable[Sequence[Any]]
) -> None:
    """Binary COPY into a table of the schema."""
    statement = sql.SQL("COPY {} ({}) FROM STDIN (FORMAT BINARY)").format(
        sql.Identifier(table), sql.SQL(", ").join(map(sql.Identifier, columns))
    )
    with connection.cursor().copy(statement) as copy:
        copy.set_types(list(types))
        for row in rows:
            copy.write_row(row)


# --- datasets ------------------------------------------------------------------------------------


def save_dataset(connection: Connection[Any], dataset: Dataset) -> int:
    """Store what is not stored yet of a dataset and return its dataset_id. Idempotent."""
    corpus_id, new = _part(connection, "corpus", dataset.corpus_fingerprint)
    if new:
        _save_documents(connection, corpus_id, dataset.documents)
    query_set_id, new = _part(connection, "query_set", dataset.queries_fingerprint)
    if new:
        copy_rows(
            connection,
            "query",
            ("query_set_id", "query_no", "query_id", "text"),
            ("int8", "int4", "text", "text"),
            ((query_set_id, no, q.query_id, q.text) for no, q in enumerate(dataset.queries)),
        )
    gold_set_id, new = _part(connection, "gold_set", dataset.gold_fingerprint)
    if new:
        copy_rows(
            connection,
            "gold",
            ("gold_set_id", "query_id", "answer", "metadata", "evidence"),
            ("int8", "text", "text", "json", "json"),
            (
                (gold_set_id, q.query_id, q.answer, Json(dict(q.metadata)), Json([_evidence(e) for e in q.evidence]))
                for q in dataset.queries
            ),
        )
    ids = [dataset.name, corpus_id, query_set_id, gold_set_id]
    row = connection.execute(
        "INSERT INTO dataset (name, corpus_id, query_set_id, gold_set_id, description, licence, source)"
        " VALUES (%s, %s, %s, %s, %s, %s, %s) ON CONFLICT (name, corpus_id, query_set_id, gold_set_id)"
        " DO UPDATE SET description = excluded.description RETURNING dataset_id",
        [*ids, dataset.description, dataset.licence, dataset.source],
    ).fetchone()
    assert row is not None
    return int(row[0])


def _part(connection: Connection[Any], table: str, fingerprint: str) -> tuple[int, bool]:
    """The id of a content-addressed part, and whether this transaction made it."""
    key = bytes.fromhex(fingerprint)
    names = {"table": sql.Identifier(table), "id": sql.Identifier(f"{table}_id")}
    made = connection.execute(
        sql.SQL("INSERT INTO {table} (fingerprint) VALUES (%s) ON CONFLICT DO NOTHING RETURNING {id}").format(**names),
        [key],
    ).fetchone()
    if made is not None:
        return int(made[0]), True
    row = connection.execute(
        sql.SQL("SELECT {id} FROM {table} WHERE fingerprint = %s").format(**names), [key]
    ).fetchone()
    assert row is not None
    return int(row[0]), False


def _save_documents(connection: Connection[Any], corpus_id: int, documents: Sequence[Document]) -> None:
    digests = [hashlib.sha256(d.text.encode()).digest() for d in documents]
    known = {
        bytes(row[0])
        for row in connection.execute("SELECT digest FROM body WHERE digest = ANY(%s)", [digests], binary=True)
    }
    bodies = {key: d.text for key, d in zip(digests, documents, strict=True) if key not in known}
    connection.cursor().executemany(
        "INSERT INTO body (digest, text) VALUES (%s, %s) ON CONFLICT DO NOTHING",
        sorted(bodies.items()),  # in one order everywhere: two processes that share texts do not deadlock
    )
    copy_rows(
        connection,
        "document",
        ("corpus_id", "doc_no", "doc_id", "title", "uri", "metadata", "digest"),
        ("int8", "int4", "text", "text", "text", "json", "bytea"),
        (
            (corpus_id, no, d.doc_id, d.title, d.uri, Json(dict(d.metadata)), key)
            for no, (d, key) in enumerate(zip(documents, digests, strict=True))
        ),
    )


def _evidence(evidence: Evidence) -> dict[str, Any]:
    return {name: getattr(evidence, name) for name in ("doc_id", "start", "end", "grade", "unit")}


def load_dataset(connection: Connection[Any], dataset_id: int) -> Dataset:
    """A stored dataset as it was loaded (without its folder)."""
    row = connection.execute(
        "SELECT name, description, licence, source, corpus_id, query_set_id, gold_set_id"
        " FROM dataset WHERE dataset_id = %s",
        [dataset_id],
    ).fetchone()
    assert row is not None, f"no dataset {dataset_id}"
    name, description, licence, source, corpus_id, query_set_id, gold_set_id = row
    documents = connection.execute(
        "SELECT doc_id, text, title, uri, metadata FROM document JOIN body USING (digest)"
        " WHERE corpus_id = %s ORDER BY doc_no",
        [corpus_id],
    ).fetchall()
    queries = connection.execute(
        "SELECT q.query_id, q.text, g.evidence, g.answer, g.metadata FROM query q LEFT JOIN gold g"
        " ON g.gold_set_id = %s AND g.query_id = q.query_id WHERE q.query_set_id = %s ORDER BY q.query_no",
        [gold_set_id, query_set_id],
    ).fetchall()
    return Dataset(
        name=name,
        description=description,
        licence=licence,
        source=source,
        documents=tuple(Document(*d) for d in documents),
        queries=tuple(
            Query(query_id, text, tuple(Evidence(**e) for e in evidence or ()), answer, metadata or {})
            for query_id, text, evidence, answer, metadata in queries
        ),
    )


# --- stage outputs -------------------------------------------------------------------------------


def write_chunks(connection: Connection[Any], stage_id: int, chunks: pl.DataFrame) -> None:
    """Store a Chunk frame as the output of a stage."""
    copy_rows(
        connection,
        "chunk",
        ("stage_id", "chunk_no", "doc_id", "span_start", "span_end"),
        ("int8", "int4", "text", "int4", "int4"),
        ((stage_id, *row) for row in chunks.iter_rows()),
    )


def read_chunks(connection: Connection[Any], stage_id: int) -> pl.DataFrame:
    """The Chunk frame of a chunk stage."""
    rows = connection.execute(
        "SELECT chunk_no, doc_id, span_start, span_end FROM chunk WHERE stage_id = %s ORDER BY chunk_no", [stage_id]
    ).fetchall()
    return pl.DataFrame(rows, schema=SCHEMAS[Chunk], orient="row")


def write_keys(connection: Connection[Any], stage_id: int, keys: Sequence[bytes]) -> None:
    """Store the ordered memo keys that are the output of an embed stage."""
    connection.execute("INSERT INTO stage_keys (stage_id, keys) VALUES (%s, %b::bytea[])", [stage_id, list(keys)])


def read_keys(connection: Connection[Any], stage_id: int) -> list[bytes]:
    """The ordered memo keys of an embed stage."""
    row = connection.execute("SELECT keys FROM stage_keys WHERE stage_id = %s", [stage_id], binary=True).fetchone()
    assert row is not None, f"stage {stage_id} has no keys"
    return [bytes(key) for key in row[0]]


def write_hits(
    connection: Connection[Any], stage_id: int, rankings: Iterable[tuple[Sequence[int], Sequence[float]]]
) -> int:
    """Store one ranking (chunk numbers, scores) a query, in query order; returns the number of hits."""
    return write_reranked(connection, stage_id, ((chunks, scores, None) for chunks, scores in rankings))


def write_reranked(
    connection: Connection[Any],
    stage_id: int,
    rankings: Iterable[tuple[Sequence[int], Sequence[float], Sequence[int] | None]],
) -> int:
    """Store rankings with the ranks that their hits had before (None: there was no before)."""
    written = 0

    def rows() -> Iterable[tuple[int, int, int, int, float, int | None]]:
        nonlocal written
        for query_no, (chunk_nos, scores, before) in enumerate(rankings):
            for i, (chunk_no, score) in enumerate(zip(chunk_nos, scores, strict=True)):
                written += 1
                yield stage_id, query_no, i + 1, chunk_no, score, before[i] if before is not None else None

    copy_rows(
        connection,
        "hit",
        ("stage_id", "query_no", "rank", "chunk_no", "score", "rank_before"),
        ("int8", "int4", "int4", "int4", "float8", "int4"),
        rows(),
    )
    return written


def read_hits(
    connection: Connection[Any], stage_id: int, query_ids: Sequence[str], *, before: bool = False
) -> pl.DataFrame:
    """The Hit frame of a retrieve or rerank stage; `query_ids` are those of its query set, in order.

    With `before` it has the column rank_before too (null where nothing was reranked).
    """
    rows = connection.execute(
        "SELECT query_no, rank, chunk_no, score, rank_before FROM hit WHERE stage_id = %s ORDER BY query_no, rank",
        [stage_id],
        binary=True,
    ).fetchall()
    schema = {"query_no": pl.Int64, "rank": pl.Int64, "chunk_no": pl.Int64, "score": pl.Float64}
    data = pl.DataFrame(rows, schema={**schema, "rank_before": pl.Int64}, orient="row")
    ids = pl.Series("query_id", list(query_ids), dtype=pl.String)
    return data.select(ids.gather(data["query_no"]), "rank", "chunk_no", "score", "rank_before").select(
        [*SCHEMAS[Hit], *(["rank_before"] if before else [])]
    )


def read_rankings(connection: Connection[Any], stage_id: int, queries: int) -> list[tuple[list[int], list[float]]]:
    """Chunk numbers and scores of each query of a retrieve or rerank stage, best first."""
    found: list[tuple[list[int], list[float]]] = [([], []) for _ in range(queries)]
    for query_no, chunk_nos, scores in connection.execute(
        "SELECT query_no, array_agg(chunk_no ORDER BY rank), array_agg(score ORDER BY rank)"
        " FROM hit WHERE stage_id = %s GROUP BY query_no",
        [stage_id],
        binary=True,
    ):
        found[query_no] = (chunk_nos, scores)
    return found


def write_contexts(connection: Connection[Any], stage_id: int, contexts: Sequence[str]) -> None:
    """Store the context of every chunk, in chunk order."""
    rows = ((stage_id, chunk_no, text) for chunk_no, text in enumerate(contexts))
    copy_rows(connection, "context", ("stage_id", "chunk_no", "context"), ("int8", "int4", "text"), rows)


def read_contexts(connection: Connection[Any], stage_id: int) -> list[str]:
    """The context of every chunk, in chunk order; "" where it has none."""
    rows = connection.execute(
        "SELECT context FROM context WHERE stage_id = %s ORDER BY chunk_no", [stage_id], binary=True
    )
    return [row[0] for row in rows]


_ANSWER = {
    "query_no": ("int4", pl.Int64),
    "text": ("text", pl.String),
    "refused": ("bool", pl.Boolean),
    "shown": ("int4[]", pl.List(pl.Int64)),
    "citations": ("int4[]", pl.List(pl.Int64)),
    "uncheckable": ("int4", pl.Int64),
    "dropped": ("int4", pl.Int64),
}


def write_answers(connection: Connection[Any], stage_id: int, answers: Iterable[Sequence[Any]]) -> None:
    """Store answers: query_no, text, refused, shown, citations, uncheckable, dropped, and the key of the call."""
    copy_rows(
        connection,
        "answer",
        ("stage_id", *_ANSWER, "key"),
        ("int8", *(kind for kind, _ in _ANSWER.values()), "bytea"),
        ((stage_id, *row) for row in answers),
    )


def read_answers(connection: Connection[Any], stage_id: int, query_ids: Sequence[str]) -> pl.DataFrame:
    """The answers of a generate stage: query_id, text, refused, shown, citations, uncheckable, dropped, and of its
    call prompt_tokens, cached_tokens, output_tokens, ttft_ms, e2e_ms, finish_reason."""
    of_call = {
        "prompt_tokens": pl.Int64,
        "cached_tokens": pl.Int64,
        "output_tokens": pl.Int64,
        "ttft_ms": pl.Float64,
        "e2e_ms": pl.Float64,
        "finish_reason": pl.String,
    }
    rows = connection.execute(
        sql.SQL(
            "SELECT {} FROM answer a JOIN memo_call c USING (key) WHERE a.stage_id = %s ORDER BY a.query_no"
        ).format(
            sql.SQL(", ").join(
                [*(sql.Identifier("a", name) for name in _ANSWER), *(sql.Identifier("c", name) for name in of_call)]
            )
        ),
        [stage_id],
        binary=True,
    ).fetchall()
    schema: dict[str, Any] = {**{name: kind for name, (_, kind) in _ANSWER.items()}, **of_call}
    data = pl.DataFrame(rows, schema=schema, orient="row")
    ids = pl.Series("query_id", list(query_ids), dtype=pl.String)
    return data.select(ids.gather(data["query_no"]), *list(schema)[1:])


def write_scores(connection: Connection[Any], stage_id: int, scores: pl.DataFrame) -> None:
    """Store a Score frame as the output of a score stage."""
    copy_rows(
        connection,
        "score",
        ("stage_id", "query_id", "metric", "value", "reason"),
        ("int8", "text", "text", "float8", "text"),
        ((stage_id, *row) for row in scores.iter_rows()),
    )


def read_scores(connection: Connection[Any], stage_id: int, metric: str | None = None) -> pl.DataFrame:
    """The Score frame of a score stage, or one metric of it."""
    rows = connection.execute(
        "SELECT query_id, metric, value, reason FROM score"
        " WHERE stage_id = %s AND (%s::text IS NULL OR metric = %s) ORDER BY metric, query_id",
        [stage_id, metric, metric],
        binary=True,
    ).fetchall()
    return pl.DataFrame(rows, schema=SCHEMAS[Score], orient="row")
