"""Workflows that were begun by an earlier workflow class go on under today's: recorded histories are replayed.

They were made by tools/record_histories.py on real servers. A file that no longer replays means that a sweep that is
under way while the workbench is updated would stand still: keep the old path behind `workflow.patched`.
"""

from __future__ import annotations

import asyncio
import base64
import json
import re
from collections import Counter
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("temporalio")

from temporalio import workflow
from temporalio.client import WorkflowHistory
from temporalio.worker import Replayer, UnsandboxedWorkflowRunner

from workbench.sweeps.temporal.workflows import HandOut, Sweep, SweepInput

HISTORIES = Path(__file__).parent / "histories"
FILES = sorted(file.stem for file in HISTORIES.glob("*.json"))


@cache
def text_of(name: str) -> str:
    return (HISTORIES / f"{name}.json").read_text(encoding="utf-8")


def events(name: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(text_of(name))["events"]
    return found


def kinds(name: str) -> Counter[str]:
    return Counter(event["eventType"].removeprefix("EVENT_TYPE_") for event in events(name))


def payloads(name: str) -> list[str]:
    return [base64.b64decode(data).decode() for data in re.findall(r'"data":"([^"]*)"', text_of(name))]


def replay(name: str, of: type) -> None:
    """Raises what the replay stumbles over."""

    async def run() -> None:
        replayer = Replayer(workflows=[of], workflow_runner=UnsandboxedWorkflowRunner())
        await replayer.replay_workflow(WorkflowHistory.from_json(name, text_of(name)))

    asyncio.run(run())


@pytest.mark.parametrize("name", FILES)
def test_what_was_recorded_replays(name: str) -> None:
    replay(name, Sweep)


# --- what a replay would notice -------------------------------------------------------------------


@workflow.defn(name="Sweep")
class GreetsFirst(Sweep):
    """Another activity stands before all others."""

    @workflow.run
    async def run(self, given: SweepInput) -> str:
        await workflow.execute_activity("conclude", given.sweep_id, start_to_close_timeout=timedelta(seconds=1))
        return await super().run(given)


@workflow.defn(name="Sweep")
class AsksOnceMore(Sweep):
    """Another activity stands at the end, after all others but the last."""

    @workflow.run
    async def run(self, given: SweepInput) -> str:
        return await super().run(given)

    async def _ask(self, given: SweepInput, failed: dict[int, str], limit: int | None = None) -> HandOut:
        answer = await super()._ask(given, failed, limit)
        return await super()._ask(given, {}, limit) if answer.state == "over" else answer


@pytest.mark.parametrize("name", FILES)
def test_another_beginning_is_noticed_in_every_history(name: str) -> None:
    with pytest.raises(workflow.NondeterminismError):
        replay(name, GreetsFirst)


@pytest.mark.parametrize("name", ["done-1", "failing-1", "paused-1"])
def test_another_end_is_noticed(name: str) -> None:
    with pytest.raises(workflow.NondeterminismError):
        replay(name, AsksOnceMore)


# --- what the files hold --------------------------------------------------------------------------


def shares(name: str) -> Counter[str]:
    """How many activities each stage was given to, by what they were told."""
    told = [
        json.dumps(given["activityTaskScheduledEventAttributes"]["input"])
        for given in events(name)
        if given.get("activityTaskScheduledEventAttributes", {}).get("activityType") == {"name": "run_stage"}
    ]
    return Counter(told)


def test_every_path_of_the_workflow_was_recorded() -> None:
    assert max(shares("done-1").values()) > 1, "a stage whose items were shared"
    assert kinds("done-1")["ACTIVITY_TASK_CANCEL_REQUESTED"], "who came too late was told to stop"
    assert kinds("done-1")["WORKFLOW_EXECUTION_COMPLETED"] == 1
    assert '"CallError"' in text_of("failing-1")
    assert any('"failed":{"' in told for told in payloads("failing-1")), "the failure was written down"
    assert kinds("paused-1")["TIMER_STARTED"], "it waited for word"
    assert kinds("paused-1")["WORKFLOW_EXECUTION_SIGNALED"] >= 3, "it was begun, paused and resumed"
    assert '"cancelled"' in payloads("cancelled-1")
    assert kinds("cancelled-by-temporal-1")["WORKFLOW_EXECUTION_CANCELED"] == 1
    assert kinds("continued-1")["WORKFLOW_EXECUTION_CONTINUED_AS_NEW"] == 1
    assert events("continued-1b")[0]["workflowExecutionStartedEventAttributes"]["continuedExecutionRunId"]


@pytest.mark.parametrize("name", FILES)
def test_a_history_names_no_machine_and_no_person(name: str) -> None:
    everything = "\n".join([text_of(name), *payloads(name)])
    assert not re.search(r"@|File \\?\"|/(home|root|tmp|Users|var|usr|opt)\b|identity|stackTrace|\.py\b", everything)


def test_all_histories_together_are_small() -> None:
    assert sum(len(text_of(name)) for name in FILES) < 300_000
