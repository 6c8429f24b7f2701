"""Who owns the embedded server, and the small process that stops it when nobody does.

This file is both imported by its neighbours and run by path as the watcher, so it uses the standard library and
`workbench.processes` only: the watcher starts in milliseconds and holds a few megabytes. It exists because an owner
killed with SIGKILL runs no exit handler, and a server that nobody owns must not outlive its last owner.

What lies in the home folder:

    lock             flock: whoever starts, stops or changes owners holds it
    server.lock      flock inherited by every server process: free means that not one of them is left
    owners/          one file an owner, `<pid>-<start time>-<number>`; a recycled pid has another start time
    watcher          `<pid>-<start time>` of the watcher
    postgres/        the data folder
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import signal
import sys
import time
from collections.abc import Iterable
from contextlib import AbstractContextManager
from pathlib import Path

if __name__ == "__main__":  # run by path: the package is found from here, behind the standard library
    sys.path.append(str(Path(__file__).resolve().parents[2]))

from workbench import processes
from workbench.processes import LINUX, command, pids, send
from workbench.processes import identity as identity
from workbench.processes import is_living as is_living

PORT = 5432
POLL, GRACE = 0.5, 2.0
SOCKET_PATH_LIMIT = 100  # bytes; Linux allows 107, macOS 103


def living_owners(home: Path) -> int:
    """How many owners are alive; the files of dead ones are removed."""
    return len(processes.living_owners(home / "owners"))


def locked(home: Path, patience: float = float("inf")) -> AbstractContextManager[None]:
    """Hold the home folder's lock; TimeoutError after `patience` seconds."""
    return processes.locked(home / "lock", patience)


def try_server_lock(home: Path) -> int | None:
    """A descriptor that holds server.lock, or None while any server process (or leftover backend) lives."""
    return processes.try_lock(home / "server.lock")


def socket_folder(data: Path) -> Path:
    """Where the socket lies: the data folder, or a short folder keyed by it when the path is too long to be one.

    /tmp and not $TMPDIR: processes with different environments must find the same place.
    """
    name = os.fsencode(data / f".s.PGSQL.{PORT}")
    if len(name) <= SOCKET_PATH_LIMIT and not set(b"\",'\n\t\\") & set(name):  # libpq and postgres read lists
        return data
    key = hashlib.sha256(os.fsencode(data)).hexdigest()[:16]
    return Path("/tmp") / f"rag-workbench-{os.getuid()}-{key}"  # noqa: S108  (checked for its owner before use)


def postmaster(home: Path) -> int | None:
    """The pid of the living postmaster of this data folder; never that of a stranger with a recycled pid."""
    data = home / "postgres"
    try:
        pid = int((data / "postmaster.pid").read_text().split("\n", 1)[0])
    except (OSError, ValueError):
        return None
    return pid if identity(pid) and _working_folder(pid) == str(data) else None


def server_processes(home: Path) -> list[int]:
    """Every living process of this server, found by its working folder: the data folder."""
    data = str(home / "postgres")
    return [pid for pid in pids() if _working_folder(pid) == data and _is_postgres(command(pid))]


def displaced_servers(home: Path) -> list[int]:
    """Postmasters that were started for this data folder and lost it: it was deleted or moved under them.

    They must be gone before a new data folder is made in its place: they write pg_control by its full path, so one
    of their checkpoints makes the new folder unreadable.
    """
    commands = ((pid, command(pid)) for pid in pids())
    return [pid for pid, words in commands if words[1:3] == ["-D", str(home / "postgres")] and _is_postgres(words)]


def _is_postgres(words: list[str]) -> bool:
    return bool(words) and (words[0].endswith("/postgres") or words[0].startswith("postgres:"))


def _working_folder(pid: int) -> str | None:
    if LINUX:
        try:
            return str(Path(f"/proc/{pid}/cwd").readlink())
        except OSError:
            return None
    import psutil

    try:
        return str(psutil.Process(pid).cwd())
    except psutil.Error:
        return None


def end_orphaned_backends(home: Path) -> None:
    """Kill backends that outlive their postmaster: they keep the shared memory, and with it the next start, waiting.

    They are lost already (crash recovery undoes their work); a busy one can take minutes to notice.
    """
    if postmaster(home) is None:
        for pid in server_processes(home):
            send(pid, signal.SIGKILL)


def end_displaced(servers: Iterable[int | str]) -> None:
    """End servers without a last checkpoint: it would be written into what lies in their folder's place by now."""
    records = {server if isinstance(server, str) else identity(server) or "" for server in servers}
    for number, patience in ((signal.SIGQUIT, 15), (signal.SIGKILL, 2)):
        deadline = time.monotonic() + patience
        for record in filter(is_living, records):
            send(int(record.partition("-")[0]), number)
        while any(map(is_living, records)) and time.monotonic() < deadline:
            time.sleep(0.02)


def stop(home: Path) -> bool:
    """Stop the server (fast, then ever harder), wait for its last process, remove its leftovers; the caller holds the
    lock. False if it would not stop."""
    begun, asked = time.monotonic(), -1.0
    while (fd := try_server_lock(home)) is None:
        now = time.monotonic()
        waited = now - begun
        if waited > 75:
            return False
        if now - asked > 1.0 and (pid := postmaster(home)) is not None:
            send(pid, signal.SIGINT if waited < 45 else signal.SIGQUIT if waited < 60 else signal.SIGKILL)
            asked = now
        elif waited > 1:
            end_orphaned_backends(home)
        time.sleep(0.02)
    try:
        if postmaster(home) is None:  # one that somebody started by hand is not ours to tidy
            crashed = (home / "postgres" / "postmaster.pid").exists()
            tidy(home)
            if crashed:
                _recover(home, fd)
    finally:
        os.close(fd)
    return True


def _recover(home: Path, fd: int) -> None:
    """Have postgres itself clear up after a crash, as a start would: nobody may come to start it again.

    It alone knows the names of the shared memory that a killed postmaster left in /dev/shm.
    """
    import subprocess

    data, root = home / "postgres", os.geteuid() == 0
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        program, owner = (data / "postmaster.opts").read_text().partition(' "-D" ')[0], data.stat()
        subprocess.run(
            [program, "--single", "-D", str(data), "postgres"],
            cwd="/",
            user=owner.st_uid if root else None,
            group=owner.st_gid if root else None,
            extra_groups=[] if root else None,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            pass_fds=[fd],
            timeout=60,
            check=False,
        )


def tidy(home: Path) -> None:
    """Remove what a killed server leaves; the caller holds server.lock, so none of its processes lives.

    postgres itself would take a postmaster.pid whose process is an unreaped zombie for a running server.
    """
    data = home / "postgres"
    folder = socket_folder(data)
    (data / "postmaster.pid").unlink(missing_ok=True)
    for name in (f".s.PGSQL.{PORT}", f".s.PGSQL.{PORT}.lock"):
        (folder / name).unlink(missing_ok=True)
    if folder != data:
        with contextlib.suppress(OSError):
            folder.rmdir()


def read_watcher(home: Path) -> str:
    try:
        return (home / "watcher").read_text()
    except (OSError, ValueError):
        return ""


def dismiss_watcher(home: Path) -> None:
    """End the watcher of a server that is stopped; the caller holds the lock."""
    record = read_watcher(home)
    deadline = time.monotonic() + 1
    if is_living(record):
        send(int(record.partition("-")[0]), signal.SIGTERM)
    while is_living(record) and time.monotonic() < deadline:
        time.sleep(0.001)
    (home / "watcher").unlink(missing_ok=True)


def watch(home: Path) -> None:
    """Stop the server GRACE seconds after its last owner is gone, then return.

    Returns too when another watcher has taken over. When the home folder was deleted, moved or replaced, the server
    is ended by the pid remembered from before.
    """
    me, server, lonely_since = identity(os.getpid()) or "", "", None
    while True:
        try:
            if read_watcher(home) != me:
                with locked(home):  # its starter holds it until our name is written, or died before that
                    if (record := read_watcher(home)) != me and is_living(record):
                        if str(postmaster(home)) != server.partition("-")[0]:  # the folder was replaced
                            end_displaced([server])
                        return
                    (home / "watcher").write_text(me)
            if (pid := postmaster(home)) is not None:
                server = identity(pid) or ""
            if living_owners(home):
                lonely_since = None
            elif lonely_since is None:
                lonely_since = time.monotonic()
            elif time.monotonic() - lonely_since >= GRACE:
                with locked(home):
                    if not living_owners(home) and stop(home):
                        end_displaced([server])
                        (home / "watcher").unlink(missing_ok=True)
                        return
        except OSError:
            if not (home / "postgres").is_dir() and not (home / "lock").exists():
                end_displaced([server])
                if (folder := socket_folder(home / "postgres")) != home / "postgres":
                    shutil.rmtree(folder, ignore_errors=True)
                return
        time.sleep(POLL)


if __name__ == "__main__":
    watch(Path(sys.argv[1]))
