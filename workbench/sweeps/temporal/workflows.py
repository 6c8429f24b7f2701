"""The workflow of a sweep. It holds no results and no plan: the store does; it hands out work and waits.

Nothing of the workbench is imported here: the workflow's sandbox loads this file anew for each run.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from datetime import timedelta

from temporalio import workflow
from temporalio.common import RetryPolicy
from temporalio.exceptions import ActivityError, ApplicationError, is_cancelled_exception

STOPPED = "Stopped"
"""The type of the error of work that a person paused or cancelled: it did not fail."""


@dataclass
class SweepInput:
    """A sweep by its number, and the name that its task queues begin with."""

    sweep_id: int
    prefix: str
    window: int = 64
    """Stages under way at most."""


@dataclass
class Ask:
    """What the workflow knows when it asks for work."""

    sweep_id: int
    running: list[int]
    failed: dict[int, str]
    """stage_no -> reason, of stages that failed since the last question."""
    limit: int


@dataclass
class Ticket:
    """A stage that can begin, on a queue, its items shared by so many activities."""

    stage_no: int
    name: str
    queue: str
    shares: int


@dataclass
class HandOut:
    """Work, and whether more may come: "running", "paused", "cancelled" or "over"."""

    state: str
    tickets: list[Ticket] = field(default_factory=list)


@dataclass
class StageTask:
    sweep_id: int
    stage_no: int
    shares: int


_BOOKKEEPING = RetryPolicy(initial_interval=timedelta(seconds=1), maximum_interval=timedelta(seconds=20))
"""Hand-outs are tried until the database is there."""
_STAGE = RetryPolicy(initial_interval=timedelta(seconds=1), maximum_interval=timedelta(seconds=30))
"""How often a stage is tried is decided where it runs: what can heal is tried again, what cannot is final."""
HEARTBEAT = timedelta(seconds=6)
LONGEST = timedelta(days=30)
PAUSED = timedelta(seconds=60)


@workflow.defn(name="Sweep")
class Sweep:
    """Brings the stages of a sweep to done, many at once, until no more can be done."""

    def __init__(self) -> None:
        self._woken = False
        self._running: dict[int, asyncio.Task[str | None]] = {}
        self._names: dict[int, str] = {}
        self._state = "running"

    @workflow.signal
    def wake(self) -> None:
        """Look at the store now: a person paused, resumed or cancelled."""
        self._woken = True

    @workflow.query
    def progress(self) -> dict[str, str | list[str]]:
        """The state as last handed out, and the stages under way; how far they are is in the store."""
        return {"state": self._state, "running": [self._names[stage] for stage in sorted(self._running)]}

    @workflow.run
    async def run(self, given: SweepInput) -> str:
        """Returns how the sweep ended: "over" or "cancelled"."""
        failed: dict[int, str] = {}
        try:
            while True:
                self._woken = False
                answer = await self._ask(given, failed)
                failed = {}
                self._state = answer.state
                for ticket in answer.tickets:
                    self._names[ticket.stage_no] = ticket.name
                    self._running[ticket.stage_no] = asyncio.create_task(self._stage(given, ticket))
                if answer.state == "cancelled":
                    await self._end_all()
                if not self._running:
                    if answer.state in ("over", "cancelled"):
                        break
                    await self._wait_for_word()
                else:
                    await workflow.wait_condition(lambda: self._woken or self._finished())
                failed = self._collect()
                if workflow.info().is_continue_as_new_suggested():
                    failed |= await self._drain()
                    if failed:
                        await self._ask(given, failed, limit=0)
                    workflow.continue_as_new(given)
        except asyncio.CancelledError:  # by Temporal's own means
            await self._end_all()
            await asyncio.shield(
                workflow.execute_activity(
                    "cancel", given.sweep_id, start_to_close_timeout=LONGEST, retry_policy=_BOOKKEEPING
                )
            )
            raise
        await workflow.execute_activity(
            "conclude", given.sweep_id, start_to_close_timeout=LONGEST, retry_policy=_BOOKKEEPING
        )
        return answer.state

    async def _ask(self, given: SweepInput, failed: dict[int, str], limit: int | None = None) -> HandOut:
        limit = given.window - len(self._running) if limit is None else limit
        answer: HandOut = await workflow.execute_activity(
            "hand_out",
            Ask(given.sweep_id, sorted(self._running), failed, limit),
            result_type=HandOut,
            start_to_close_timeout=timedelta(minutes=5),
            retry_policy=_BOOKKEEPING,
        )
        return answer

    async def _stage(self, given: SweepInput, ticket: Ticket) -> str | None:
        """Run a stage; returns the reason if it failed. The first activity that finds it done ends it for all."""
        shares = [
            workflow.start_activity(
                "run_stage",
                StageTask(given.sweep_id, ticket.stage_no, ticket.shares),
                task_queue=f"{given.prefix}-{ticket.queue}",
                start_to_close_timeout=LONGEST,
                heartbeat_timeout=HEARTBEAT,
                retry_policy=_STAGE,
                cancellation_type=workflow.ActivityCancellationType.WAIT_CANCELLATION_COMPLETED,
                summary=ticket.name,
            )
            for _ in range(ticket.shares)
        ]
        try:
            await workflow.wait(shares, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for share in shares:
                if not share.done():
                    share.cancel()
            ended = await asyncio.gather(*shares, return_exceptions=True)
        if any(not isinstance(result, BaseException) for result in ended):
            return None
        reasons = [_reason(error) for error in ended if isinstance(error, BaseException)]
        return next((reason for reason in reasons if reason is not None), None)

    def _finished(self) -> bool:
        return any(task.done() for task in self._running.values())

    def _collect(self) -> dict[int, str]:
        """Take what has ended out of what is running; stage_no -> reason of what failed."""
        failed = {}
        for stage_no in [no for no, task in self._running.items() if task.done()]:
            task = self._running.pop(stage_no)
            if not task.cancelled() and (reason := task.result()) is not None:
                failed[stage_no] = reason
        return failed

    async def _wait_for_word(self) -> None:
        """Paused: until somebody wakes us, or it is time to look by ourselves."""
        try:
            await workflow.wait_condition(lambda: self._woken, timeout=PAUSED)
        except TimeoutError:
            return

    async def _drain(self) -> dict[int, str]:
        """Let what runs come to its end: a new history begins without open work."""
        if self._running:
            await workflow.wait(list(self._running.values()))
        return self._collect()

    async def _end_all(self) -> None:
        for task in self._running.values():
            task.cancel()
        await asyncio.gather(*self._running.values(), return_exceptions=True)
        self._collect()


def _reason(error: BaseException) -> str | None:
    """Why an activity failed; None where it was only told to stop."""
    if is_cancelled_exception(error):
        return None
    cause = error.cause if isinstance(error, ActivityError) and error.cause else error
    if isinstance(cause, ApplicationError) and cause.type == STOPPED:
        return None
    return str(getattr(cause, "message", "") or cause)
