"""This process as the database sees it: a row whose lease is renewed while the process lives."""

from __future__ import annotations

import contextlib
import os
import platform
import threading
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from psycopg.types.json import Jsonb

from workbench.errors import WorkbenchError
from workbench.processes import identity, is_living
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
                "INSERT INTO worker (host, pid, machine, process, environment_id, lease_until)"
                " SELECT %s, %s, %s, %s, environment_id, now() + make_interval(secs => %s) FROM environment"
                " WHERE fingerprint = %s RETURNING worker_id, environment_id",
                [platform.node(), os.getpid(), machine(), identity(os.getpid()), lease_seconds, key],
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

    def bury(self) -> int:
        """End the leases of processes of this machine that are gone; returns how many.

        A killed process says nothing, but its neighbours can see that it is gone and need not wait.
        """
        with self._database.transaction() as connection:
            rows = connection.execute(
                "SELECT worker_id, process FROM worker"
                " WHERE machine = %s AND machine <> '' AND ended_at IS NULL AND lease_until > now()"
                " AND worker_id <> %s",
                [machine(), self.worker_id],
            ).fetchall()
            gone = [worker_id for worker_id, process in rows if not is_living(process)]
            if gone:
                connection.execute(
                    "UPDATE worker SET lease_until = now() - interval '1 millisecond', ended_at = now()"
                    " WHERE worker_id = ANY(%s)",
                    [gone],
                )
        return len(gone)

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


@cache
def machine() -> str:
    """One boot of one kernel and its process numbers, where that can be told; else "", which is nobody's neighbour."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot}/{os.readlink('/proc/self/ns/pid')}"  # noqa: PTH115  a link to no path
    except OSError:
        return ""
