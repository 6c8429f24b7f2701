"""One contract for both runners of a sweep: real PostgreSQL, a real Temporal server, each part in its own process."""

from __future__ import annotations

import signal
import subprocess
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from scripted_llm import Rule, ScriptedServer
from sweep_worlds import INTERRUPTED, Undisturbed, World, metrics_of

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

FAILED = 1
ONE_TRIAL = '"retrieve.k" = [8]'
FAULTY = """
"chunk" = [
    { kind = "python", target = "chunkers:faulty" },
    { kind = "recursive", tokens = 30, tokenizer = "words" },
]
"""


@pytest.fixture(params=["local", "temporal"])
def engine(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def world(new_world: Callable[..., World], sweep_home: Path) -> World:
    return new_world(sweep_home)


class Scripted(ScriptedServer):
    """A language model that answers nothing until it is told to."""

    def __init__(self) -> None:
        self.answers = threading.Event()
        super().__init__(self._slowly, window=100_000)

    def _slowly(self, body: Mapping[str, Any]) -> Rule | None:
        return None if self.answers.is_set() else Rule(first_ms=3_600_000)

    def asked(self) -> Counter[str]:
        """How often each request was answered well, as the server counted it."""
        well = {line["number"] for line in self.log if line.get("outcome") == "ok"}
        return Counter(line["digest"] for line in self.log if "digest" in line and line["number"] in well)


@pytest.fixture
def scripted() -> Iterator[Scripted]:
    server = Scripted()
    with server:
        yield server


@pytest.fixture
def served(new_world: Callable[..., World], sweep_home: Path, scripted: Scripted) -> World:
    """A world whose language model is the scripted server."""
    assert scripted.key
    return new_world(sweep_home, environment={"WORKBENCH_LLM_URL": scripted.url, "WORKBENCH_LLM_KEY": scripted.key})


def open_work(world: World) -> int:
    return world.count(
        "SELECT (SELECT count(*) FROM claim WHERE closed_at IS NULL)"
        " + (SELECT count(*) FROM stage WHERE state = 'running')"
    )


def test_the_same_to_the_last_digit_and_again_nothing(world: World, engine: str, undisturbed: Undisturbed) -> None:
    file = world.write_sweep("every")
    body = world.sweep(file, engine)
    assert body["state"] == "done"
    assert body["trials"] == body["done"] == 4
    assert body["items"] == {"computed": undisturbed.body["items"]["computed"], "repeated": 0}
    assert body["stages"]["computed"] == body["stages"]["unique"]
    assert metrics_of(body) == metrics_of(undisturbed.body)
    assert world.outputs() == undisturbed.outputs
    assert world.logged() == undisturbed.logged
    assert set(undisturbed.logged.values()) == {1}
    assert open_work(world) == 0

    rows = world.finished_rows()
    again = world.sweep(file, engine)
    assert again["sweep"] == body["sweep"]
    assert (again["stages"]["computed"], again["stages"]["reused"]) == (0, body["stages"]["unique"])
    assert again["items"] == {"computed": 0, "repeated": 0}
    assert metrics_of(again) == metrics_of(body)
    assert world.finished_rows() == rows
    assert world.logged() == undisturbed.logged


def test_a_failing_stage_fails_the_trials_below_it_and_heals(world: World, engine: str) -> None:
    (world.folder / "raise").touch()
    file = world.write_sweep("faulty", FAULTY)
    body = world.sweep(file, engine, FAILED)
    assert (body["state"], body["done"], body["failed"]) == ("failed", 1, 1)
    (reason,) = body["errors"].values()
    assert "RuntimeError: no such luck" in reason
    assert [result["trial"]["label"] for result in body["results"]] == ["recursive"]
    rows = world.finished_rows()

    (world.folder / "raise").unlink()
    healed = world.sweep(file, engine)
    assert (healed["state"], healed["done"], healed["failed"], healed["errors"]) == ("done", 2, 0, {})
    assert healed["stages"]["computed"] == body["stages"]["failed"]
    assert rows <= world.finished_rows()
    assert set(world.logged().values()) == {1}


def test_a_stage_that_kills_its_process_takes_down_only_the_trials_below_it(world: World, engine: str) -> None:
    (world.folder / "die").touch()
    file = world.write_sweep("faulty", FAULTY)
    # The local runner is itself the process that dies; the other's workers are started again by it.
    deaths = 3 if engine == "local" else 0
    for _ in range(deaths):
        world.sweep(file, engine, -signal.SIGKILL)
    body = world.sweep(file, engine, FAILED)
    assert (body["state"], body["done"], body["failed"]) == ("failed", 1, 1)
    (reason,) = body["errors"].values()
    assert "its process died 3 times in a row" in reason
    outcomes = world.rows("SELECT outcome, count(*) FROM attempt WHERE kind = 'chunk' AND label = 'python' GROUP BY 1")
    assert dict(outcomes) == {"crashed": 3, "failed": 1}

    (world.folder / "die").unlink()
    healed = world.sweep(file, engine)
    assert (healed["state"], healed["done"]) == ("done", 2)
    assert set(world.logged().values()) == {1}


def test_pause_and_cancel_from_another_process_while_calls_are_on_the_way(
    served: World, engine: str, scripted: Scripted
) -> None:
    runner = served.start_sweep(served.write_sweep("paused", ONE_TRIAL, llm="scripted"), engine)
    for what, state in (("pause", "paused"), ("cancel", "cancelled")):
        scripted.wait(lambda counts: counts["received"] > counts["disconnected"], 120)
        ((sweep_id,),) = served.rows("SELECT sweep_id FROM sweep")
        assert served.run(what, str(sweep_id))["wanted"] == what
        said = served.finish(runner, INTERRUPTED)
        assert said["error"]["kind"] == "Stopped"
        assert f"workbench resume {sweep_id}" in said["error"]["hint"]
        scripted.wait(lambda counts: counts["received"] == counts["disconnected"])
        assert served.run("status", str(sweep_id))["state"] == state
        assert open_work(served) == 0
        if what == "cancel":
            scripted.answers.set()
        runner = served.start("resume", str(sweep_id))
    body = served.finish(runner)
    assert (body["state"], body["engine"], body["done"]) == ("done", engine, 1)
    assert set(scripted.asked().values()) == {1}
    assert served.count("SELECT sum(repeated) FROM claim") <= served.given_back()


def test_ctrl_c_keeps_everything_and_says_how_to_go_on(served: World, engine: str, scripted: Scripted) -> None:
    file = served.write_sweep("interrupted", ONE_TRIAL, llm="scripted")
    runner = served.start_sweep(file, engine)
    scripted.wait(lambda counts: counts["received"] > 0, 120)
    rows = served.finished_rows()
    runner.send_signal(signal.SIGINT)
    said = served.finish(runner, INTERRUPTED)
    assert "finished work is kept" in said["error"]["hint"]
    assert "run the same command again" in said["error"]["hint"]
    assert open_work(served) == 0
    ((sweep_id, state),) = served.rows("SELECT sweep_id, state FROM sweep")
    assert state == "interrupted"
    assert served.count("SELECT count(*) FROM worker WHERE ended_at IS NULL") == 0

    scripted.answers.set()
    body = served.sweep(file, engine)
    assert (body["sweep"], body["state"]) == (sweep_id, "done")
    assert rows <= served.finished_rows()
    assert set(scripted.asked().values()) == {1}


def test_two_sweeps_that_share_stages_compute_nothing_twice(served: World, engine: str, scripted: Scripted) -> None:
    scripted.answers.set()
    files = [
        served.write_sweep("kinds", '"retrieve.kind" = ["dense", "hybrid"]', llm="scripted"),
        served.write_sweep("depths", '"retrieve.k" = [6, 8]', llm="scripted"),
    ]
    bodies = [served.finish(process) for process in [served.start_sweep(file, engine) for file in files]]
    assert [body["state"] for body in bodies] == ["done", "done"]
    assert bodies[0]["sweep"] != bodies[1]["sweep"]
    counted_once(served, scripted)
    shared = [{stage["fingerprint"] for result in body["results"] for stage in result["stages"]} for body in bodies]
    assert len(shared[0] & shared[1]) > 5
    assert metrics_of(bodies[0])["dense"] == metrics_of(bodies[1])["8"]


def test_two_runners_of_one_sweep_share_its_work(served: World, engine: str, scripted: Scripted) -> None:
    scripted.answers.set()
    file = served.write_sweep("attached", '"retrieve.kind" = ["dense", "hybrid"]', llm="scripted")
    runners: list[subprocess.Popen[str]] = [served.start_sweep(file, engine) for _ in range(2)]
    bodies = [served.finish(runner) for runner in runners]
    assert [body["state"] for body in bodies] == ["done", "done"]
    assert bodies[0]["sweep"] == bodies[1]["sweep"]
    assert metrics_of(bodies[0]) == metrics_of(bodies[1])
    counted_once(served, scripted)


def counted_once(world: World, scripted: Scripted) -> None:
    """By the model servers' own logs and by SQL."""
    assert set(scripted.asked().values()) == {1}
    assert len(scripted.asked()) == scripted.counts["received"] == world.count("SELECT count(*) FROM memo_call")
    assert set(world.logged().values()) == {1}
    assert world.count("SELECT sum(repeated) FROM claim") == 0
    # A stage is computed by one attempt, or by several that share its items: one of them writes its output.
    assert (
        world.count("SELECT max(n) FROM (SELECT count(*) n FROM attempt WHERE outcome = 'done' GROUP BY fingerprint)")
        == 1
    )
