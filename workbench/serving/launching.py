"""One server's way from a spec to a ready process, and the words for what goes wrong on it.

Callers hold the home's lock where a function starts or ends something.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import secrets
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import psutil

from workbench.errors import ModelError
from workbench.processes import identity, is_living, send
from workbench.serving import supervisor
from workbench.serving.spec import ServerSpec
from workbench.serving.supervisor import State
from workbench.serving.vllm import Program

VARIABLE = "WORKBENCH_SERVING_HOME"
_END_PATIENCE = supervisor.STOP_PATIENCE + 10
_LOG_READ = 256 * 2**10  # bytes from its end; an engine's failure fills pages with tracebacks
_ADDRESS_TAKEN = re.compile(r"address already in use", re.I)


class StartAgain(Exception):
    """Another start may do: somebody else listens on the port that was chosen, or the server was killed."""

    def __init__(self, error: ModelError) -> None:
        self.error = error


# --- the home ------------------------------------------------------------------------------------


def default_home() -> Path:
    """The folder of this person's servers: the same for every process, whatever its environment.

    /tmp, not $XDG_RUNTIME_DIR or $TMPDIR: a notebook server and a terminal that differ in these must share.
    """
    if given := os.environ.get(VARIABLE):
        return Path(given).expanduser().absolute()
    return Path("/tmp") / f"rag-workbench-{os.getuid()}" / "serving"  # noqa: S108  (checked for its owner before use)


def prepare_home(home: Path) -> None:
    """Make the home if need be; a folder that others can look into or own is refused.

    Raises:
        ModelError: it is refused, or cannot be made.
    """
    with place_named(home):
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
        for folder in (home, *([home.parent] if home == default_home() and VARIABLE not in os.environ else [])):
            found = folder.lstat()
            if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
                raise ModelError(
                    "the folder for model servers belongs to someone else",
                    where=str(folder),
                    hint=f"remove it, or set {VARIABLE} to another",
                )
            if found.st_mode & 0o077 and folder != home.parent:
                raise ModelError(
                    "the folder for model servers holds keys, and others can look into it",
                    where=str(folder),
                    hint=f"chmod 700 it, or set {VARIABLE} to another",
                )


@contextlib.contextmanager
def place_named(home: Path) -> Iterator[None]:
    """Turn the operating system's refusals into errors that name the folder and the next step."""
    try:
        yield
    except TimeoutError as error:
        raise ModelError(f"the model servers cannot be reached: {error}", where=str(home / "lock")) from error
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        raise ModelError(
            f"model servers cannot use this folder: {error.strerror or error}",
            where=str(error.filename or home),
            hint="free some space there" if full else f"make it writable, or set {VARIABLE} to another",
        ) from error


# --- start and end -------------------------------------------------------------------------------


def launch(folder: Path, spec: ServerSpec, program: Program, *, idle_seconds: float, grace_seconds: float) -> State:
    """Start a supervisor with its program; the state that describes them."""
    supervisor.clear(folder, keep=("owners", "keep"))
    run = folder / "run"
    run.mkdir(mode=0o700)
    key = secrets.token_urlsafe(32)
    with supervisor.reserve_port() as held:
        port = held.getsockname()[1]
        flags = ["-I", "-S"] if sys.platform == "linux" else ["-I"]  # elsewhere it needs psutil, so site-packages
        words = [sys.executable, *flags, supervisor.__file__, str(folder), *program.command(spec, port)]
        pid = _detach(words, program.environment(spec, key, run), folder / "server.log", [held.fileno()])
    state = State(
        supervisor=identity(pid) or f"{pid}-gone",
        port=port,
        api_key=key,
        since=time.time(),
        idle_seconds=idle_seconds,
        grace_seconds=grace_seconds,
        need=asdict(program.need(spec)),
        spec=asdict(spec),
    )
    draft = folder / "state.new"
    draft.touch(mode=0o600)
    draft.write_text(json.dumps(asdict(state)))
    draft.replace(folder / "state.json")
    return state


def _detach(command: Sequence[str], environment: Mapping[str, str], log: Path, keep: Sequence[int]) -> int:
    """Start a process that is nobody's child but init's, in a session of its own; its pid.

    A shell between us and it: were it our child, it would stay a zombie when killed.
    """
    log.touch(mode=0o600)
    with log.open("ab") as output:
        done = subprocess.run(
            ["/bin/sh", "-c", '"$@" >&2 & echo $!', "sh", *command],
            env=environment,
            cwd="/",
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=output,
            pass_fds=keep,
            start_new_session=True,
            check=True,
        )
    return int(done.stdout)


def end(folder: Path, state: State) -> None:
    """End a server and wait until its last process is gone; its owners' files stay."""
    record = state.supervisor
    for number, patience in ((signal.SIGTERM, _END_PATIENCE), (signal.SIGKILL, 2.0)):
        deadline = time.monotonic() + patience
        if is_living(record):
            send(int(record.partition("-")[0]), number)
        while is_living(record) and time.monotonic() < deadline:
            time.sleep(0.02)
    if folder.is_dir():  # a supervisor that was killed cleared nothing
        supervisor.clear(folder)


# --- what runs -----------------------------------------------------------------------------------


def is_ready(folder: Path, state: State) -> bool:
    """Whether this very server, not one before it in the folder, has answered."""
    try:
        return (folder / "ready").read_text() == state.supervisor
    except (OSError, ValueError):
        return False


def mark_ready(folder: Path, state: State) -> None:
    with contextlib.suppress(OSError):  # the server was stopped in this moment: its next user sees that
        draft = folder / f"ready.{os.getpid()}-{secrets.token_hex(4)}"
        draft.write_text(state.supervisor)
        draft.replace(folder / "ready")
        (folder / "used").touch(mode=0o600)


def resident(state: State) -> int:
    """Resident memory of a server's processes in bytes."""
    total = 0
    with contextlib.suppress(psutil.NoSuchProcess):
        top = psutil.Process(int(state.supervisor.partition("-")[0]))
        for process in (top, *top.children(recursive=True)):
            with contextlib.suppress(psutil.NoSuchProcess):
                total += process.memory_info().rss
    return total


def read_log(folder: Path, state: State) -> str:
    """The end of what a server said, without its key."""
    with contextlib.suppress(OSError), (folder / "server.log").open("rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - _LOG_READ))
        return file.read().decode(errors="replace").replace(state.api_key, "***")
    return ""


def keep_log(folder: Path, state: State) -> Path:
    """Put a copy of the log where no later start removes it; one a server."""
    kept = folder.parent / "logs" / f"{folder.name}.log"
    kept.parent.mkdir(mode=0o700, exist_ok=True)
    kept.write_text(read_log(folder, state))
    return kept


def failure(folder: Path, state: State, spec: ServerSpec, program: Program) -> Exception:
    """Why a server is gone that was starting."""
    log = read_log(folder, state)
    # Whoever stops a server clears its folder, and a program that ends leaves its code: here both were killed.
    killed = supervisor.read_state(folder) == state and not (folder / "exit.json").exists()
    if killed or (not log and not (folder / "exit.json").exists()):
        word = "killed" if killed else "stopped"
        error = ModelError(
            f"the server of {spec.served_name!r} was {word} while it started", where=str(folder), hint="ask again"
        )
        return StartAgain(error) if killed else error
    try:
        code = json.loads((folder / "exit.json").read_bytes())["code"]
    except (OSError, ValueError, KeyError):
        code = None
    what, hint = program.failure(log, code)
    with place_named(folder):
        where = str(keep_log(folder, state))
    error = ModelError(f"no server of {spec.served_name!r}: {what}", where=where, hint=hint)
    return StartAgain(error) if _ADDRESS_TAKEN.search(log) else error
