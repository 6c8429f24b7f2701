"""Document metrics (against arithmetic by hand) and the table of metric names."""

from __future__ import annotations

import math

import numpy as np
import polars as pl
import pytest

from workbench.errors import SpecError
from workbench.evaluation import (
    METRICS,
    check_metric,
    higher_is_better,
    is_known_metric,
    metric_names,
    score,
    score_documents,
    score_matrix,
)
from workbench.records import Chunk, Evidence, Hit, Query, Score, frame
from workbench.specs import ScoreSpec

TEXTS = dict.fromkeys("abcd", "text " * 4)
CHUNKS = frame(Chunk, [Chunk(2 * i + j, d, 10 * j, 10 * j + 10) for i, d in enumerate("abcd") for j in (0, 1)])


def judged(doc_id: str, grade: int = 1) -> Evidence:
    return Evidence(doc_id, 0, 20, grade, "document")


def hits(query_id: str, chunk_nos: list[int]) -> list[Hit]:
    return [Hit(query_id, rank, no, -float(rank)) for rank, no in enumerate(chunk_nos, 1)]


def test_documents_stand_where_their_best_chunk_stands():
    # Chunks 6, 7 (d), 0 (a), 3 (b), 1 (a): documents d, a, b.
    query = Query("q", "?", (judged("a", 2), judged("a", 1), judged("b"), judged("zzz"), judged("d", 0)))
    spec = ScoreSpec(k=(1, 2, 3))
    scores = score_documents(frame(Hit, hits("q", [6, 7, 0, 3, 1])), CHUNKS, [query], TEXTS, spec)
    got = dict(scores.select("metric", "value").iter_rows())
    assert list(got) == list(metric_names(spec, "document"))
    ideal = 2 + 1 / math.log2(3) + 1 / math.log2(4)
    assert got["ndcg@3"] == pytest.approx((2 / math.log2(3) + 1 / math.log2(4)) / ideal)
    assert got["ndcg@1"] == 0
    assert got["doc_recall@2"] == pytest.approx(1 / 3) and got["doc_recall@3"] == pytest.approx(2 / 3)
    assert got["doc_mrr"] == 1 / 2
    assert got["map"] == pytest.approx((1 / 2 + 2 / 3) / 3)


def test_equal_scores_keep_the_ranking():
    ranking = [Hit("q", rank, no, 0.5) for rank, no in enumerate([0, 2, 4, 6], 1)]
    spec = ScoreSpec(k=(1,))
    for place, doc in enumerate("abcd", 1):
        scores = score_documents(frame(Hit, ranking), CHUNKS, [Query("q", "?", (judged(doc),))], TEXTS, spec)
        assert dict(scores.select("metric", "value").iter_rows())["doc_mrr"] == pytest.approx(1 / place)


def test_each_unit_scores_its_own_queries():
    queries = [
        Query("spans", "?", (Evidence("a", 0, 4),)),
        Query("docs", "?", (judged("a"),)),
        Query("none", "?"),
    ]
    scores = score(frame(Hit, hits("docs", [0])), CHUNKS, queries, TEXTS, ScoreSpec(k=(1,)))
    rows = {q: set(m) for q, m in scores.group_by("query_id").agg("metric").iter_rows()}
    spans, documents = (set(metric_names(ScoreSpec(k=(1,)), unit)) for unit in ("span", "document"))
    assert rows == {"spans": spans, "docs": documents, "none": spans | documents}
    assert scores.filter(pl.col("query_id") == "none")["value"].is_null().all()
    # A set without document judgements shows no document metrics, and the other way round.
    only = score(frame(Hit, []), CHUNKS, [queries[0], queries[2]], TEXTS, ScoreSpec(k=(1,)))
    assert set(only["metric"]) == spans
    only = score(frame(Hit, []), CHUNKS, queries[1:], TEXTS, ScoreSpec(k=(1,)))
    assert set(only["metric"]) == documents
    assert set(only.filter(pl.col("query_id") == "docs")["value"]) == {0.0}


def test_names_are_known_at_any_k_and_refused_with_a_hint():
    spec = ScoreSpec(k=(5, 1, 5))
    names = metric_names(spec)
    assert len(names) == len(set(names)) and all(map(is_known_metric, names))
    assert names[:2] == ("span_recall@1", "span_recall@5")
    assert metric_names(spec, "span") + metric_names(spec, "document") == names
    for bad in ("recall", "recall@0", "recall@05", "mrr@10", "recal@5", "recall@5 "):
        assert not is_known_metric(bad)
    check_metric("recall@5", spec)
    for name, hint in [
        ("recal@5", "did you mean 'recall@5'"),
        ("recall@7", r"k = 7 is not in \[5, 1, 5\] \(add 7 to score.k, and keep at least 7 hits"),
        ("mrr@10", "'mrr' has no cut-off"),
        ("recall", "for example 'recall@5'"),
    ]:
        with pytest.raises(SpecError, match=hint):
            check_metric(name, spec)
    assert higher_is_better("recall@5") and not higher_is_better("failure@20") and higher_is_better("my_metric")
    assert all(m.summary for m in METRICS.values())


def test_score_matrix_keeps_missing_values_and_sets_unanswerable_queries_apart():
    a = frame(Score, [("p", "m", 0.5, None), ("q", "m", None, "judge failed"), ("u", "m", None, "no evidence")])
    b = frame(Score, [("q", "m", 1.0, None), ("u", "m", None, "no evidence"), ("p", "other", 0.0, None)])
    ids, matrix, apart = score_matrix([a, b], "m")
    assert ids == ["p", "q"] and apart == ("u",)
    np.testing.assert_array_equal(matrix, [[0.5, np.nan], [np.nan, 1.0]])
    assert score_matrix([], "m")[1].shape == (0, 0)
