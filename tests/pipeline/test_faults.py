"""Killing and freezing real processes in the middle of real work; what they did is counted by SQL and by a log."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from workbench.datasets import Dataset
from workbench.lab import Lab
from workbench.settings import Settings
from workbench.specs import Dense, Embed, Recursive, ScoreSpec, TrialSpec
from workbench.store import tables

pytestmark = pytest.mark.slow

RUN = """
import json, sys
from workbench.lab import Lab
from workbench.parsing import parse
from workbench.specs import TrialSpec
from workbench.store import tables
from workbench.pipeline import work
work.EMBED_BATCH = 4
trial = parse(TrialSpec, json.loads(sys.argv[1]))
with Lab(progress=False) as lab:
    with lab.runtime.database.transaction() as connection:
        data = tables.load_dataset(connection, int(sys.argv[2]))
    print(json.dumps(lab.run(trial, data).as_json()))
"""
CLAIM = 16
"""Items a process claims at a time: four batches of four."""


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "embedded.log"


@pytest.fixture
def slow_trial(log: Path) -> TrialSpec:
    """Embeds with a delay a call and a log line a text, written by the model itself."""
    return TrialSpec(
        chunk=Recursive(tokens=15, tokenizer="words"),
        embed=Embed(model=f"fake:hash-16?delay=0.3&log={log}"),
        retrieve=Dense(k=5),
        score=ScoreSpec(k=(5,)),
    )


@pytest.fixture
def start(
    lab: Lab, tiny: Dataset, slow_trial: TrialSpec, settings: Settings
) -> Iterator[Callable[[], subprocess.Popen[str]]]:
    """Starts a process that runs the trial; what still lives at the end is killed by its id."""
    with lab.runtime.database.transaction() as connection:
        dataset_id = tables.save_dataset(connection, tiny)
    environment = os.environ | {
        "WORKBENCH_HOME": str(settings.home),
        "WORKBENCH_SCHEMA": settings.db_schema,
        "WORKBENCH_LEASE_SECONDS": "2",
    }
    started: list[subprocess.Popen[str]] = []

    def one() -> subprocess.Popen[str]:
        arguments = [json.dumps(slow_trial.model_dump(mode="json")), str(dataset_id)]
        command = [sys.executable, "-c", RUN, *arguments]
        started.append(subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True))
        return started[-1]

    yield one
    for process in started:
        if process.poll() is None:
            process.kill()
        process.communicate()


def count(lab: Lab, query: str) -> int:
    with lab.runtime.database.transaction() as connection:
        row = connection.execute(query).fetchone()
    assert row is not None
    return int(row[0])


def wait_for(lab: Lab, condition: str, seconds: float = 60) -> None:
    until = time.monotonic() + seconds
    while not count(lab, f"SELECT ({condition})::int"):
        assert time.monotonic() < until, condition
        time.sleep(0.05)


def texts(log: Path) -> Counter[tuple[str, str]]:
    rows = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    return Counter((role, text) for _, role, text in rows)


def snapshot(lab: Lab) -> dict[bytes, tuple[object, ...]]:
    """Every stored embedding as text, with the row's physical place: unchanged means not even rewritten."""
    with lab.runtime.database.transaction() as connection:
        rows = connection.execute("SELECT key, ctid::text, xmin::text, claim_id, vector::text FROM memo_embedding")
        return {bytes(row[0]): row[1:] for row in rows}


def finish(process: subprocess.Popen[str]) -> dict[str, object]:
    out, _ = process.communicate(timeout=120)
    assert process.returncode == 0
    result: dict[str, object] = json.loads(out)
    return result


def test_killed_while_embedding(
    lab: Lab, start: Callable[[], subprocess.Popen[str]], log: Path, slow_trial: TrialSpec
) -> None:
    first = start()
    wait_for(lab, "SELECT count(*) >= 20 FROM memo_embedding")
    first.send_signal(signal.SIGKILL)
    first.wait()
    before = snapshot(lab)
    open_items = count(lab, "SELECT coalesce(sum(items), 0) FROM claim WHERE closed_at IS NULL")
    stored_of_open = count(
        lab,
        "SELECT count(*) FROM claim c, unnest(c.keys) k JOIN memo_embedding m ON m.key = k WHERE c.closed_at IS NULL",
    )
    unfinished = open_items - stored_of_open
    assert 0 < unfinished <= CLAIM

    result = finish(start())
    after = snapshot(lab)
    assert len(after) == 72 + 6
    assert {key: after[key] for key in before} == before, "what was finished is not even rewritten"
    items = result["items"]
    assert isinstance(items, dict)
    assert items["repeated"] == unfinished
    assert count(lab, "SELECT sum(repeated) FROM claim") == unfinished
    # Outside our own process: the model's log. Only texts of the open claim may have been embedded twice.
    again = [text for text, n in texts(log).items() if n > 1]
    assert len(again) <= unfinished
    assert set(texts(log).values()) <= {1, 2}


def test_two_processes_at_once_compute_each_item_once(
    lab: Lab, start: Callable[[], subprocess.Popen[str]], log: Path
) -> None:
    results = [finish(process) for process in [start(), start()]]
    assert set(texts(log).values()) == {1}
    assert len(texts(log)) == 72 + 6
    assert count(lab, "SELECT sum(repeated) FROM claim") == 0
    assert results[0]["metrics"] == results[1]["metrics"]


def test_frozen_process_cannot_overwrite_its_successor(
    lab: Lab, start: Callable[[], subprocess.Popen[str]], log: Path
) -> None:
    frozen = start()
    wait_for(lab, "SELECT count(*) >= 8 FROM memo_embedding")
    frozen.send_signal(signal.SIGSTOP)
    while psutil.Process(frozen.pid).status() != psutil.STATUS_STOPPED:
        time.sleep(0.01)
    held = count(lab, "SELECT claim_id FROM claim WHERE closed_at IS NULL")
    successor = finish(start())
    assert count(lab, f"SELECT (outcome = 'lost')::int FROM claim WHERE claim_id = {held}") == 1
    before = snapshot(lab)
    stages = "SELECT coalesce(sum(hashtext(s::text)::int8), 0) FROM stage s"
    outputs = count(lab, stages)

    frozen.send_signal(signal.SIGCONT)
    woken = finish(frozen)
    assert woken["metrics"] == successor["metrics"]
    assert snapshot(lab) == before
    assert count(lab, stages) == outputs
    lost = count(lab, "SELECT count(*) FROM claim WHERE outcome = 'lost'")
    assert lost == 1
    assert count(lab, "SELECT max(cardinality(keys)) FROM claim WHERE outcome = 'lost'") <= CLAIM


def test_interrupted_work_is_given_back_at_once(
    lab: Lab, start: Callable[[], subprocess.Popen[str]], log: Path
) -> None:
    process = start()
    wait_for(lab, "SELECT count(*) >= 8 FROM memo_embedding")
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode != 0
    assert count(lab, "SELECT count(*) FROM claim WHERE closed_at IS NULL") == 0
    assert count(lab, "SELECT count(*) FROM stage WHERE state = 'running'") == 0
    started = time.monotonic()
    result = finish(start())
    assert time.monotonic() - started < 60
    assert len(snapshot(lab)) == 72 + 6
    items = result["items"]
    assert isinstance(items, dict)
    assert items["repeated"] <= CLAIM
