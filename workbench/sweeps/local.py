"""The local runner: a plain loop in this process. Durable because results are; run it again to go on."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

from workbench.errors import DatabaseError, Stopped, WorkbenchError
from workbench.pipeline.execute import Progress, execute, require_models
from workbench.pipeline.graph import Node
from workbench.pipeline.job import Job
from workbench.runtime import Runtime
from workbench.sweeps.book import Book, open_book
from workbench.sweeps.plan import Plan
from workbench.sweeps.runs import SweepRun, read_run


def run(
    plan: Plan,
    runtime: Runtime,
    *,
    progress: Progress | None = None,
    check: Callable[[], None] = lambda: None,
) -> SweepRun:
    """Bring every stage of a plan to done. A failing stage fails only the trials below it.

    Raises:
        Stopped: a person paused or cancelled the sweep; finished work is kept.
        KeyboardInterrupt: passed on after the sweep is marked interrupted; finished work is kept.
    """
    job = Job(runtime, plan.dataset)
    book = open_book(plan, job, "local")

    def look() -> None:
        check()
        book.check()

    job.check = look
    try:
        _work(plan, job, book, progress)
        book.conclude()
    except BaseException:
        with contextlib.suppress(WorkbenchError):
            if book.conclude() == "failed":  # every stage had its turn before this one was cut off
                book.set_state("interrupted")
        raise
    return read_run(runtime.database, book.sweep_id)


def _work(plan: Plan, job: Job, book: Book, progress: Progress | None) -> None:
    require_models((node for node in plan.nodes if node.fingerprint not in job.done), job.runtime.settings)
    broken: set[str] = set()
    for stage_no, node in enumerate(plan.nodes):
        if node.fingerprint in job.done:
            continue
        if any(isinstance(i, Node) and i.fingerprint in broken for i in node.inputs.values()):
            broken.add(node.fingerprint)
            continue
        try:
            run = execute([node], job, progress=progress)[0]
        except (DatabaseError, Stopped):
            raise  # not this stage's fault: every other one would meet the same
        except WorkbenchError as error:
            broken.add(node.fingerprint)
            book.failed(stage_no, str(error))
        else:
            book.done(stage_no, run.state)
