"""One pgvector table an index stage: filled from the memo inside the server, searched in one statement."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from psycopg import Connection, sql

from workbench.errors import ShortResultError, SpecError
from workbench.specs import Exact, Hnsw

HNSW_LIMIT = {"vector": 2000, "halfvec": 4000}
"""Dimensions that pgvector's HNSW can index, by element type."""


def table_name(stage_id: int) -> str:
    """The table of an index stage."""
    return f"vectors_{stage_id}"


def check_dimensions(spec: Exact | Hnsw, dimensions: int) -> None:
    """Refuse what pgvector cannot index, before any work.

    Raises:
        SpecError: too many dimensions for HNSW on this storage.
    """
    if spec.kind == "hnsw" and dimensions > (limit := HNSW_LIMIT[spec.storage]):
        step = 'set index.storage = "halfvec"' if dimensions <= HNSW_LIMIT["halfvec"] else 'set index.kind = "exact"'
        raise SpecError(
            f"HNSW on {spec.storage} holds at most {limit} dimensions, the model has {dimensions}",
            where="index",
            hint=step,
        )


def create(connection: Connection[Any], stage_id: int, spec: Exact | Hnsw, keys_stage: int, dimensions: int) -> int:
    """Fill a table from the memo and index it after the load; returns its rows.

    Runs in the caller's transaction, so a table exists only with its stage.
    """
    table = sql.Identifier(table_name(stage_id))
    kind = sql.SQL("{}({})").format(sql.SQL(spec.storage), sql.Literal(dimensions))
    # A taken-over stage's table cannot exist: it would have been committed with its stage.
    connection.execute(
        sql.SQL("CREATE TABLE {} (chunk_no integer PRIMARY KEY, embedding {} NOT NULL)").format(table, kind)
    )
    connection.execute(sql.SQL("ALTER TABLE {} ALTER COLUMN embedding SET STORAGE EXTERNAL").format(table))
    rows = connection.execute(
        sql.SQL(
            "INSERT INTO {} SELECT k.no - 1, m.vector::{} FROM stage_keys s,"
            " unnest(s.keys) WITH ORDINALITY k(key, no) JOIN memo_embedding m USING (key)"
            " WHERE s.stage_id = %s ORDER BY k.no"
        ).format(table, kind),
        [keys_stage],
    ).rowcount
    if spec.kind == "hnsw":
        operators = sql.SQL(f"{spec.storage}_cosine_ops")
        connection.execute("SET LOCAL maintenance_work_mem = '1GB'")
        connection.execute(
            sql.SQL("CREATE INDEX ON {} USING hnsw (embedding {}) WITH (m = {}, ef_construction = {})").format(
                table, operators, sql.Literal(spec.m), sql.Literal(spec.ef_construction)
            )
        )
    connection.execute(sql.SQL("ANALYZE {}").format(table))
    return rows


def search(
    connection: Connection[Any],
    stage_id: int,
    spec: Exact | Hnsw,
    keys: Sequence[bytes],
    k: int,
    *,
    ef_search: int | None = None,
    exact: bool = False,
) -> list[tuple[list[int], list[float]]]:
    """The k nearest chunks of each embedded query, nearest first, ties by chunk number.

    Scores are cosine similarities. `exact` goes round the index (for its recall). One statement for all.

    Raises:
        ShortResultError: fewer than min(k, rows) hits came back for a query.
    """
    table = sql.Identifier(table_name(stage_id))
    row = connection.execute(
        sql.SQL(
            "SELECT count(*), (SELECT format_type(atttypid, atttypmod) FROM pg_attribute"
            " WHERE attrelid = {}::regclass AND attname = 'embedding') FROM {}"
        ).format(sql.Literal(table_name(stage_id)), table)
    ).fetchone()
    assert row is not None
    rows, kind = row
    _guard(connection, spec, k, ef_search, exact)
    found = connection.execute(
        sql.SQL(
            "SELECT (q.no - 1)::int, h.chunk_no, h.score"
            " FROM unnest(%s::bytea[]) WITH ORDINALITY q(key, no) JOIN memo_embedding e USING (key)"
            " CROSS JOIN LATERAL (SELECT v.chunk_no, 1 - (v.embedding <=> e.vector::{kind}) AS score FROM {table} v"
            "   ORDER BY v.embedding <=> e.vector::{kind}, v.chunk_no LIMIT %s) h"
            " ORDER BY q.no, h.score DESC, h.chunk_no"
        ).format(kind=sql.SQL(kind.rsplit(".", 1)[-1]), table=table),
        [list(keys), k],
        binary=True,
    )
    hits: list[tuple[list[int], list[float]]] = [([], []) for _ in keys]
    for no, chunk_no, score in found:
        hits[no][0].append(chunk_no)
        hits[no][1].append(score)
    expected = min(k, rows)
    short = [no for no, (chunks, _) in enumerate(hits) if len(chunks) < expected]
    if short:
        raise ShortResultError(
            f"{len(short)} of {len(keys)} queries got fewer than {expected} hits (the first: {len(hits[short[0]][0])})",
            where=f"index {table_name(stage_id)}",
            hint="raise retrieve.ef_search or index.m, or use index.kind = 'exact'",
        )
    return hits


def _guard(connection: Connection[Any], spec: Exact | Hnsw, k: int, ef_search: int | None, exact: bool) -> None:
    """Make the planner do what the spec says: small tables would be scanned, large k would be cut at ef_search."""
    if spec.kind == "exact":
        return
    connection.execute(f"SET LOCAL enable_indexscan = {'off' if exact else 'on'}")
    connection.execute(f"SET LOCAL enable_seqscan = {'on' if exact else 'off'}")
    if exact:
        return
    width = min(1000, max(k, ef_search or 40))
    connection.execute(sql.SQL("SET LOCAL hnsw.ef_search = {}").format(sql.Literal(width)))
    connection.execute("SET LOCAL hnsw.iterative_scan = strict_order")
