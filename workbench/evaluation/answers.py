"""Metrics of generated answers: against the reference answer, by what they cite, and by whether they should refuse.

Exact match and token F1 are those of Rajpurkar et al., "SQuAD: 100,000+ Questions for Machine Comprehension of
Text" (EMNLP 2016), section 6.1, with the normalisation of the data set's own script: case, punctuation, English
articles and blanks do not count. For ASCII text they are equal to it; docs/metrics.md says what else is done.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections import Counter
from collections.abc import Sequence

import polars as pl

from workbench.errors import FrameError
from workbench.evaluation.door import STAGE, check_queries
from workbench.evaluation.metrics import METRICS, cannot_score
from workbench.records import Chunk, Query, Score, check_frame, frame

NO_CITATION = "no citation"
"""The reason where an answer cites nothing whose worth could be judged: unscored, for that is the trial's doing."""

ANSWERS = pl.Schema(
    [("query_id", pl.String), ("text", pl.String), ("refused", pl.Boolean), ("citations", pl.List(pl.Int64))]
)
"""Columns of a frame of answers; `citations` are the chunk numbers of the passages that an answer cites."""

_ITEM = r"[0-9]{1,9}(?:\s*[-–]\s*[0-9]{1,9})?"
CITATION = re.compile(rf"\[\s*{_ITEM}(?:\s*[,;]\s*{_ITEM})*\s*\]")
"""A citation mark, which is no part of what an answer says: [1], [1, 2], [1-3]."""

_ARTICLES = frozenset({"a", "an", "the"})
_UNSPACED = r"\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_TOKEN = re.compile(rf"[{_UNSPACED}]|[^\s{_UNSPACED}]+")

Place = tuple[str, float, float]


def score_answers(answers: pl.DataFrame, queries: Sequence[Query], chunks: pl.DataFrame) -> pl.DataFrame:
    """The metrics of answers for every query.

    A metric that can score none of the queries has no rows. Else a query that it cannot score has a null
    value with its reason: "no evidence" or "has evidence" (for `abstained`), "no reference answer", and, for
    `citation_precision`, "no citation". A refusal of an answerable query scores 0 against the reference.

    Args:
        answers: frame of `ANSWERS`, one row for each query.
        queries: with unique ids.
        chunks: Chunk frame with every cited chunk.

    Returns:
        Score frame: queries in their order, metrics in the order of `METRICS`. Values in [0, 1].

    Raises:
        FrameError: an input does not fit.
    """
    check_queries(queries)
    chunks = check_frame(Chunk, chunks, stage=STAGE)
    rows = _enter(answers, queries, chunks)
    places = {no: (doc_id, start, end) for no, doc_id, start, end in chunks.iter_rows()}
    names = [
        name
        for name, metric in METRICS.items()
        if metric.measures == "answers" and any(cannot_score(name, query) is None for query in queries)
    ]
    scores = []
    for query in queries:
        text, refused, citations = rows[query.query_id]
        values = _values(query, text, refused, [places[no] for no in dict.fromkeys(citations)])
        for name in names:
            reason = cannot_score(name, query)
            value = None if reason else values[name]
            scores.append(Score(query.query_id, name, value, reason or (NO_CITATION if value is None else None)))
    return frame(Score, scores)


def exact_match(answer: str, reference: str) -> float:
    """1 if both have the same tokens in the same order, else 0."""
    return float(tokens(answer) == tokens(reference))


def token_f1(answer: str, reference: str) -> float:
    """Harmonic mean of precision and recall of the answer's tokens, as bags; two texts without any agree."""
    said, wanted = tokens(answer), tokens(reference)
    if not said or not wanted:
        return float(said == wanted)
    common = (Counter(said) & Counter(wanted)).total()
    return 2 * common / (len(said) + len(wanted))


def tokens(text: str) -> list[str]:
    """What of a text counts: its words without citation marks, case, punctuation, symbols and English articles.

    Compatibility forms are one (NFKC). Han and kana, which are written without blanks, are a token each, as in
    CMRC 2018 (Cui et al., EMNLP 2019).
    """
    plain = unicodedata.normalize("NFKC", CITATION.sub(" ", text)).casefold()
    kept = "".join(c for c in unicodedata.normalize("NFKC", plain) if unicodedata.category(c)[0] not in "PS")
    return [token for token in _TOKEN.findall(kept) if token not in _ARTICLES]


def _values(query: Query, text: str, refused: bool, cited: Sequence[Place]) -> dict[str, float | None]:
    """Every metric of one answer, as if the query could be scored by all."""
    gold = {
        (e.doc_id, 0, math.inf) if e.unit == "document" else (e.doc_id, e.start, e.end)
        for e in query.evidence
        if e.grade > 0
    }
    right = sum(any(_overlap(place, other) for other in gold) for place in cited)
    found = sum(any(_overlap(place, other) for other in cited) for place in gold)
    reference = query.answer or ""
    return {
        "exact_match": 0.0 if refused else exact_match(text, reference),
        "token_f1": 0.0 if refused else token_f1(text, reference),
        "citation_precision": right / len(cited) if cited else None,
        "citation_recall": found / len(gold) if gold else None,
        "answered": float(not refused),
        "abstained": float(refused),
    }


def _overlap(a: Place, b: Place) -> bool:
    return a[0] == b[0] and a[1] < b[2] and b[1] < a[2]


def _enter(
    answers: pl.DataFrame, queries: Sequence[Query], chunks: pl.DataFrame
) -> dict[str, tuple[str, bool, list[int]]]:
    """query_id -> text, refused, citations; all faults of the frame at once."""
    faults = [f"missing column {name!r} ({kind})" for name, kind in ANSWERS.items() if name not in answers.columns]
    faults += [f"extra column {name!r}" for name in answers.columns if name not in ANSWERS]
    faults += [
        f"column {name!r} is {answers.schema[name]}, expected {kind}"
        for name, kind in ANSWERS.items()
        if name in answers.columns and answers.schema[name] != kind
    ]
    if not faults:
        faults += [f"column {name!r} has null values" for name in ANSWERS if answers[name].null_count()]
    if not faults:
        ids = answers["query_id"]
        known = {q.query_id for q in queries}
        faults += [f"duplicate query_id {q!r}" for q in ids.filter(ids.is_duplicated()).unique().sort().head(20)]
        faults += [f"unknown query_id {q!r}" for q in sorted(set(ids) - known)[:20]]
        faults += [f"no answer to query {q!r}" for q in sorted(known - set(ids))[:20]]
        cited = {no for numbers in answers["citations"].to_list() for no in numbers}
        faults += [f"unknown chunk_no {no}" for no in sorted(cited - set(chunks["chunk_no"]), key=str)[:20]]
    if faults:
        raise FrameError("the frame of answers does not fit", faults, where=STAGE)
    return {query_id: (text, refused, cited) for query_id, text, refused, cited in answers.select(list(ANSWERS)).rows()}
