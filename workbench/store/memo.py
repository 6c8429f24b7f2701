"""Memo: every costly item is computed once, by one process, and its value is kept under its key.

A process asks for many keys, *claims* those that have no value, computes and commits them. A claim is
fenced by its number: a value is written in a transaction that locks the open claim, so a process whose
lease ran out, whose claim another process took over, is refused when it wakes.

A claim is one row with all its keys, handed out under a transaction-level advisory lock. Open claims are
few (one or two a process), so the cost of an item is writing its value and little else.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from psycopg import Connection, sql

from workbench.errors import LeaseLost
from workbench.store.database import Database
from workbench.store.worker import Worker

_NO_WAIT = "SET LOCAL synchronous_commit = off"
"""For claims, not for values: a claim that a crash of the server takes back only means that its writes are refused."""

Key = bytes
"""A SHA-256 digest: always `KEY_BYTES` long."""
KEY_BYTES = 32
_ASKED = sql.SQL(
    "(SELECT substr(%(keys)b, {bytes} * i + 1, {bytes}) AS key, i AS no"
    " FROM generate_series(0, length(%(keys)b) / {bytes} - 1) i) k"
).format(bytes=sql.Literal(KEY_BYTES))
"""Many keys as one string of bytes, cut up by the server: an array would be built element by element here."""
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
PAIR = Memo("memo_pair", ("score",), ("float8",))
CALL = Memo(
    "memo_call",
    (
        "text",
        "finish_reason",
        "prompt_tokens",
        "cached_tokens",
        "output_tokens",
        "ttft_ms",
        "itl_ms",
        "e2e_ms",
        "attempts",
        "faults",
        "logprobs",
        "waited_ms",
    ),
    ("text", "text", "int4", "int4", "int4", "float8", "float8[]", "float8", "int4", "text[]", "float8[]", "float8"),
)


@dataclass(slots=True)
class Counts:
    """What `fill` did. `repeated` were claimed before, by anyone, without getting a value; `waited` are seconds."""

    items: int = 0
    computed: int = 0
    reused: int = 0
    repeated: int = 0
    waited: float = 0.0


@dataclass(frozen=True, slots=True)
class Claim:
    claim_id: int
    keys: Sequence[Key]
    repeated: int


Compute = Callable[[Sequence[int]], Sequence[Row]]
"""Positions in the list of keys -> one row of values for each."""
Stream = Callable[[Sequence[int]], Generator[tuple[int, Row], None, None]]
"""Positions in the list of keys -> (index into these positions, row of values), each as it is ready."""


Groups = Callable[[Sequence[int]], Generator[tuple[Sequence[int], Sequence[Row]], None, None]]
"""Both forms as one: indices into the positions and their rows, in groups that are committed together."""


def _batched(compute: Compute, size: int) -> Groups:
    def groups(positions: Sequence[int]) -> Generator[tuple[Sequence[int], Sequence[Row]], None, None]:
        for at in range(0, len(positions), size):
            part = positions[at : at + size]
            yield range(at, at + len(part)), compute(part)

    return groups


def _one_by_one(stream: Stream) -> Groups:
    def groups(positions: Sequence[int]) -> Generator[tuple[Sequence[int], Sequence[Row]], None, None]:
        with contextlib.closing(stream(positions)) as ready:
            for index, row in ready:
                yield [index], [row]

    return groups


@dataclass
class MemoStore:
    """Reads, claims and writes values of all memos; one a worker."""

    database: Database
    worker: Worker
    poll_seconds: float = 0.1
    _sleep: Callable[[float], None] = field(default=time.sleep)
    _claiming: threading.Lock = field(default_factory=threading.Lock)
    _held: set[int] = field(default_factory=set)

    def fill(
        self,
        memo: Memo,
        keys: Sequence[Key],
        compute: Compute | None = None,
        *,
        stream: Stream | None = None,
        stage_id: int | None = None,
        batch: int = 256,
        claim_size: int = 1024,
        sharing: Callable[[], int] = lambda: 1,
        counts: Counts | None = None,
        progress: Callable[[int, int], None] | None = None,
        check: Callable[[], None] = lambda: None,
    ) -> Counts:
        """Return when every key has a value: computed here, by another process, or long ago.

        `compute` gets positions into `keys`; each batch is committed when it returns. With `stream` in its
        place each value is committed as it comes: what took seconds to say is not lost to a neighbour's
        failure. `claim_size` keys are claimed at a time: fewer share better between processes, more cost
        less. `sharing` says how many processes fill the same keys now: then claims shrink towards the end, so
        that all end together (guided self-scheduling, Polychronopoulos and Kuck 1987). `counts` is added to,
        and `progress` called with its finished items and all its items. `check` is called before each commit's
        work and may raise to stop; what is committed stays, what is claimed is released.
        """
        groups = _one_by_one(stream) if stream else _batched(compute, batch) if compute else None
        assert groups is not None, "nothing computes the values"
        unique = list(dict.fromkeys(keys))
        position = {key: i for i, key in reversed(list(enumerate(keys)))}
        todo = self.missing(memo, unique)
        counts = counts if counts is not None else Counts()
        counts.items += len(unique)
        counts.reused += len(unique) - len(todo)

        def tell(done: int) -> None:
            counts.computed += done
            if progress:
                progress(counts.reused + counts.computed, counts.items)

        while todo:
            elsewhere: list[Key] = []
            at = 0
            # One claim's worth of keys at a time: no statement carries the whole list again and again.
            while at < len(todo):
                size = claim_size
                if (processes := sharing()) > 1:
                    size = max(1, claim_size // 8, min(size, (len(todo) - at) // (2 * processes)))
                part = todo[at : at + size]
                at += size
                claim = self._claim(memo, part, stage_id)
                if claim is not None:
                    counts.repeated += claim.repeated
                    done = self._work(memo, claim, groups, position, tell, check)
                    part = [key for key in part if key not in done]
                elsewhere += part
                check()
            # What is left is claimed by others, or was while this process stood still.
            todo = self.missing(memo, elsewhere)
            if len(todo) < len(elsewhere):
                counts.reused += len(elsewhere) - len(todo)
                tell(0)
            if len(todo) == len(elsewhere) and todo:
                counts.waited += self.poll_seconds
                self.worker.bury()
                self._sleep(self.poll_seconds)
        return counts

    def missing(self, memo: Memo, keys: Sequence[Key]) -> list[Key]:
        """The keys without a value, in order."""
        if not keys:
            return []
        query = sql.SQL(
            "SELECT k.no FROM {asked} WHERE NOT EXISTS (SELECT FROM {table} m WHERE m.key = k.key) ORDER BY k.no"
        ).format(asked=_ASKED, table=sql.Identifier(memo.table))
        with self.database.transaction() as connection:
            return [keys[row[0]] for row in connection.execute(query, {"keys": b"".join(keys)}, binary=True)]

    def read(self, memo: Memo, keys: Sequence[Key]) -> list[Row]:
        """The values of keys, in their order; every key must have one."""
        query = sql.SQL("SELECT {columns} FROM {asked} JOIN {table} m USING (key) ORDER BY k.no").format(
            columns=sql.SQL(", ").join(sql.Identifier("m", c) for c in memo.columns),
            asked=_ASKED,
            table=sql.Identifier(memo.table),
        )
        with self.database.transaction() as connection:
            return connection.execute(query, {"keys": b"".join(keys)}, binary=True).fetchall()

    def _claim(self, memo: Memo, keys: Sequence[Key], stage_id: int | None) -> Claim | None:
        """Take those of the keys that have neither a value nor a living claim."""
        with self._claiming:
            claim = self._take(memo, keys, stage_id)
            if claim is not None:
                self._held.add(claim.claim_id)
        return claim

    def _take(self, memo: Memo, keys: Sequence[Key], stage_id: int | None) -> Claim | None:
        with self.database.transaction() as connection:
            connection.execute(
                "SELECT pg_advisory_xact_lock(hashtextextended(current_schema() || %s, 0))", [memo.table]
            )
            # Also its own that nobody works on: the connection was cut when they were to be closed. Their lease lives.
            connection.execute(
                "UPDATE claim c SET closed_at = now(), outcome = 'lost' FROM worker w"
                " WHERE c.memo = %s AND c.closed_at IS NULL AND w.worker_id = c.worker_id"
                " AND (w.lease_until < now() OR (w.worker_id = %s AND c.claim_id <> ALL(%s::int8[])))",
                [memo.table, self.worker.worker_id, list(self._held)],
            )
            # A separate statement: its snapshot sees values committed while the update waited for their writers.
            claim = connection.execute(
                sql.SQL(
                    "WITH free AS (SELECT k.key, k.no FROM {asked}"
                    "   WHERE NOT EXISTS (SELECT FROM {table} m WHERE m.key = k.key)"
                    "   AND k.key NOT IN (SELECT unnest(c.keys) FROM claim c"
                    "                     WHERE c.memo = %(memo)s AND c.closed_at IS NULL))"
                    " INSERT INTO claim (memo, worker_id, stage_id, keys, items, repeated)"
                    " SELECT %(memo)s, %(worker)s, %(stage)s, array_agg(key ORDER BY no), count(*),"
                    "   (SELECT count(*) FROM free WHERE key IN (SELECT unnest(c.keys) FROM claim c"
                    "      WHERE c.memo = %(memo)s AND c.outcome IN ('released', 'lost')))"
                    " FROM free HAVING count(*) > 0"
                    " RETURNING claim_id, repeated, CASE WHEN items < %(asked)s THEN keys END"
                ).format(asked=_ASKED, table=sql.Identifier(memo.table)),
                {
                    "keys": b"".join(keys),
                    "memo": memo.table,
                    "worker": self.worker.worker_id,
                    "stage": stage_id,
                    "asked": len(keys),
                },
                binary=True,
            ).fetchone()
        if claim is None:
            return None
        return Claim(claim[0], list(keys) if claim[2] is None else [bytes(key) for key in claim[2]], claim[1])

    def _work(
        self,
        memo: Memo,
        claim: Claim,
        groups: Groups,
        position: Mapping[Key, int],
        tell: Callable[[int], None],
        check: Callable[[], None],
    ) -> set[Key]:
        """Compute and commit a claim's keys; the keys that got their value here."""
        done: set[Key] = set()
        outcome = "released"
        try:
            check()
            # Closed whatever happens here: a stream that is left open would go on asking a model.
            with contextlib.closing(groups([position[key] for key in claim.keys])) as ready:
                for indices, rows in ready:
                    keys = [claim.keys[i] for i in indices]
                    self.write(memo, claim.claim_id, keys, rows)
                    done.update(keys)
                    tell(len(keys))
                    if len(done) < len(claim.keys):
                        check()
            outcome = "done"
        except LeaseLost:
            pass  # the successor computes the rest; the caller looks again
        finally:
            try:
                self._close(claim.claim_id, outcome)
            finally:
                self._held.discard(claim.claim_id)
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
            connection.execute(_NO_WAIT)
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
