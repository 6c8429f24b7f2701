"""The mean of every metric of a trial with its interval, kept beside the score stage."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import polars as pl

from workbench.evaluation import score_matrix
from workbench.evaluation.statistics import mean_intervals
from workbench.records import Query


def clusters(queries: Sequence[Query]) -> dict[str, str]:
    """query_id -> what it is resampled with: the document of its first evidence, or itself."""
    return {q.query_id: q.evidence[0].doc_id if q.evidence else f"query {q.query_id}" for q in queries}


def summarise(scores: pl.DataFrame, queries: Sequence[Query]) -> dict[str, dict[str, Any]]:
    """metric -> {mean, low, high, n, unscored, method, note, no_evidence}, in the frame's order of metrics.

    `no_evidence` counts unanswerable queries, which cannot be scored and stand apart from `unscored`.
    """
    names = scores["metric"].unique(maintain_order=True).to_list()
    if not names:
        return {}
    of = clusters(queries)
    # One matrix for all metrics that share their queries: their intervals then share the resamples.
    groups: dict[tuple[str, ...], list[tuple[str, np.ndarray[Any, np.dtype[np.float64]], int]]] = {}
    for name in names:
        ids, matrix, apart = score_matrix([scores], name)
        groups.setdefault(tuple(ids), []).append((name, matrix[0], len(apart)))
    found: dict[str, dict[str, Any]] = {}
    for query_ids, rows in groups.items():
        intervals = mean_intervals(np.stack([row for _, row, _ in rows]), [of[q] for q in query_ids])
        for (name, _, no_evidence), interval in zip(rows, intervals, strict=True):
            found[name] = {**dataclasses.asdict(interval), "no_evidence": no_evidence}
    return {name: found[name] for name in names}
