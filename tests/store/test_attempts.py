"""Every attempt at a stage is kept; dead processes are buried; several share a stage and do nothing twice."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from psycopg import Connection
from store_rows import count, key_of

from workbench.errors import StageCrashed
from workbench.settings import Settings
from workbench.store import worker as worker_module
from workbench.store.attempts import CRASHES, Attempt, Attempts
from workbench.store.database import Database
from workbench.store.ledger import Begun, Busy, Ledger, StageRow
from workbench.store.memo import RANKING, Counts, Key, MemoStore, Row
from workbench.store.worker import Worker

_numbers = itertools.count()
SCHEMA = "t_attempts"


@pytest.fixture(scope="module")
def database(server_home: Path) -> Iterator[Database]:
    with Database.open(Settings(home=server_home, db_schema=SCHEMA)) as opened:
        yield opened


@pytest.fixture
def new_worker(database: Database) -> Iterator[Callable[[], Worker]]:
    workers: list[Worker] = []

    def one() -> Worker:
        workers.append(Worker(database, {"test": "attempts"}, 3600))
        return workers[-1]

    yield one
    for worker in workers:
        worker.close()


@pytest.fixture
def stage() -> str:
    return key_of("attempts", next(_numbers)).hex()


def expire(worker: Worker, database: Database) -> None:
    """As after a long silence: the thread that renews is stopped and the lease has run out."""
    worker._stop.set()
    with database.transaction() as connection:
        connection.execute(
            "UPDATE worker SET lease_until = now() - interval '1 s' WHERE worker_id = %s", [worker.worker_id]
        )


def open_attempt(database: Database, worker: Worker, stage: str) -> Attempt:
    return Attempts(database, worker).open(stage, "chunk", "fixed", None)


def crash(database: Database, new_worker: Callable[[], Worker], stage: str, *, computed: int = 0) -> Attempt:
    """An attempt whose process died after so many finished items."""
    worker = new_worker()
    attempt = open_attempt(database, worker, stage)
    attempt.counts.computed = computed
    Attempts(database, worker).note(attempt, computed, 10)
    expire(worker, database)
    return attempt


def rows(database: Database, stage: str) -> list[dict[str, Any]]:
    names = "attempt_id, worker_id, outcome, error, done, items, computed, repeated, waited, ended_at IS NULL"
    with database.transaction() as connection:
        found = connection.execute(
            f"SELECT {names} FROM attempt WHERE fingerprint = %s ORDER BY attempt_id".encode(), [bytes.fromhex(stage)]
        ).fetchall()
    return [dict(zip([*names.split(", ")[:-1], "open"], row, strict=True)) for row in found]


def outcomes(database: Database, stage: str) -> list[str | None]:
    return [row["outcome"] for row in rows(database, stage)]


# --- attempts ------------------------------------------------------------------------------------


def test_an_attempt_is_opened_noted_and_closed(
    database: Database, new_worker: Callable[[], Worker], stage: str
) -> None:
    worker = new_worker()
    attempts = Attempts(database, worker)
    attempt = attempts.open(stage, "chunk", "fixed", None)
    (row,) = rows(database, stage)
    assert (row["attempt_id"], row["worker_id"]) == (attempt.attempt_id, worker.worker_id)
    assert (row["open"], row["outcome"], row["done"]) == (True, None, 0)

    attempt.counts = Counts(items=9, computed=4, reused=3, repeated=2, waited=0.5)
    attempt.waited = 1.5
    attempts.close(attempt, "failed", "it broke")
    (row,) = rows(database, stage)
    assert (row["open"], row["outcome"], row["error"]) == (False, "failed", "it broke")
    assert (row["done"], row["items"], row["computed"], row["repeated"], row["waited"]) == (7, 9, 4, 2, 2.0)
    attempts.close(attempt, "done")
    assert rows(database, stage) == [row], "how it ended is said once"


def test_the_first_finished_item_is_noted_at_once_and_others_in_time(
    database: Database, new_worker: Callable[[], Worker], stage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    attempts = Attempts(database, new_worker())
    attempt = attempts.open(stage, "chunk", "fixed", None)
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])

    def noted(computed: int) -> tuple[int, int]:
        attempt.counts.computed = computed
        attempts.note(attempt, 2 + computed, 10)
        (row,) = rows(database, stage)
        return row["done"], row["computed"]

    assert noted(0) == (2, 0)
    now[0] += 0.01
    assert noted(1) == (3, 1), "a crash after it must not look like one before any item"
    now[0] += 0.01
    assert noted(2) == (3, 1)
    now[0] += Attempts.EVERY
    assert noted(3) == (5, 3)


def test_a_dead_process_attempt_is_closed_by_the_next(
    database: Database, new_worker: Callable[[], Worker], stage: str
) -> None:
    dead, living, third = new_worker(), new_worker(), new_worker()
    crashed = open_attempt(database, dead, stage)
    beside = open_attempt(database, living, stage)
    elsewhere = open_attempt(database, dead, key_of("another", stage).hex())
    expire(dead, database)
    last = open_attempt(database, third, stage)
    assert outcomes(database, stage) == ["crashed", None, None]
    assert outcomes(database, key_of("another", stage).hex()) == [None], "closed by whoever works on that stage next"

    for worker, attempt in ((dead, crashed), (living, beside), (third, last)):
        Attempts(database, worker).close(attempt, "done")
    assert outcomes(database, stage) == ["crashed", "done", "done"], "the dead one woke too late"
    Attempts(database, dead).close(elsewhere, "done")


def test_who_shares_a_stage_is_alive_and_at_work(
    database: Database, new_worker: Callable[[], Worker], stage: str
) -> None:
    first, second = new_worker(), new_worker()
    attempts = Attempts(database, first)
    assert attempts.sharing(stage) == 0
    mine = open_attempt(database, first, stage)
    open_attempt(database, second, stage)
    open_attempt(database, second, key_of("another", stage).hex())
    assert attempts.sharing(stage) == 2
    expire(second, database)
    assert attempts.sharing(stage) == 1
    attempts.close(mine, "shared")
    assert attempts.sharing(stage) == 0


# --- crashes in a row ----------------------------------------------------------------------------


def test_crashes_in_a_row_are_a_failure_and_then_it_may_be_tried_again(
    database: Database, new_worker: Callable[[], Worker], stage: str
) -> None:
    for _ in range(CRASHES):
        crash(database, new_worker, stage)
    with pytest.raises(StageCrashed, match=rf"died {CRASHES} times in a row.*{stage[:12]}|{stage[:12]}.*died") as told:
        open_attempt(database, new_worker(), stage)
    assert "run again to try once more" in str(told.value)
    assert outcomes(database, stage) == ["crashed"] * CRASHES + ["failed"]
    assert rows(database, stage)[-1]["error"] == str(told.value)
    assert isinstance(open_attempt(database, new_worker(), stage), Attempt)
    assert outcomes(database, stage) == ["crashed"] * CRASHES + ["failed", None]


@hypothesis_settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(history=st.lists(st.sampled_from(["crashed", "worked", "stopped", "failed"]), max_size=CRASHES + 2))
def test_only_crashes_without_an_item_at_the_end_of_the_row_count(
    database: Database, new_worker: Callable[[], Worker], history: list[str]
) -> None:
    """worked: crashed after a finished item, so the stage goes forward and will end."""
    stage = key_of("history", next(_numbers)).hex()
    in_a_row = 0
    for what in history:
        if in_a_row == CRASHES:
            with pytest.raises(StageCrashed):
                open_attempt(database, new_worker(), stage)
            in_a_row = 0
        if what in ("crashed", "worked"):
            crash(database, new_worker, stage, computed=int(what == "worked"))
        else:
            worker = new_worker()
            Attempts(database, worker).close(
                open_attempt(database, worker, stage), "failed" if what == "failed" else "stopped"
            )
        in_a_row = in_a_row + 1 if what == "crashed" else 0
    if in_a_row == CRASHES:
        with pytest.raises(StageCrashed):
            open_attempt(database, new_worker(), stage)
    else:
        open_attempt(database, new_worker(), stage)


def test_a_neighbour_that_lives_hides_no_crash(
    database: Database, new_worker: Callable[[], Worker], stage: str
) -> None:
    open_attempt(database, new_worker(), stage)
    for _ in range(CRASHES):
        crash(database, new_worker, stage)
    with pytest.raises(StageCrashed):
        open_attempt(database, new_worker(), stage)


# --- the dead are buried -------------------------------------------------------------------------

REGISTER = """
import sys
from pathlib import Path
from workbench.settings import Settings
from workbench.store import worker as worker_module
from workbench.store.database import Database
from workbench.store.worker import Worker

with Database.open(Settings(home=Path(sys.argv[1]), db_schema=sys.argv[2])) as database:
    print(Worker(database, {"test": "attempts"}, 3600).worker_id, flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def neighbours(server_home: Path) -> Iterator[list[tuple[subprocess.Popen[str], int]]]:
    """Two processes of this machine that hold a lease of an hour, and their workers' ids."""
    environment = {n: v for n, v in os.environ.items() if not n.startswith("WORKBENCH_")}
    started = [
        subprocess.Popen(
            [sys.executable, "-c", REGISTER, str(server_home), SCHEMA],
            env=environment | {"PYTHONPATH": str(Path(__file__).parents[2])},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    try:
        yield [(process, int((process.stdout or sys.stdin).readline())) for process in started]
    finally:
        for process in started:
            process.kill()
            process.communicate()


def test_a_killed_neighbour_is_buried_and_a_living_one_is_not(
    database: Database,
    new_worker: Callable[[], Worker],
    neighbours: list[tuple[subprocess.Popen[str], int]],
) -> None:
    (killed, dead), (_, living) = neighbours
    mine, also_mine = new_worker(), new_worker()
    holds = "SELECT (lease_until > now() AND ended_at IS NULL)::int FROM worker WHERE worker_id = %s"
    mine.bury()  # whom other tests killed
    killed.kill()
    killed.wait()
    assert count(database, holds, [dead]) == 1, "it said nothing"
    assert mine.bury() == 1
    assert mine.bury() == 0
    assert count(database, holds, [dead]) == 0
    for worker_id in (living, mine.worker_id, also_mine.worker_id):
        assert count(database, holds, [worker_id]) == 1


@pytest.mark.parametrize("place", ["another machine", ""])
def test_who_cannot_be_seen_from_here_is_left_alone(
    database: Database, new_worker: Callable[[], Worker], place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The number of a process says nothing of another machine, nor where neither can tell which one it is on."""
    mine, far = new_worker(), new_worker()
    mine.bury()  # whom other tests killed

    def move(machine: str) -> None:
        with database.transaction() as connection:
            connection.execute(
                "UPDATE worker SET machine = %s, process = '1-1' WHERE worker_id = %s", [machine, far.worker_id]
            )

    move(place)
    with monkeypatch.context() as patched:
        if not place:
            patched.setattr(worker_module, "machine", lambda: "")
        assert mine.bury() == 0
    move(worker_module.machine())
    assert mine.bury() == 1, "the same row of this machine would be buried"


# --- a stage that several share ------------------------------------------------------------------


def announce(ledger: Ledger, stage: str) -> StageRow | int:
    return ledger.announce(stage, "context", 1, {"kind": "situated"}, {"chunks": "0"})


def begin(ledger: Ledger, stage: str) -> StageRow | Begun | Busy:
    return ledger.begin(stage, "context", 1, {"kind": "situated"}, {"chunks": "0"})


def test_an_announced_stage_is_one_row_that_somebody_may_begin(
    database: Database, new_worker: Callable[[], Worker], stage: str
) -> None:
    a, b = (Ledger(database, new_worker()) for _ in range(2))
    stage_id = announce(a, stage)
    assert isinstance(stage_id, int)
    assert [announce(b, stage), announce(a, stage)] == [stage_id, stage_id]
    state = "SELECT (state = %s)::int FROM stage WHERE stage_id = %s"
    assert count(database, state, ["planned", stage_id]) == 1
    assert a.done([stage]) == {}

    begun = begin(b, stage)
    assert isinstance(begun, Begun)
    assert begun.stage_id == stage_id
    assert begin(a, stage) == Busy(b._worker.worker_id)
    assert announce(a, stage) == stage_id, "it is under way, and stays so"
    assert count(database, state, ["running", stage_id]) == 1

    def write(connection: Connection[Any], stage_id: int) -> Mapping[str, Any]:
        return {"by": "b"}

    row = b.finish(begun, write, items=3, computed=1, seconds=lambda: 0.5)
    assert announce(a, stage) == announce(b, stage) == row
    assert begin(a, stage) == row


# --- their items ---------------------------------------------------------------------------------


def new_keys(n: int) -> list[Key]:
    run = next(_numbers)
    return [key_of("shared", run, i) for i in range(n)]


def values(keys: Sequence[Key], positions: Sequence[int]) -> list[Row]:
    return [(list(keys[i][:4]), [0.0]) for i in positions]


def claims(database: Database, store: MemoStore) -> list[int]:
    with database.transaction() as connection:
        found = connection.execute(
            "SELECT items FROM claim WHERE worker_id = %s ORDER BY claim_id", [store.worker.worker_id]
        )
        return [row[0] for row in found]


@hypothesis_settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(n=st.integers(0, 60), claim_size=st.integers(1, 24), processes=st.integers(1, 5))
def test_claims_shrink_towards_the_end_where_others_share(
    database: Database, new_worker: Callable[[], Worker], n: int, claim_size: int, processes: int
) -> None:
    store = MemoStore(database, new_worker())
    keys = new_keys(n)
    counts = store.fill(RANKING, keys, lambda at: values(keys, at), claim_size=claim_size, sharing=lambda: processes)
    sizes = claims(database, store)
    assert sum(sizes) == counts.computed == n
    assert all(1 <= size <= claim_size for size in sizes)
    if processes == 1:
        assert sizes[:-1] == [claim_size] * (len(sizes) - 1)
        return
    assert sizes == sorted(sizes, reverse=True)
    left = n
    for size in sizes:
        fair = left // (2 * processes)
        assert size <= max(fair, claim_size // 8, 1), "nobody takes more than a fair part of what is left"
        assert size >= min(fair, claim_size), "nor so little that claiming is all the work"
        left -= size


def test_two_that_share_compute_everything_once_and_end_together(
    database: Database, new_worker: Callable[[], Worker], stage: str
) -> None:
    keys = new_keys(120)
    stores = [MemoStore(database, new_worker(), poll_seconds=0.01) for _ in range(2)]
    attempts = [Attempts(database, store.worker) for store in stores]
    opened = [a.open(stage, "context", "situated", None) for a in attempts]
    stage_id = announce(Ledger(database, stores[0].worker), stage)
    assert isinstance(stage_id, int)
    computed: Counter[Key] = Counter()
    lock, both = threading.Lock(), threading.Barrier(2, timeout=60)

    def work(number: int) -> Counts:
        met = False

        def compute(positions: Sequence[int]) -> list[Row]:
            nonlocal met
            if not met:
                met = True
                both.wait()  # each has claimed, neither has finished
            with lock:
                computed.update(keys[i] for i in positions)
            return values(keys, positions)

        return stores[number].fill(
            RANKING,
            keys,
            compute,
            stage_id=stage_id,
            batch=4,
            claim_size=32,
            sharing=lambda: attempts[number].sharing(stage),
            counts=opened[number].counts,
        )

    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(work, range(2))
    assert computed == Counter(keys)
    assert first.computed + second.computed == first.items == second.items == 120
    assert min(first.computed, second.computed) > 0
    assert first.computed + first.reused == second.computed + second.reused == 120
    assert first.repeated == second.repeated == 0
    for store in stores:
        assert max(claims(database, store)) <= 30, "a quarter of 120, not the whole claim size"
    assert count(database, "SELECT count(*) FROM claim WHERE stage_id = %s AND outcome = 'done'", [stage_id]) == sum(
        len(claims(database, store)) for store in stores
    )
