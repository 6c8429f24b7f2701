"""What workers do for a sweep's workflow: hand out what is ready, run a stage, sum up."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from functools import lru_cache

from temporalio import activity
from temporalio.exceptions import ApplicationError

from workbench.datasets import Dataset
from workbench.errors import InputError, ServiceError, StageCrashed, Stopped, WorkbenchError
from workbench.pipeline.execute import execute
from workbench.pipeline.graph import Node
from workbench.pipeline.job import Job
from workbench.runtime import Runtime
from workbench.store import tables
from workbench.sweeps.book import Book, Ready
from workbench.sweeps.temporal.workflows import STOPPED, Ask, HandOut, StageTask, Ticket

MOST_SHARES = 32
"""Activities that share the items of one stage, at most."""
GRAIN = {"llm": 16, "gpu": 256}
"""Items that are worth an activity of their own, by queue; stages of other queues are not shared."""
ATTEMPTS, OUTAGES = 3, 60
"""How often a stage is tried that fails by itself, and one whose services are away."""
BEAT = 1.0
"""Seconds between two heartbeats."""


class Activities:
    """The activities of one worker process, over its runtime."""

    def __init__(self, runtime: Runtime, threads: int) -> None:
        self._runtime = runtime
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="workbench-stage")
        self._dataset = lru_cache(maxsize=4)(self._load_dataset)

    def close(self) -> None:
        self._threads.shutdown()

    @activity.defn(name="hand_out")
    async def hand_out(self, ask: Ask) -> HandOut:
        """Stages whose inputs are done, after failures were written down."""
        return await asyncio.to_thread(self._hand_out, ask)

    @activity.defn(name="conclude")
    async def conclude(self, sweep_id: int) -> str:
        """Sum up the sweep's state; returns it."""
        return await asyncio.to_thread(Book(self._runtime.database, sweep_id).conclude)

    @activity.defn(name="cancel")
    async def cancel(self, sweep_id: int) -> str:
        """Write down that the workflow was cancelled by Temporal's own means."""
        book = Book(self._runtime.database, sweep_id)

        def write() -> str:
            book.want("cancel")
            return book.conclude()

        return await asyncio.to_thread(write)

    @activity.defn(name="run_stage")
    async def run_stage(self, task: StageTask) -> str:
        """Bring a stage to done, alone or beside others; returns "computed" or "reused".

        Heartbeats come from the event loop while a thread works: a long batch says nothing, and is healthy.
        A cancelled activity lets its thread come to an end before it says so.
        """
        stop = threading.Event()
        far: list[int] = [0, 0]
        work = asyncio.get_running_loop().run_in_executor(self._threads, self._run_stage, task, stop, far)
        try:
            while not work.done():
                activity.heartbeat(*far)
                await asyncio.wait([work], timeout=BEAT)
        except asyncio.CancelledError:
            stop.set()
            await asyncio.wait([work])
            if work.exception() is None:
                return work.result()
            raise
        try:
            return work.result()
        except WorkbenchError as error:
            raise _told(error, activity.info().attempt) from error

    def _run_stage(self, task: StageTask, stop: threading.Event, far: list[int]) -> str:
        book = Book(self._runtime.database, task.sweep_id)

        def check() -> None:
            if stop.is_set():
                raise Stopped("this work was cancelled")
            book.check()

        def progress(node: Node, done: int, of: int) -> None:  # noqa: ARG001
            far[:] = [done, of]

        node = book.node(task.stage_no)
        job = Job(self._runtime, self._dataset(book.dataset_id()), check, task.sweep_id)
        job.done.update(self._runtime.ledger.done([n.fingerprint for n in node.walk()]))
        run = execute([node], job, progress=progress, shared=task.shares > 1)[0]
        book.done(task.stage_no, run.state)
        return run.state

    def _hand_out(self, ask: Ask) -> HandOut:
        book = Book(self._runtime.database, ask.sweep_id)
        for stage_no, reason in ask.failed.items():
            book.failed(stage_no, reason)
        wanted, state = book.wanted(), book.state()
        if wanted == "cancel":
            return HandOut("cancelled")
        if wanted == "pause":
            if not ask.running:
                book.set_state("paused")
            return HandOut("paused")
        if state == "paused":
            book.set_state("running")
        ready = book.ready(ask.limit, ask.running) if ask.limit > 0 else []
        tickets = [Ticket(s.stage_no, f"{s.kind} {s.label}", s.queue, self._shares(book, s)) for s in ready]
        over = not tickets and not ask.running and not book.waiting()
        return HandOut("over" if over else "running", tickets)

    def _shares(self, book: Book, stage: Ready) -> int:
        """How many activities a stage's items are worth."""
        grain = GRAIN.get(stage.queue)
        if grain is None or stage.label == "query":
            return 1
        return max(1, min(MOST_SHARES, book.items(stage.stage_no) // grain))

    def _load_dataset(self, dataset_id: int) -> Dataset:
        with self._runtime.database.transaction() as connection:
            return tables.load_dataset(connection, dataset_id)


def _told(error: WorkbenchError, attempt: int) -> ApplicationError:
    """An error as Temporal's retries understand it: what cannot heal is final."""
    if isinstance(error, Stopped):
        return ApplicationError(str(error), type=STOPPED, non_retryable=True)
    final = isinstance(error, InputError | StageCrashed)
    if isinstance(error, ServiceError):
        final |= attempt >= OUTAGES
        pause = timedelta(seconds=min(2.0 * attempt, 30.0))
    else:
        final |= attempt >= ATTEMPTS
        pause = timedelta(seconds=float(attempt))
    return ApplicationError(str(error), type=type(error).__name__, non_retryable=final, next_retry_delay=pause)
