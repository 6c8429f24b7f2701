"""A finished trial, read from the store alone: its metrics, scores, hits and stages."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import polars as pl
from psycopg import Connection
from psycopg.types.json import Json

from workbench.datasets import Dataset
from workbench.errors import InputError, did_you_mean
from workbench.evaluation import higher_is_better, metric_names
from workbench.parsing import parse
from workbench.pipeline.calls import costs, totals
from workbench.pipeline.execute import StageRun
from workbench.pipeline.graph import Node, TrialGraph
from workbench.pipeline.job import Job
from workbench.pipeline.shown import Rows, Shown
from workbench.specs import TrialSpec
from workbench.store import tables
from workbench.store.database import Database


@dataclass(frozen=True)
class StageSummary:
    """One stage of a trial; `state` says what happened in the run that produced this result."""

    kind: str
    label: str
    fingerprint: str
    stage_id: int
    state: str
    items: int
    computed: int
    repeated: int
    seconds: float
    details: Mapping[str, Any]

    def as_json(self) -> dict[str, Any]:
        names = ("kind", "label", "fingerprint", "state", "items", "computed", "repeated")
        return {name: getattr(self, name) for name in names} | {"seconds": round(self.seconds, 4)}


@dataclass(frozen=True)
class TrialResult(Shown):
    """What a trial reached on a dataset. Frames are read from the store when asked for."""

    trial_id: int
    trial: TrialSpec
    dataset: Dataset
    stages: tuple[StageSummary, ...]
    label: str
    database: Database = field(repr=False)

    @property
    def metrics(self) -> Mapping[str, Mapping[str, Any]]:
        """metric -> {mean, low, high, n, unscored, method, note}."""
        stored = self._stage("score").details["metrics"]
        # jsonb keeps no order; the table's order is the one people expect.
        names = metric_names(self.trial.scored, answers=self._find("generate") is not None)
        return {name: stored[name] for name in names if name in stored}

    @cached_property
    def scores(self) -> pl.DataFrame:
        """The Score frame: one row a query and metric."""
        with self.database.transaction() as connection:
            return tables.read_scores(connection, self._stage("score").stage_id)

    @cached_property
    def chunks(self) -> pl.DataFrame:
        """The Chunk frame."""
        with self.database.transaction() as connection:
            return tables.read_chunks(connection, self._stage("chunk").stage_id)

    @cached_property
    def hits(self) -> pl.DataFrame:
        """The Hit frame with the spans of the chunks: query_id, rank, chunk_no, score, doc_id, start, end.

        Of a trial that reranks, the final ranking, with rank_before: where retrieval had put the hit.
        """
        reranked = self._find("rerank")
        stage = reranked or self._stage("retrieve")
        with self.database.transaction() as connection:
            hits = tables.read_hits(connection, stage.stage_id, self._query_ids, before=reranked is not None)
        return hits.join(self.chunks, on="chunk_no", how="left", maintain_order="left")

    @cached_property
    def contexts(self) -> pl.DataFrame:
        """chunk_no, doc_id, start, end, context: what was put before each chunk; no rows without contexts."""
        stage = self._find("context")
        texts: list[str] = []
        if stage is not None:
            with self.database.transaction() as connection:
                texts = tables.read_contexts(connection, stage.stage_id)
        return self.chunks.head(len(texts)).with_columns(pl.Series("context", texts, dtype=pl.String))

    @cached_property
    def answers(self) -> pl.DataFrame:
        """One row a query: query_id, question, text, refused, shown, citations (chunk numbers), uncheckable,
        dropped, and the tokens and times of its call; no rows where nothing was generated."""
        stage = self._find("generate")
        with self.database.transaction() as connection:
            found = tables.read_answers(connection, stage.stage_id if stage else -1, self._query_ids)
        questions = {q.query_id: q.text for q in self.dataset.queries}
        asked = pl.Series("question", [questions[q] for q in found["query_id"]], dtype=pl.String)
        return found.insert_column(1, asked)

    @property
    def calls(self) -> dict[str, int]:
        """Model calls of all stages, `live` in the run that produced this result; tokens in full."""
        live = [s.computed if s.state == "computed" else 0 for s in self.stages]
        return totals([s.details for s in self.stages], live)

    @property
    def costs(self) -> pl.DataFrame:
        """One row a stage that asked a model: calls, tokens, the prefix cache's share, times (`calls.costs`)."""
        return costs((f"{s.kind} {s.label}", s.details, s.seconds) for s in self.stages)

    @property
    def _query_ids(self) -> list[str]:
        return [q.query_id for q in self.dataset.queries]

    def require_metric(self, metric: str) -> None:
        """Refuse a metric that this trial was not scored on.

        Raises:
            InputError: with the nearest one.
        """
        if metric not in self.metrics:
            raise InputError(f"no metric {metric!r} in this trial", hint=did_you_mean(metric, self.metrics))

    def score_of(self, metric: str) -> dict[str, float | None]:
        """query_id -> value of one metric, None where unscored.

        Raises:
            InputError: no such metric here, with the nearest.
        """
        self.require_metric(metric)
        rows = self.scores.filter(pl.col("metric") == metric)
        values = dict(zip(rows["query_id"], rows["value"], strict=True))
        return {q.query_id: values.get(q.query_id) for q in self.dataset.queries}

    def failures(self, metric: str = "recall@5") -> list[str]:
        """Ids of the scored queries that fall short of the metric's best value (1, or 0 for failure@k)."""
        best = 1.0 if higher_is_better(metric) else 0.0
        return [q for q, value in self.score_of(metric).items() if value is not None and value != best]

    def _find(self, kind: str) -> StageSummary | None:
        """The last stage of a kind: of a hybrid's retrieve stages the one that fuses."""
        return next((stage for stage in reversed(self.stages) if stage.kind == kind), None)

    def _stage(self, kind: str) -> StageSummary:
        found = self._find(kind)
        assert found is not None, f"a trial has a {kind} stage"
        return found

    def as_json(self) -> dict[str, Any]:
        """The JSON object of `workbench run` (docs/datamodel.md)."""
        shown = ("mean", "low", "high", "n", "unscored")
        return {
            "trial": {"id": self.trial_id, "label": self.label, "spec": self.trial.model_dump(mode="json")},
            "dataset": self.dataset.name,
            "queries": len(self.dataset.queries),
            "metrics": {name: {key: m[key] for key in shown} for name, m in self.metrics.items()},
            "stages": [stage.as_json() for stage in self.stages],
            "items": {
                "computed": sum(s.computed for s in self.stages if s.state == "computed"),
                "repeated": sum(s.repeated for s in self.stages),
            },
            "calls": self.calls,
        }

    def __repr__(self) -> str:
        return f"TrialResult({self.label!r} on {self.dataset.name!r}, {len(self.dataset.queries)} queries)"

    def _rows(self) -> Rows:
        head = ("metric", "mean", "95 % interval", "n", "unscored")
        rows = [
            (name, _number(m["mean"]), f"{_number(m['low'])} to {_number(m['high'])}", str(m["n"]), str(m["unscored"]))
            for name, m in self.metrics.items()
        ]
        return f"{self.label} on {self.dataset.name}, {len(self.dataset.queries)} queries", head, rows


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def results_frame(results: Iterable[TrialResult], metrics: Sequence[str]) -> pl.DataFrame:
    """One row a trial: its label, then mean, low, high, n and unscored of each metric.

    Raises:
        InputError: a trial has no such metric.
    """
    rows = []
    for result in results:
        row: dict[str, Any] = {"trial": result.label}
        for name in metrics:
            if name not in result.metrics:
                raise InputError(f"no metric {name!r} in {result.label}", hint=did_you_mean(name, result.metrics))
            m = result.metrics[name]
            prefix = "" if len(metrics) == 1 else f"{name} "
            row |= {name: m["mean"], **{prefix + key: m[key] for key in ("low", "high", "n", "unscored")}}
        rows.append(row)
    return pl.DataFrame(rows)


def describe(trial: TrialSpec) -> str:
    """A short name for a trial: its chunker, its retriever, and what it has beside them."""
    chunk, retrieve = trial.chunk, trial.retrieve
    size = f" {chunk.tokens}" if hasattr(chunk, "tokens") else ""
    legs = " (" + " + ".join(retrieve.legs) + ")" if retrieve.kind == "hybrid" else ""
    beside = [stage.kind for stage in (trial.context, trial.rerank, trial.generate) if stage.kind != "none"]
    return " / ".join([f"{chunk.kind}{size}", f"{retrieve.kind}{legs}", *beside])


def record_trial(connection: Connection[Any], leaf: Node, spec: Mapping[str, Any], dataset_id: int) -> int:
    """Keep that a trial's leaf is done on a dataset; returns its trial_id. `spec` is the trial as JSON."""
    stages = [{"kind": n.kind, "label": n.label, "fingerprint": n.fingerprint} for n in leaf.walk()]
    row = connection.execute(
        "INSERT INTO trial (fingerprint, dataset_id, spec, stages) VALUES (%s, %s, %s, %s)"
        " ON CONFLICT (fingerprint, dataset_id) DO UPDATE SET spec = excluded.spec RETURNING trial_id",
        [bytes.fromhex(leaf.fingerprint), dataset_id, Json(spec), Json(stages)],
    ).fetchone()
    assert row is not None
    return int(row[0])


def finished(
    graph: TrialGraph, job: Job, runs: Mapping[str, StageRun], trial_id: int, label: str | None = None
) -> TrialResult:
    """The result of a trial whose nodes are done, with what this run did to each."""
    stages = []
    for node in graph.score.walk():
        run = runs[node.fingerprint]
        stages.append(
            StageSummary(
                node.kind,
                node.label,
                node.fingerprint,
                run.row.stage_id,
                run.state,
                run.row.items,
                run.counts.computed,
                run.counts.repeated,
                run.row.seconds,
                run.row.details,
            )
        )
    return TrialResult(
        trial_id, graph.trial, job.dataset, tuple(stages), label or describe(graph.trial), job.runtime.database
    )


def load_trial(database: Database, trial_id: int) -> TrialResult:
    """A finished trial from the store alone; its stages count as reused.

    Raises:
        InputError: no such trial.
    """
    return load_trials(database, [(trial_id, None)])[0]


def load_trials(
    database: Database,
    wanted: Sequence[tuple[int, str | None]],
    live: Mapping[str, tuple[int, int]] | None = None,
) -> list[TrialResult]:
    """Finished trials by id, with labels (None: their own); datasets and stages that they share are read once.

    `live` maps the fingerprints of stages that a run computed to its items (computed, repeated); all others
    count as reused.

    Raises:
        InputError: there is no such trial.
    """
    live = live or {}
    with database.transaction() as connection:
        rows = {
            row[0]: row[1:]
            for row in connection.execute(
                "SELECT trial_id, dataset_id, spec, stages FROM trial WHERE trial_id = ANY(%s)",
                [[trial_id for trial_id, _ in wanted]],
            )
        }
        if missing := [trial_id for trial_id, _ in wanted if trial_id not in rows]:
            raise InputError(f"no trial {missing[0]} in this database", hint="`workbench run` prints a trial's id")
        datasets = {i: tables.load_dataset(connection, i) for i in dict.fromkeys(row[0] for row in rows.values())}
        prints = {s["fingerprint"] for _, _, stages in rows.values() for s in stages}
        found = {
            stage[0]: stage[1:]
            for stage in connection.execute(
                "SELECT encode(fingerprint, 'hex'), stage_id, items, seconds, details FROM stage"
                " WHERE fingerprint = ANY(%s)",
                [[bytes.fromhex(p) for p in prints]],
            )
        }

    def summary(kind: str, label: str, fingerprint: str) -> StageSummary:
        stage_id, items, seconds, details = found[fingerprint]
        state, counts = ("computed", live[fingerprint]) if fingerprint in live else ("reused", (0, 0))
        return StageSummary(kind, label, fingerprint, stage_id, state, items, *counts, seconds, details)

    results = []
    for trial_id, label in wanted:
        dataset_id, spec, stages = rows[trial_id]
        trial = parse(TrialSpec, spec)
        results.append(
            TrialResult(
                trial_id,
                trial,
                datasets[dataset_id],
                tuple(summary(**stage) for stage in stages),
                label or describe(trial),
                database,
            )
        )
    return results
