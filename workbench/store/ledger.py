"""Stages in the store: begun by one process at a time, finished in one transaction, found again for ever."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from psycopg import Connection
from psycopg.types.json import Jsonb

from workbench.errors import LeaseLost
from workbench.store.database import Database
from workbench.store.worker import Worker


@dataclass(frozen=True, slots=True)
class StageRow:
    """A finished stage."""

    stage_id: int
    fingerprint: str
    kind: str
    items: int
    computed: int
    seconds: float
    details: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Begun:
    """A stage that this process holds; `epoch` fences its end."""

    stage_id: int
    epoch: int


@dataclass(frozen=True, slots=True)
class Busy:
    """A stage that a living process holds."""

    worker_id: int


_DONE = "stage_id, encode(fingerprint, 'hex'), kind, items, computed, seconds, details"


class Ledger:
    """What has been done, and who is doing what."""

    def __init__(self, database: Database, worker: Worker) -> None:
        self._database, self._worker = database, worker
        self._held: set[int] = set()
        """Stages that a thread of this process works on; set operations are atomic."""

    def done(self, fingerprints: Sequence[str]) -> dict[str, StageRow]:
        """The finished ones among these fingerprints."""
        with self._database.transaction() as connection:
            rows = connection.execute(
                f"SELECT {_DONE} FROM stage WHERE state = 'done' AND fingerprint = ANY(%s)",  # noqa: S608
                [[bytes.fromhex(f) for f in fingerprints]],
            ).fetchall()
        return {row[1]: StageRow(*row) for row in rows}

    def begin(
        self, fingerprint: str, kind: str, code: int, spec: Mapping[str, Any], inputs: Mapping[str, str]
    ) -> StageRow | Begun | Busy:
        """Take a stage that is neither done nor held by a living process."""
        key = bytes.fromhex(fingerprint)
        with self._database.transaction() as connection:
            inserted = self._insert(connection, "running", key, kind, code, spec, inputs)
            if inserted is not None:
                self._held.add(inserted[0])
                return Begun(*inserted)
            row = connection.execute(
                "SELECT s.stage_id, s.state, s.worker_id, w.lease_until < now()"
                " FROM stage s JOIN worker w USING (worker_id) WHERE s.fingerprint = %s FOR UPDATE OF s",
                [key],
            ).fetchone()
            assert row is not None
            stage_id, state, holder, expired = row
            if state == "done":
                found = connection.execute(f"SELECT {_DONE} FROM stage WHERE fingerprint = %s", [key]).fetchone()  # noqa: S608
                assert found is not None
                return StageRow(*found)
            ours = holder == self._worker.worker_id
            if state == "running" and (stage_id in self._held if ours else not expired):
                return Busy(holder)
            taken = connection.execute(
                "UPDATE stage SET state = 'running', worker_id = %s, environment_id = %s, epoch = epoch + 1,"
                " started_at = now(), error = NULL WHERE fingerprint = %s RETURNING stage_id, epoch",
                [self._worker.worker_id, self._worker.environment_id, key],
            ).fetchone()
            assert taken is not None
            self._held.add(taken[0])
            return Begun(*taken)

    def announce(
        self, fingerprint: str, kind: str, code: int, spec: Mapping[str, Any], inputs: Mapping[str, str]
    ) -> StageRow | int:
        """The stage_id of a stage whose items several processes compute, or the stage where it is done."""
        key = bytes.fromhex(fingerprint)
        with self._database.transaction() as connection:
            self._insert(connection, "planned", key, kind, code, spec, inputs)
            row = connection.execute(f"SELECT {_DONE}, state FROM stage WHERE fingerprint = %s", [key]).fetchone()  # noqa: S608
        assert row is not None
        return StageRow(*row[:-1]) if row[-1] == "done" else int(row[0])

    def _insert(
        self,
        connection: Connection[Any],
        state: str,
        key: bytes,
        kind: str,
        code: int,
        spec: Mapping[str, Any],
        inputs: Mapping[str, str],
    ) -> tuple[int, int] | None:
        """stage_id and epoch of a new stage; None where it was there."""
        values = [key, kind, code, Jsonb(dict(spec)), Jsonb(dict(inputs)), state]
        return connection.execute(
            "INSERT INTO stage (fingerprint, kind, code, spec, inputs, state, worker_id, environment_id)"
            " VALUES (%s, %s, %s, %s, %s, %s, %s, %s) ON CONFLICT DO NOTHING RETURNING stage_id, epoch",
            [*values, self._worker.worker_id, self._worker.environment_id],
        ).fetchone()

    def finish(
        self,
        begun: Begun,
        write: Callable[[Connection[Any], int], Mapping[str, Any]],
        *,
        items: int,
        computed: int,
        seconds: Callable[[], float],
    ) -> StageRow:
        """Write the whole output and set the stage to done, in one transaction.

        `write(connection, stage_id)` returns details to keep beside the stage.

        Raises:
            LeaseLost: another process took the stage; nothing was written.
        """
        with self._database.transaction() as connection:
            held = connection.execute(
                "SELECT FROM stage WHERE stage_id = %s AND epoch = %s AND state = 'running' FOR UPDATE",
                [begun.stage_id, begun.epoch],
            ).fetchone()
            if held is None:
                raise LeaseLost(f"stage {begun.stage_id} was taken over by another process")
            details = write(connection, begun.stage_id)
            row = connection.execute(
                "UPDATE stage SET state = 'done', finished_at = now(), seconds = %s, items = %s, computed = %s,"  # noqa: S608
                f" details = %s WHERE stage_id = %s RETURNING {_DONE}",
                [seconds(), items, computed, Jsonb(dict(details)), begun.stage_id],
            ).fetchone()
        assert row is not None
        return StageRow(*row)

    def release(self, begun: Begun) -> None:
        """This process works on the stage no longer, however that ended."""
        self._held.discard(begun.stage_id)

    def give_up(self, begun: Begun, error: str) -> None:
        """Record why a held stage did not finish; it may be begun again."""
        with self._database.transaction() as connection:
            connection.execute(
                "UPDATE stage SET state = 'failed', error = %s, finished_at = now()"
                " WHERE stage_id = %s AND epoch = %s AND state = 'running'",
                [error[:10_000], begun.stage_id, begun.epoch],
            )
