"""Metrics of answers against an oracle that shares nothing with them, and the rules for what cannot be scored."""

from __future__ import annotations

import collections
import re
import string
import unicodedata
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from workbench.errors import FrameError, SpecError
from workbench.evaluation import (
    METRICS,
    answers,
    check_metric,
    higher_is_better,
    metric_names,
    score,
    score_answers,
    score_matrix,
)
from workbench.evaluation.answers import ANSWERS, exact_match, token_f1, tokens
from workbench.records import Chunk, Evidence, Hit, Query, frame
from workbench.specs import ScoreSpec
from workbench.stages import generation

TEXTS = {"a": "x" * 40, "b": "y" * 40}
CHUNKS = [Chunk(2 * i + j, d, 20 * j, 20 * j + 20) for i, d in enumerate("ab") for j in (0, 1)]
SPEC = ScoreSpec(k=(1,))
NAMES = tuple(m.name for m in METRICS.values() if m.measures == "answers")


def answer_frame(*rows: tuple[str, str, bool, list[int]]) -> pl.DataFrame:
    return pl.DataFrame(list(rows), schema=ANSWERS, orient="row")


def scored(rows: pl.DataFrame, queries: list[Query]) -> dict[str, dict[str, Any]]:
    """query_id -> metric -> value, or the reason where there is none."""
    found: dict[str, dict[str, Any]] = {}
    for query_id, metric, value, reason in score_answers(rows, queries, frame(Chunk, CHUNKS)).iter_rows():
        assert (value is None) == (reason is not None)
        found.setdefault(query_id, {})[metric] = reason if value is None else value
    return found


# --- against the reference answer ----------------------------------------------------------------


def squad(prediction: str, gold: str) -> tuple[float, float]:
    """Exact match and F1 of two ASCII texts as the SQuAD paper and script say them, by regular expressions."""

    def normal(text: str) -> str:
        bare = "".join(c for c in text.lower() if c not in string.punctuation)
        return " ".join(re.sub(r"\b(a|an|the)\b", " ", bare).split())

    said, wanted = normal(prediction), normal(gold)
    left = collections.Counter(wanted.split())
    same = 0
    for token in said.split():
        if left[token] > 0:
            left[token] -= 1
            same += 1
    if not said or not wanted:
        return float(said == wanted), float(said == wanted)
    if same == 0:
        return float(said == wanted), 0.0
    precision, recall = same / len(said.split()), same / len(wanted.split())
    return float(said == wanted), 2 * precision * recall / (precision + recall)


WORD = st.sampled_from(["the", "The", "a", "An", "cat", "Cat", "cats", "1,000", "don't", "-", "U.S.", "$5", "they"])
ASCII = st.lists(WORD | st.text(st.sampled_from(string.ascii_letters + "'.-, \n\t"), max_size=6), max_size=8)


@given(ASCII.map(" ".join), ASCII.map(" ".join))
def test_ascii_is_scored_as_squad_scores_it(prediction: str, gold: str) -> None:
    match, f1 = squad(prediction, gold)
    assert exact_match(prediction, gold) == match
    assert token_f1(prediction, gold) == pytest.approx(f1)


@given(st.text(), st.text())
def test_any_unicode(one: str, other: str) -> None:
    f1 = token_f1(one, other)
    assert 0 <= f1 <= 1 and f1 == token_f1(other, one)
    assert exact_match(one, other) <= f1
    assert exact_match(one, one) == token_f1(one, one) == 1
    assert tokens(unicodedata.normalize("NFD", one)) == tokens(unicodedata.normalize("NFC", one))


@pytest.mark.parametrize(
    ("answer", "reference"),
    [
        ("Straße 5", "STRASSE 5"),
        ("cafe\u0301 „Größe“", "Café GRÖSSE"),
        ("Full12", "full12"),
        ("€ 72 – hours…", "72 hours"),
        ("72 hours [1][2, 3].", "72 hours"),
        ("東京都。", "東京 都"),
    ],
)
def test_what_does_not_count(answer: str, reference: str) -> None:
    assert exact_match(answer, reference) == token_f1(answer, reference) == 1


def test_f1_by_hand():
    assert token_f1("it is 72 hours", "72 hours, then it is stopped") == pytest.approx(2 * (4 / 4) * (4 / 6) / (10 / 6))
    assert token_f1("東京タワー", "東京") == pytest.approx(2 * 2 / 7)  # a character is a token
    assert token_f1("no", "no no") == pytest.approx(2 / 3)  # bags, not sets


def test_a_citation_mark_is_the_same_here_as_in_the_stage():
    assert answers.CITATION.pattern == generation.CITATION.pattern


# --- citations and refusals ----------------------------------------------------------------------


def test_citations_and_refusals_by_hand():
    queries = [
        Query(
            "two", "?", (Evidence("a", 5, 30), Evidence("b", 0, 5), Evidence("b", 0, 5), Evidence("b", 30, 35, 0)), "x"
        ),
        Query("doc", "?", (Evidence("b", 0, 1, 1, "document"),)),
        Query("edge", "?", (Evidence("a", 0, 20),), " "),
        Query("none", "?"),
    ]
    found = scored(
        answer_frame(
            ("two", "an X [1]", False, [0, 1, 3, 0]),
            ("doc", "y", False, [0, 3]),
            ("edge", "no", True, []),
            ("none", "no", True, [1]),
        ),
        queries,
    )
    assert tuple(found["two"]) == NAMES
    assert found["two"] == {
        "exact_match": 1,
        "token_f1": 1,
        "citation_precision": pytest.approx(2 / 3),  # 0 and 1 touch a:5-30; of b, 3 holds no evidence
        "citation_recall": 1 / 2,
        "answered": 1,
        "abstained": "has evidence",
    }
    assert found["doc"]["citation_precision"] == 1 / 2 and found["doc"]["citation_recall"] == 1
    assert found["doc"]["exact_match"] == found["doc"]["token_f1"] == "no reference answer"
    assert found["edge"] == {
        "exact_match": "no reference answer",
        "token_f1": "no reference answer",
        "citation_precision": "no citation",
        "citation_recall": 0,
        "answered": 0,
        "abstained": "has evidence",
    }
    assert found["none"] == dict.fromkeys(NAMES[:-1], "no evidence") | {"abstained": 1}


SPANS = st.tuples(st.sampled_from("ab"), st.integers(0, 39), st.integers(1, 40)).filter(lambda s: s[1] < s[2])


@given(
    st.lists(SPANS, max_size=4),
    st.lists(SPANS, min_size=1, max_size=6, unique=True),
    st.lists(st.integers(0, 99), max_size=5),
    st.booleans(),
)
def test_citations_agree_with_sets_of_positions(
    gold: list[tuple[str, int, int]], cut: list[tuple[str, int, int]], cited: list[int], refused: bool
) -> None:
    chunks = frame(Chunk, [Chunk(no, *span) for no, span in enumerate(cut)])
    cited = [no % len(cut) for no in cited]
    query = Query("q", "?", tuple(Evidence(*span) for span in gold))
    rows = answer_frame(("q", "", refused, cited))
    got = {m: v for _, m, v, _ in score_answers(rows, [query], chunks).iter_rows()}

    def positions(span: tuple[str, int, int]) -> set[tuple[str, int]]:
        return {(span[0], i) for i in range(span[1], span[2])}

    if not gold:
        assert got == {"abstained": float(refused)}
        return
    wanted = set().union(*map(positions, gold))
    seen = set().union(*(positions(cut[no]) for no in cited))
    right = [no for no in set(cited) if positions(cut[no]) & wanted]
    found = [span for span in set(gold) if positions(span) & seen]
    assert got == {
        "citation_precision": pytest.approx(len(right) / len(set(cited))) if cited else None,
        "citation_recall": pytest.approx(len(found) / len(set(gold))),
        "answered": float(not refused),
    }


def test_a_refusal_scores_nothing_against_the_reference():
    queries = [Query("q", "?", (Evidence("a", 0, 5),), "the passages")]
    said = "The passages do not contain the answer."
    assert token_f1(said, "the passages") > 0
    assert scored(answer_frame(("q", said, True, [])), queries)["q"]["token_f1"] == 0


# --- fitting in ----------------------------------------------------------------------------------


def test_rows_only_for_what_some_query_can_have():
    answerable, unanswerable = Query("q", "?", (Evidence("a", 0, 5),)), Query("u", "?")
    rows = answer_frame(("q", "", False, []), ("u", "", False, []))
    assert set(scored(rows[:1], [answerable])["q"]) == {"citation_precision", "citation_recall", "answered"}
    assert set(scored(rows[1:], [unanswerable])["u"]) == {"abstained"}
    assert set(scored(rows, [answerable, unanswerable])["u"]) == set(NAMES) - {"exact_match", "token_f1"}
    assert score_answers(rows[:0], [], frame(Chunk, CHUNKS)).is_empty()


def test_score_adds_answers_and_changes_nothing_else():
    queries = [Query("q", "?", (Evidence("a", 0, 5),), "x"), Query("u", "?")]
    hits = frame(Hit, [Hit("q", 1, 0, 1.0)])
    without = score(hits, frame(Chunk, CHUNKS), queries, TEXTS, SPEC)
    rows = answer_frame(("u", "", True, []), ("q", "x [1]", False, [0]))
    both = score(hits, frame(Chunk, CHUNKS), queries, TEXTS, SPEC, answers=rows)
    assert both.head(len(without)).equals(without)
    assert both.tail(-len(without)).equals(score_answers(rows, queries, frame(Chunk, CHUNKS)))
    assert set(without["metric"]) == set(metric_names(SPEC, "span"))
    assert both["metric"].unique().is_in(metric_names(SPEC, answers=True)).all()


def test_what_no_answer_could_score_is_apart_and_what_this_one_missed_is_unscored():
    queries = [
        Query("cites", "?", (Evidence("a", 0, 5),)),
        Query("not", "?", (Evidence("a", 0, 5),), "x"),
        Query("u", "?"),
    ]
    rows = answer_frame(("cites", "x", False, [0]), ("not", "x", False, []), ("u", "x", False, []))
    scores = score_answers(rows, queries, frame(Chunk, CHUNKS))
    ids, matrix, apart = score_matrix([scores], "citation_precision")
    assert (ids, apart) == (["cites", "not"], ("u",))
    np.testing.assert_array_equal(matrix, [[1, np.nan]])
    assert score_matrix([scores], "exact_match")[0] == ["not"]
    assert score_matrix([scores], "abstained")[0] == ["u"]


def test_names_are_known_only_where_answers_are_generated():
    assert metric_names(SPEC, answers=True) == (*metric_names(SPEC), *NAMES)
    assert not set(NAMES) & set(metric_names(SPEC))
    assert all(map(higher_is_better, NAMES))
    answerable, unanswerable = Query("q", "?", (Evidence("a", 0, 5),)), Query("u", "?")
    check_metric("token_f1", SPEC, answers=True)
    check_metric("answered", SPEC, [unanswerable, answerable], answers=True)
    check_metric("recall@1", SPEC, [answerable], answers=True)
    for name, queries, generated, message in [
        ("token_f1", [], False, "needs answers, and none are generated"),
        ("token_f1", [answerable, unanswerable], True, "none of the queries: no evidence or no reference answer"),
        ("abstained", [answerable], True, "none of the queries: has evidence"),
        ("answerd", [], True, "did you mean 'answered'"),
        ("token_f1@5", [], True, "has no cut-off"),
    ]:
        with pytest.raises(SpecError, match=message):
            check_metric(name, SPEC, queries, answers=generated)


def test_every_fault_of_the_frame_is_named():
    queries = [Query("p", "?"), Query("q", "?")]
    chunks = frame(Chunk, CHUNKS)
    bad = answer_frame(("q", "", False, [0, 77]), ("q", "", False, []), ("zz", "", False, []))
    with pytest.raises(FrameError) as caught:
        score_answers(bad, queries, chunks)
    assert set(caught.value.faults) == {
        "duplicate query_id 'q'",
        "unknown query_id 'zz'",
        "no answer to query 'p'",
        "unknown chunk_no 77",
    }
    with pytest.raises(FrameError) as caught:
        score_answers(bad.drop("text").with_columns(refused=1, more=2), queries, chunks)
    assert set(caught.value.faults) == {
        "missing column 'text' (String)",
        "extra column 'more'",
        "column 'refused' is Int32, expected Boolean",
    }
    with pytest.raises(FrameError, match="null values"):
        score_answers(bad.with_columns(text=None).cast({"text": pl.String}), queries, chunks)
    with pytest.raises(FrameError, match="duplicate query_id 'p'"):
        score_answers(bad, [*queries, queries[0]], chunks)
