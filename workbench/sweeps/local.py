"""The local runner: a plain loop in this process. Durable because results are; run it again to go on."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from psycopg.types.json import Json

from workbench.errors import DatabaseError, WorkbenchError
from workbench.pipeline.execute import Progress, StageRun, execute, require_models
from workbench.pipeline.job import Job
from workbench.pipeline.results import TrialResult, finished, record_trial
from workbench.runtime import Runtime
from workbench.sweeps.plan import Plan, PlannedTrial


@dataclass(frozen=True)
class SweepRun:
    """What one run of a sweep did. `errors` maps the number of a failed trial to its reason."""

    sweep_id: int
    plan: Plan
    results: Mapping[int, TrialResult]
    errors: Mapping[int, str]
    runs: Mapping[str, StageRun]
    failed_stages: int
    seconds: float

    @property
    def state(self) -> str:
        return "failed" if self.errors else "done"

    def as_json(self) -> dict[str, Any]:
        """The JSON object of `workbench sweep` (docs/datamodel.md)."""
        states = [run.state for run in self.runs.values()]
        return {
            "sweep": self.sweep_id,
            "name": self.plan.name,
            "dataset": self.plan.dataset.name,
            "state": self.state,
            "trials": len(self.plan.trials),
            "done": len(self.results),
            "failed": len(self.errors),
            "errors": {self.plan.trials[no].label: error for no, error in self.errors.items()},
            "stages": {
                "unique": len(self.plan.nodes),
                "loop": self.plan.stages_of_a_loop,
                "computed": states.count("computed"),
                "reused": states.count("reused"),
                "failed": self.failed_stages,
            },
            "items": {
                "computed": sum(run.counts.computed for run in self.runs.values()),
                "repeated": sum(run.counts.repeated for run in self.runs.values()),
            },
            "seconds": round(self.seconds, 3),
            "results": [result.as_json() for result in self.results.values()],
        }


def run(
    plan: Plan,
    runtime: Runtime,
    *,
    progress: Progress | None = None,
    check: Callable[[], None] = lambda: None,
) -> SweepRun:
    """Bring every stage of a plan to done. A failing stage fails only the trials below it.

    Raises:
        KeyboardInterrupt: passed on after the sweep is marked interrupted; finished work is kept.
    """
    started = time.monotonic()
    job = Job(runtime, plan.dataset)
    sweep_id = _save(plan, job)
    runs: dict[str, StageRun] = {}
    broken: dict[str, str] = {}
    try:
        done = runtime.ledger.done([node.fingerprint for node in plan.nodes])
        job.done.update(done)
        require_models((node for node in plan.nodes if node.fingerprint not in done), runtime.settings)
        for node in plan.nodes:
            lost = [broken[i] for i in node.input_fingerprints.values() if i in broken]
            if lost:
                broken[node.fingerprint] = lost[0]
                continue
            try:
                runs[node.fingerprint] = execute([node], job, progress=progress, check=check)[0]
            except DatabaseError:
                raise  # not this stage's fault: every other would wait for the same server
            except WorkbenchError as error:
                broken[node.fingerprint] = str(error)
        results, errors = _collect(plan, job, runs, broken, sweep_id)
    except BaseException:
        with contextlib.suppress(WorkbenchError):
            _set_state(runtime, sweep_id, "interrupted")
        raise
    _set_state(runtime, sweep_id, "failed" if errors else "done")
    return SweepRun(sweep_id, plan, results, errors, runs, len(broken), time.monotonic() - started)


def _save(plan: Plan, job: Job) -> int:
    with job.runtime.database.transaction() as connection:
        row = connection.execute(
            "INSERT INTO sweep (fingerprint, name, dataset_id, spec, baseline, state)"
            " VALUES (%s, %s, %s, %s, %s, 'running')"
            " ON CONFLICT (fingerprint) DO UPDATE SET state = 'running', name = excluded.name RETURNING sweep_id",
            [
                bytes.fromhex(plan.fingerprint),
                plan.name,
                job.dataset_id,
                Json(plan.sweep.model_dump(mode="json")),
                plan.baseline,
            ],
        ).fetchone()
        assert row is not None
        connection.cursor().executemany(
            "INSERT INTO sweep_trial (sweep_id, trial_no, label, point, spec, state)"
            " VALUES (%s, %s, %s, %s, %s, 'planned') ON CONFLICT DO NOTHING",
            [
                (row[0], t.trial_no, t.label, Json(dict(t.point)), Json(t.graph.trial.model_dump(mode="json")))
                for t in plan.trials
            ],
        )
    return int(row[0])


def _collect(
    plan: Plan, job: Job, runs: Mapping[str, StageRun], broken: Mapping[str, str], sweep_id: int
) -> tuple[dict[int, TrialResult], dict[int, str]]:
    results, errors = {}, {}
    for trial in plan.trials:
        error = broken.get(trial.graph.fingerprint)
        if error is None:
            trial_id = record_trial(trial.graph, job)
            results[trial.trial_no] = finished(trial.graph, job, runs, trial_id, trial.label)
            _set_trial(job.runtime, sweep_id, trial, "done", trial_id, None)
        else:
            errors[trial.trial_no] = error
            _set_trial(job.runtime, sweep_id, trial, "failed", None, error)
    return results, errors


def _set_trial(
    runtime: Runtime, sweep_id: int, trial: PlannedTrial, state: str, trial_id: int | None, error: str | None
) -> None:
    with runtime.database.transaction() as connection:
        connection.execute(
            "UPDATE sweep_trial SET state = %s, trial_id = %s, error = %s WHERE sweep_id = %s AND trial_no = %s",
            [state, trial_id, error, sweep_id, trial.trial_no],
        )


def _set_state(runtime: Runtime, sweep_id: int, state: str) -> None:
    with runtime.database.transaction() as connection:
        connection.execute(
            "UPDATE sweep SET state = %s, finished_at = CASE WHEN %s = 'running' THEN NULL ELSE now() END"
            " WHERE sweep_id = %s",
            [state, state, sweep_id],
        )
