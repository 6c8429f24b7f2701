"""Stages are begun by one process at a time and finished whole or not at all."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from psycopg import Connection
from store_rows import count, key_of

from workbench.errors import LeaseLost
from workbench.settings import Settings
from workbench.store import tables
from workbench.store.database import Database
from workbench.store.ledger import Begun, Busy, Ledger, StageRow
from workbench.store.worker import Worker

_numbers = itertools.count()


@pytest.fixture(scope="module")
def database(server_home: Path) -> Iterator[Database]:
    with Database.open(Settings(home=server_home, db_schema="t_ledger")) as opened:
        yield opened


@pytest.fixture
def new_ledger(database: Database) -> Iterator[Callable[[], Ledger]]:
    workers: list[Worker] = []

    def one() -> Ledger:
        workers.append(Worker(database, {"test": "ledger"}, 30))
        return Ledger(database, workers[-1])

    yield one
    for worker in workers:
        worker.close()


@pytest.fixture
def stage() -> str:
    return key_of("ledger", next(_numbers)).hex()


def begin(ledger: Ledger, stage: str) -> StageRow | Begun | Busy:
    return ledger.begin(stage, "chunk", 1, {"kind": "fixed"}, {"corpus": "0"})


def held(ledger: Ledger, stage: str) -> Begun:
    begun = begin(ledger, stage)
    assert isinstance(begun, Begun)
    return begun


def end(ledger: Ledger, begun: Begun, text: str = "q") -> StageRow:
    def write(connection: Connection[Any], stage_id: int) -> Mapping[str, Any]:
        tables.write_keys(connection, stage_id, [text.encode()])
        return {"by": text}

    return ledger.finish(begun, write, items=7, computed=3, seconds=lambda: 1.5)


def expire(ledger: Ledger, database: Database) -> None:
    """As after a long silence: the thread that renews is stopped and the lease has run out."""
    ledger._worker._stop.set()
    with database.transaction() as connection:
        connection.execute(
            "UPDATE worker SET lease_until = now() - interval '1 s' WHERE worker_id = %s", [ledger._worker.worker_id]
        )


def test_a_stage_is_begun_once_and_found_when_done(new_ledger: Callable[[], Ledger], stage: str) -> None:
    a, b = new_ledger(), new_ledger()
    begun = held(a, stage)
    assert begun.epoch == 1
    assert begin(b, stage) == Busy(a._worker.worker_id)
    assert b.done([stage]) == {}
    row = end(a, begun)
    assert (row.fingerprint, row.kind, row.items, row.computed, row.seconds) == (stage, "chunk", 7, 3, 1.5)
    assert row.details == {"by": "q"}
    assert begin(b, stage) == row
    assert begin(a, stage) == row
    assert b.done([stage, "00" * 32]) == {stage: row}


def test_two_that_begin_at_once_do_not_both_hold(new_ledger: Callable[[], Ledger]) -> None:
    from concurrent.futures import ThreadPoolExecutor

    ledgers = [new_ledger() for _ in range(4)]
    with ThreadPoolExecutor(4) as pool:
        for number in range(5):
            stage = key_of("race", number).hex()
            found = list(pool.map(lambda ledger, of=stage: begin(ledger, of), ledgers))
            assert sorted(type(f).__name__ for f in found) == ["Begun", "Busy", "Busy", "Busy"]


def test_a_writer_that_raises_leaves_nothing(new_ledger: Callable[[], Ledger], database: Database, stage: str) -> None:
    ledger = new_ledger()
    begun = held(ledger, stage)

    def write(connection: Connection[Any], stage_id: int) -> Mapping[str, Any]:
        tables.write_keys(connection, stage_id, [b"half"])
        connection.execute("CREATE TABLE leftover ()")
        raise RuntimeError("in the middle")

    with pytest.raises(RuntimeError, match="in the middle"):
        ledger.finish(begun, write, items=1, computed=1, seconds=lambda: 0.0)
    assert ledger.done([stage]) == {}
    assert count(database, "SELECT count(*) FROM stage_keys WHERE stage_id = %s", [begun.stage_id]) == 0
    assert count(database, "SELECT count(*) FROM pg_tables WHERE tablename = 'leftover'") == 0
    assert end(ledger, begun).details == {"by": "q"}, "it is still held and can be finished"


def test_an_expired_holder_is_replaced_and_fenced(
    new_ledger: Callable[[], Ledger], database: Database, stage: str
) -> None:
    frozen, successor = new_ledger(), new_ledger()
    old = held(frozen, stage)
    expire(frozen, database)
    new = held(successor, stage)
    assert new == Begun(old.stage_id, old.epoch + 1)
    # Awake again, with a living lease, it is fenced by its epoch and not by the lease.
    with database.transaction() as connection:
        connection.execute(
            "UPDATE worker SET lease_until = now() + interval '1 h' WHERE worker_id = %s", [frozen._worker.worker_id]
        )
    with pytest.raises(LeaseLost, match="taken over"):
        end(frozen, old, "late")
    frozen.give_up(old, "late")
    assert begin(frozen, stage) == Busy(successor._worker.worker_id)
    row = end(successor, new, "successor")
    with pytest.raises(LeaseLost):
        end(frozen, old, "later still")
    with database.transaction() as connection:
        assert tables.read_keys(connection, row.stage_id) == [b"successor"]
    assert begin(frozen, stage) == row


def test_a_closed_worker_frees_its_stages_at_once(new_ledger: Callable[[], Ledger], stage: str) -> None:
    a, b = new_ledger(), new_ledger()
    held(a, stage)
    a._worker.close()
    assert held(b, stage).epoch == 2


def test_giving_up_records_why_and_frees_the_stage(
    new_ledger: Callable[[], Ledger], database: Database, stage: str
) -> None:
    a, b = new_ledger(), new_ledger()
    begun = held(a, stage)
    a.give_up(begun, "it broke")
    error = "SELECT (state = 'failed' AND error = 'it broke')::int FROM stage WHERE stage_id = %s"
    assert count(database, error, [begun.stage_id]) == 1
    assert a.done([stage]) == {}
    again = held(b, stage)
    assert again == Begun(begun.stage_id, 2)
    cleared = "SELECT (state = 'running' AND error IS NULL)::int FROM stage WHERE stage_id = %s"
    assert count(database, cleared, [begun.stage_id]) == 1
    end(b, again)
    b.give_up(again, "too late")
    assert isinstance(begin(a, stage), StageRow)


def test_the_same_process_may_begin_again_what_it_left(new_ledger: Callable[[], Ledger], stage: str) -> None:
    ledger = new_ledger()
    first = held(ledger, stage)
    assert isinstance(begin(ledger, stage), Busy), "another thread of this process works on it"
    ledger.release(first)
    second = held(ledger, stage)
    assert second.epoch == first.epoch + 1
    with pytest.raises(LeaseLost):
        end(ledger, first)
    assert end(ledger, second).details == {"by": "q"}
