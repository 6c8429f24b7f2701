"""A sweep as the store holds it: trials, comparisons against the baseline, and the sentence that says it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import polars as pl

from workbench import evaluation
from workbench.datasets import Dataset
from workbench.errors import InputError, did_you_mean
from workbench.evaluation import statistics
from workbench.evaluation.statistics import Comparison, Interval
from workbench.parsing import parse
from workbench.pipeline.calls import costs
from workbench.pipeline.results import TrialResult, load_trials, results_frame
from workbench.pipeline.shown import Rows, Shown
from workbench.pipeline.summaries import clusters
from workbench.specs import SweepSpec
from workbench.store.database import Database
from workbench.sweeps.faults import read_faults


@dataclass(frozen=True)
class SweepResult(Shown):
    """A sweep read from the store alone. `failed` maps the label of a trial without a result to its reason."""

    sweep_id: int
    name: str
    state: str
    spec: SweepSpec
    trials: tuple[TrialResult, ...]
    points: tuple[Mapping[str, Any], ...]
    failed: Mapping[str, str]
    baseline: int | None
    """Position of the declared baseline among `trials`; None where it has no result."""

    @property
    def dataset(self) -> Dataset:
        return self.trials[0].dataset

    @property
    def labels(self) -> list[str]:
        return [trial.label for trial in self.trials]

    @cached_property
    def comparisons(self) -> list[Comparison]:
        """Every trial against the baseline on the declared metric, p adjusted for the family; none without it."""
        if self.baseline is None:
            return []
        ids, matrix, _ = evaluation.score_matrix([t.scores for t in self.trials], self.spec.metric)
        of = clusters(self.dataset.queries)
        return statistics.against_baseline(matrix, self.baseline, [of[q] for q in ids])

    @cached_property
    def best(self) -> list[str]:
        """Labels of the trials that cannot be told apart from the best, the best first."""
        ids, matrix, _ = evaluation.score_matrix([t.scores for t in self.trials], self.spec.metric)
        of = clusters(self.dataset.queries)
        better = evaluation.higher_is_better(self.spec.metric)
        found = statistics.best_set(matrix, [of[q] for q in ids], higher_is_better=better)
        return [self.labels[i] for i in found]

    @property
    def verdict(self) -> str:
        """One sentence that can say "not distinguishable"."""
        if self.baseline is None:
            return "The declared baseline has no result, so there is nothing to compare with."
        return statistics.verdict(
            self.labels,
            self.spec.metric,
            [interval(t.metrics[self.spec.metric]) for t in self.trials],
            self.comparisons,
            higher_is_better=evaluation.higher_is_better(self.spec.metric),
        )

    def frame(self, metrics: Sequence[str] | None = None) -> pl.DataFrame:
        """One row a trial: its label, the axes as columns, and mean, interval, n and unscored of each metric."""
        points = [{path: str(value) for path, value in point.items()} for point in self.points]
        axes = pl.DataFrame(points, infer_schema_length=None)
        found = results_frame(self.trials, metrics or [self.spec.metric])
        return pl.concat([found.select("trial"), axes, found.drop("trial")], how="horizontal")

    @property
    def costs(self) -> pl.DataFrame:
        """One row a unique stage that asked a model, as `TrialResult.costs`, named by the first trial that used it."""
        stages = {
            s.fingerprint: (f"{s.kind} {s.label} ({t.label})", s) for t in reversed(self.trials) for s in t.stages
        }
        return costs((name, s.details, s.seconds) for name, s in reversed(stages.values()))

    @cached_property
    def faults(self) -> pl.DataFrame:
        """The fault ledger: attempts, failures, repeated items, retries and waits, one row a stage (`faults`)."""
        return read_faults(self.trials[0].database, self.sweep_id)

    def __repr__(self) -> str:
        return f"SweepResult({self.name!r}, {len(self.trials)} trials, {self.verdict!r})"

    def _rows(self) -> Rows:
        name = self.spec.metric
        rows = []
        for trial in self.trials:
            m = trial.metrics[name]
            rows.append((trial.label, f"{m['mean']:.3f}", f"{m['low']:.3f} to {m['high']:.3f}", str(m["n"])))
        return self.verdict, ("trial", name, "95 % interval", "n"), rows


def interval(summary: Mapping[str, Any]) -> Interval:
    """A stored summary as an Interval."""
    return Interval(**{key: summary[key] for key in Interval.__dataclass_fields__})


def load_sweep(database: Database, sweep_id: int) -> SweepResult:
    """A sweep from the store alone.

    Raises:
        InputError: no such sweep, or none of its trials has a result.
    """
    with database.transaction() as connection:
        row = connection.execute(
            "SELECT name, state, spec, baseline FROM sweep WHERE sweep_id = %s", [sweep_id]
        ).fetchone()
        if row is None:
            raise InputError(f"no sweep {sweep_id} in this database", hint="`workbench sweep` prints a sweep's id")
        rows = connection.execute(
            "SELECT trial_no, label, point, trial_id, error FROM sweep_trial WHERE sweep_id = %s ORDER BY trial_no",
            [sweep_id],
        ).fetchall()
    spec = parse(SweepSpec, row[2])
    done = [entry[:4] for entry in rows if entry[3] is not None]
    if not done:
        raise InputError(f"no trial of sweep {sweep_id} has a result yet", hint="run `workbench sweep` again")
    trials = tuple(load_trials(database, [(trial_id, label) for _, label, _, trial_id in done]))
    points = tuple(point for _, _, point, _ in done)
    if unscored := [trial.label for trial in trials if spec.metric not in trial.metrics]:
        raise InputError(
            f"the declared metric {spec.metric!r} was not scored in {', '.join(unscored)}",
            where=f"sweep {sweep_id}",
            hint=did_you_mean(spec.metric, trials[0].metrics),
        )
    return SweepResult(
        sweep_id,
        row[0],
        row[1],
        spec,
        trials,
        points,
        {label: error or "not run yet" for _, label, _, trial_id, error in rows if trial_id is None},
        next((i for i, (number, *_) in enumerate(done) if number == row[3]), None),
    )
