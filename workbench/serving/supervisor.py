"""The small process above a model server: it starts the program, stops it when nobody wants it, and clears up.

This file is both imported by its neighbours and run by path, with the standard library and `workbench.processes`
only. It exists because an owner killed with SIGKILL runs no exit handler, and because somebody must be there to say
how a program ended. The kernel kills the program when this process is killed.

What lies in the folder of one server (in the home of all servers, beside their common `lock`):

    owners/       one file an owner, `<pid>-<start time>-<number>`
    keep          an owner without a process: only idleness or a person ends the server
    state.json    what runs: this process, the port, the key; written by whoever started it
    ready         made when the server first answered
    used          its modification time is the last use
    exit.json     how the program ended, when it ended by itself
    server.log    all that the program said
    run/          temporary files and caches of the program
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # run by path: the package is found from here, behind the standard library
    sys.path.append(str(Path(__file__).resolve().parents[2]))

from workbench import processes
from workbench.processes import identity, is_living, living_owners, locked, send

POLL = 0.2  # seconds
STOP_PATIENCE = 10.0  # seconds between asking the program to end and killing it
_TRACKER_PATIENCE = 3.0


@dataclass(frozen=True)
class State:
    """What runs in a folder, as `state.json` has it."""

    supervisor: str
    """`<pid>-<start time>`; another start, another supervisor."""
    port: int
    api_key: str = field(repr=False)
    since: float
    """Seconds since the epoch."""
    idle_seconds: float
    grace_seconds: float
    need: dict[str, Any]
    spec: dict[str, Any]


def read_state(folder: Path) -> State | None:
    """What somebody wrote about the server in this folder."""
    try:
        return State(**json.loads((folder / "state.json").read_bytes()))
    except (OSError, ValueError, TypeError):
        return None


def running(folder: Path) -> State | None:
    """The state of a server whose supervisor lives."""
    state = read_state(folder)
    return state if state and is_living(state.supervisor) else None


def wanted(folder: Path) -> bool:
    """Whether anybody owns the server."""
    return (folder / "keep").exists() or bool(living_owners(folder / "owners"))


def ask(port: int, path: str, patience: float = 5.0) -> tuple[int, str] | None:
    """Status and body of a GET; None from a server that is too busy to answer in time.

    Raises:
        OSError: nobody listens, or the connection broke.
    """
    import http.client

    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=patience)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        return response.status, response.read().decode(errors="replace")
    except TimeoutError:
        return None
    except http.client.HTTPException as error:
        raise ConnectionError(str(error)) from error
    finally:
        connection.close()


def activity(port: int) -> tuple[bool, str]:
    """Whether requests run or wait, and all counters of the server: two equal texts, and nothing happened between.

    A server too busy to answer is busy; one without metrics never is.
    """
    try:
        answer = ask(port, "/metrics")
    except OSError:
        return False, ""
    if answer is None:
        return True, ""
    counters = [line for line in answer[1].splitlines() if line.startswith("vllm:")]
    gauges = ("vllm:num_requests_running{", "vllm:num_requests_waiting{")
    return any(float(line.split()[-1]) > 0 for line in counters if line.startswith(gauges)), "\n".join(counters)


def clear(folder: Path, keep: tuple[str, ...] = ("owners",)) -> None:
    """Remove all traces of a server that has ended, and the folder itself unless owners are still there."""
    for entry in folder.iterdir():
        if entry.name in keep:
            continue
        if entry.is_dir():
            shutil.rmtree(entry, ignore_errors=True)
        else:
            entry.unlink(missing_ok=True)
    if not living_owners(folder / "owners"):
        shutil.rmtree(folder, ignore_errors=True)


class Supervisor:
    """Looks after one program, from its start to the removal of its last process and file."""

    def __init__(self, folder: Path, command: list[str]) -> None:
        self.folder, self.command = folder, command
        self.lock = folder.parent / "lock"
        self.me = identity(os.getpid())
        self._asked_to_stop = False
        self._lonely_since: float | None = None
        self._last_use, self._last_stamp = time.monotonic(), 0
        self._last_look, self._counters = 0.0, ""

    def run(self) -> None:
        with locked(self.lock):  # the starter holds it until our name is written, or died before that
            state = read_state(self.folder)
            if state is None or state.supervisor != self.me:
                return
        signal.signal(signal.SIGTERM, self._on_term)
        processes.adopt_orphans()
        program = self._start()
        while not (died := program.poll() is not None):
            if self._asked_to_stop or not self._is_ours():
                break
            with contextlib.suppress(TimeoutError):
                if self._is_unwanted(state):
                    # Not for long: whoever holds the lock may be waiting for us to end.
                    with locked(self.lock, 0.5):
                        if self._is_unwanted(state):
                            self._end(program)
                            clear(self.folder)
                            return
            time.sleep(POLL)
        self._end(program)
        if not self._is_ours():
            return  # the folder was removed, or is another's by now
        if died:
            shutil.rmtree(self.folder / "run", ignore_errors=True)
            (self.folder / "exit.json").write_text(json.dumps({"code": program.returncode}))
        else:
            clear(self.folder)  # whoever asked holds the lock

    def _is_ours(self) -> bool:
        state = read_state(self.folder)
        return state is not None and state.supervisor == self.me

    def _on_term(self, *_: object) -> None:
        self._asked_to_stop = True

    def _start(self) -> subprocess.Popen[bytes]:
        parent = os.getpid()
        return subprocess.Popen(  # with a preexec_fn, which is safe: this process has one thread
            self.command,
            cwd=self.folder / "run",
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            preexec_fn=lambda: processes.die_with_parent(parent),
        )

    def _is_unwanted(self, state: State) -> bool:
        """Nobody has owned the server for `grace_seconds`, or nobody has used it for `idle_seconds`."""
        now = time.monotonic()
        if wanted(self.folder):
            self._lonely_since = None
        elif self._lonely_since is None:
            self._lonely_since = now
        elif now - self._lonely_since >= state.grace_seconds:
            return True
        return self._is_idle(state, now)

    def _is_idle(self, state: State, now: float) -> bool:
        used = self.folder / "used"
        stamp = used.stat().st_mtime_ns if used.exists() else 0
        if stamp != self._last_stamp or not (self.folder / "ready").exists():
            self._last_use, self._last_stamp = now, stamp
            return False
        idle = now - self._last_use >= state.idle_seconds
        if idle or now - self._last_look >= state.idle_seconds / 10:  # others than owners may use it
            busy, counters = activity(state.port)
            if busy or (self._counters and counters != self._counters):
                used.touch()
                idle = False
            self._last_look, self._counters = now, counters
        return idle

    def _end(self, program: subprocess.Popen[bytes]) -> None:
        """End the program, then all that is left of it."""
        if program.poll() is None:
            program.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                program.wait(STOP_PATIENCE)
        program.kill()
        program.wait()
        if not processes.LINUX:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(program.pid, signal.SIGKILL)
            return
        # Orphans are our children now, level by level. Multiprocessing's resource trackers go last and by
        # themselves: they remove the shared memory that the others left.
        begun = time.monotonic()
        while left := processes.children(os.getpid()):
            for pid in left:
                if time.monotonic() - begun > _TRACKER_PATIENCE or not _is_tracker(pid):
                    send(pid, signal.SIGKILL)
            with contextlib.suppress(ChildProcessError):
                while os.waitpid(-1, os.WNOHANG)[0]:
                    pass
            time.sleep(0.01)


def _is_tracker(pid: int) -> bool:
    return any("resource_tracker" in word for word in processes.command(pid))


def reserve_port() -> socket.socket:
    """A socket that is bound and never listens: nobody else is given its port, and a server that asks to reuse
    addresses (as vLLM does) can listen on it beside us."""
    held = socket.socket()
    held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    held.bind(("127.0.0.1", 0))
    return held


if __name__ == "__main__":
    Supervisor(Path(sys.argv[1]), sys.argv[2:]).run()
