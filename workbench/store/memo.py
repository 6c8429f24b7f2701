"""Memo: every costly item is computed once, by one process, and its value is kept under its key.

A process asks for many keys, *claims* those that have no value, computes and commits them. A claim is
fenced by its number: a value is written in a transaction that locks the open claim, so a process whose
lease ran out, whose claim another process took over, is refused when it wakes.

Claims of one memo are handed out under a transaction-level advisory lock; the list of open claims is
short (one or two a process), which keeps the cost an item at writing its value and nothing else.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from psycopg import Connection, sql

from workbench.errors import LeaseLost
from workbench.store.database import Database
from workbench.store.worker import Worker

Key = bytes
Row = tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class Memo:
    """A typed table of values: its name, value columns and their PostgreSQL types."""

    table: str
    columns: tuple[str, ...]
    types: tuple[str, ...]


SPANS = Memo("memo_spans", ("starts", "ends"), ("int4[]", "int4[]"))
EMBEDDING = Memo("memo_embedding", ("tokens", "windows", "truncated", "vector"), ("int4", "int4", "bool", "vector"))
RANKING = Memo("memo_ranking", ("chunk_nos", "scores"), ("int4[]", "float8[]"))


@dataclass(slots=True)
class Counts:
    """What one `fill` did. `repeated` were claimed before, by anyone, without getting a value."""

    items: int = 0
    computed: int = 0
    reused: int = 0
    repeated: int = 0


@dataclass(frozen=True, slots=True)
class Claim:
    claim_id: int
    positions: tuple[int, ...]
    repeated: int


Compute = Callable[[Sequence[int]], Sequence[Row]]
"""Positions in the list of keys -> one row of values for each."""


@dataclass
class MemoStore:
    """Reads, claims and writes values of all memos."""

    database: Database
    worker: Worker
    claim_size: int = 1024
    poll_seconds: float = 0.1
    _sleep: Callable[[float], None] = field(default=time.sleep)

    def fill(
        self,
        memo: Memo,
        keys: Sequence[Key],
        compute: Compute,
        *,
        stage_id: int | None = None,
        batch: int = 256,
        progress: Callable[[int, int], None] | None = None,
        check: Callable[[], None] | None = None,
    ) -> Counts:
        """Return when every key has a value: computed here, by another process, or long ago.

        `compute` gets positions into `keys`; each batch is committed when it returns. `check` is called
        between batches and may raise to stop; what is committed stays, what is claimed is released.
        """
        unique = list(dict.fromkeys(keys))
        position = {key: i for i, key in reversed(list(enumerate(keys)))}
        counts = Counts(items=len(unique))
        todo = self.missing(memo, unique)
        counts.reused = len(unique) - len(todo)
        finished = counts.reused
        while todo:
            claim = self._claim(memo, todo, stage_id)
            if claim is None:
                # Everything left is claimed by others: wait for their values or for their leases to end.
                self._sleep(self.poll_seconds)
            else:
                counts.repeated += claim.repeated
                counts.computed += self._work(memo, claim, todo, position, compute, batch, check, progress, counts)
            if check:
                check()
            todo = self.missing(memo, todo)
            if progress and (done := len(unique) - len(todo)) != finished:
                finished = done
                progress(finished, len(unique))
        return counts

    def missing(self, memo: Memo, keys: Sequence[Key]) -> list[Key]:
        """The keys without a value, in order."""
        if not keys:
            return []
        query = sql.SQL(
            "SELECT k.key FROM unnest(%s::bytea[]) WITH ORDINALITY k(key, no)"
            " WHERE NOT EXISTS (SELECT FROM {table} m WHERE m.key = k.key) ORDER BY k.no"
        ).format(table=sql.Identifier(memo.table))
        with self.database.transaction() as connection:
            return [bytes(row[0]) for row in connection.execute(query, [list(keys)], binary=True)]

    def read(self, memo: Memo, keys: Sequence[Key]) -> Iterator[Row]:
        """The values of keys, in their order; every key must have one."""
        query = sql.SQL(
            "SELECT {columns} FROM unnest(%s::bytea[]) WITH ORDINALITY k(key, no) JOIN {table} m USING (key)"
            " ORDER BY k.no"
        ).format(
            columns=sql.SQL(", ").join(sql.Identifier("m", c) for c in memo.columns), table=sql.Identifier(memo.table)
        )
        with self.database.transaction() as connection:
            yield from connection.execute(query, [list(keys)], binary=True).fetchall()

    def _claim(self, memo: Memo, keys: Sequence[Key], stage_id: int | None) -> Claim | None:
        """Take up to `claim_size` keys that have neither a value nor a living claim."""
        with self.database.transaction() as connection:
            connection.execute(
                "SELECT pg_advisory_xact_lock(hashtextextended(current_schema() || %s, 0))", [memo.table]
            )
            connection.execute(
                "UPDATE claim c SET closed_at = now(), outcome = 'lost' FROM worker w"
                " WHERE c.memo = %s AND c.closed_at IS NULL AND w.worker_id = c.worker_id AND w.lease_until < now()",
                [memo.table],
            )
            # A separate statement: its snapshot sees values committed while the update waited for their writers.
            rows = connection.execute(
                sql.SQL(
                    "SELECT k.key, (k.no - 1)::int FROM unnest(%(keys)s::bytea[]) WITH ORDINALITY k(key, no)"
                    " WHERE NOT EXISTS (SELECT FROM {table} m WHERE m.key = k.key)"
                    " AND k.key NOT IN (SELECT unnest(c.keys) FROM claim c"
                    "                   WHERE c.memo = %(memo)s AND c.closed_at IS NULL)"
                    " ORDER BY k.no LIMIT %(limit)s"
                ).format(table=sql.Identifier(memo.table)),
                {"keys": list(keys), "memo": memo.table, "limit": self.claim_size},
                binary=True,
            ).fetchall()
            if not rows:
                return None
            taken = [bytes(row[0]) for row in rows]
            claim = connection.execute(
                "INSERT INTO claim (memo, worker_id, stage_id, keys, items, repeated)"
                " SELECT %(memo)s, %(worker)s, %(stage)s, %(keys)s::bytea[], %(items)s, count(DISTINCT k)"
                " FROM unnest(%(keys)s::bytea[]) k JOIN (SELECT unnest(c.keys) AS key FROM claim c"
                "   WHERE c.memo = %(memo)s AND c.outcome IN ('released', 'lost')) old ON old.key = k"
                " RETURNING claim_id, repeated",
                {
                    "memo": memo.table,
                    "worker": self.worker.worker_id,
                    "stage": stage_id,
                    "keys": taken,
                    "items": len(taken),
                },
            ).fetchone()
        assert claim is not None
        return Claim(claim[0], tuple(row[1] for row in rows), claim[1])

    def _work(
        self,
        memo: Memo,
        claim: Claim,
        todo: Sequence[Key],
        position: dict[Key, int],
        compute: Compute,
        batch: int,
        check: Callable[[], None] | None,
        progress: Callable[[int, int], None] | None,
        counts: Counts,
    ) -> int:
        done = 0
        outcome = "released"
        try:
            for at in range(0, len(claim.positions), batch):
                if check:
                    check()
                keys = [todo[i] for i in claim.positions[at : at + batch]]
                rows = compute([position[key] for key in keys])
                self.write(memo, claim.claim_id, keys, rows)
                done += len(keys)
                if progress:
                    progress(counts.items - len(todo) + done, counts.items)
            outcome = "done"
        except LeaseLost:
            return done  # the successor computes the rest; look again
        finally:
            self._close(claim.claim_id, outcome)
        return done

    def write(self, memo: Memo, claim_id: int, keys: Sequence[Key], rows: Sequence[Row]) -> None:
        """Write values under an open claim.

        Raises:
            LeaseLost: the claim was taken over; nothing was written.
        """
        assert len(keys) == len(rows), f"{len(keys)} keys, {len(rows)} rows"
        with self.database.transaction() as connection:
            lock_claim(connection, claim_id)
            names = sql.SQL(", ").join(map(sql.Identifier, ("key", "claim_id", *memo.columns)))
            statement = sql.SQL("COPY {} ({}) FROM STDIN (FORMAT BINARY)").format(sql.Identifier(memo.table), names)
            with connection.cursor().copy(statement) as copy:
                copy.set_types(["bytea", "int8", *memo.types])
                for key, row in zip(keys, rows, strict=True):
                    copy.write_row((key, claim_id, *row))

    def _close(self, claim_id: int, outcome: str) -> None:
        with self.database.transaction() as connection:
            connection.execute(
                "UPDATE claim SET closed_at = now(), outcome = %(outcome)s,"
                " keys = CASE WHEN %(outcome)s = 'done' THEN '{}' ELSE keys END"
                " WHERE claim_id = %(claim)s AND closed_at IS NULL",
                {"outcome": outcome, "claim": claim_id},
            )


def lock_claim(connection: Connection[Any], claim_id: int) -> None:
    """Hold the claim open until this transaction ends.

    Raises:
        LeaseLost: it is closed.
    """
    held = connection.execute(
        "SELECT FROM claim WHERE claim_id = %s AND closed_at IS NULL FOR SHARE", [claim_id]
    ).fetchone()
    if held is None:
        raise LeaseLost(f"claim {claim_id} was taken over by another process", hint="its values are used instead")
