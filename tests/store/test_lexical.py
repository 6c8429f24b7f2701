"""BM25 against plain Python, its cache on disk under kills, and PostgreSQL full text."""

from __future__ import annotations

import itertools
import math
import os
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from psycopg import Connection
from store_rows import new_stage

from workbench.datasets import Dataset
from workbench.errors import InputError
from workbench.records import Chunk, Document, frame
from workbench.settings import Settings
from workbench.specs import Lexical
from workbench.store import lexical, tables
from workbench.store.database import Database
from workbench.store.ledger import Ledger
from workbench.store.lexical import Bm25Index, top_k
from workbench.store.worker import Worker

_numbers = itertools.count()


def bm25(corpus: Sequence[Sequence[str]], query: Sequence[str], k1: float, b: float) -> list[float]:
    """Lucene's BM25, term by term in double precision; a term asked twice counts twice."""
    n = len(corpus)
    average = sum(map(len, corpus)) / n
    scores = [0.0] * n
    for term in query:
        df = sum(term in document for document in corpus)
        if not df:
            continue
        idf = math.log(1 + (n - df + 0.5) / (df + 0.5))
        for i, document in enumerate(corpus):
            if tf := document.count(term):
                scores[i] += idf * tf / (tf + k1 * (1 - b + b * len(document) / average))
    return scores


def opened(folder: Path, texts: Sequence[str], spec: Lexical | None = None) -> Bm25Index:
    return Bm25Index.open(folder, f"index{next(_numbers)}", lambda: texts, str.split, spec or Lexical())


words = st.sampled_from(["ape", "bee", "cat", "dog", "ä", "𝕏y"])
documents = st.lists(st.lists(words, max_size=8).map(" ".join), min_size=1, max_size=8)


@hypothesis_settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    texts=documents,
    query=st.lists(st.one_of(words, st.just("unseen")), max_size=4),
    k=st.integers(1, 9),
    k1=st.sampled_from([0.0, 1.2, 1.5, 3.0]),
    b=st.sampled_from([0.0, 0.75, 1.0]),
)
def test_bm25_is_lucenes(tmp_path: Path, texts: list[str], query: list[str], k: int, k1: float, b: float) -> None:
    chunks, scores = opened(tmp_path, texts, Lexical(k1=k1, b=b)).search(query, k)
    corpus = [text.split() for text in texts]
    truth = bm25(corpus, query, k1, b) if any(corpus) else [0.0] * len(texts)
    positive = [i for i, s in enumerate(truth) if s > 0]
    assert len(chunks) == len(set(chunks)) == min(k, len(positive))
    assert set(chunks) <= set(positive)
    np.testing.assert_allclose(scores, [truth[c] for c in chunks], rtol=1e-5)
    np.testing.assert_allclose(scores, sorted((truth[i] for i in positive), reverse=True)[:k], rtol=1e-5)
    ranked = [(-s, c) for c, s in zip(chunks, scores, strict=True)]
    assert ranked == sorted(ranked), "ties by chunk number"


def test_equal_chunks_tie_by_their_number(tmp_path: Path) -> None:
    index = opened(tmp_path, ["x", "ape bee", "ape bee", "y", "ape bee", "ape bee"])
    assert index.search(["ape"], 3)[0] == [1, 2, 4]


def test_unknown_words_and_empty_questions_find_nothing(tmp_path: Path) -> None:
    index = opened(tmp_path, ["ape bee", "cat"])
    assert index.search([], 5) == ([], [])
    assert index.search(["unseen"], 5) == ([], [])
    assert index.search(["unseen", "cat"], 5)[0] == [1]


@pytest.mark.parametrize("texts", [[], [""], ["", " "]])
def test_a_corpus_without_terms(tmp_path: Path, texts: list[str]) -> None:
    for _ in range(2):
        index = Bm25Index.open(tmp_path, "nothing", lambda: texts, str.split, Lexical())
        assert index.search(["ape"], 5) == ([], [])


# --- the cache on disk ---------------------------------------------------------------------------


def never() -> list[str]:
    raise AssertionError("the index is on disk already")


def test_an_index_is_built_once(tmp_path: Path) -> None:
    folder = tmp_path / "not" / "there" / "yet"
    built = Bm25Index.open(folder, "f", lambda: ["ape", "bee bee"], str.split, Lexical())
    again = Bm25Index.open(folder, "f", never, str.split, Lexical())
    assert again.search(["bee"], 5) == built.search(["bee"], 5)
    assert [p.name for p in folder.iterdir()] == ["f"]


def test_builders_at_once_leave_one_index(tmp_path: Path) -> None:
    texts = ["ape", "bee bee", "cat"]
    together = threading.Barrier(4, timeout=20)

    def build(_: int) -> tuple[list[int], list[float]]:
        def all_of_them() -> list[str]:
            together.wait()
            return texts

        return Bm25Index.open(tmp_path, "f", all_of_them, str.split, Lexical()).search(["bee"], 5)

    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(build, range(4)))
    assert [chunks for chunks, _ in found] == [[1]] * 4
    assert [p.name for p in tmp_path.iterdir()] == ["f"]


KILLED = """
import os, sys
from pathlib import Path
import bm25s
from workbench.specs import Lexical
from workbench.store.lexical import Bm25Index
save = bm25s.BM25.save
def half(self, folder, *given, **named):
    save(self, folder, *given, **named)
    for file in list(Path(folder).iterdir())[::2]:
        file.unlink()
    os.kill(os.getpid(), 9)
bm25s.BM25.save = half
Bm25Index.open(Path(sys.argv[1]), "f", lambda: ["ape", "bee bee"], str.split, Lexical())
"""


def test_a_killed_builder_leaves_nothing_that_looks_finished(tmp_path: Path) -> None:
    run = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], timeout=120, check=False)
    assert run.returncode == -9
    assert list(tmp_path.iterdir()), "it was in the middle"
    assert not (tmp_path / "f").exists()
    index = Bm25Index.open(tmp_path, "f", lambda: ["ape", "bee bee"], str.split, Lexical())
    assert index.search(["bee"], 5)[0] == [1]


def test_what_a_killed_builder_left_is_removed_when_it_is_old(tmp_path: Path) -> None:
    old, fresh = tmp_path / ".building-old", tmp_path / ".building-fresh"
    old.mkdir()
    fresh.mkdir()
    os.utime(old, (1, 1))
    Bm25Index.open(tmp_path, "f", lambda: ["ape"], str.split, Lexical())
    assert not old.exists()
    assert fresh.exists(), "another process may be building there"


def test_a_builder_that_fails_cleans_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(os, "rename", full)
    with pytest.raises(OSError, match="no space left"):
        Bm25Index.open(tmp_path, "f", lambda: ["ape"], str.split, Lexical())
    assert list(tmp_path.iterdir()) == []


# --- the k best ----------------------------------------------------------------------------------


@given(
    scores=st.lists(
        st.one_of(st.sampled_from([0.0, -1.0, 0.5, 1.0]), st.floats(width=32), st.floats(0, 1, width=32)), max_size=30
    ),
    k=st.integers(1, 35),
    single=st.booleans(),
)
def test_top_k_is_a_full_sort(scores: list[float], k: int, single: bool) -> None:
    array = np.array(scores, dtype=np.float32 if single else np.float64)
    expected = sorted((-s, i) for i, s in enumerate(array.tolist()) if s > 0)[:k]
    positions, values = top_k(array, k)
    assert positions == [i for _, i in expected]
    assert values == [-s for s, _ in expected]


@pytest.mark.parametrize("k", [1, 7, 300])
def test_a_cut_through_many_ties_keeps_the_first(k: int) -> None:
    rng = np.random.default_rng(3)
    scores = rng.integers(0, 3, 5000).astype(np.float32)
    expected = sorted(range(5000), key=lambda i: (-scores[i], i))[:k]
    assert top_k(scores, k)[0] == expected


# --- full text -----------------------------------------------------------------------------------

TEXTS = {
    "d0": "\U0001d54f\U0001f600\U0001f600 The heron stands in the reeds. Otters swim past.",
    "d1": "Herons and otters; otters again. Überraschung für naïve crêpes.",
    "d2": "Nothing of the kind.",
}
SENTENCES = [
    ("d0", "The heron stands in the reeds."),
    ("d0", "Otters swim past."),
    ("d1", "Herons and otters; otters again."),
    ("d1", "Überraschung für naïve crêpes."),
    ("d2", "Nothing of the kind."),
    ("d0", "eron stan"),  # cut inside words: a shift by one would show at both ends
]


@pytest.fixture(scope="module")
def ledger(server_home: Path) -> Iterator[Ledger]:
    with (
        Database.open(Settings(home=server_home, db_schema="t_lexical")) as database,
        Worker(database, {"test": "lexical"}, 30) as worker,
    ):
        yield Ledger(database, worker)


@pytest.fixture(scope="module")
def fts_index(ledger: Ledger) -> Callable[[str], int]:
    """Makes the stage_id of a full-text index over the sentences, by configuration."""
    dataset = Dataset("birds", tuple(Document(d, text) for d, text in TEXTS.items()), ())
    with ledger._database.transaction() as connection:
        dataset_id = tables.save_dataset(connection, dataset)
    starts = [TEXTS[d].index(s) for d, s in SENTENCES]
    rows = [(i, d, at, at + len(s)) for i, ((d, s), at) in enumerate(zip(SENTENCES, starts, strict=True))]

    def write_chunks(connection: Connection[Any], stage_id: int) -> dict[str, Any]:
        tables.write_chunks(connection, stage_id, frame(Chunk, rows))
        return {}

    chunk_stage = new_stage(ledger, write_chunks)

    def make(config: str) -> int:
        def write(connection: Connection[Any], stage_id: int) -> dict[str, Any]:
            return {"rows": lexical.create_fts(connection, stage_id, config, chunk_stage, dataset_id)}

        return new_stage(ledger, write)

    return make


def found(
    ledger: Ledger, stage: int, *queries: str, config: str = "english", k: int = 10, match_all: bool = False
) -> list[list[int]]:
    with ledger._database.transaction() as connection:
        hits = lexical.search_fts(connection, stage, config, queries, k, match_all=match_all)
    for chunks, scores in hits:
        assert all(score > 0 for score in scores)
        ranked = [(-s, c) for c, s in zip(chunks, scores, strict=True)]
        assert ranked == sorted(ranked)
    return [chunks for chunks, _ in hits]


def test_any_word_or_all_words(ledger: Ledger, fts_index: Callable[[str], int]) -> None:
    stage = fts_index("english")
    any_of = found(ledger, stage, "heron otters", "heron walrus", "reeds", "the of and", "")
    assert sorted(any_of[0]) == [0, 1, 2]
    assert any_of[0][0] == 2, "both words, one of them twice"
    assert any_of[1:] == [[0, 2], [0], [], []]
    all_of = found(ledger, stage, "heron otters", "heron walrus", match_all=True)
    assert all_of == [[2], []]


def test_offsets_are_code_points(ledger: Ledger, fts_index: Callable[[str], int]) -> None:
    """Astral characters before a chunk do not shift its words (they are two units in UTF-16, four bytes in UTF-8)."""
    stage = fts_index("simple")
    with ledger._database.transaction() as connection:
        rows = connection.execute(
            f"SELECT chunk_no, tsvector_to_array(terms) FROM {lexical.fts_table(stage)} ORDER BY 1"  # type: ignore[arg-type]
        ).fetchall()
    stored = {no: Counter(terms) for no, terms in rows}
    expected = [set(s.lower().replace(".", "").replace(";", "").split()) for _, s in SENTENCES]
    assert [set(stored[no]) for no in range(len(SENTENCES))] == expected
    assert found(ledger, stage, "überraschung", "FÜR", config="simple") == [[3], [3]]


def test_k_cuts_and_ties_go_by_chunk_number(ledger: Ledger, fts_index: Callable[[str], int]) -> None:
    stage = fts_index("simple")
    assert found(ledger, stage, "the", config="simple") == [[0, 4]]
    assert found(ledger, stage, "the", config="simple", k=1) == [[0]]


@pytest.mark.parametrize("text", ["a & b | !c", "'quoted'", "x:* <-> y", "\\", "%s", "http://a.b/c?d=e&f=g", "🙂"])
def test_any_question_is_only_words(ledger: Ledger, fts_index: Callable[[str], int], text: str) -> None:
    stage = fts_index("english")
    assert found(ledger, stage, text) == [[]]
    assert found(ledger, stage, f"{text} heron", match_all=False) == [[0, 2]]


def test_an_unknown_configuration_is_refused_with_those_there_are(
    ledger: Ledger, fts_index: Callable[[str], int]
) -> None:
    with pytest.raises(InputError, match="no text-search configuration 'klingon'") as caught:
        fts_index("klingon")
    assert "english" in (caught.value.hint or "")
    assert "simple" in (caught.value.hint or "")
