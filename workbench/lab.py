"""The front door in Python: `lab = workbench.open()`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self

import polars as pl

from workbench import datasets
from workbench.datasets import Dataset
from workbench.errors import InputError
from workbench.parsing import parse
from workbench.pipeline import graph
from workbench.pipeline.comparing import TrialComparison, compare
from workbench.pipeline.execute import execute
from workbench.pipeline.job import Job
from workbench.pipeline.results import TrialResult, finished, load_trial, record_trial, results_frame
from workbench.pipeline.search import SearchResult, search
from workbench.progress import quiet_libraries, show_progress
from workbench.runtime import Runtime
from workbench.settings import Settings
from workbench.specs import SweepSpec, TrialSpec, read_sweep, read_trial
from workbench.store import tables
from workbench.sweeps import local
from workbench.sweeps.book import Book
from workbench.sweeps.faults import read_faults
from workbench.sweeps.plan import Plan, plan
from workbench.sweeps.results import SweepResult, load_sweep
from workbench.sweeps.runs import Status, SweepRun, list_sweeps, read_status

if TYPE_CHECKING:
    from workbench.reports.inspector import Inspection

DatasetLike = Dataset | str | Path
Engine = Literal["local", "temporal"]
TrialLike = TrialSpec | str | Path


class Lab:
    """Datasets, trials, sweeps and their results over one store.

    Opens the store on construction; close it, or use it in a `with` block. `progress` draws bars on a
    terminal's stderr.
    """

    def __init__(self, settings: Settings | None = None, *, progress: bool = True) -> None:
        quiet_libraries()
        self.runtime = Runtime(settings)
        self._progress = progress

    def catalogue(self) -> list[datasets.Entry]:
        """The bundled datasets."""
        return datasets.catalogue()

    def load(self, dataset: DatasetLike, *, limit: int | None = None) -> Dataset:
        """A dataset by catalogue name or folder, validated; `limit` keeps the first queries.

        Raises:
            DatasetError: unknown, or with faults, all of them listed.
        """
        loaded = dataset if isinstance(dataset, Dataset) else datasets.load(dataset)
        return loaded if limit is None else loaded.limited(limit)

    def run(
        self,
        trial: TrialLike | None = None,
        dataset: DatasetLike | None = None,
        *,
        limit: int | None = None,
        label: str | None = None,
        **stages: Any,
    ) -> TrialResult:
        """Run a trial; what the store already holds is not computed again.

        `trial` is a TrialSpec or a TOML file. Keyword arguments replace stages: `chunk=my_function`,
        `retrieve={"kind": "bm25", "k": 20}`, `chunk=Recursive(tokens=100)`.

        Raises:
            InputError: something named does not fit; nothing was started.
            StageError: a stage failed; its finished items are kept.
        """
        if dataset is None:
            raise InputError("no dataset was given", where="lab.run", hint='for example dataset="python-reference"')
        spec = self._trial(trial, stages)
        data = self.load(dataset, limit=limit)
        if not data.queries:
            raise InputError(f"{data.name} has no queries to score", where="lab.run", hint="lab.search needs none")
        built = graph.build(spec, data, self.runtime)
        job = Job(self.runtime, data)
        with show_progress(self._progress) as progress:
            runs = execute(list(built.score.walk()), job, progress=progress)
        with self.runtime.database.transaction() as connection:
            trial_id = record_trial(connection, built.score, spec.model_dump(mode="json"), job.dataset_id)
        return finished(built, job, {run.node.fingerprint: run for run in runs}, trial_id, label)

    def search(self, text: str, dataset: DatasetLike, *trials: TrialLike, k: int = 5) -> SearchResult:
        """The hits of one or two trials for a question, side by side; no gold needed."""
        specs = [self._trial(trial, {}) for trial in trials or (TrialSpec(),)]
        with show_progress(self._progress) as progress:
            return search(self.runtime, self.load(dataset), text, specs, k=k, progress=progress)

    def plan(
        self, sweep: SweepSpec | str | Path, dataset: DatasetLike, *, limit: int | None = None, name: str | None = None
    ) -> Plan:
        """The trials and unique stages of a sweep, without running them; `name` is by default its file's."""
        if isinstance(sweep, SweepSpec):
            spec, own = sweep, "sweep"
        else:
            spec, own = read_sweep(Path(sweep)), Path(sweep).stem
        data = self.load(dataset, limit=limit)
        if not data.queries:
            raise InputError(f"{data.name} has no queries to score", where="lab.plan", hint="lab.search needs none")
        return plan(spec, data, self.runtime, name=name or own)

    def sweep(
        self,
        sweep: Plan | SweepSpec | str | Path,
        dataset: DatasetLike | None = None,
        *,
        limit: int | None = None,
        engine: Engine = "local",
        workers: int = 1,
    ) -> SweepResult:
        """Run a sweep to its end and read its result from the store."""
        run = self.run_sweep(sweep, dataset, limit=limit, engine=engine, workers=workers)
        return self.sweep_result(run.sweep_id)

    def run_sweep(
        self,
        sweep: Plan | SweepSpec | str | Path,
        dataset: DatasetLike | None = None,
        *,
        limit: int | None = None,
        engine: Engine = "local",
        workers: int = 1,
    ) -> SweepRun:
        """Run a sweep; what was computed, reused and repeated is in the returned run.

        Engine "local" is a loop in this process. "temporal" runs the sweep as a workflow, with so many `workers`
        of this machine beside those that run already.

        Raises:
            Stopped: a person paused or cancelled it.
        """
        if not isinstance(sweep, Plan):
            if dataset is None:
                raise InputError("no dataset was given", where="lab.sweep")
            sweep = self.plan(sweep, dataset, limit=limit)
        with show_progress(self._progress) as progress:
            if engine == "local":
                return local.run(sweep, self.runtime, progress=progress)
            from workbench.sweeps.temporal import runner

            return runner.run(sweep, self.runtime, workers=workers, progress=progress)

    def sweeps(self) -> pl.DataFrame:
        """One row a sweep of this database, the latest first."""
        return list_sweeps(self.runtime.database)

    def status(self, sweep_id: int) -> Status:
        """How far a sweep is, whoever runs it.

        Raises:
            InputError: there is no such sweep.
        """
        return read_status(self.runtime.database, sweep_id)

    def faults(self, sweep_id: int) -> pl.DataFrame:
        """The fault ledger of a sweep: attempts, failures, repeated items, retries and waits, one row a stage."""
        return read_faults(self.runtime.database, sweep_id)

    def pause(self, sweep_id: int) -> Status:
        """Have whoever runs a sweep stop after the items at hand; `resume` goes on."""
        return self._want(sweep_id, "pause")

    def cancel(self, sweep_id: int) -> Status:
        """Have whoever runs a sweep stop; what is finished stays, and a later run goes on from there."""
        return self._want(sweep_id, "cancel")

    def _want(self, sweep_id: int, what: Literal["pause", "cancel"]) -> Status:
        status = self.status(sweep_id)
        if status.state in ("done", "failed", "cancelled"):
            raise InputError(f"sweep {sweep_id} is {status.state}: nothing runs", where="status")
        book = Book(self.runtime.database, sweep_id)
        book.want(what)
        if status.engine == "temporal":
            from workbench.sweeps.temporal import runner

            runner.wake(self.runtime, sweep_id)
        elif status.state != "running":
            book.conclude()
        return self.status(sweep_id)

    def resume(self, sweep_id: int, *, engine: Engine | None = None, workers: int = 1) -> SweepRun:
        """Go on with a sweep that was paused, cancelled, interrupted or has failures, from the store alone.

        `engine` is by default the one it ran on.
        """
        with self.runtime.database.transaction() as connection:
            dataset = tables.load_dataset(connection, Book(self.runtime.database, sweep_id).dataset_id())
        status = self.status(sweep_id)
        made = plan(status.spec, dataset, self.runtime, name=status.name)
        chosen: Engine = "temporal" if (engine or status.engine) == "temporal" else "local"
        return self.run_sweep(made, engine=chosen, workers=workers)

    def sweep_result(self, sweep_id: int) -> SweepResult:
        """A sweep from the store alone."""
        return load_sweep(self.runtime.database, sweep_id)

    def trial(self, trial_id: int) -> TrialResult:
        """A finished trial from the store alone."""
        return load_trial(self.runtime.database, trial_id)

    def table(self, *results: TrialResult, metrics: Sequence[str] = ("recall@5",)) -> pl.DataFrame:
        """Trials beside each other: one row a trial, with mean, interval, n and unscored of each metric."""
        return results_frame(results, metrics)

    def compare(self, a: TrialResult, b: TrialResult, metric: str = "recall@5") -> TrialComparison:
        """A paired test of b against a on one metric, over the queries scored in both.

        Raises:
            InputError: the trials ran on different queries, or the metric is not there.
        """
        return compare(a, b, metric)

    def inspect(self, result: TrialResult, query_id: str, against: TrialResult | None = None) -> Inspection:
        """One query of a trial (or of two, side by side): gold and retrieved spans in their documents.

        Raises:
            InputError: no such query.
        """
        from workbench.reports.inspector import inspect

        return inspect(result, query_id, against)

    def report(self, sweep: SweepResult | int, path: str | Path | None = None) -> Path:
        """Render a sweep's report from the store to self-contained HTML; returns the file's path.

        A report that was rendered before from the same results is not rendered again.
        """
        from workbench.reports.notebooks import render_sweep

        result = self.sweep_result(sweep) if isinstance(sweep, int) else sweep
        return render_sweep(result, self.runtime.settings, Path(path) if path else None)

    def close(self) -> None:
        """Give back what is claimed and close the store."""
        self.runtime.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _trial(self, trial: TrialLike | None, stages: Mapping[str, Any]) -> TrialSpec:
        base = trial if isinstance(trial, TrialSpec) else TrialSpec() if trial is None else read_trial(Path(trial))
        if not stages:
            return base
        given = {name: getattr(base, name) for name in base.model_fields_set}
        return parse(TrialSpec, {**given, **stages}, where="lab.run")
