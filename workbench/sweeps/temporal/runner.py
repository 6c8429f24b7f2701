"""The Temporal runner: writes the plan down, starts the sweep's workflow or finds it running, and follows it."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Coroutine
from contextlib import ExitStack
from typing import Any, TypeVar

from temporalio.client import WorkflowExecutionStatus, WorkflowHandle
from temporalio.common import WorkflowIDConflictPolicy, WorkflowIDReusePolicy
from temporalio.service import RPCError

from workbench.errors import ServiceError, WorkbenchError
from workbench.models.background import Background
from workbench.pipeline.execute import Progress, execute, require_models
from workbench.pipeline.job import Job
from workbench.pipeline.nodes import bound_to_process
from workbench.runtime import Runtime
from workbench.sweeps.book import Book, open_book
from workbench.sweeps.plan import Plan
from workbench.sweeps.runs import SweepRun, read_run, read_status
from workbench.sweeps.temporal import server
from workbench.sweeps.temporal.connection import configured, connect
from workbench.sweeps.temporal.crew import Crew
from workbench.sweeps.temporal.worker import queue_prefix
from workbench.sweeps.temporal.workflows import SweepInput

_log = logging.getLogger(__name__)
T = TypeVar("T")

LOOK = 0.25
"""Seconds between two looks at the sweep."""
TROUBLES = 5.0
"""Seconds between two looks for stages that failed and wait to be tried again."""
AWAY = 600.0
"""Seconds that a Temporal server may be away before the runner gives up; the workflow goes on when it is back."""


def run(
    plan: Plan,
    runtime: Runtime,
    *,
    workers: int = 1,
    concurrency: int = 1,
    progress: Progress | None = None,
    check: Callable[[], None] = lambda: None,
) -> SweepRun:
    """Run a sweep as a workflow and return when it has ended.

    `workers` processes of this machine are started for it; 0: others do the work. A workflow of this sweep that
    is running is attached to. When this process ends, the workflow stays: run again to go on.

    Raises:
        ServiceError: no Temporal server answers, or the workflow was ended from outside.
        Stopped: a person paused or cancelled the sweep; finished work is kept.
    """
    job = Job(runtime, plan.dataset, check)
    book = open_book(plan, job, "temporal")
    try:
        require_models((node for node in plan.nodes if node.fingerprint not in job.done), runtime.settings)
        _run_here(plan, job, book, progress)
        if not book.waiting():
            book.conclude()
            return read_run(runtime.database, book.sweep_id)
        with ExitStack() as stack:
            embedded = None if configured() else stack.enter_context(server.start(runtime.settings.home))
            crew = stack.enter_context(Crew(runtime.settings, workers, concurrency=concurrency))
            background = Background()
            stack.callback(background.close)
            follower = _Follower(book, runtime, background, crew, embedded)
            follower.start()
            ended = follower.follow(check, _Teller(plan, runtime, book, progress))
    except BaseException:
        with contextlib.suppress(WorkbenchError):
            book.set_state("interrupted")
        raise
    if ended != WorkflowExecutionStatus.COMPLETED and not book.wanted():
        raise ServiceError(
            f"the workflow of sweep {book.sweep_id} was ended from outside ({ended.name.lower()})",
            hint="finished items are kept; run the sweep again to go on",
        )
    book.require_wanted()
    return read_run(runtime.database, book.sweep_id)


def _run_here(plan: Plan, job: Job, book: Book, progress: Progress | None) -> None:
    """Chunks that only this process can make: those of a function of a notebook, or of a file of the dataset."""
    for stage_no, node in enumerate(plan.nodes):
        if bound_to_process(node) and node.fingerprint not in job.done:
            try:
                run = execute([node], job, progress=progress)[0]
            except ServiceError:
                raise
            except WorkbenchError as error:
                book.failed(stage_no, str(error))
            else:
                book.done(stage_no, run.state)


def wake(runtime: Runtime, sweep_id: int) -> bool:
    """Have a running workflow look at the store now; False where none can be reached: it looks by itself, later."""
    background = Background()
    try:
        client = background.run(connect(runtime.settings.home))
        handle = client.get_workflow_handle(_workflow_id(runtime, sweep_id))
        background.run(handle.signal("wake"))
    except (WorkbenchError, RPCError):
        return False
    finally:
        background.close()
    return True


def _workflow_id(runtime: Runtime, sweep_id: int) -> str:
    return f"{queue_prefix(runtime.database)}-sweep-{sweep_id}"


class _Teller:
    """Shows how far the stages are, as the store has it."""

    def __init__(self, plan: Plan, runtime: Runtime, book: Book, progress: Progress | None) -> None:
        self._nodes = {node.fingerprint: node for node in plan.nodes}
        self._database, self._sweep_id, self._progress = runtime.database, book.sweep_id, progress
        self._seen = 0
        self._next = 0.0
        self._told: dict[str, str] = {}

    def tell(self) -> None:
        """Bars for what is under way, and a word on stages that have to be tried again."""
        if time.monotonic() >= self._next:
            self._next = time.monotonic() + TROUBLES
            troubles = dict(read_status(self._database, self._sweep_id).troubles)
            for stage, error in troubles.items():
                if self._told.get(stage) != error:
                    _log.info("%s is tried again: %s", stage, error)
            self._told |= troubles
        if self._progress is None:
            return
        with self._database.transaction() as connection:
            rows = connection.execute(
                "SELECT a.attempt_id, encode(a.fingerprint, 'hex'), a.done, a.items, a.ended_at IS NULL FROM attempt a"
                " WHERE a.sweep_id = %s AND a.attempt_id > %s ORDER BY a.attempt_id",
                [self._sweep_id, self._seen],
            ).fetchall()
        for _, fingerprint, done, items, _ in rows:
            if fingerprint in self._nodes:
                self._progress(self._nodes[fingerprint], done, items)
        going = [row[0] for row in rows if row[4]]
        # What ended and was shown as ended is not read again.
        self._seen = min(going, default=max((row[0] for row in rows), default=self._seen) + 1) - 1


class _Follower:
    """Holds on to a workflow while servers and workers come and go."""

    def __init__(
        self, book: Book, runtime: Runtime, background: Background, crew: Crew, embedded: server.Server | None
    ) -> None:
        self._book, self._runtime, self._background = book, runtime, background
        self._crew, self._embedded = crew, embedded
        self._handle: WorkflowHandle[Any, Any] | None = None
        self._away_since: float | None = None

    def start(self) -> None:
        """Start the workflow, or attach to the one that runs."""

        async def begin() -> WorkflowHandle[Any, Any]:
            client = await connect(self._runtime.settings.home)
            prefix = queue_prefix(self._runtime.database)
            return await client.start_workflow(
                "Sweep",
                SweepInput(self._book.sweep_id, prefix),
                id=_workflow_id(self._runtime, self._book.sweep_id),
                task_queue=f"{prefix}-sweep",
                id_reuse_policy=WorkflowIDReusePolicy.ALLOW_DUPLICATE,
                id_conflict_policy=WorkflowIDConflictPolicy.USE_EXISTING,
                start_signal="wake",
                static_summary=f"sweep {self._book.sweep_id}",
            )

        self._crew.tend()
        self._handle = self._patiently(begin)

    def follow(self, check: Callable[[], None], teller: _Teller) -> WorkflowExecutionStatus:
        """Return when the workflow has ended, or the sweep is paused."""
        handle = self._handle
        assert handle is not None

        async def describe() -> WorkflowExecutionStatus | None:
            return (await handle.describe()).status

        while True:
            check()
            self._crew.tend()
            teller.tell()
            status = self._patiently(describe)
            if status not in (WorkflowExecutionStatus.RUNNING, WorkflowExecutionStatus.CONTINUED_AS_NEW, None):
                teller.tell()
                return status
            if self._book.state() == "paused":
                return WorkflowExecutionStatus.COMPLETED
            time.sleep(LOOK)

    def _patiently(self, ask: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Ask the Temporal server; while it is away bring it back, or wait for it."""
        while True:
            try:
                answer = self._background.run(ask())
            except (RPCError, ServiceError) as error:
                self._away_since = self._away_since or time.monotonic()
                if time.monotonic() - self._away_since > AWAY:
                    raise ServiceError(f"the Temporal server is away: {error}", hint="run again to go on") from error
                if self._embedded:
                    self._embedded.ensure()
                time.sleep(LOOK)
            else:
                self._away_since = None
                return answer
