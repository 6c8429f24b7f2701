"""Search in pgvector against numpy: exact order, ties, the index that is really used, and loud short answers."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from psycopg import Connection
from store_rows import Matrix, count, embeddings, new_stage

from workbench.errors import ShortResultError, SpecError
from workbench.settings import Settings
from workbench.specs import Exact, Hnsw
from workbench.store import tables, vectors
from workbench.store.database import Database
from workbench.store.ledger import Ledger
from workbench.store.worker import Worker

DIMENSIONS = 16


@pytest.fixture(scope="module")
def ledger(server_home: Path) -> Iterator[Ledger]:
    with (
        Database.open(Settings(home=server_home, db_schema="t_vectors")) as database,
        Worker(database, {"test": "vectors"}, 30) as worker,
    ):
        yield Ledger(database, worker)


def index_of(ledger: Ledger, matrix: Matrix, spec: Exact | Hnsw) -> int:
    """The stage_id of an index over the rows of a matrix."""

    def write_keys(connection: Connection[Any], stage_id: int) -> dict[str, Any]:
        tables.write_keys(connection, stage_id, embeddings(connection, matrix))
        return {}

    keys_stage = new_stage(ledger, write_keys)

    def write(connection: Connection[Any], stage_id: int) -> dict[str, Any]:
        assert vectors.create(connection, stage_id, spec, keys_stage, matrix.shape[1]) == len(matrix)
        return {}

    return new_stage(ledger, write)


def ask(
    ledger: Ledger, stage_id: int, spec: Exact | Hnsw, queries: Matrix, k: int, **how: Any
) -> list[tuple[list[int], list[float]]]:
    with ledger._database.transaction() as connection:
        return vectors.search(connection, stage_id, spec, embeddings(connection, queries), k, **how)


def cosine(matrix: Matrix, query: Matrix) -> np.ndarray[Any, np.dtype[np.float64]]:
    a, q = matrix.astype(np.float64), query.astype(np.float64)
    found: np.ndarray[Any, np.dtype[np.float64]] = a @ q / (np.linalg.norm(a, axis=1) * np.linalg.norm(q))
    return found


def random_matrix(seed: int, rows: int, columns: int = DIMENSIONS) -> Matrix:
    return np.random.default_rng(seed).normal(size=(rows, columns)).astype(np.float32)


# --- exact ---------------------------------------------------------------------------------------


def test_exact_search_is_numpys_with_ties_by_chunk_number(ledger: Ledger) -> None:
    base = random_matrix(0, 40)
    matrix = np.concatenate([base, base, base])  # every vector three times, far apart
    queries = random_matrix(1, 7)
    stage = index_of(ledger, matrix, Exact())
    for (chunks, scores), query in zip(ask(ledger, stage, Exact(), queries, 50), queries, strict=True):
        truth = cosine(base, query)
        expected = [int(i) + copy * 40 for i in np.argsort(-truth) for copy in range(3)][:50]
        assert chunks == expected
        np.testing.assert_allclose(scores, [truth[c % 40] for c in chunks], rtol=0, atol=1e-6)


@hypothesis_settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    matrix=hnp.arrays(np.float32, st.tuples(st.integers(1, 12), st.just(3)), elements=st.sampled_from([1, 2, -3, 0.5])),
    k=st.integers(1, 14),
)
def test_rankings_are_total_orders_for_any_vectors(ledger: Ledger, matrix: Matrix, k: int) -> None:
    query = np.array([[1.0, -2.0, 0.25]], dtype=np.float32)
    [(chunks, scores)] = ask(ledger, index_of(ledger, matrix, Exact()), Exact(), query, k)
    assert len(chunks) == len(set(chunks)) == min(k, len(matrix))
    assert list(zip([-s for s in scores], chunks, strict=True)) == sorted(
        zip([-s for s in scores], chunks, strict=True)
    )
    truth = np.sort(cosine(matrix, query[0]))[::-1]
    np.testing.assert_allclose(scores, truth[: len(scores)], atol=1e-6)


def test_all_queries_keep_their_places(ledger: Ledger) -> None:
    matrix = random_matrix(2, 30)
    stage = index_of(ledger, matrix, Exact())
    order = [4, 0, 29, 4, 11]
    found = ask(ledger, stage, Exact(), matrix[order], 1)
    assert [chunks for chunks, _ in found] == [[i] for i in order]
    assert ask(ledger, stage, Exact(), matrix[:0], 1) == []


@pytest.mark.parametrize("spec", [Exact(), Hnsw(), Exact(storage="halfvec"), Hnsw(storage="halfvec")])
def test_k_beyond_the_rows_gives_all_rows(ledger: Ledger, spec: Exact | Hnsw) -> None:
    matrix = random_matrix(3, 9)
    [(chunks, _)] = ask(ledger, index_of(ledger, matrix, spec), spec, matrix[:1], 5000)
    assert sorted(chunks) == list(range(9))


def test_half_precision_is_close(ledger: Ledger) -> None:
    matrix, queries = random_matrix(4, 60), random_matrix(5, 5)
    full = ask(ledger, index_of(ledger, matrix, Exact()), Exact(), queries, 60)
    half_spec = Exact(storage="halfvec")
    stage = index_of(ledger, matrix, half_spec)
    half = ask(ledger, stage, half_spec, queries, 60)
    kind = (
        "SELECT (format_type(atttypid, atttypmod) LIKE %s)::int FROM pg_attribute"
        " WHERE attrelid = %s::regclass AND attname = 'embedding'"
    )
    assert count(ledger._database, kind, ["%halfvec(16)", vectors.table_name(stage)]) == 1
    for (a, scores_a), (b, scores_b) in zip(full, half, strict=True):
        by_chunk = dict(zip(a, scores_a, strict=True))
        differences = [abs(by_chunk[c] - s) for c, s in zip(b, scores_b, strict=True)]
        assert max(differences) < 2e-3
        assert max(differences) > 0, "it is half precision"


# --- hnsw ----------------------------------------------------------------------------------------


class Explaining:
    """A connection that keeps the plan of the search statement."""

    def __init__(self, connection: Connection[Any]) -> None:
        self._connection = connection
        self.plan = ""

    def execute(self, query: Any, *values: Any, **how: Any) -> Any:
        text = query if isinstance(query, str) else query.as_string(self._connection)
        if "CROSS JOIN LATERAL" in text:
            rows = self._connection.execute("EXPLAIN " + text, *values).fetchall()
            self.plan = "\n".join(row[0] for row in rows)
        return self._connection.execute(query, *values, **how)


@pytest.mark.parametrize("rows", [5, 600])
@pytest.mark.parametrize("storage", ["vector", "halfvec"])
def test_the_index_is_used_unless_exact_is_asked(ledger: Ledger, rows: int, storage: Any) -> None:
    spec = Hnsw(storage=storage)
    matrix = random_matrix(6, rows)
    stage = index_of(ledger, matrix, spec)
    name = f"{vectors.table_name(stage)}_embedding_idx"
    plans = {}
    for exact in (False, True):
        with ledger._database.transaction() as connection:
            watched = Explaining(connection)
            keys = embeddings(connection, matrix[:2])
            vectors.search(watched, stage, spec, keys, 4, exact=exact)  # type: ignore[arg-type]
            plans[exact] = watched.plan
    assert f"Index Scan using {name}" in plans[False]
    assert "Incremental Sort" in plans[False], "ties by chunk number on top of the index's order"
    assert name not in plans[True]


def test_exact_on_an_index_is_exact_search(ledger: Ledger) -> None:
    matrix, queries = random_matrix(7, 300), random_matrix(8, 5)
    stage = index_of(ledger, matrix, Hnsw(m=2, ef_construction=4))
    truth = ask(ledger, index_of(ledger, matrix, Exact()), Exact(), queries, 20)
    assert ask(ledger, stage, Hnsw(), queries, 20, exact=True) == truth


@pytest.mark.parametrize("ef_search", [1, 10, None])
def test_a_narrow_search_still_returns_k(ledger: Ledger, ef_search: int | None) -> None:
    matrix, queries = random_matrix(9, 400), random_matrix(10, 6)
    stage = index_of(ledger, matrix, Hnsw())
    found = ask(ledger, stage, Hnsw(), queries, 100, ef_search=ef_search)
    assert [len(chunks) for chunks, _ in found] == [100] * 6
    truth = ask(ledger, stage, Hnsw(), queries, 100, exact=True)
    shares = [len(set(a) & set(b)) / 100 for (a, _), (b, _) in zip(found, truth, strict=True)]
    assert np.mean(shares) > 0.9
    for _, scores in found:
        assert scores == sorted(scores, reverse=True)


def test_k_beyond_the_widest_search_is_reached(ledger: Ledger) -> None:
    """hnsw.ef_search ends at 1,000; what is beyond comes from the iterative scan."""
    matrix = random_matrix(16, 1300, 8)
    [(chunks, scores)] = ask(ledger, index_of(ledger, matrix, Hnsw()), Hnsw(), matrix[:1], 1200)
    assert len(chunks) == 1200
    assert scores == sorted(scores, reverse=True)


def test_ties_on_an_index_go_by_chunk_number(ledger: Ledger) -> None:
    base = random_matrix(11, 10)
    stage = index_of(ledger, np.concatenate([base] * 4), Hnsw())
    [(chunks, _)] = ask(ledger, stage, Hnsw(), base[3:4], 6)
    assert chunks[:4] == [3, 13, 23, 33]
    assert chunks[5] == chunks[4] + 10


# --- short answers and limits --------------------------------------------------------------------


def test_an_index_that_stops_early_is_an_error(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    spec, matrix = Hnsw(), random_matrix(12, 300)
    stage = index_of(ledger, matrix, spec)

    def plain_pgvector(connection: Connection[Any], *_: Any) -> None:
        connection.execute("SET LOCAL enable_seqscan = off")
        connection.execute("SET LOCAL hnsw.ef_search = 10")

    monkeypatch.setattr(vectors, "_guard", plain_pgvector)
    with pytest.raises(ShortResultError, match=r"2 of 2 queries got fewer than 50 hits \(the first: 10\)") as caught:
        ask(ledger, stage, spec, matrix[:2], 50)
    assert caught.value.where == f"index {vectors.table_name(stage)}"
    assert "ef_search" in (caught.value.hint or "")


def test_a_limit_of_the_server_is_an_error_too(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    spec, matrix = Hnsw(), random_matrix(13, 1500)
    stage = index_of(ledger, matrix, spec)
    guard = vectors._guard

    def limited(connection: Connection[Any], *given: Any) -> None:
        guard(connection, *given)
        connection.execute("SET LOCAL hnsw.ef_search = 5")
        connection.execute("SET LOCAL hnsw.max_scan_tuples = 20")

    monkeypatch.setattr(vectors, "_guard", limited)
    with pytest.raises(ShortResultError, match="got fewer than 1000 hits"):
        ask(ledger, stage, spec, matrix[:1], 1000)


def test_rows_that_the_index_does_not_hold_are_missed_aloud(ledger: Ledger) -> None:
    """pgvector leaves zero vectors out of a cosine index."""
    matrix = random_matrix(14, 8)
    matrix[5] = 0
    stage = index_of(ledger, matrix, Hnsw())
    assert len(ask(ledger, stage, Hnsw(), matrix[:1], 7)[0][0]) == 7
    with contextlib.suppress(ShortResultError):
        ask(ledger, stage, Hnsw(), matrix[:1], 8)
        pytest.fail("eight rows, seven hits, and no error")


@pytest.mark.parametrize(
    ("spec", "dimensions", "hint"),
    [
        (Hnsw(), 2001, 'set index.storage = "halfvec"'),
        (Hnsw(), 4000, 'set index.storage = "halfvec"'),
        (Hnsw(), 4001, 'set index.kind = "exact"'),
        (Hnsw(storage="halfvec"), 4001, 'set index.kind = "exact"'),
    ],
)
def test_too_many_dimensions_are_refused_with_the_way_out(spec: Hnsw, dimensions: int, hint: str) -> None:
    with pytest.raises(SpecError, match=f"the model has {dimensions}") as caught:
        vectors.check_dimensions(spec, dimensions)
    assert caught.value.hint == hint


@pytest.mark.parametrize(
    ("spec", "dimensions"),
    [(Hnsw(), 2000), (Hnsw(storage="halfvec"), 4000), (Exact(), 4001), (Exact(storage="halfvec"), 4001)],
)
def test_what_pgvector_holds_is_let_through_and_works(ledger: Ledger, spec: Exact | Hnsw, dimensions: int) -> None:
    vectors.check_dimensions(spec, dimensions)
    matrix = random_matrix(15, 3, dimensions)
    assert ask(ledger, index_of(ledger, matrix, spec), spec, matrix[1:2], 1)[0][0] == [1]
