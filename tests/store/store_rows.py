"""Rows that the store's tests need: finished stages, embeddings under keys."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from psycopg import Connection

from workbench.store import tables
from workbench.store.database import Database
from workbench.store.ledger import Begun, Ledger

_numbers = itertools.count()

Matrix = NDArray[np.float32]


def key_of(*parts: object) -> bytes:
    return hashlib.sha256(repr(parts).encode()).digest()


def new_stage(ledger: Ledger, write: Callable[[Connection[Any], int], Mapping[str, Any]], kind: str = "test") -> int:
    """The id of a finished stage with an output."""
    begun = ledger.begin(key_of("stage", next(_numbers)).hex(), kind, 1, {}, {})
    assert isinstance(begun, Begun)
    return ledger.finish(begun, write, items=0, computed=0, seconds=lambda: 0.0).stage_id


def embeddings(connection: Connection[Any], matrix: Matrix) -> list[bytes]:
    """Keys under which the rows of a matrix stand in the memo."""
    run = next(_numbers)
    keys = [key_of("embedding", run, i) for i in range(len(matrix))]
    tables.copy_rows(
        connection,
        "memo_embedding",
        ("key", "claim_id", "tokens", "windows", "truncated", "vector"),
        ("bytea", "int8", "int4", "int4", "bool", "vector"),
        ((key, 0, 1, 1, False, row) for key, row in zip(keys, matrix, strict=True)),
    )
    return keys


def count(database: Database, query: str, values: Sequence[object] = ()) -> int:
    with database.transaction() as connection:
        row = connection.execute(query, values).fetchone()  # type: ignore[arg-type]
    assert row is not None
    return int(row[0])
