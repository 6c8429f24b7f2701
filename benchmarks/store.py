"""Rows a second into pgvector: the memo's first write against a raw binary COPY, in one run.

    python benchmarks/store.py [--rows 20000] [--dimensions 384] [--repeats 5] [--json]

Both write the same keys and vectors into tables of the same shape (primary key included) on the embedded
server. "memo" is the whole path of an embedding that is new: look-up, claim, fenced COPY, close, with a
commit every 2,048 rows. "copy" is one COPY in one transaction, "batched" the same with a commit every
2,048 rows, and "bare" one COPY without key or index: what the server can do at most.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from machine import describe_machine

from workbench.runtime import Runtime
from workbench.settings import Settings
from workbench.store.memo import EMBEDDING, Row
from workbench.store.tables import copy_rows

BATCH = 2048


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--dimensions", type=int, default=384)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as home, Runtime(Settings.read(home=Path(home) / "home")) as runtime:
        report = measure(runtime, given.rows, given.dimensions, given.repeats)
    if given.json:
        print(json.dumps(report))
        return
    print(report["machine"])
    print(f"{given.rows} rows of {given.dimensions} float32, {given.repeats} repeats, median (min to max)")
    for name, rates in report["rows_per_second"].items():
        print(f"  {name:<7} {statistics.median(rates):>9,.0f} rows/s  ({min(rates):,.0f} to {max(rates):,.0f})")
    for name, ratios in report["ratios"].items():
        print(f"  {name:<14} {statistics.median(ratios):.2f}  ({min(ratios):.2f} to {max(ratios):.2f})")


def measure(runtime: Runtime, rows: int, dimensions: int, repeats: int) -> dict[str, Any]:
    """Interleaved repeats of the three ways; ratios are pair by pair."""
    vectors = list(np.random.default_rng(0).standard_normal((rows, dimensions)).astype(np.float32))
    rates: dict[str, list[float]] = {"memo": [], "copy": [], "batched": [], "bare": []}
    with runtime.database.transaction() as connection:
        connection.execute("CREATE TABLE raw_copy (LIKE memo_embedding INCLUDING ALL)")
        connection.execute("CREATE TABLE bare_copy (vector vector)")
        connection.execute("ALTER TABLE bare_copy ALTER COLUMN vector SET STORAGE EXTERNAL")
    for repeat in range(repeats):
        keys = [hashlib.sha256(f"{repeat} {i}".encode()).digest() for i in range(rows)]
        work: dict[str, Callable[[], object]] = {
            "memo": lambda keys=keys: into_memo(runtime, keys, vectors),  # type: ignore[misc]
            "copy": lambda keys=keys: into_table(runtime, keys, vectors, rows),  # type: ignore[misc]
            "batched": lambda keys=keys: into_table(runtime, again(keys), vectors, BATCH),  # type: ignore[misc]
            "bare": lambda: into_bare(runtime, vectors),
        }
        for name in sorted(work, reverse=bool(repeat % 2)):
            started = time.perf_counter()
            work[name]()
            rates[name].append(rows / (time.perf_counter() - started))
    ratios = {
        f"memo / {peer}": [m / p for m, p in zip(rates["memo"], rates[peer], strict=True)]
        for peer in ("copy", "batched", "bare")
    }
    return {"machine": describe_machine(), "rows_per_second": rates, "ratios": ratios}


def into_memo(runtime: Runtime, keys: list[bytes], vectors: list[Row]) -> None:
    runtime.memo.fill(
        EMBEDDING, keys, lambda at: [(1, 1, False, vectors[i]) for i in at], batch=BATCH, claim_size=2 * BATCH
    )


def again(keys: list[bytes]) -> list[bytes]:
    """Other keys, for a second table's worth of rows."""
    return [key[::-1] for key in keys]


def into_table(runtime: Runtime, keys: list[bytes], vectors: list[Row], batch: int) -> None:
    names = ("key", "claim_id", *EMBEDDING.columns)
    for at in range(0, len(keys), batch):
        with runtime.database.transaction() as connection:
            part = zip(keys[at : at + batch], vectors[at : at + batch], strict=True)
            rows = ((key, 0, 1, 1, False, vector) for key, vector in part)
            copy_rows(connection, "raw_copy", names, ("bytea", "int8", *EMBEDDING.types), rows)


def into_bare(runtime: Runtime, vectors: list[Row]) -> None:
    with runtime.database.transaction() as connection:
        copy_rows(connection, "bare_copy", ("vector",), ("vector",), ((vector,) for vector in vectors))


if __name__ == "__main__":
    main()
