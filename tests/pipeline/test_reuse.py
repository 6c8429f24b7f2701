"""Work is done once: the exact stages and items that each change computes, counted in the store's own tables."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest

from workbench.datasets import Dataset
from workbench.lab import Lab
from workbench.pipeline.results import TrialResult
from workbench.records import Evidence, Query
from workbench.specs import Bm25, Dense, Embed, Exact, Fts, Hnsw, Hybrid, Recursive, TrialSpec


def work(result: TrialResult) -> dict[str, int]:
    """Stages computed in a run with the items computed in each; reused stages are left out."""
    return {f"{s.kind} {s.label}": s.computed for s in result.stages if s.state == "computed"}


def written(lab: Lab) -> dict[str, int]:
    """Rows in the tables that grow with work."""
    tables = ("stage", "claim", "memo_spans", "memo_embedding", "memo_ranking", "chunk", "hit", "score")
    with lab.runtime.database.transaction() as connection:
        return {t: connection.execute(f"SELECT count(*) FROM {t}").fetchone()[0] for t in tables}  # type: ignore[index]


@pytest.fixture
def first(lab: Lab, tiny: Dataset, words_trial: TrialSpec) -> TrialResult:
    return lab.run(words_trial, tiny)


def edited(data: Dataset, number: int, old: str, new: str) -> Dataset:
    documents = list(data.documents)
    documents[number] = dataclasses.replace(documents[number], text=documents[number].text.replace(old, new))
    return dataclasses.replace(data, documents=tuple(documents))


def test_first_run_computes_everything(first: TrialResult, tiny: Dataset) -> None:
    chunks = len(first.chunks)
    assert chunks == 72
    assert work(first) == {
        "chunk recursive": 6,
        "embed passage": chunks,
        "index exact": chunks,
        "embed query": 6,
        "retrieve dense": 6,
        "score score": 6,
    }


def test_rerun_writes_nothing(first: TrialResult, lab: Lab, tiny: Dataset, words_trial: TrialSpec) -> None:
    before = written(lab)
    again = lab.run(words_trial, tiny)
    assert work(again) == {}
    assert {s.state for s in again.stages} == {"reused"}
    assert written(lab) == before
    assert again.metrics == first.metrics
    assert again.scores.equals(first.scores)


@pytest.mark.parametrize(
    ("path", "value", "expected"),
    [
        ("retrieve.k", 3, {"retrieve dense": 6, "score score": 6}),
        ("retrieve.kind", "bm25", {"retrieve bm25": 6, "score score": 6}),
        ("retrieve.kind", "fts", {"index fts": 72, "retrieve fts": 6, "score score": 6}),
        ("score.k", (1, 3), {"score score": 6}),
        ("index.kind", "hnsw", {"index hnsw": 72, "retrieve dense": 6, "score score": 6}),
        # The same texts under another chunk stage are the same embeddings: nothing is embedded again.
        (
            "chunk.kind",
            "sentence",
            {
                "chunk sentence": 6,
                "embed passage": 0,
                "index exact": 72,
                "retrieve dense": 6,
                "score score": 6,
            },
        ),
        (
            "embed.query_prefix",
            "query: ",
            {"embed query": 6, "retrieve dense": 6, "score score": 6},
        ),
        (
            "embed.model",
            "fake:hash-32",
            {"embed passage": 72, "index exact": 72, "embed query": 6, "retrieve dense": 6, "score score": 6},
        ),
    ],
)
def test_one_field_changed(
    first: TrialResult,
    lab: Lab,
    tiny: Dataset,
    words_trial: TrialSpec,
    path: str,
    value: object,
    expected: dict[str, int],
) -> None:
    changed = lab.run(words_trial.vary(path, value), tiny)
    assert work(changed) == expected


def test_chunk_size_keeps_what_is_equal(first: TrialResult, lab: Lab, tiny: Dataset, words_trial: TrialSpec) -> None:
    changed = lab.run(words_trial.vary("chunk.tokens", 10_000), tiny)
    assert work(changed) == {
        "chunk recursive": 6,
        "embed passage": 6,
        "index exact": 6,
        "retrieve dense": 6,
        "score score": 6,
    }


def test_hybrid_shares_its_legs_with_plain_trials(
    first: TrialResult, lab: Lab, tiny: Dataset, words_trial: TrialSpec
) -> None:
    hybrid = words_trial.model_copy(update={"retrieve": Hybrid(legs=("dense", "bm25"), depth=10, k=10)})
    result = lab.run(hybrid, tiny)
    assert work(result) == {"retrieve bm25": 6, "retrieve hybrid": 6, "score score": 6}
    other = lab.run(hybrid.vary("retrieve.rrf_k", 10), tiny)
    assert work(other) == {"retrieve hybrid": 6, "score score": 6}


def test_one_edited_document(first: TrialResult, lab: Lab, tiny: Dataset, words_trial: TrialSpec) -> None:
    changed = lab.run(words_trial, edited(tiny, 5, "Line n5x3", "Line five"))
    assert work(changed) == {
        "chunk recursive": 1,
        "embed passage": 1,
        "index exact": 72,
        "retrieve dense": 6,
        "score score": 6,
    }


def test_one_more_query(first: TrialResult, lab: Lab, tiny: Dataset, words_trial: TrialSpec) -> None:
    more = dataclasses.replace(tiny, queries=(*tiny.queries, Query("q10", "what does line n3x4 say")))
    assert work(lab.run(words_trial, more)) == {"embed query": 1, "retrieve dense": 1, "score score": 7}


def test_a_larger_limit_costs_its_missing_queries(lab: Lab, tiny: Dataset, words_trial: TrialSpec) -> None:
    lab.run(words_trial, tiny, limit=2)
    assert work(lab.run(words_trial, tiny, limit=5)) == {"embed query": 3, "retrieve dense": 3, "score score": 5}


def test_one_corrected_gold_span(first: TrialResult, lab: Lab, tiny: Dataset, words_trial: TrialSpec) -> None:
    old = tiny.queries[0].evidence[0]
    fixed = dataclasses.replace(tiny.queries[0], evidence=(Evidence(old.doc_id, old.start, old.end - 1),))
    corrected = dataclasses.replace(tiny, queries=(fixed, *tiny.queries[1:]))
    assert work(lab.run(words_trial, corrected)) == {"score score": 6}


def test_fields_that_a_trial_does_not_use_change_nothing(
    lab: Lab, tiny: Dataset, bm25_trial: TrialSpec, words_trial: TrialSpec
) -> None:
    lab.run(bm25_trial, tiny)
    unused = (("index.kind", "hnsw"), ("embed.model", "no such model"))
    for path, value in unused:
        assert work(lab.run(bm25_trial.vary(path, value), tiny)) == {}
    dense = lab.run(words_trial, tiny)
    assert work(lab.run(words_trial.vary("lexical.k1", 2.0), tiny)) == {}
    assert work(lab.run(words_trial.vary("retrieve.ef_search", 70), tiny)) == {}, "ef_search is HNSW's"
    assert dense.trial_id


def test_two_databases_agree_to_the_last_digit(
    open_lab: Callable[..., Lab], tiny: Dataset, words_trial: TrialSpec
) -> None:
    hybrid = words_trial.model_copy(update={"retrieve": Hybrid(legs=("dense", "bm25", "fts"), depth=20, k=10)})
    one = open_lab().run(hybrid, tiny)
    other = open_lab(db_schema="elsewhere_" + one.database.schema).run(hybrid, tiny)
    assert one.hits.equals(other.hits)
    assert one.scores.equals(other.scores)


def test_an_own_chunker_takes_the_same_door(lab: Lab, tiny: Dataset, words_trial: TrialSpec) -> None:
    def paragraphs(text: str) -> list[str]:
        return text.split("\n\n")

    result = lab.run(words_trial, tiny, chunk=paragraphs)
    assert work(result)["chunk python"] == 6
    assert work(result)["embed passage"] == 72
    assert work(lab.run(words_trial, tiny, chunk=paragraphs)) == {}


def test_asking_shares_the_index(first: TrialResult, lab: Lab, tiny: Dataset, words_trial: TrialSpec) -> None:
    before = written(lab)
    found = lab.search("line n2x4", tiny, words_trial, words_trial.vary("retrieve.kind", "bm25"))
    after = written(lab)
    assert after["memo_spans"] == before["memo_spans"]
    assert after["memo_embedding"] == before["memo_embedding"] + 1
    assert [frame.height for frame in found.hits.values()] == [5, 5]
    lab.search("line n2x4", tiny, words_trial, words_trial.vary("retrieve.kind", "bm25"))
    assert written(lab) == after


def test_every_retriever_finds_the_named_line(lab: Lab, tiny: Dataset, words_trial: TrialSpec) -> None:
    for retrieve in (Bm25(k=10), Fts(k=10), Hybrid(legs=("bm25", "fts"), depth=10, k=10)):
        result = lab.run(words_trial.model_copy(update={"retrieve": retrieve}), tiny)
        assert result.metrics["recall@5"]["mean"] == 1.0, retrieve
        assert result.metrics["recall@5"]["n"] == 5
        assert result.metrics["recall@5"]["no_evidence"] == 1


def test_hnsw_reports_its_recall(lab: Lab, tiny: Dataset, words_trial: TrialSpec) -> None:
    result = lab.run(words_trial.model_copy(update={"index": Hnsw(storage="halfvec")}), tiny)
    details = next(s.details for s in result.stages if s.kind == "retrieve")
    assert details["ann_recall"]["n"] == 6
    assert 0.9 <= details["ann_recall"]["mean"] <= 1.0
    exact = lab.run(words_trial.model_copy(update={"index": Exact()}), tiny)
    assert "ann_recall" not in next(s.details for s in exact.stages if s.kind == "retrieve")


def test_specs_used_here_are_the_defaults_they_claim() -> None:
    assert TrialSpec(chunk=Recursive(), embed=Embed(), retrieve=Dense()) == TrialSpec()
