"""The table of metric names: what each one measures, where it lies, and which direction is better."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray

from workbench.errors import SpecError, did_you_mean
from workbench.records import SCHEMAS, Query, Score, Unit
from workbench.specs import ScoreSpec

NO_EVIDENCE = "no evidence"
"""The reason of an unanswerable query's scores: such queries are reported apart, not averaged."""
HAS_EVIDENCE = "has evidence"
"""The reason of an answerable query's `abstained`."""
NO_REFERENCE = "no reference answer"
APART = frozenset({NO_EVIDENCE, HAS_EVIDENCE, NO_REFERENCE})
"""Reasons that lie in the query, whatever a trial does: nothing is missing there."""

Measures = Literal["characters", "evidence", "documents", "answers"]


@dataclass(frozen=True, slots=True)
class Metric:
    """A family of metrics; with `cutoff` its members are `name@k`, for each k of the ScoreSpec.

    Every value lies in [0, 1] and has no unit (a share, or a reciprocal rank).
    """

    name: str
    measures: Measures
    cutoff: bool
    summary: str
    higher_is_better: bool = True

    @property
    def unit(self) -> Unit | None:
        """Which unit of evidence the metric needs; None where either will do."""
        units: Mapping[Measures, Unit | None] = {"documents": "document", "answers": None}
        return units.get(self.measures, "span")


METRICS: Mapping[str, Metric] = {
    m.name: m
    for m in (
        Metric("span_recall", "characters", True, "share of the evidence characters that were retrieved"),
        Metric("span_precision", "characters", True, "share of the retrieved characters that are evidence"),
        Metric("span_iou", "characters", True, "evidence retrieved / (all retrieved + evidence missed)"),
        Metric("precision_omega", "characters", False, "span IoU if exactly the chunks that touch evidence came back"),
        Metric("recall", "evidence", True, "share of a query's evidence found"),
        Metric("failure", "evidence", True, "share of a query's evidence not found", higher_is_better=False),
        Metric("success", "evidence", True, "1 if any evidence was found"),
        Metric("complete", "evidence", True, "1 if all evidence was found"),
        Metric("mrr", "evidence", False, "1 / rank at which the first evidence was found"),
        Metric("ndcg", "documents", True, "normalised discounted cumulative gain of documents (ir_measures nDCG)"),
        Metric("doc_recall", "documents", True, "share of the relevant documents retrieved (ir_measures R)"),
        Metric("doc_mrr", "documents", False, "1 / rank of the first relevant document (ir_measures RR)"),
        Metric("map", "documents", False, "average precision of the ranking of documents (ir_measures AP)"),
        Metric("exact_match", "answers", False, "1 if the answer is the reference answer, but for case and the like"),
        Metric("token_f1", "answers", False, "harmonic mean of precision and recall of the answer's tokens"),
        Metric("citation_precision", "answers", False, "share of the cited passages that overlap evidence"),
        Metric("citation_recall", "answers", False, "share of a query's evidence that a cited passage overlaps"),
        Metric("answered", "answers", False, "1 if an answerable query was not refused"),
        Metric("abstained", "answers", False, "1 if an unanswerable query was refused"),
    )
}
"""Family name -> Metric, in the order in which scores are written. docs/metrics.md has the formulas."""

_NAME = re.compile(r"([a-z_][a-z0-9_]*)(?:@([1-9][0-9]*))?")


def metric_names(spec: ScoreSpec, unit: Unit | None = None, *, answers: bool = False) -> tuple[str, ...]:
    """All metric names under a spec, families in table order and k ascending.

    `unit` keeps one unit's; metrics of answers have none, and are there where `answers` are generated.
    """
    return tuple(
        name
        for m in METRICS.values()
        if (answers or m.measures != "answers") and (unit is None or m.unit == unit)
        for name in ([f"{m.name}@{k}" for k in sorted(set(spec.k))] if m.cutoff else [m.name])
    )


def _family(name: str) -> Metric | None:
    match = _NAME.fullmatch(name)
    metric = METRICS.get(match[1]) if match else None
    return metric if match and metric and metric.cutoff == bool(match[2]) else None


def is_known_metric(name: str) -> bool:
    """Whether a name is well formed and known, at any k: "recall@7" is, "recall" and "mrr@7" are not."""
    return _family(name) is not None


def higher_is_better(name: str) -> bool:
    """The better direction of a metric; names that are not in the table count upwards."""
    metric = _family(name)
    return metric is None or metric.higher_is_better


def check_metric(name: str, spec: ScoreSpec, queries: Sequence[Query] = (), *, answers: bool = False) -> None:
    """Refuse a primary metric that scoring under `spec` (of these queries, where given) would not produce.

    Raises:
        SpecError: the name is unknown (with the nearest known ones), its k is not in `score.k`, the
            queries are judged in the other unit only, or a metric of answers has none that it can score.
    """
    metric = _family(name)
    if metric and metric.measures == "answers":
        if not answers:
            raise SpecError(
                f"{name!r} needs answers, and none are generated", where="metric", hint='set generate.kind = "answer"'
            )
        why = {cannot_score(name, query) for query in queries}
        if why and None not in why:
            raise SpecError(
                f"{name!r} scores none of the queries: {' or '.join(sorted(filter(None, why)))}",
                where="metric",
                hint="take another metric, or add what it needs to the queries",
            )
        return
    if name in metric_names(spec):
        if metric and metric.unit and queries and not scored_queries(queries, metric.unit):
            raise SpecError(
                f"{name!r} needs evidence of unit {metric.unit!r}, which no query has",
                where="metric",
                hint=did_you_mean(name, [n for n in metric_names(spec) if n not in metric_names(spec, metric.unit)]),
            )
        return
    if is_known_metric(name):
        k = name.partition("@")[2]
        raise SpecError(
            f"{name!r} is not scored: k = {k} is not in {list(spec.k)}",
            where="metric",
            hint=f"add {k} to score.k, and keep at least {k} hits (retrieve.k, rerank.k)",
        )
    stem, _, k = name.partition("@")
    if k and stem in METRICS and not METRICS[stem].cutoff:
        hint = f"{stem!r} has no cut-off"
    elif not k and stem in METRICS:
        hint = f"{stem!r} needs a cut-off, for example '{stem}@{spec.k[0]}'"
    else:
        hint = did_you_mean(name, metric_names(spec, answers=answers))
    raise SpecError(f"unknown metric {name!r}", where="metric", hint=hint)


def has_evidence(query: Query, unit: Unit) -> bool:
    """Whether a query has a positive judgement of this unit."""
    return any(e.unit == unit and e.grade > 0 for e in query.evidence)


def cannot_score(name: str, query: Query) -> str | None:
    """Why no answer to this query, whatever it says, has a score of a metric of answers; None where one has."""
    answerable = any(e.grade > 0 for e in query.evidence)
    if name == "abstained":
        return HAS_EVIDENCE if answerable else None
    if not answerable:
        return NO_EVIDENCE
    if name in ("exact_match", "token_f1") and not (query.answer or "").strip():
        return NO_REFERENCE
    return None


def scored_queries(queries: Sequence[Query], unit: Unit) -> list[Query]:
    """The queries that get rows for one unit's metrics: those judged in it, and the unanswerable ones.

    A set judged in the other unit only gets no rows at all, so no metric appears that nobody can have.
    """
    other: Unit = "document" if unit == "span" else "span"
    judged = [has_evidence(q, unit) for q in queries]
    others = [has_evidence(q, other) for q in queries]
    if not any(judged) and (any(others) or unit == "document"):
        return []
    return [q for q, here, there in zip(queries, judged, others, strict=True) if here or not there]


def score_frame(query_ids: Sequence[str], names: Sequence[str], values: NDArray[np.float64]) -> pl.DataFrame:
    """A Score frame from a (queries x metrics) array; NaN becomes null with the reason `NO_EVIDENCE`."""
    value = pl.Series(values.ravel()).fill_nan(None)
    return pl.DataFrame(
        {
            "query_id": [query_id for query_id in query_ids for _ in names],
            "metric": list(names) * len(query_ids),
            "value": value,
            "reason": [NO_EVIDENCE if null else None for null in value.is_null()],
        },
        schema=SCHEMAS[Score],
    )


def score_matrix(trials: Sequence[pl.DataFrame], metric: str) -> tuple[list[str], NDArray[np.float64], tuple[str, ...]]:
    """One metric of several Score frames, ready for `statistics`.

    Returns:
        The query ids (in order of first appearance), the values as (trials x queries) with NaN for
        unscored, and the ids left out because their reason is one of `APART` in every trial that has
        them: those queries cannot be scored, so they are not missing values.
    """
    rows = [frame.filter(pl.col("metric") == metric) for frame in trials]
    merged = pl.concat(rows) if rows else pl.DataFrame(schema=SCHEMAS[Score])
    apart = merged.group_by("query_id", maintain_order=True).agg(
        (pl.col("reason").is_in(sorted(APART)).fill_null(False) & pl.col("value").is_null()).all().alias("apart")
    )
    ids = apart.filter(~pl.col("apart"))["query_id"].to_list()
    column = {query_id: i for i, query_id in enumerate(ids)}
    matrix = np.full((len(trials), len(ids)), np.nan)
    for i, frame in enumerate(rows):
        for query_id, value in frame.select("query_id", "value").iter_rows():
            if value is not None and query_id in column:
                matrix[i, column[query_id]] = value
    return ids, matrix, tuple(apart.filter(pl.col("apart"))["query_id"])
