"""Span and evidence metrics: against the oracle on random data, and by hand at the edges."""

from __future__ import annotations

import time

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from span_oracle import oracle, span_gold

from workbench.errors import FrameError
from workbench.evaluation import locate_occurrences, metric_names, score, score_spans
from workbench.records import SCHEMAS, Chunk, Evidence, Hit, Query, Score, check_frame, frame
from workbench.specs import ScoreSpec

LETTERS = "ab \n\u00a0\u3000é😀"
# Blocks of which some are long enough to be located elsewhere, and repeat.
BLOCKS = ["x" * 25, "the same sentence stands in two places. ", "  ", "yz", "\n", "x" * 45]


@st.composite
def spans(draw: st.DrawFn, texts: dict[str, str]) -> tuple[str, int, int]:
    doc_id = draw(st.sampled_from(sorted(texts)))
    start = draw(st.integers(0, len(texts[doc_id]) - 1))
    return doc_id, start, draw(st.integers(start + 1, len(texts[doc_id])))


@st.composite
def cases(draw: st.DrawFn, text: st.SearchStrategy[str]) -> tuple[dict[str, str], list[Chunk], Query, list[Chunk]]:
    texts = {f"d{i}": draw(text) for i in range(draw(st.integers(1, 3)))}
    chunks = [Chunk(i, *s) for i, s in enumerate(draw(st.lists(spans(texts), min_size=1, max_size=8)))]
    judged = draw(st.lists(st.tuples(spans(texts), st.sampled_from([1, 1, 1, 2, 0])), min_size=1, max_size=4))
    evidence = tuple(Evidence(*span, grade=grade) for span, grade in judged)
    ranking = draw(st.lists(st.sampled_from(chunks), unique=True))
    return texts, chunks, Query("q", "?", evidence), ranking


def hits_of(ranking: list[Chunk], query_id: str = "q") -> pl.DataFrame:
    return frame(Hit, [Hit(query_id, rank, c.chunk_no, 1 / rank) for rank, c in enumerate(ranking, 1)])


def as_dict(scores: pl.DataFrame, query_id: str = "q") -> dict[str, float | None]:
    return dict(scores.filter(pl.col("query_id") == query_id).select("metric", "value").iter_rows())


@given(
    case=cases(st.text(LETTERS, min_size=1, max_size=30)),
    ks=st.lists(st.integers(1, 10), min_size=1, max_size=3),
    coverage=st.sampled_from([1.0, 0.5, 0.7, 0.1, 0.999]),
)
@settings(max_examples=400, deadline=None)
def test_agrees_exactly_with_sets_of_positions(case, ks, coverage):
    texts, chunks, query, ranking = case
    spec = ScoreSpec(k=tuple(ks), coverage=coverage)
    got = as_dict(score_spans(hits_of(ranking), frame(Chunk, chunks), [query], texts, spec))
    if span_gold(query):
        assert got == oracle(ranking, chunks, query, texts, ks, coverage)
    else:
        assert set(got.values()) == {None}


@given(
    case=cases(st.lists(st.sampled_from(BLOCKS), min_size=1, max_size=5).map("".join)),
    coverage=st.sampled_from([1.0, 0.5]),
)
@settings(max_examples=150, deadline=None)
def test_agrees_exactly_where_text_repeats(case, coverage):
    texts, chunks, query, ranking = case
    spec = ScoreSpec(k=(1, 3), coverage=coverage, occurrences="any")
    got = as_dict(score_spans(hits_of(ranking), frame(Chunk, chunks), [query], texts, spec))
    if span_gold(query):
        assert got == oracle(ranking, chunks, query, texts, [1, 3], coverage, anywhere=True)


@given(text=st.lists(st.sampled_from(BLOCKS), min_size=1, max_size=8).map("".join), data=st.data())
@settings(max_examples=150, deadline=None)
def test_locates_every_other_occurrence_and_no_more(text, data):
    texts = {"a": text, "b": text[3:] or "-"}
    doc_id, start, end = data.draw(spans(texts))
    evidence = Evidence(doc_id, start, end)
    needle = texts[doc_id][start:end].strip()
    own = (doc_id, texts[doc_id].index(needle, start), texts[doc_id].index(needle, start) + len(needle))
    expected = {(d, i, i + len(needle)) for d, t in texts.items() for i in range(len(t)) if t.startswith(needle, i)} - {
        own
    }
    found = locate_occurrences([Query("q", "?", (evidence,))], texts)
    assert set(found.get(evidence, ())) == (expected if len(needle) >= 40 else set())


TEXT = "0123456789" * 10


def one(evidence: list[Evidence], ranking: list[int], spec: ScoreSpec | None = None) -> dict[str, float | None]:
    chunks = [Chunk(i, "d", 10 * i, 10 * i + 10) for i in range(10)]
    query = Query("q", "?", tuple(evidence))
    return as_dict(
        score_spans(
            hits_of([chunks[i] for i in ranking]), frame(Chunk, chunks), [query], {"d": TEXT}, spec or ScoreSpec()
        )
    )


def test_by_hand():
    got = one([Evidence("d", 5, 25)], [0, 9, 1, 2], ScoreSpec(k=(1, 3, 100)))
    assert got["span_recall@1"] == 5 / 20 and got["span_recall@3"] == 15 / 20 and got["span_recall@100"] == 1
    assert got["span_precision@3"] == 15 / 30
    assert got["span_iou@3"] == 15 / (30 + 5)
    assert got["precision_omega"] == 20 / 30
    assert got["recall@3"] == 0 and got["recall@100"] == 1 and got["failure@3"] == 1
    assert got["mrr"] == 1 / 4


def test_a_shared_border_touches():
    assert one([Evidence("d", 10, 20)], [])["precision_omega"] == 10 / 30


@pytest.mark.parametrize(("coverage", "enough"), [(0.7, 7), (0.1, 1), (0.55, 6), (1.0, 10)])
def test_coverage_is_a_decimal_number(coverage, enough):
    # The float 0.1 is a little more than a tenth; one of ten characters is enough all the same.
    query, spec = Query("q", "?", (Evidence("d", 0, 10),)), ScoreSpec(k=(1,), coverage=coverage)
    for end in (enough - 1, enough):
        chunks = [Chunk(0, "d", 0, end)] if end else []
        got = as_dict(score_spans(hits_of(chunks), frame(Chunk, chunks), [query], {"d": TEXT}, spec))
        assert got["recall@1"] == (end == enough)


def test_nothing_retrieved_scores_zero_and_unanswerable_queries_stay_unscored():
    queries = [Query("q", "?", (Evidence("d", 0, 5),)), Query("u", "?"), Query("g", "?", (Evidence("d", 0, 5, 0),))]
    chunks = frame(Chunk, [Chunk(0, "d", 0, 100)])
    scores = score(frame(Hit, []), chunks, queries, {"d": TEXT}, ScoreSpec())
    check_frame(Score, scores, stage="test")
    names = metric_names(ScoreSpec(), "span")
    assert scores["query_id"].to_list() == [q for q in ("q", "u", "g") for _ in names]
    got = as_dict(scores)
    assert {v for k, v in got.items() if not k.startswith(("failure", "precision_omega"))} == {0.0}
    assert {v for k, v in got.items() if k.startswith("failure")} == {1.0}
    rest = scores.filter(pl.col("query_id") != "q")
    assert rest["value"].is_null().all() and set(rest["reason"]) == {"no evidence"}
    assert scores.filter(pl.col("query_id") == "q")["reason"].is_null().all()


def test_the_same_span_recorded_twice_counts_once():
    twice = [Evidence("d", 0, 5), Evidence("d", 0, 5, grade=2), Evidence("d", 50, 55)]
    assert one(twice, [0])["recall@1"] == 1 / 2


def test_located_text_counts_for_evidence_but_not_for_spans():
    sentence = "An answer long enough to be looked for elsewhere."
    texts = {"a": f"{sentence}\n\n", "b": f"Something else. {sentence}"}
    query = Query("q", "?", (Evidence("a", 0, len(texts["a"])),))
    chunks = [Chunk(0, "a", 0, len(texts["a"])), Chunk(1, "b", 0, len(texts["b"]))]
    ranking = hits_of([chunks[1]])

    def run(rule: str) -> dict[str, float | None]:
        spec = ScoreSpec(k=(1,), occurrences=rule)
        return as_dict(score_spans(ranking, frame(Chunk, chunks), [query], texts, spec))

    assert run("same")["recall@1"] == 0
    assert run("any")["recall@1"] == 1
    assert run("any")["span_recall@1"] == 0
    located = locate_occurrences([query], texts)
    assert located == {query.evidence[0]: (("b", 16, 16 + len(sentence)),)}
    spec = ScoreSpec(k=(1,), occurrences="any")
    given_ = score_spans(ranking, frame(Chunk, chunks), [query], texts, spec, occurrences=located)
    assert as_dict(given_) == run("any")


def test_the_order_of_frames_does_not_matter():
    chunks = frame(Chunk, [Chunk(i, "d", 10 * i, 10 * i + 15) for i in range(8)])
    hits = frame(Hit, [Hit(q, r, (r * s) % 7, 0.0) for q, s in (("q", 3), ("p", 5)) for r in range(1, 7)])
    queries = [Query("q", "?", (Evidence("d", 12, 48),)), Query("p", "?", (Evidence("d", 0, 9),))]
    first = score(hits, chunks, queries, {"d": TEXT}, ScoreSpec())
    second = score(hits.reverse(), chunks.sample(fraction=1, shuffle=True, seed=1), queries, {"d": TEXT}, ScoreSpec())
    assert first.equals(second)


@pytest.mark.parametrize(
    ("hits", "fault"),
    [
        ([("q", 1, 7, 0.0)], "unknown chunk_no 7"),
        ([("nobody", 1, 0, 0.0)], "unknown query_id 'nobody'"),
        ([("q", 1, 0, 0.0), ("q", 3, 1, 0.0)], r"ranks of query 'q' are not 1\.\.2"),
        ([("q", 1, 0, 0.0), ("q", 2, 0, 0.0)], "holds a chunk twice"),
        ([("q", 1, 0, 0.0), ("q", 1, 1, 0.0)], "duplicate query_id, rank"),
    ],
)
def test_the_door_refuses_hits_that_are_no_ranking(hits, fault):
    chunks = frame(Chunk, [Chunk(0, "d", 0, 5), Chunk(1, "d", 5, 9)])
    with pytest.raises(FrameError, match=fault):
        score_spans(frame(Hit, hits), chunks, [Query("q", "?")], {"d": TEXT}, ScoreSpec())


@pytest.mark.parametrize(
    ("chunk", "evidence", "fault"),
    [
        (Chunk(0, "d", 0, 101), (), "ends after its 100 characters"),
        (Chunk(0, "d", 0, 5), (Evidence("d", 90, 101),), "ends after its 100 characters"),
        (Chunk(0, "d", 0, 5), (Evidence("e", 0, 1),), "unknown document 'e'"),
    ],
)
def test_the_door_refuses_spans_outside_the_texts(chunk, evidence, fault):
    with pytest.raises(FrameError, match=fault):
        score_spans(frame(Hit, []), frame(Chunk, [chunk]), [Query("q", "?", evidence)], {"d": TEXT}, ScoreSpec())
    with pytest.raises(FrameError, match="duplicate query_id"):
        score_spans(frame(Hit, []), frame(Chunk, []), [Query("q", "?"), Query("q", "!")], {"d": TEXT}, ScoreSpec())


def test_a_thousand_queries_of_a_hundred_hits_take_under_two_seconds():
    rng = np.random.default_rng(0)
    texts = {f"d{i}": "some words here " * 1000 for i in range(100)}
    chunks = [(i * 80 + j, f"d{i}", 200 * j, 200 * j + 200) for i in range(100) for j in range(80)]
    queries, rows = [], []
    for q in range(1000):
        places = zip(rng.integers(0, 100, 2).tolist(), rng.integers(0, 15_000, 2).tolist(), strict=True)
        queries.append(Query(f"q{q}", "?", tuple(Evidence(f"d{d}", s, s + 300) for d, s in places)))
        rows += [(f"q{q}", r, int(c), 0.0) for r, c in enumerate(rng.choice(8000, 100, replace=False), 1)]
    hits, frame_of_chunks = frame(Hit, rows), pl.DataFrame(chunks, schema=SCHEMAS[Chunk], orient="row")
    began = time.perf_counter()
    score_spans(hits, frame_of_chunks, queries, texts, ScoreSpec())
    assert time.perf_counter() - began < 2
