"""The fault ledger: every time a process set to work on a stage, how far it came and how that ended."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Literal

from workbench.errors import StageCrashed
from workbench.store.database import Database
from workbench.store.memo import Counts
from workbench.store.worker import Worker

CRASHES = 3
"""How often in a row a stage may take its process with it without one finished item, before it is called failed."""

Outcome = Literal["done", "shared", "failed", "stopped", "lost"]


@dataclass
class Attempt:
    """One process's work on one stage."""

    attempt_id: int
    counts: Counts = field(default_factory=Counts)
    waited: float = 0.0
    """Seconds for others who held the stage."""
    shared: bool = False
    """Its items are complete, and another process writes the output."""
    _noted: float = float("-inf")
    _computed: int = 0


class Attempts:
    """Opens, notes and closes attempts; one a worker."""

    EVERY = 2.0
    """Seconds between two notes of how far an attempt is."""

    def __init__(self, database: Database, worker: Worker) -> None:
        self._database, self._worker = database, worker

    def open(self, fingerprint: str, kind: str, label: str, sweep_id: int | None) -> Attempt:
        """Begin an attempt at a stage; earlier ones whose process is gone are closed as crashed.

        Raises:
            StageCrashed: the stage has crashed `CRASHES` processes in a row, none of which finished an item.
        """
        key = bytes.fromhex(fingerprint)
        with self._database.transaction() as connection:
            connection.execute(
                "UPDATE attempt a SET ended_at = now(), outcome = 'crashed' FROM worker w"
                " WHERE a.fingerprint = %s AND a.ended_at IS NULL AND w.worker_id = a.worker_id"
                " AND w.lease_until < now()",
                [key],
            )
            latest = connection.execute(
                "SELECT outcome, computed FROM attempt WHERE fingerprint = %s AND ended_at IS NOT NULL"
                " ORDER BY attempt_id DESC LIMIT %s",
                [key, CRASHES],
            ).fetchall()
            row = connection.execute(
                "INSERT INTO attempt (fingerprint, kind, label, sweep_id, worker_id) VALUES (%s, %s, %s, %s, %s)"
                " RETURNING attempt_id",
                [key, kind, label, sweep_id, self._worker.worker_id],
            ).fetchone()
        assert row is not None
        attempt = Attempt(row[0])
        if len(latest) == CRASHES and all(outcome == "crashed" and not computed for outcome, computed in latest):
            error = StageCrashed(
                f"its process died {CRASHES} times in a row here, before one item was finished",
                where=f"stage {kind} ({label}) {fingerprint[:12]}",
                hint="out of memory? see the system's log; run again to try once more",
            )
            self.close(attempt, "failed", str(error))
            raise error
        return attempt

    def sharing(self, fingerprint: str) -> int:
        """How many living processes work on a stage now."""
        with self._database.transaction() as connection:
            row = connection.execute(
                "SELECT count(*) FROM attempt a JOIN worker w USING (worker_id)"
                " WHERE a.fingerprint = %s AND a.ended_at IS NULL AND w.lease_until > now()",
                [bytes.fromhex(fingerprint)],
            ).fetchone()
        assert row is not None
        return int(row[0])

    def note(self, attempt: Attempt, done: int, items: int) -> None:
        """Keep how far an attempt is; its first finished item at once, then every `EVERY` seconds."""
        now, computed = time.monotonic(), attempt.counts.computed
        if now - attempt._noted < self.EVERY and (attempt._computed or not computed):
            return
        attempt._noted, attempt._computed = now, computed
        with self._database.transaction() as connection:
            connection.execute(
                "UPDATE attempt SET done = %s, items = %s, computed = %s WHERE attempt_id = %s",
                [done, items, computed, attempt.attempt_id],
            )

    def close(self, attempt: Attempt, outcome: Outcome, error: str | None = None) -> None:
        """Keep how an attempt ended; one that was called crashed meanwhile stays so."""
        counts = attempt.counts
        with self._database.transaction() as connection:
            connection.execute(
                "UPDATE attempt SET ended_at = now(), outcome = %s, error = %s, done = %s, items = %s, computed = %s,"
                " repeated = %s, waited = %s WHERE attempt_id = %s AND ended_at IS NULL",
                [
                    outcome,
                    error[:10_000] if error else None,
                    counts.reused + counts.computed,
                    counts.items,
                    counts.computed,
                    counts.repeated,
                    attempt.waited + counts.waited,
                    attempt.attempt_id,
                ],
            )
