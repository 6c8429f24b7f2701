"""What the latest run of a sweep did, and how far every sweep is: read from the store, whoever ran it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl

from workbench.errors import InputError
from workbench.parsing import parse
from workbench.pipeline.results import TrialResult, load_trials
from workbench.specs import SweepSpec
from workbench.store.database import Database


@dataclass(frozen=True)
class Status:
    """How far a sweep is. Stages count over its whole life, `run_computed` over its latest run."""

    sweep_id: int
    name: str
    dataset: str
    spec: SweepSpec
    state: str
    engine: str
    wanted: str | None
    """ "pause" or "cancel", where a person asked for it."""
    baseline: int
    trials: Mapping[str, int]
    """Trials by state: planned, done, failed."""
    stages: Mapping[str, int]
    """Stages by state: waiting, computed, reused, failed."""
    loop_stages: int
    """What a loop over the trials would run, sharing nothing."""
    run_computed: int
    items: Mapping[str, int]
    """Items of the latest run: computed, repeated."""
    seconds: float
    """Of the latest run, until now where it still runs."""
    started_at: str
    working: Sequence[Mapping[str, Any]]
    """Stages that are worked on now: kind, label, done, items, workers."""
    errors: Mapping[str, str]
    """Label of each failed trial -> reason."""
    troubles: Mapping[str, str]
    """Stages that wait to be tried again -> what the latest attempt met."""

    def as_json(self) -> dict[str, Any]:
        """The JSON object of `workbench status` (docs/datamodel.md)."""
        unique = sum(self.stages.values())
        failed = self.stages.get("failed", 0)
        waiting = self.stages.get("waiting", 0)
        return {
            "sweep": self.sweep_id,
            "name": self.name,
            "dataset": self.dataset,
            "engine": self.engine,
            "state": self.state,
            "wanted": self.wanted,
            "trials": sum(self.trials.values()),
            "done": self.trials.get("done", 0),
            "failed": self.trials.get("failed", 0),
            "errors": dict(self.errors),
            "troubles": dict(self.troubles),
            "stages": {
                "unique": unique,
                "loop": self.loop_stages,
                "computed": self.run_computed,
                "reused": unique - self.run_computed - failed - waiting,
                "failed": failed,
                "waiting": waiting,
            },
            "items": dict(self.items),
            "seconds": round(self.seconds, 3),
            "started_at": self.started_at,
            "working": [dict(stage) for stage in self.working],
        }


@dataclass(frozen=True)
class SweepRun:
    """A sweep after a run: its status and the results of its trials, by trial number."""

    status: Status
    results: Mapping[int, TrialResult]

    @property
    def sweep_id(self) -> int:
        return self.status.sweep_id

    @property
    def state(self) -> str:
        return self.status.state

    @property
    def errors(self) -> Mapping[str, str]:
        """Label of each failed trial -> reason."""
        return self.status.errors

    def as_json(self) -> dict[str, Any]:
        """The JSON object of `workbench sweep` (docs/datamodel.md)."""
        return {**self.status.as_json(), "results": [result.as_json() for result in self.results.values()]}


def read_status(database: Database, sweep_id: int) -> Status:
    """How far a sweep is.

    Raises:
        InputError: there is no such sweep.
    """
    with database.transaction() as connection:
        row = connection.execute(
            "SELECT s.name, d.name, s.spec,"
            "   CASE WHEN s.state = 'running' AND s.engine = 'local' AND w.lease_until < now() THEN 'interrupted'"
            "        ELSE s.state END,"
            "   s.engine, s.wanted, s.baseline, s.loop_stages,"
            "   extract(epoch FROM coalesce(s.finished_at, now()) - s.started_at)::float8,"
            "   to_char(s.started_at AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS\"Z\"')"
            " FROM sweep s JOIN dataset d USING (dataset_id) LEFT JOIN worker w ON w.worker_id = s.runner_id"
            " WHERE s.sweep_id = %s",
            [sweep_id],
        ).fetchone()
        if row is None:
            raise InputError(f"no sweep {sweep_id} in this database", hint="`workbench status` lists them")
        name, dataset, spec, state, engine, wanted, baseline, loop, seconds, started = row
        by_state = {
            table: dict(
                connection.execute(
                    f"SELECT state, count(*) FROM {table} WHERE sweep_id = %s GROUP BY state",  # noqa: S608
                    [sweep_id],
                ).fetchall()
            )
            for table in ("sweep_trial", "sweep_stage")
        }
        counts = connection.execute(
            "SELECT count(DISTINCT a.fingerprint) FILTER (WHERE a.outcome = 'done'),"
            " coalesce(sum(a.computed), 0)::int8, coalesce(sum(a.repeated), 0)::int8"
            " FROM attempt a JOIN sweep s USING (sweep_id) WHERE a.sweep_id = %s AND a.started_at >= s.started_at",
            [sweep_id],
        ).fetchone()
        assert counts is not None
        working = connection.execute(
            "SELECT a.kind, a.label, max(a.done), max(a.items), count(*)"
            " FROM attempt a JOIN worker w USING (worker_id)"
            " WHERE a.sweep_id = %s AND a.ended_at IS NULL AND w.lease_until > now()"
            " GROUP BY a.fingerprint, a.kind, a.label ORDER BY min(a.attempt_id)",
            [sweep_id],
        ).fetchall()
        failed = connection.execute(
            "SELECT label, error FROM sweep_trial WHERE sweep_id = %s AND state = 'failed' ORDER BY trial_no",
            [sweep_id],
        ).fetchall()
        troubles = connection.execute(
            "SELECT s.kind || ' ' || s.label, a.error FROM sweep_stage s JOIN LATERAL"
            "   (SELECT outcome, error FROM attempt WHERE fingerprint = s.fingerprint"
            "    ORDER BY attempt_id DESC LIMIT 1) a ON a.outcome = 'failed'"
            " WHERE s.sweep_id = %s AND s.state = 'waiting' ORDER BY s.stage_no",
            [sweep_id],
        ).fetchall()
    return Status(
        sweep_id,
        name,
        dataset,
        parse(SweepSpec, spec),
        state,
        engine,
        wanted,
        baseline,
        by_state["sweep_trial"],
        by_state["sweep_stage"],
        loop,
        counts[0],
        {"computed": counts[1], "repeated": counts[2]},
        seconds,
        started,
        [dict(zip(("kind", "label", "done", "items", "workers"), w, strict=True)) for w in working],
        dict(failed),
        dict(troubles),
    )


def read_run(database: Database, sweep_id: int) -> SweepRun:
    """The latest run of a sweep; a stage counts as computed where that run computed it.

    Raises:
        InputError: there is no such sweep.
    """
    status = read_status(database, sweep_id)
    with database.transaction() as connection:
        rows = connection.execute(
            "SELECT trial_no, trial_id, label FROM sweep_trial WHERE sweep_id = %s AND state = 'done'"
            " ORDER BY trial_no",
            [sweep_id],
        ).fetchall()
        computed = connection.execute(
            "SELECT encode(a.fingerprint, 'hex'), sum(a.computed)::int8, sum(a.repeated)::int8,"
            " bool_or(a.outcome = 'done') FROM attempt a JOIN sweep s USING (sweep_id)"
            " WHERE a.sweep_id = %s AND a.started_at >= s.started_at GROUP BY a.fingerprint",
            [sweep_id],
        ).fetchall()
    live = {key: (items, repeated) for key, items, repeated, finished in computed if finished}
    trials = load_trials(database, [(trial_id, label) for _, trial_id, label in rows], live)
    return SweepRun(status, dict(zip((row[0] for row in rows), trials, strict=True)))


_LISTED = {
    "sweep": pl.Int64,
    "name": pl.String,
    "dataset": pl.String,
    "engine": pl.String,
    "state": pl.String,
    "trials": pl.Int64,
    "done": pl.Int64,
    "failed": pl.Int64,
    "seconds": pl.Float64,
    "started_at": pl.String,
}


def list_sweeps(database: Database) -> pl.DataFrame:
    """One row a sweep, the latest first: its state and how many trials are done and failed."""
    with database.transaction() as connection:
        ids = connection.execute("SELECT sweep_id FROM sweep ORDER BY started_at DESC, sweep_id DESC").fetchall()
    found = [read_status(database, sweep_id).as_json() for (sweep_id,) in ids]
    return pl.DataFrame([{name: status[name] for name in _LISTED} for status in found], schema=_LISTED)
