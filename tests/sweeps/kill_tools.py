"""Killing what runs a sweep: drawn processes at drawn moments, or in stages of certain kinds, and what that cost.

`Life` runs one sweep from nothing to done. tools/kill_storm.py is the nightly form.
"""

from __future__ import annotations

import contextlib
import signal
import subprocess
import time
from collections.abc import Collection, Iterable, Iterator, Sequence, Set
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any, Self

import psycopg
from sweep_worlds import DONE, Undisturbed, World, metrics_of, wait_until

from workbench.processes import children, command, identity, is_living, send

TARGETS = {"local": ("runner", "postgres"), "temporal": ("runner", "worker", "temporal", "postgres")}
"""What can be killed, by engine; with real models any process of the language model's server ("vllm") too."""
WITHOUT_ITEMS = frozenset({"index", "score"})
"""Kinds of stages that write their output in one transaction and claim nothing."""
Row = tuple[str, str, str, str]


@dataclass(frozen=True)
class Kill:
    """What was killed, when, and what was on the way then."""

    engine: str
    target: str
    second: float
    """Of the sweep's own running time."""
    aimed: bool
    """At a stage kind; otherwise at a moment that was drawn."""
    kinds: tuple[str, ...]
    """Of the stages that were worked on."""
    on_the_way: int
    """Items that were claimed and unfinished."""
    hit: int
    """Those of them whose process was killed or lost its database: they may be repeated."""
    kept: int
    """Rows that were finished by then."""


@dataclass
class Life:
    """One sweep, run until it is done, its processes killed at `moments` (seconds) and in stages of the kinds `aims`.

    After `run`: the `kills`, the exit codes of its `runs`, the JSON object of the last one (`final`), and the rows that
    were finished before a kill and are not there after it, in their place (`lost`).
    """

    world: World
    file: Path
    engine: str
    draw: Random
    moments: Sequence[float] = ()
    aims: Sequence[str] = ()
    targets: Sequence[str] = ()
    patience: float = 600.0
    kills: list[Kill] = field(default_factory=list)
    runs: list[int] = field(default_factory=list)
    final: dict[str, Any] = field(default_factory=dict)
    lost: set[Row] = field(default_factory=set)
    _finished: set[Row] = field(default_factory=set)
    _bag: list[str] = field(default_factory=list)

    @property
    def hit(self) -> int:
        """Items that were claimed and unfinished at the kills, by processes that these hit."""
        return sum(kill.hit for kill in self.kills)

    def run(self) -> Self:
        """Raises AssertionError when the sweep does not come to its end, or a run ends in a way that it must not."""
        moments, aims = sorted(self.moments), set(self.aims)
        begun = seen = time.monotonic()
        spent = 0.0
        runner = self.world.start_sweep(self.file, self.engine)
        while True:
            now = time.monotonic()
            spent, seen = spent + now - seen, now
            assert now - begun < self.patience, f"not done after {self.kills}:\n{self.world.said(runner)}"
            if (code := runner.poll()) is not None:
                if self._is_done(runner, code):
                    break
                runner, seen = self.world.start_sweep(self.file, self.engine), time.monotonic()
            elif moments and spent >= moments[0]:
                if self._strike(runner, spent):
                    del moments[0]
            elif aims and self._at_work(aims) and self._strike(runner, spent, aims):
                aims -= set(self.kills[-1].kinds)
            time.sleep(0.005)
        with self.world.opened():
            self.lost = self._finished - self.world.finished_rows()
        return self

    def verify(self, undisturbed: Undisturbed | None = None) -> dict[str, int]:
        """Nothing is missing, nothing was touched, no more was repeated than was on the way, no process is left.

        The results are those of an undisturbed run, where that is given. Returns what was counted.

        Raises:
            AssertionError: something of this does not hold.
        """
        world, final = self.world, self.final
        assert not self.lost, (
            f"{len(self.lost)} rows that were finished before a kill are gone: {sorted(self.lost)[:5]}"
        )
        assert (final["state"], final["done"], final["failed"]) == ("done", final["trials"], 0)
        with world.opened():
            repeated, given_back = world.count("SELECT coalesce(sum(repeated), 0) FROM claim"), world.given_back()
            missing = world.count("SELECT count(*) FROM sweep_stage WHERE state NOT IN ('computed', 'reused')")
            unfinished = world.count("SELECT count(*) FROM stage WHERE state <> 'done'")
            outputs = world.outputs()
        logged = world.logged()
        counted = {
            "kills": len(self.kills),
            "runs": len(self.runs),
            "rows": max((kill.kept for kill in self.kills), default=0),
            "on_the_way": sum(kill.on_the_way for kill in self.kills),
            "hit": self.hit,
            "given_back": given_back,
            "repeated": repeated,
            "calls": len(logged),
            "calls_twice": sum(logged.values()) - len(logged),
        }
        assert (missing, unfinished) == (0, 0)
        assert repeated <= self.hit + given_back, counted
        assert counted["calls_twice"] <= self.hit + given_back, counted
        if undisturbed is not None:
            assert outputs == undisturbed.outputs
            assert logged.keys() == undisturbed.logged.keys()
            assert metrics_of(final) == metrics_of(undisturbed.body)
        world.wait_until_gone()
        return counted

    def _is_done(self, runner: subprocess.Popen[str], code: int) -> bool:
        self.runs.append(code)
        body = self.world.body(runner)
        # A crash of its services ends a run with one clear message; a stage that was hit again and again says so.
        excused = code == -signal.SIGKILL or (code == 2 and body["error"]["kind"] in ("DatabaseError", "ServiceError"))
        excused |= code == 1 and all("times in a row" in error for error in body.get("errors", {"": ""}).values())
        # A model's server that is killed while it starts fails the stage that asked.
        excused |= code == 1 and any(kill.target == "vllm" for kill in self.kills)
        assert code == DONE or excused, f"exit code {code}:\n{self.world.said(runner)}"
        assert len(self.runs) <= 3 * len(self.kills) + 3, f"runs that end unkilled: {self.runs}"
        self.final = body
        return code == DONE

    def _at_work(self, aims: Set[str]) -> bool:
        with contextlib.suppress(psycopg.OperationalError, psycopg.errors.UndefinedTable):
            return not aims.isdisjoint(kind for (kind,) in self.world.rows(_OPEN))
        return False

    def _strike(self, runner: subprocess.Popen[str], second: float, aims: Set[str] = frozenset()) -> bool:
        """Kill a drawn target; with aims only while a stage of one of these kinds is worked on, items on the way.

        The sweep's processes are frozen for the moment before, so that what they have on the way is counted exactly.
        """
        if not self._bag:  # each as often as the others, in an order that the seed gives
            targets = self.targets or TARGETS[self.engine]
            self._bag = self.draw.sample(targets, len(targets))
        target = self._bag[-1]
        workers = [pid for pid in children(runner.pid) if "worker" in command(pid)]
        victim = self._victim(target, runner.pid, workers)
        clients = {pid: name for pid in (runner.pid, *workers) if (name := identity(pid))}
        if victim is None:
            return False
        with frozen(clients):
            kinds, held, rows = self._look(clients.values())
            on_the_way = sum(held.values())
            if aims and (aims.isdisjoint(kinds) or not (on_the_way or WITHOUT_ITEMS.issuperset(kinds))):
                return False
            if target == "worker" and aims:
                victim = max(workers, key=lambda pid: held.get(clients.get(pid, ""), 0))
            name = identity(victim)
            send(victim, signal.SIGKILL)
        hit = {"runner": on_the_way, "postgres": on_the_way, "worker": held.get(name or "", 0)}.get(target, 0)
        del self._bag[-1]
        self._finished |= rows
        self.kills.append(Kill(self.engine, target, second, bool(aims), tuple(kinds), on_the_way, hit, len(rows)))
        # A runner's workers end with it, by the kernel's hand.
        gone = [name, *(clients.values() if target == "runner" else ())]
        wait_until(lambda: not any(is_living(one) for one in gone if one))
        return True

    def _victim(self, target: str, runner: int, workers: Sequence[int]) -> int | None:
        """A process to kill; None where there is none now."""
        match target:
            case "runner":
                return runner
            case "postgres":
                return self.world.postmaster()
            case "temporal":
                return self.world.temporal()
        found = workers if target == "worker" else self.world.models()
        return self.draw.choice(found) if found else None

    def _look(self, clients: Collection[str]) -> tuple[list[str], dict[str, int], set[Row]]:
        """What frozen processes are at: stage kinds, items each has claimed and not finished, all rows finished so far.

        While the database is down, or new, nobody has claimed anything that was not counted before.
        """
        world = self.world
        try:
            wait_until(lambda: not world.count(_BUSY))
            held = {name: world.unfinished([name]) for name in clients}
            return world.kinds_at_work(clients), held, world.finished_rows()
        except (psycopg.OperationalError, psycopg.errors.UndefinedTable):
            return [], {}, set()


_OPEN = "SELECT DISTINCT kind FROM attempt WHERE ended_at IS NULL"
_BUSY = (
    "SELECT count(*) FROM pg_stat_activity WHERE state = 'active' AND backend_type = 'client backend'"
    " AND pid <> pg_backend_pid() AND wait_event_type IS DISTINCT FROM 'Lock'"
)
"""Statements that frozen processes had sent; those that wait for a lock of one of them go on waiting."""


@contextlib.contextmanager
def frozen(processes: Iterable[int]) -> Iterator[None]:
    """Stop processes for the time of a block; those that live afterwards go on."""
    stopped = list(processes)
    for pid in stopped:
        send(pid, signal.SIGSTOP)
    try:
        wait_until(lambda: all(_status(pid) in ("T", "Z", "") for pid in stopped))
        yield
    finally:
        for pid in stopped:
            send(pid, signal.SIGCONT)


def _status(pid: int) -> str:
    """One letter, as /proc has it; "" for a process that is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return ""
