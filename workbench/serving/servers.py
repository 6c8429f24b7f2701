"""The model servers of one person on one machine: started on demand, shared by processes, gone when nobody wants them.

    servers = Servers()
    with servers.hold(spec) as lease:
        endpoint = lease.endpoint()                   # of a server that is ready
        endpoint = lease.endpoint(failed=endpoint)    # after it failed: of a fresh one, if it is really dead

Whoever needs a server first starts it; everybody who holds a lease on an equal spec is given the same one. A
`supervisor` process beside each server stops it when its last owner is gone or nobody has used it for long.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType

import psutil

from workbench.errors import ModelError
from workbench.processes import identity, living_owners, locked
from workbench.serving import launching, supervisor
from workbench.serving.spec import Endpoint, Need, ServerSpec
from workbench.serving.supervisor import State
from workbench.serving.vllm import Program, Vllm
from workbench.specs import digest

Progress = Callable[[str, float], None]
"""Called with what is being done and for how many seconds."""

_LOCK_PATIENCE = 120.0  # seconds
_POLL = 0.1
_STARTS = 3
_HEALTH_PATIENCE, _FAILED_PATIENCE = 5.0, 30.0  # a busy server may be slow; one that failed a client is asked longer

_log = logging.getLogger(__name__)
_numbers = itertools.count()


@dataclass(frozen=True)
class Status:
    """A running server, for people to look at."""

    key: str
    model: str
    served_name: str
    dtype: str
    url: str
    pid: int
    """Of its supervisor; the other processes descend from it."""
    since: float
    """Seconds since the epoch."""
    ready: bool
    owners: int
    """Leases held by living processes."""
    kept: bool
    """Whether it stays without an owner until it has been idle for long."""
    idle_seconds: float
    rss_bytes: int
    """Resident memory of all its processes, pages that they share counted in each."""
    log: str


class Servers:
    """All servers whose state lies in one folder (default: `WORKBENCH_SERVING_HOME`, else a private one in /tmp).

    A server ends `grace_seconds` after its last owner, and `idle_seconds` after its last use even with owners.
    `start_seconds` is how long one may take to become ready; `room_seconds`, how long to wait for memory
    that servers of others hold. `program` is what is run; `available` says how many bytes of memory there are.
    """

    def __init__(
        self,
        folder: Path | None = None,
        *,
        program: Program | None = None,
        idle_seconds: float = 900.0,
        grace_seconds: float = 5.0,
        start_seconds: float = 600.0,
        room_seconds: float = 60.0,
        available: Callable[[], int] = lambda: int(psutil.virtual_memory().available),
    ) -> None:
        self.home = folder.expanduser().absolute() if folder else launching.default_home()
        self.program = program or Vllm()
        self.idle_seconds, self.grace_seconds = idle_seconds, grace_seconds
        self.start_seconds, self.room_seconds = start_seconds, room_seconds
        self._available = available

    def hold(self, spec: ServerSpec, progress: Progress | None = None) -> Lease:
        """A lease on the server of a spec. Nothing is started before it is asked for an endpoint.

        Raises:
            ModelError: the package that serves is missing, or the folder cannot be used.
        """
        if sys.platform == "win32":
            raise ModelError("model servers are not started on Windows", hint="set WORKBENCH_LLM_URL to a running one")
        launching.prepare_home(self.home)
        return Lease(self, spec, progress)

    def start(self, spec: ServerSpec, progress: Progress | None = None) -> Status:
        """Start a server that outlives this process, until it is stopped or idle for long; wait until it is ready.

        Raises:
            ModelError: see `Lease.endpoint`.
        """
        with self.hold(spec, progress) as lease:
            lease.endpoint()
            with self.locked():
                (lease.folder / "keep").touch(mode=0o600)
            return next(status for status in self.status() if status.key == lease.key)

    def status(self) -> list[Status]:
        """Every running server, the longest running first."""
        found = ((folder, supervisor.running(folder)) for folder in self.folders())
        return sorted((_status(folder, state) for folder, state in found if state), key=lambda one: one.since)

    def stop(self, key: str | None = None) -> list[str]:
        """Stop the servers whose keys begin so (all by default), whoever owns them; the keys of those that ran.

        Raises:
            ModelError: no server of that key runs.
        """
        stopped = []
        if self.home.is_dir():
            with self.locked():
                for folder in self.folders():
                    if folder.name.startswith(key or "") and (state := supervisor.running(folder)):
                        launching.end(folder, state)
                        stopped.append(folder.name)
                self.sweep()
        if key is not None and not stopped:
            keys = ", ".join(status.key for status in self.status())
            raise ModelError(f"no server {key!r} runs", where=str(self.home), hint=f"running: {keys or 'none'}")
        return stopped

    def folders(self) -> list[Path]:
        """The folders of servers, running or not."""
        return [folder for folder in self.home.glob("*/") if (folder / "owners").is_dir()]

    def sweep(self) -> None:
        """Remove what killed servers left that nobody owns any more; the caller holds the lock."""
        for folder in self.folders():
            if not supervisor.running(folder) and not living_owners(folder / "owners"):
                supervisor.clear(folder)

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the lock under which servers are started and stopped, and owners come and go."""
        with launching.place_named(self.home), locked(self.home / "lock", _LOCK_PATIENCE):
            yield

    def make_room(self, spec: ServerSpec, key: str) -> list[str]:
        """Stop servers that nobody else owns until there is room; else the names of those in the way.

        The caller holds the lock. A server of ours counts as free when it answers nothing at the moment.
        """
        need = self.program.need(spec)
        others = {f: state for f in self.folders() if f.name != key and (state := supervisor.running(f))}
        by_use = sorted(others, key=lambda f: (supervisor.wanted(f), _last_use(f)))
        while not need.fits_beside([Need(**state.need) for state in others.values()], self._room_beside(others)):
            victim = next((f for f in by_use if f in others and _is_free(f, others[f])), None)
            if victim is None:
                return [f"{state.spec['served_name']} ({folder.name})" for folder, state in others.items()]
            launching.end(victim, others.pop(victim))
        return []

    def _room_beside(self, others: dict[Path, State]) -> int:
        """Available memory, less what servers that are still starting will take of it."""
        starting = (state for folder, state in others.items() if not launching.is_ready(folder, state))
        promised = sum(max(0, int(state.need["memory"]) - launching.resident(state)) for state in starting)
        return self._available() - promised


class Lease:
    """A claim on a server that is good for as long as this process lives, or until `close`."""

    def __init__(self, servers: Servers, spec: ServerSpec, progress: Progress | None) -> None:
        self.spec = spec
        self.key = digest({"spec": asdict(spec), **servers.program.identity})[:16]
        self.folder = servers.home / self.key
        self._servers, self._report = servers, progress
        self._pid = os.getpid()
        self._owner = self.folder / "owners" / f"{identity(self._pid)}-{next(_numbers)}"
        self._open = True
        with servers.locked():
            self._register()

    def endpoint(self, failed: Endpoint | None = None) -> Endpoint:
        """Where a ready server answers; started first if there is none, or if it is dead.

        `failed` is an endpoint that did not serve: it comes back when its server turns out to be well.

        Raises:
            ModelError: the server does not start, or not in time, or there is no room for it; with the
                cause from its log and the log's place.
        """
        self._check_open()
        attempt = 0
        while True:
            attempt += 1
            state = supervisor.running(self.folder)
            dead = state if state and not self._is_well(state, failed) else None
            if not state or dead or not self._owner.exists():
                state = self._start(dead)
            try:
                return self._await_ready(state)
            except launching.StartAgain as error:
                if attempt == _STARTS:
                    raise error.error from None

    def touch(self) -> None:
        """Note that the server is in use, so that it does not stop for being idle."""
        with contextlib.suppress(OSError):
            os.utime(self.folder / "used")

    def close(self, *, stop: bool = False) -> None:
        """Let go of the server; with `stop` it ends now if nobody else wants it, instead of after its grace.

        A forked child lets go of nothing.
        """
        if self._open and os.getpid() == self._pid:
            self._open = False
            with contextlib.suppress(ModelError), self._servers.locked():  # the supervisor looks at processes anyway
                self._owner.unlink(missing_ok=True)
                if stop and not supervisor.wanted(self.folder) and (state := supervisor.running(self.folder)):
                    launching.end(self.folder, state)
                self._servers.sweep()

    def __enter__(self) -> Lease:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Lease({self.spec.served_name!r}, {self.key!r})"

    def _progress(self, phase: str, seconds: float) -> None:
        if self._report:
            self._report(phase, seconds)

    def _register(self) -> None:
        for folder in (self.folder, self._owner.parent):
            folder.mkdir(mode=0o700, exist_ok=True)
        self._owner.touch(mode=0o600)

    def _is_current(self, state: State) -> bool:
        current = supervisor.running(self.folder)
        return current is not None and current.supervisor == state.supervisor

    def _is_well(self, state: State, failed: Endpoint | None) -> bool:
        """Whether a server answers, or is still starting: that is waited for elsewhere."""
        if not launching.is_ready(self.folder, state):
            return True
        doubted = failed is not None and failed.key == state.api_key
        try:
            answer = supervisor.ask(state.port, "/health", _FAILED_PATIENCE if doubted else _HEALTH_PATIENCE)
        except OSError:
            return False
        return not doubted if answer is None else answer[0] == 200

    def _start(self, dead: State | None) -> State:
        """Start the server unless somebody else just did; `dead` is one to be replaced."""
        begun, servers = time.monotonic(), self._servers
        launching.prepare_home(servers.home)  # somebody may have removed it
        while True:
            with servers.locked():
                self._check_open()  # another thread may have closed it while this one waited
                self._register()
                state = supervisor.running(self.folder)
                if state and state != dead:
                    return state
                if old := supervisor.read_state(self.folder):
                    log = launching.keep_log(self.folder, old)
                    _log.warning("the server of %r died and is started again; its log: %s", self.spec.served_name, log)
                    kept = (self.folder / "keep").exists()
                    launching.end(self.folder, old)
                    if kept:
                        (self.folder / "keep").touch(mode=0o600)
                in_the_way = servers.make_room(self.spec, self.key)
                if not in_the_way:
                    servers.sweep()
                    return launching.launch(
                        self.folder,
                        self.spec,
                        servers.program,
                        idle_seconds=servers.idle_seconds,
                        grace_seconds=servers.grace_seconds,
                    )
            waited = time.monotonic() - begun
            if waited >= servers.room_seconds:
                raise ModelError(
                    f"no room for a server of {self.spec.served_name!r} beside others in use: {', '.join(in_the_way)}",
                    where=str(servers.home),
                    hint="wait for that work to end, or stop it with `workbench serve stop`",
                )
            self._progress("waiting for memory", waited)
            time.sleep(_POLL)

    def _check_open(self) -> None:
        if not self._open:
            raise ModelError("this lease on a model server is closed", where=self.spec.served_name)

    def _await_ready(self, state: State) -> Endpoint:
        while not launching.is_ready(self.folder, state):
            self._check_open()
            if not self._is_current(state):
                raise launching.failure(self.folder, state, self.spec, self._servers.program)
            with contextlib.suppress(OSError):
                if (answer := supervisor.ask(state.port, "/health")) and answer[0] == 200:
                    launching.mark_ready(self.folder, state)
                    break
            seconds = time.time() - state.since
            phase = self._servers.program.phase(launching.read_log(self.folder, state))
            if seconds > self._servers.start_seconds:
                self._give_up(state, f"not ready after {seconds:.0f} seconds ({phase})")
            self._progress(phase, seconds)
            time.sleep(_POLL)
        self.touch()
        return Endpoint(f"http://127.0.0.1:{state.port}", state.api_key)

    def _give_up(self, state: State, why: str) -> None:
        log = launching.keep_log(self.folder, state)
        with self._servers.locked():
            if not launching.is_ready(self.folder, state):
                if self._is_current(state):
                    launching.end(self.folder, state)
                raise ModelError(
                    f"the server of {self.spec.served_name!r} is {why}", where=str(log), hint="see its log"
                )


def _status(folder: Path, state: State) -> Status:
    spec = state.spec
    return Status(
        key=folder.name,
        model=spec["source"],
        served_name=spec["served_name"],
        dtype=spec["dtype"],
        url=f"http://127.0.0.1:{state.port}",
        pid=int(state.supervisor.partition("-")[0]),
        since=state.since,
        ready=launching.is_ready(folder, state),
        owners=len(living_owners(folder / "owners")),
        kept=(folder / "keep").exists(),
        idle_seconds=max(0.0, time.time() - (_last_use(folder) or state.since)),
        rss_bytes=launching.resident(state),
        log=str(folder / "server.log"),
    )


def _last_use(folder: Path) -> float:
    with contextlib.suppress(OSError):
        return (folder / "used").stat().st_mtime
    return 0.0


def _is_free(folder: Path, state: State) -> bool:
    """Whether a server may be stopped for another: nobody owns it, or only this process, for which it does nothing."""
    if (folder / "keep").exists():
        return False
    owners = living_owners(folder / "owners")
    mine = f"{identity(os.getpid())}-"
    if not all(owner.startswith(mine) for owner in owners):
        return False
    return not owners or (launching.is_ready(folder, state) and not supervisor.activity(state.port)[0])
