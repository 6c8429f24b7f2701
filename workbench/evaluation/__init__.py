"""Scores from records: span, evidence, document and answer metrics, and the statistics that compare trials.

Pure: frames and records in, frames and records out; no store, no models. A new metric is a row in
`metrics.METRICS`, its arithmetic in the room of its unit, and a section in docs/metrics.md.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import polars as pl

from workbench.evaluation.answers import score_answers
from workbench.evaluation.documents import score_documents
from workbench.evaluation.metrics import (
    METRICS,
    NO_EVIDENCE,
    Metric,
    check_metric,
    higher_is_better,
    is_known_metric,
    metric_names,
    score_matrix,
)
from workbench.evaluation.spans import Occurrences, locate_occurrences, score_spans
from workbench.records import Query
from workbench.specs import ScoreSpec

CODE_VERSION = 1
"""Part of a score stage's fingerprint; raised when any score of the same inputs would change."""

ANSWERS_VERSION = 1
"""The same for the metrics of answers, in the fingerprint of stages that score any."""

__all__ = [
    "ANSWERS_VERSION",
    "CODE_VERSION",
    "METRICS",
    "NO_EVIDENCE",
    "Metric",
    "check_metric",
    "higher_is_better",
    "is_known_metric",
    "locate_occurrences",
    "metric_names",
    "score",
    "score_answers",
    "score_documents",
    "score_matrix",
    "score_spans",
]


def score(
    hits: pl.DataFrame,
    chunks: pl.DataFrame,
    queries: Sequence[Query],
    texts: Mapping[str, str],
    spec: ScoreSpec,
    *,
    occurrences: Occurrences | None = None,
    answers: pl.DataFrame | None = None,
) -> pl.DataFrame:
    """All metrics of a ranking, and of the answers made of it: `score_spans`, `score_documents` and, with
    answers, `score_answers`, one Score frame.

    Raises:
        FrameError: an input does not fit.
    """
    frames = [
        score_spans(hits, chunks, queries, texts, spec, occurrences=occurrences),
        score_documents(hits, chunks, queries, texts, spec),
    ]
    if answers is not None:
        frames.append(score_answers(answers, queries, chunks))
    return pl.concat(frames)
