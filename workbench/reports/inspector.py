"""One query of a trial, or of two side by side: what was wanted, what came back, and where both stand in the text."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import polars as pl

from workbench import evaluation
from workbench.errors import InputError, did_you_mean
from workbench.pipeline.results import TrialResult
from workbench.records import SCHEMAS, Chunk, Document, Evidence, Hit, Query
from workbench.reports.inspection import SHOWN, Gold, Inspection, ShownDocument, ShownHit, Side
from workbench.reports.segments import Marked, merge

__all__ = ["Inspection", "inspect"]


def inspect(result: TrialResult, query_id: str, against: TrialResult | None = None) -> Inspection:
    """Look at one query of a trial, or of two trials over the same data.

    Raises:
        InputError: no such query, or the two trials ran on different data.
    """
    queries = {q.query_id: q for q in result.dataset.queries}
    if query_id not in queries:
        raise InputError(
            f"no query {query_id!r} in {result.dataset.name}", where="inspect", hint=did_you_mean(query_id, queries)
        )
    for part in ("corpus", "queries", "gold") if against else ():
        if len({getattr(r.dataset, f"{part}_fingerprint") for r in (result, against) if r}) > 1:
            raise InputError(f"the two trials ran on a different {part}", where="inspect")
    query = queries[query_id]
    evidence = tuple(e for e in query.evidence if e.grade > 0)
    documents = {d.doc_id: d for d in result.dataset.documents}
    sides = tuple(
        _side(trial, letter, query, evidence, documents)
        for trial, letter in zip((result, against), "AB", strict=True)
        if trial is not None
    )
    gold = tuple(
        Gold(
            number=no,
            evidence=e,
            title=_title(documents[e.doc_id]),
            text=documents[e.doc_id].text[e.start : e.end],
            ranks=tuple(side.ranks[no - 1] for side in sides),
            shares=tuple(_share(e, side.hits) for side in sides),
        )
        for no, e in enumerate(evidence, 1)
    )
    metric = failure_metric(result)
    failures = tuple(result.failures(metric)) if metric else ()
    order = list(queries)
    at = order.index(query_id)
    before, after = set(order[:at]), set(order[at + 1 :])
    return Inspection(
        query=query,
        dataset=result.dataset.name,
        sides=sides,
        gold=gold,
        documents=tuple(_shown(documents[d], gold, sides) for d in dict.fromkeys(e.doc_id for e in evidence)),
        failures=failures,
        previous=next((q for q in reversed(failures) if q in before), None),
        next=next((q for q in failures if q in after), None),
        metric=metric,
    )


def failure_metric(result: TrialResult) -> str:
    """The metric by which a query counts as a failure: recall at 5, or at the first cut-off there is."""
    wanted = (
        "recall@5",
        "doc_recall@5",
        *(n for n in result.metrics if n.partition("@")[0] in ("recall", "doc_recall")),
    )
    return next((name for name in wanted if name in result.metrics), next(iter(result.metrics), ""))


def _title(document: Document) -> str:
    return document.title or document.doc_id


def _side(
    trial: TrialResult,
    letter: str,
    query: Query,
    evidence: Sequence[Evidence],
    documents: Mapping[str, Document],
) -> Side:
    rows = trial.hits.filter(pl.col("query_id") == query.query_id).sort("rank")
    scores = trial.scores.filter(pl.col("query_id") == query.query_id)
    values = dict(zip(scores["metric"], scores["value"], strict=True))
    hits = tuple(
        ShownHit(
            h["rank"],
            h["score"],
            h["doc_id"],
            _title(documents[h["doc_id"]]),
            h["start"],
            h["end"],
            documents[h["doc_id"]].text[h["start"] : h["end"]],
            tuple(no for no, e in enumerate(evidence, 1) if _touches(e, h["doc_id"], h["start"], h["end"])),
        )
        for h in rows.iter_rows(named=True)
    )
    return Side(
        letter,
        trial.label,
        trial.trial_id,
        hits,
        {name: values[name] for name in trial.metrics if name in values},
        tuple(dict.fromkeys(r for r in scores["reason"] if r)),
        tuple(_found_rank(trial, query, e, rows, documents) for e in evidence),
    )


def _touches(evidence: Evidence, doc_id: str, start: int, end: int) -> bool:
    return evidence.doc_id == doc_id and start < evidence.end and end > evidence.start


def _share(evidence: Evidence, hits: Sequence[ShownHit]) -> float:
    """The part of an evidence's characters that lies in any hit."""
    spans = [
        (max(h.start, evidence.start), min(h.end, evidence.end))
        for h in hits
        if _touches(evidence, h.doc_id, h.start, h.end)
    ]
    return sum(end - start for start, end in merge(spans)) / (evidence.end - evidence.start)


def _found_rank(
    trial: TrialResult, query: Query, evidence: Evidence, rows: pl.DataFrame, documents: Mapping[str, Document]
) -> int | None:
    """The rank at which one piece of evidence is found, by the trial's own rule.

    Scoring a query with this evidence alone gives 1 / rank as its mrr, so the page cannot disagree
    with the scores.
    """
    if evidence.unit == "document":
        ranks = rows.filter(pl.col("doc_id") == evidence.doc_id)["rank"]
        return int(ranks[0]) if len(ranks) else None
    alone = dataclasses.replace(query, evidence=(evidence,))
    everywhere = trial.trial.score.occurrences == "any"
    needed = {evidence.doc_id, *rows["doc_id"]}
    texts = {d.doc_id: d.text for d in documents.values() if everywhere or d.doc_id in needed}
    chunks = rows.select(list(SCHEMAS[Chunk])).unique("chunk_no", maintain_order=True)
    hits = rows.select(list(SCHEMAS[Hit]))
    scores = evaluation.score_spans(hits, chunks, [alone], texts, trial.trial.scored)
    value = scores.filter(pl.col("metric") == "mrr")["value"][0]
    return round(1 / value) if value else None


def _shown(document: Document, gold: Sequence[Gold], sides: Sequence[Side]) -> ShownDocument:
    own = tuple(g for g in gold if g.evidence.doc_id == document.doc_id)
    marks = [Marked(g.evidence.start, g.evidence.end, g.number) for g in own if g.is_span]
    marks += [
        Marked(hit.start, hit.end, (side.letter, hit.rank))
        for side in sides
        for hit in side.hits
        if hit.doc_id == document.doc_id and (hit.rank <= SHOWN or (hit.gold and any(g.is_span for g in own)))
    ]
    return ShownDocument(document, own, tuple(marks))
