"""Processes told apart for good, the locks between them, and the owners of what they share.

Standard library only, and nothing else of the workbench: the small programs that watch over servers run it without
site-packages (psutil is asked where there is no /proc).
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

if sys.platform != "win32":
    import fcntl

LINUX = sys.platform.startswith("linux")
_KILL_WITH_PARENT, _ADOPT_ORPHANS = 1, 36  # PR_SET_PDEATHSIG and PR_SET_CHILD_SUBREAPER of prctl(2)


def identity(pid: int) -> str | None:
    """`<pid>-<start time>` of a living process; None for one that is gone, or dead and not yet reaped.

    On Linux the start time is in ticks since boot, which a change of the clock does not move.
    """
    if LINUX:
        fields = _stat(pid)
        return None if not fields or fields[0] in (b"Z", b"X") else f"{pid}-{int(fields[19])}"
    import psutil

    try:
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else f"{pid}-{int(process.create_time() * 1000)}"
    except psutil.Error:
        return None


def is_living(record: str) -> bool:
    """Whether `<pid>-<start time>` still names the process it was written for."""
    pid = record.partition("-")[0]
    return pid.isdecimal() and identity(int(pid)) == record


def living_owners(folder: Path) -> list[str]:
    """Names of the owner files, `<pid>-<start time>-<number>`, whose processes live; those of dead ones are removed."""
    found = []
    with contextlib.suppress(FileNotFoundError):
        for file in folder.iterdir():
            if is_living(file.name.rpartition("-")[0]):
                found.append(file.name)
            else:
                file.unlink(missing_ok=True)
    return found


@contextlib.contextmanager
def locked(file: Path, patience: float = float("inf")) -> Iterator[None]:
    """Hold the lock on a file, against other processes and other threads; TimeoutError after `patience` seconds."""
    deadline = time.monotonic() + patience
    while (fd := try_lock(file)) is None:
        if time.monotonic() > deadline:
            raise TimeoutError("another process has held the lock for too long")
        time.sleep(0.02)
    try:
        yield
    finally:
        # A process forked meanwhile has a copy of the descriptor: closing ours alone would not unlock.
        fcntl.flock(fd, fcntl.LOCK_UN)
        os.close(fd)


def try_lock(file: Path) -> int | None:
    """A descriptor that holds the lock on a file, which is made if need be; None while someone else holds it."""
    fd = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.fstat(fd).st_ino == file.stat().st_ino:  # otherwise it was deleted while we opened it
            return fd
    except (BlockingIOError, FileNotFoundError):
        pass
    os.close(fd)
    return None


def send(pid: int, number: int) -> None:
    """Send a signal; a process that is gone already gets none."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def pids() -> list[int]:
    if LINUX:
        return [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdecimal()]
    import psutil

    return psutil.pids()


def children(pid: int) -> list[int]:
    """Child processes, the dead and not yet reaped included (on Linux)."""
    if LINUX:
        return [child for child in pids() if (fields := _stat(child)) and int(fields[1]) == pid]
    import psutil

    try:
        return [child.pid for child in psutil.Process(pid).children()]
    except psutil.Error:
        return []


def command(pid: int) -> list[str]:
    """The words of a process's command line; [] for one that is gone or a zombie."""
    if LINUX:
        try:
            return [os.fsdecode(word) for word in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[:-1]]
        except OSError:
            return []
    import psutil

    try:
        return psutil.Process(pid).cmdline()
    except psutil.Error:
        return []


def die_with_parent(parent: int) -> None:
    """Have the kernel kill this process when the thread that started it ends, however it ends. Linux only.

    `parent` is the process that is meant: when it is gone before we could ask, we end at once.
    """
    if LINUX:
        _prctl(_KILL_WITH_PARENT, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)


def adopt_orphans() -> None:
    """Become the parent of descendants whose own parent dies, so that none is out of sight. Linux only."""
    if LINUX:
        _prctl(_ADOPT_ORPHANS, 1)


def _prctl(option: int, value: int) -> None:
    import ctypes

    ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


def _stat(pid: int) -> list[bytes]:
    """The fields of /proc/PID/stat behind the name, the state first; [] for a process that is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    except OSError:
        return []
