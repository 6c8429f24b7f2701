"""A worker process: it runs the stages of any sweep of a database, and keeps its models warm between them."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
from collections.abc import Callable, Sequence
from datetime import timedelta

from temporalio.client import Client
from temporalio.worker import UnsandboxedWorkflowRunner, Worker

from workbench.runtime import Runtime
from workbench.store.database import Database
from workbench.sweeps.book import QUEUES, Queue
from workbench.sweeps.temporal.activities import Activities
from workbench.sweeps.temporal.connection import connect
from workbench.sweeps.temporal.workflows import Sweep

GRACE = timedelta(seconds=20)
"""For the item at hand, when a worker is asked to end."""


def queue_prefix(database: Database) -> str:
    """What the task queues and workflow ids of a database begin with: its own UUID, so that two never mix."""
    with database.transaction() as connection:
        row = connection.execute("SELECT database_id FROM instance").fetchone()
    assert row is not None
    return f"workbench-{row[0]}"


def run(
    runtime: Runtime,
    *,
    queues: Sequence[Queue] = QUEUES,
    concurrency: int = 1,
    ready: Callable[[str], None] = lambda _: None,
) -> None:
    """Work until SIGTERM or SIGINT; what is under way then is given back within `GRACE`.

    `concurrency` stages of each queue run at once. `ready` is called with the server's address.

    Raises:
        ServiceError: no Temporal server answers.
    """
    asyncio.run(_run(runtime, queues, concurrency, ready))


async def _run(runtime: Runtime, queues: Sequence[Queue], concurrency: int, ready: Callable[[str], None]) -> None:
    # An activity that fails says so to the workflow and to the ledger: no traceback for what is expected.
    logging.getLogger("temporalio.activity").setLevel(logging.CRITICAL)
    client = await connect(runtime.settings.home)
    prefix = queue_prefix(runtime.database)
    activities = Activities(runtime, concurrency * len(queues))
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, ended.set)
    try:
        async with contextlib.AsyncExitStack() as stack:
            for worker in _workers(client, prefix, activities, queues, concurrency):
                await stack.enter_async_context(worker)
            ready(client.service_client.config.target_host)
            await ended.wait()
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)
        activities.close()


def _workers(
    client: Client, prefix: str, activities: Activities, queues: Sequence[Queue], concurrency: int
) -> list[Worker]:
    """One for the workflow and its hand-outs, and one a queue."""
    book = Worker(
        client,
        task_queue=f"{prefix}-sweep",
        workflows=[Sweep],
        activities=[activities.hand_out, activities.conclude, activities.cancel],
        # The workflow imports nothing but Temporal's own: the sandbox would guard nothing, and costs memory.
        workflow_runner=UnsandboxedWorkflowRunner(),
        # A worker that was killed must not hold back the next workflow task for long.
        sticky_queue_schedule_to_start_timeout=timedelta(seconds=1),
        graceful_shutdown_timeout=GRACE,
    )
    stages = [
        Worker(
            client,
            task_queue=f"{prefix}-{queue}",
            activities=[activities.run_stage],
            max_concurrent_activities=concurrency,
            graceful_shutdown_timeout=timedelta(0),  # an item is short: what is done is kept, and the rest given back
        )
        for queue in queues
    ]
    return [book, *stages]
