"""This process as the database sees it: a row whose lease is renewed while the process lives."""

from __future__ import annotations

import contextlib
import os
import platform
import threading
from types import TracebackType
from typing import Any, Self

from psycopg.types.json import Jsonb

from workbench.errors import WorkbenchError
from workbench.specs import digest
from workbench.store.database import Database


class Worker:
    """Registers on construction; a thread renews the lease three times in its length; `close` ends it.

    A frozen process renews nothing. When it wakes it renews again, which gives back no claim that was
    taken over meanwhile: claims are fenced by their own numbers.
    """

    def __init__(self, database: Database, environment: dict[str, Any], lease_seconds: float) -> None:
        self._database, self._lease = database, lease_seconds
        with database.transaction() as connection:
            key = bytes.fromhex(digest(environment))
            connection.execute(
                "INSERT INTO environment (fingerprint, details) VALUES (%s, %s) ON CONFLICT DO NOTHING",
                [key, Jsonb(environment)],
            )
            row = connection.execute(
                "INSERT INTO worker (host, pid, environment_id, lease_until)"
                " SELECT %s, %s, environment_id, now() + make_interval(secs => %s) FROM environment"
                " WHERE fingerprint = %s RETURNING worker_id, environment_id",
                [platform.node(), os.getpid(), lease_seconds, key],
            ).fetchone()
        assert row is not None
        self.worker_id: int = row[0]
        self.environment_id: int = row[1]
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._renew_until_closed, name="workbench-lease", daemon=True)
        self._thread.start()

    def _renew_until_closed(self) -> None:
        while not self._stop.wait(self._lease / 3):
            # A database that is away for a moment is no reason to stop renewing, whatever the driver calls it.
            with contextlib.suppress(Exception):
                self._set_lease(self._lease)

    def _set_lease(self, seconds: float, *, ended: bool = False) -> None:
        with self._database.transaction() as connection:
            connection.execute(
                "UPDATE worker SET lease_until = now() + make_interval(secs => %s),"
                " ended_at = CASE WHEN %s THEN now() END WHERE worker_id = %s",
                [seconds, ended, self.worker_id],
            )

    def close(self) -> None:
        """End the lease at once, so that what was left claimed is free."""
        if not self._stop.is_set():
            self._stop.set()
            self._thread.join()
            with contextlib.suppress(WorkbenchError):
                self._set_lease(-1, ended=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
