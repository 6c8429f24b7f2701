"""The small process above the embedded Temporal server: it starts the program, starts it again when it dies, and stops
it when nobody owns it any more.

This file is both imported by its neighbours and run by path, with the standard library and `workbench.processes`
only. It exists because an owner killed with SIGKILL runs no exit handler, and because a sweep that runs must heal
without anybody asking. The kernel kills the program when this process is killed.

What lies in the folder `temporal` of a home:

    lock           flock: whoever starts, stops or changes owners holds it
    server.lock    flock handed from the starter to this process and on to the program: free means that none is left
    owners/        one file an owner, `<pid>-<start time>-<number>`; a recycled pid has another start time
    program        `<pid>-<start time>` of the program
    state.json     this process and the port; the port stays when the server has ended
    server.log     all that the program said, and how it ended
    temporal.db    the database (SQLite)
    made           the server has answered on this database: it is whole
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

if __name__ == "__main__":  # run by path: the package is found from here, behind the standard library
    sys.path.append(str(Path(__file__).resolve().parents[3]))

from workbench.processes import die_with_parent, identity, is_living, living_owners, locked, send

DATABASE = "temporal.db"  # no path: the program takes it for a part of a URI, where ?, # and % mean something
POLL, GRACE = 0.1, 2.0  # seconds
STOP_PATIENCE = 10.0  # seconds between asking the program to end and killing it
ATTEMPTS, WINDOW = 5, 60.0  # deaths within so many seconds after which it is not started again
_FIRST_PAUSE = 0.1  # seconds before the second start; doubled for each that follows


@dataclass(frozen=True)
class State:
    """What runs in a folder, as `state.json` has it."""

    watcher: str
    """`<pid>-<start time>`; empty when the server was ended because nobody owned it."""
    port: int

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"


def read_state(folder: Path) -> State | None:
    """What somebody wrote about the server in this folder; None if it makes no sense."""
    with contextlib.suppress(OSError, ValueError):
        match json.loads((folder / "state.json").read_bytes()):
            case {"watcher": str(watcher), "port": int(port)} if 0 < port < 2**16:
                return State(watcher, port)
    return None


def write_state(folder: Path, state: State) -> None:
    """Put a state in the place of the last one; the caller holds the lock."""
    draft = folder / "state.new"
    draft.write_text(json.dumps(asdict(state)))
    draft.replace(folder / "state.json")


def read_program(folder: Path) -> str:
    """`<pid>-<start time>` of the program that was started last; "" if it is not known."""
    with contextlib.suppress(OSError, ValueError):
        return (folder / "program").read_text()
    return ""


def running(folder: Path) -> State | None:
    """The state of a server whose watcher lives."""
    state = read_state(folder)
    return state if state and is_living(state.watcher) else None


def end(watcher: str) -> None:
    """End a watcher with its program, and wait until it is gone; the caller holds the lock."""
    for number, patience in ((signal.SIGTERM, STOP_PATIENCE + 5), (signal.SIGKILL, 2.0)):
        deadline = time.monotonic() + patience
        if is_living(watcher):
            send(int(watcher.partition("-")[0]), number)
        while is_living(watcher) and time.monotonic() < deadline:
            time.sleep(0.02)


class Watcher:
    """Looks after one program for as long as somebody owns it; `held` is a descriptor with the lock on server.lock."""

    def __init__(self, folder: Path, held: int, command: list[str]) -> None:
        self.folder, self.held, self.command = folder, held, command
        self.me = identity(os.getpid())
        self._asked_to_stop = False
        self._lonely_since: float | None = None

    def run(self) -> None:
        with locked(self.folder / "lock"):  # the starter holds it until our name is written, or died before that
            if not self._is_ours():
                return
        signal.signal(signal.SIGTERM, self._on_term)
        program, deaths = self._start(), list[float]()
        while not self._asked_to_stop and self._is_ours():
            if self._is_unwanted() and self._end_unwanted(program):
                return
            if program.poll() is not None:
                deaths = [at for at in deaths if time.monotonic() - at < WINDOW] + [time.monotonic()]
                self._say(f"the server ended with exit code {program.returncode}")
                if len(deaths) == ATTEMPTS:
                    self._say(f"given up: it ended {ATTEMPTS} times within {WINDOW:.0f} seconds")
                    return
                time.sleep(_FIRST_PAUSE * 2 ** (len(deaths) - 1))
                program = self._start()
            time.sleep(POLL)
        # In a folder that was removed or is another's by now, nothing may be written any more.
        _end_program(program, STOP_PATIENCE if self._is_ours() else 0.0)

    def _is_ours(self) -> bool:
        state = read_state(self.folder)
        return state is not None and state.watcher == self.me

    def _on_term(self, *_: object) -> None:
        self._asked_to_stop = True

    def _start(self) -> subprocess.Popen[bytes]:
        self._remove_half_made()
        parent = os.getpid()
        program = subprocess.Popen(  # with a preexec_fn, which is safe: this process has one thread
            self.command,
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
            pass_fds=[self.held],
            start_new_session=True,
            preexec_fn=lambda: die_with_parent(parent),
        )
        with contextlib.suppress(OSError):  # a full disk: the kernel ends the program with us without it, on Linux
            (self.folder / "program").write_text(identity(program.pid) or "")
        return program

    def _remove_half_made(self) -> None:
        """Remove what a program left that was killed while it made the database: it never finishes one."""
        made, database = self.folder / "made", self.folder / DATABASE
        if not (made.exists() and database.exists()):
            made.unlink(missing_ok=True)
            for file in (database, *(self.folder / f"{DATABASE}-{part}" for part in ("journal", "wal", "shm"))):
                file.unlink(missing_ok=True)

    def _is_unwanted(self) -> bool:
        """Whether nobody has owned the server for `GRACE` seconds."""
        if living_owners(self.folder / "owners"):
            self._lonely_since = None
        elif self._lonely_since is None:
            self._lonely_since = time.monotonic()
        return self._lonely_since is not None and time.monotonic() - self._lonely_since >= GRACE

    def _end_unwanted(self, program: subprocess.Popen[bytes]) -> bool:
        """End the program unless an owner has come meanwhile: under the lock, so that none can come while it ends."""
        # Not for long: whoever holds the lock may be waiting for us to end.
        with contextlib.suppress(OSError), locked(self.folder / "lock", 0.5):
            if not living_owners(self.folder / "owners"):
                _end_program(program, STOP_PATIENCE)
                with contextlib.suppress(OSError):  # the next starter must not wait for a server of ours
                    if (state := read_state(self.folder)) is not None:
                        write_state(self.folder, State("", state.port))
                return True
        return False

    def _say(self, what: str) -> None:
        with contextlib.suppress(OSError):  # the log's disk is full: perhaps what ended the program
            sys.stderr.write(f"watcher: {what}\n")
            sys.stderr.flush()


def _end_program(program: subprocess.Popen[bytes], patience: float) -> None:
    if patience and program.poll() is None:
        program.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            program.wait(patience)
    program.kill()
    program.wait()


if __name__ == "__main__":
    Watcher(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]).run()
