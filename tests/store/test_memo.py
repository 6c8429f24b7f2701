"""Memo: each key is computed once, by one process; claims are given back, taken over and fenced."""

from __future__ import annotations

import itertools
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from store_rows import count, key_of

from workbench.errors import DatabaseError, LeaseLost
from workbench.settings import Settings
from workbench.store.database import Database
from workbench.store.memo import RANKING, Key, MemoStore, Row
from workbench.store.worker import Worker

_numbers = itertools.count()


@pytest.fixture(scope="module")
def database(server_home: Path) -> Iterator[Database]:
    with Database.open(Settings(home=server_home, db_schema="t_memo")) as opened:
        yield opened


@pytest.fixture
def new_store(database: Database) -> Iterator[Callable[[], MemoStore]]:
    workers: list[Worker] = []

    def one() -> MemoStore:
        workers.append(Worker(database, {"test": "memo"}, 30))
        return MemoStore(database, workers[-1], poll_seconds=0.01)

    yield one
    for worker in workers:
        worker.close()


@pytest.fixture
def store(new_store: Callable[[], MemoStore]) -> MemoStore:
    return new_store()


def new_keys(n: int) -> list[Key]:
    run = next(_numbers)
    return [key_of("memo", run, i) for i in range(n)]


class Computer:
    """Values that name their key and who made them; remembers what it was asked."""

    def __init__(self, keys: Sequence[Key], name: int = 0) -> None:
        self.keys, self.name = keys, name
        self.asked: list[list[int]] = []

    def __call__(self, positions: Sequence[int]) -> list[Row]:
        self.asked.append(list(positions))
        return [(list(self.keys[i][:4]), [float(self.name)]) for i in positions]

    @property
    def flat(self) -> list[int]:
        return [i for batch in self.asked for i in batch]


def named(keys: Sequence[Key], name: int = 0) -> list[Row]:
    return [(list(key[:4]), [float(name)]) for key in keys]


def snapshot(database: Database, keys: Sequence[Key]) -> list[tuple[object, ...]]:
    """The rows with their physical place: unchanged means not even rewritten."""
    with database.transaction() as connection:
        return connection.execute(
            "SELECT key, ctid::text, xmin::text, claim_id, chunk_nos, scores FROM memo_ranking"
            " WHERE key = ANY(%s) ORDER BY key",
            [list(keys)],
        ).fetchall()


def outcomes(database: Database, store: MemoStore) -> list[str | None]:
    with database.transaction() as connection:
        rows = connection.execute(
            "SELECT outcome FROM claim WHERE worker_id = %s ORDER BY claim_id", [store.worker.worker_id]
        )
        return [row[0] for row in rows]


def expire(store: MemoStore, database: Database) -> None:
    """As after a long silence: the thread that renews is stopped and the lease has run out."""
    store.worker._stop.set()
    with database.transaction() as connection:
        connection.execute(
            "UPDATE worker SET lease_until = now() - interval '1 s' WHERE worker_id = %s", [store.worker.worker_id]
        )


# --- one process ---------------------------------------------------------------------------------


@hypothesis_settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    wanted=st.lists(st.integers(0, 8), max_size=14),
    there=st.sets(st.integers(0, 8)),
    batch=st.integers(1, 5),
    claim_size=st.integers(1, 6),
)
def test_only_what_is_missing_is_computed_once_and_in_order(
    store: MemoStore, wanted: list[int], there: set[int], batch: int, claim_size: int
) -> None:
    universe = new_keys(9)
    old = [universe[i] for i in sorted(there)]
    store.fill(RANKING, old, Computer(old, 1))
    keys = [universe[i] for i in wanted]
    compute = Computer(keys, 2)
    seen: list[tuple[int, int]] = []
    counts = store.fill(RANKING, keys, compute, batch=batch, claim_size=claim_size, progress=lambda *p: seen.append(p))
    unique = list(dict.fromkeys(wanted))
    missing = [i for i in unique if i not in there]
    assert [wanted[at] for at in compute.flat] == missing, "missing ones only, once, in order"
    assert all(at == wanted.index(wanted[at]) for at in compute.flat), "at their first position"
    assert max(map(len, compute.asked), default=0) <= batch
    assert (counts.items, counts.computed, counts.reused, counts.repeated) == (
        len(unique),
        len(missing),
        len(unique) - len(missing),
        0,
    )
    assert [row[1] for row in store.read(RANKING, keys)] == [[1.0] if i in there else [2.0] for i in wanted]
    assert [row[0] for row in store.read(RANKING, keys)] == [list(key[:4]) for key in keys]
    assert seen == sorted(seen)
    if missing:
        assert seen[-1] == (len(unique), len(unique))
    assert store.missing(RANKING, keys) == []


def test_nothing_asked_is_nothing_done(store: MemoStore, database: Database) -> None:
    compute = Computer([])
    assert store.fill(RANKING, [], compute).items == 0
    assert compute.asked == []
    assert list(store.read(RANKING, [])) == []
    assert outcomes(database, store) == []


def test_what_was_committed_before_an_error_stays(
    store: MemoStore, new_store: Callable[[], MemoStore], database: Database
) -> None:
    keys = new_keys(10)
    good = Computer(keys, 1)

    def failing(positions: Sequence[int]) -> list[Row]:
        if 6 in positions:
            raise RuntimeError("on the third batch")
        return good(positions)

    with pytest.raises(RuntimeError, match="third batch"):
        store.fill(RANKING, keys, failing, batch=3)
    before = snapshot(database, keys)
    assert len(before) == 6
    assert outcomes(database, store) == ["released"]
    assert count(database, "SELECT count(*) FROM claim WHERE closed_at IS NULL") == 0

    other = new_store()
    counts = other.fill(RANKING, keys, Computer(keys, 2), batch=3)
    assert (counts.computed, counts.reused, counts.repeated) == (4, 6, 4)
    repeated = "SELECT sum(repeated) FROM claim WHERE worker_id = %s"
    assert count(database, repeated, [other.worker.worker_id]) == 4
    assert snapshot(database, keys[:6]) == sorted(before)
    assert [row[1] for row in store.read(RANKING, keys)] == [[1.0]] * 6 + [[2.0]] * 4


def test_a_wrong_number_of_rows_is_noticed(store: MemoStore, database: Database) -> None:
    keys = new_keys(3)
    with pytest.raises(AssertionError, match="3 keys, 2 rows"):
        store.fill(RANKING, keys, lambda positions: named(keys[:2]))
    assert snapshot(database, keys) == []


def test_check_stops_between_batches(store: MemoStore, database: Database) -> None:
    keys = new_keys(12)
    compute = Computer(keys)

    def check() -> None:
        if len(compute.asked) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store.fill(RANKING, keys, compute, batch=3, claim_size=6, check=check)
    assert compute.flat == [0, 1, 2, 3, 4, 5]
    assert len(snapshot(database, keys)) == 6
    assert count(database, "SELECT count(*) FROM claim WHERE closed_at IS NULL") == 0


def test_a_finished_claim_keeps_no_keys(store: MemoStore, database: Database) -> None:
    keys = new_keys(5)
    store.fill(RANKING, keys, Computer(keys), batch=2, claim_size=3)
    with database.transaction() as connection:
        rows = connection.execute(
            "SELECT outcome, items, cardinality(keys) FROM claim WHERE worker_id = %s ORDER BY claim_id",
            [store.worker.worker_id],
        ).fetchall()
    assert rows == [("done", 3, 0), ("done", 2, 0)]


# --- several processes ---------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_two_at_once_compute_each_key_once(new_store: Callable[[], MemoStore], database: Database, seed: int) -> None:
    keys = new_keys(60)
    stores = [new_store(), new_store(), new_store()]
    computed: Counter[Key] = Counter()
    lock = threading.Lock()

    def work(number: int) -> None:
        rng = random.Random(seed * 10 + number)
        mine = list(keys)
        rng.shuffle(mine)
        compute = Computer(mine, number)
        seen: list[int] = []

        def slowly(positions: Sequence[int]) -> list[Row]:
            time.sleep(rng.random() * 0.004)
            with lock:
                computed.update(mine[i] for i in positions)
            return compute(positions)

        counts = stores[number].fill(
            RANKING, mine, slowly, batch=3, claim_size=7, progress=lambda done, _: seen.append(done)
        )
        assert counts.computed + counts.reused == counts.items == 60
        assert seen == sorted(seen)
        assert seen[-1] == 60, "what others computed is progress too"
        assert [row[0] for row in stores[number].read(RANKING, mine)] == [list(k[:4]) for k in mine]

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(work, range(3)))
    assert computed == Counter(keys)
    assert sum(len(snapshot(database, [key])) for key in keys[:5]) == 5
    workers = [s.worker.worker_id for s in stores]
    assert count(database, "SELECT sum(repeated) FROM claim WHERE worker_id = ANY(%s)", [workers]) == 0


def test_threads_of_one_process_do_not_take_from_each_other(store: MemoStore, database: Database) -> None:
    keys = new_keys(40)
    computed: list[Key] = []

    def work(_: int) -> None:
        def slowly(positions: Sequence[int]) -> list[Row]:
            time.sleep(0.003)
            computed.extend(keys[i] for i in positions)
            return named([keys[i] for i in positions])

        store.fill(RANKING, keys, slowly, batch=4, claim_size=8)

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(work, range(3)))
    assert Counter(computed) == Counter(keys)
    assert set(outcomes(database, store)) == {"done"}


def test_a_claim_is_taken_over_after_the_lease_and_the_late_write_refused(
    new_store: Callable[[], MemoStore], database: Database
) -> None:
    keys = new_keys(6)
    frozen, successor = new_store(), new_store()
    theirs = Computer(keys, 2)
    after: list[tuple[object, ...]] = []

    def while_frozen(positions: Sequence[int]) -> list[Row]:
        expire(frozen, database)
        counts = successor.fill(RANKING, keys, theirs)
        assert (counts.computed, counts.repeated) == (4, 4)
        after.extend(snapshot(database, keys))
        return named([keys[i] for i in positions], 1)

    first = iter([lambda positions: named([keys[i] for i in positions], 1), while_frozen])
    counts = frozen.fill(RANKING, keys, lambda positions: next(first)(positions), batch=2)
    assert (counts.computed, counts.reused) == (2, 4)
    assert theirs.flat == [2, 3, 4, 5]
    assert snapshot(database, keys) == after, "the successor's values are not even rewritten"
    assert [row[1] for row in frozen.read(RANKING, keys)] == [[1.0]] * 2 + [[2.0]] * 4
    assert outcomes(database, frozen) == ["lost"]
    assert outcomes(database, successor) == ["done"]


def test_a_late_write_is_refused_even_for_keys_without_a_value(
    new_store: Callable[[], MemoStore], database: Database
) -> None:
    keys = new_keys(2)
    frozen, successor = new_store(), new_store()
    claim = frozen._claim(RANKING, keys, None)
    assert claim is not None
    assert successor._claim(RANKING, keys, None) is None, "the lease still runs"
    expire(frozen, database)
    taken = successor._claim(RANKING, keys, None)
    assert taken is not None
    assert taken.claim_id > claim.claim_id
    assert taken.repeated == 2
    with pytest.raises(LeaseLost, match="taken over"):
        frozen.write(RANKING, claim.claim_id, keys, named(keys, 1))
    assert snapshot(database, keys) == []
    successor.write(RANKING, taken.claim_id, keys, named(keys, 2))
    with pytest.raises(LeaseLost):
        frozen.write(RANKING, claim.claim_id, keys, named(keys, 1))
    assert [row[1] for row in frozen.read(RANKING, keys)] == [[2.0]] * 2


def test_a_closed_worker_frees_what_it_claimed(new_store: Callable[[], MemoStore]) -> None:
    keys = new_keys(3)
    gone, other = new_store(), new_store()
    assert gone._claim(RANKING, keys, None) is not None
    gone.worker.close()
    started = time.monotonic()
    counts = other.fill(RANKING, keys, Computer(keys))
    assert (counts.computed, counts.repeated) == (3, 3)
    assert time.monotonic() - started < 10, "not after the lease of 30 s"


def test_a_cut_connection_leaves_nothing_that_the_same_process_waits_for(
    store: MemoStore, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A notebook's cell is run again in the process whose claim could not be closed; its lease lives on."""
    keys = new_keys(4)

    def cut(*_: object) -> None:
        raise DatabaseError("the connection was lost")

    def failing(positions: Sequence[int]) -> list[Row]:
        raise DatabaseError("the connection was lost")

    with monkeypatch.context() as patched:
        patched.setattr(MemoStore, "_close", cut)
        with pytest.raises(DatabaseError):
            store.fill(RANKING, keys, failing)
    waits = iter(range(20))

    def give_up() -> None:
        assert next(waits, None) is not None, "it waits for its own claim"

    compute = Computer(keys)
    counts = store.fill(RANKING, keys, compute, check=give_up)
    assert (counts.computed, counts.repeated) == (4, 4)
    assert outcomes(database, store) == ["lost", "done"]


def test_a_worker_renews_its_lease_until_it_is_closed(database: Database) -> None:
    lease = "SELECT (extract(epoch FROM lease_until - now()) * 1000)::int FROM worker WHERE worker_id = %s"
    worker = Worker(database, {"test": "lease"}, 0.6)
    time.sleep(0.9)
    assert 0 < count(database, lease, [worker.worker_id]) <= 600
    worker.close()
    worker.close()
    assert count(database, lease, [worker.worker_id]) < 0
    ended = "SELECT (ended_at IS NOT NULL)::int FROM worker WHERE worker_id = %s"
    assert count(database, ended, [worker.worker_id]) == 1
