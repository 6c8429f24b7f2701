"""Values that come one by one: each is committed as it comes, whatever happens to its neighbours."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Generator, Iterator, Sequence

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from store_rows import key_of

from workbench.errors import CallError
from workbench.settings import Settings
from workbench.store.database import Database
from workbench.store.memo import CALL, RANKING, MemoStore, Row
from workbench.store.worker import Worker

_numbers = itertools.count()


@pytest.fixture(scope="module")
def database(server_home: Iterator[object]) -> Iterator[Database]:
    with Database.open(Settings(home=server_home, db_schema="t_memo_stream")) as opened:
        yield opened


@pytest.fixture
def new_store(database: Database) -> Iterator[Callable[[], MemoStore]]:
    workers: list[Worker] = []

    def one() -> MemoStore:
        workers.append(Worker(database, {"test": "stream"}, 30))
        return MemoStore(database, workers[-1], poll_seconds=0.01)

    yield one
    for worker in workers:
        worker.close()


class Stream:
    """Rows in an order of its own; fails before the value number `fail_at`; remembers what it said and its end."""

    def __init__(self, order: Callable[[int], Sequence[int]] = range, fail_at: int | None = None) -> None:
        self.order, self.fail_at = order, fail_at
        self.said: list[int] = []
        self.closed = 0

    def __call__(self, positions: Sequence[int]) -> Generator[tuple[int, Row], None, None]:
        try:
            for index in self.order(len(positions)):
                if len(self.said) == self.fail_at:
                    raise CallError("the model said no")
                self.said.append(positions[index])
                yield index, ([positions[index]], [0.5])
        finally:
            self.closed += 1


@hypothesis_settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(n=st.integers(1, 12), size=st.integers(1, 5), seed=st.randoms(use_true_random=False), fail=st.integers(0, 15))
def test_what_was_said_before_a_failure_is_kept_and_never_asked_again(
    new_store: Callable[[], MemoStore], n: int, size: int, seed: object, fail: int
) -> None:
    store = new_store()
    run = next(_numbers)
    keys = [key_of("stream", run, i) for i in range(n)]

    def shuffled(count: int) -> list[int]:
        order = list(range(count))
        seed.shuffle(order)  # type: ignore[attr-defined]
        return order

    first = Stream(shuffled, fail_at=fail)
    if fail < n:
        with pytest.raises(CallError):
            store.fill(RANKING, keys, stream=first, claim_size=size)
    else:
        store.fill(RANKING, keys, stream=first, claim_size=size)
    assert len(first.said) == min(fail, n)
    assert len(store.missing(RANKING, keys)) == n - len(first.said)
    again = Stream(shuffled)
    counts = store.fill(RANKING, keys, stream=again, claim_size=size)
    assert sorted(first.said + again.said) == list(range(n))
    assert [row[0] for row in store.read(RANKING, keys)] == [[i] for i in range(n)]
    assert counts.reused == len(first.said)


def test_each_value_is_visible_before_the_next_is_said(new_store: Callable[[], MemoStore]) -> None:
    store, other = new_store(), new_store()
    keys = [key_of("visible", i) for i in range(4)]
    seen: list[int] = []

    def stream(positions: Sequence[int]) -> Generator[tuple[int, Row], None, None]:
        for index in range(len(positions)):
            seen.append(len(keys) - len(other.missing(RANKING, keys)))
            yield index, ([index], [1.0])

    store.fill(RANKING, keys, stream=stream)
    assert seen == [0, 1, 2, 3]


def test_a_check_that_stops_closes_the_stream_and_frees_the_rest(new_store: Callable[[], MemoStore]) -> None:
    store = new_store()
    keys = [key_of("stop", i) for i in range(6)]
    stream = Stream()

    def check() -> None:
        if len(stream.said) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store.fill(RANKING, keys, stream=stream, check=check)
    assert (stream.closed, len(store.missing(RANKING, keys))) == (1, 4)
    assert new_store().fill(RANKING, keys, stream=Stream()).computed == 4


def test_two_processes_that_ask_at_once_ask_each_thing_once(new_store: Callable[[], MemoStore]) -> None:
    keys = [key_of("both", i) for i in range(40)]
    streams = [Stream(), Stream()]
    threads = [
        threading.Thread(target=new_store().fill, args=(RANKING, keys), kwargs={"stream": s, "claim_size": 3})
        for s in streams
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(streams[0].said + streams[1].said) == list(range(40))


def test_a_call_comes_back_as_it_was_stored(new_store: Callable[[], MemoStore]) -> None:
    store = new_store()
    key = key_of("call")
    row = ("Grüße\n[1]", "stop", 120, None, 3, 51.5, [17.25, 18.0], 88.0, 2, ["503"], [-0.25, -1e-300], 1250.0)
    store.fill(CALL, [key], stream=lambda positions: (pair for pair in [(0, row)]))
    assert store.read(CALL, [key]) == [row]
