"""Document-level judgements (BEIR, TREC): documents ranked by their best chunk, scored by ir_measures unchanged.

ir_measures: MacAvaney, Macdonald & Ounis, "Streamlining Evaluation with ir-measures", ECIR 2022.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import polars as pl

from workbench.evaluation.door import enter
from workbench.evaluation.metrics import has_evidence, metric_names, score_frame, scored_queries
from workbench.records import Query
from workbench.specs import ScoreSpec

_MEASURES = {"ndcg": "nDCG", "doc_recall": "R", "doc_mrr": "RR", "map": "AP"}


def score_documents(
    hits: pl.DataFrame,
    chunks: pl.DataFrame,
    queries: Sequence[Query],
    texts: Mapping[str, str],
    spec: ScoreSpec,
) -> pl.DataFrame:
    """nDCG@k, recall@k, reciprocal rank and average precision of every query with document judgements.

    A document stands where its best chunk stands; its further chunks are left out, so `ndcg@10` is
    over ten documents, which may take more than ten hits. A query with only span evidence has no
    rows; one with no evidence has null values with reason "no evidence" if the set has document
    judgements at all. A query with nothing retrieved scores 0.

    Args:
        hits: Hit frame of these queries.
        chunks: Chunk frame.
        queries: with unique ids; a document judged twice for one query counts with its higher grade.
        texts: doc_id -> text. A judged document that is not in the corpus counts as not retrieved.
        spec: cut-offs.

    Returns:
        Score frame: queries in their order, metrics in the order of `metric_names`. Values in [0, 1].

    Raises:
        FrameError: an input does not fit (`door.enter`).
    """
    rankings, _ = enter(hits, chunks, queries, texts)
    scored = scored_queries(queries, "document")
    names = metric_names(spec, "document")
    values = np.full((len(scored), len(names)), np.nan)
    judgements: dict[str, dict[str, int]] = {}
    runs: dict[str, dict[str, float]] = {}
    for query in scored:
        if has_evidence(query, "document"):
            grades = judgements.setdefault(query.query_id, {})
            for e in query.evidence:
                if e.unit == "document" and e.grade > 0:
                    grades[e.doc_id] = max(e.grade, grades.get(e.doc_id, 0))
            run = runs.setdefault(query.query_id, {})
            for rank, (doc_id, _, _) in enumerate(rankings.of(query.query_id), 1):
                # The rank, not the score: trec_eval breaks ties of scores by document name.
                run.setdefault(doc_id, float(-rank))
    if judgements:
        import ir_measures

        parsed = {ir_measures.parse_measure(_measure(name)): i for i, name in enumerate(names)}
        row = {q.query_id: i for i, q in enumerate(scored)}
        for result in ir_measures.iter_calc(list(parsed), judgements, runs):
            values[row[result.query_id], parsed[result.measure]] = result.value
    return score_frame([q.query_id for q in scored], names, values)


def _measure(name: str) -> str:
    """ir_measures' name of one of ours: "ndcg@10" -> "nDCG@10"."""
    stem, at, k = name.partition("@")
    return f"{_MEASURES[stem]}{at}{k}"
