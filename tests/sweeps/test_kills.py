"""Whatever runs a sweep is killed, frozen, cut off or left without room: nothing finished is lost, little is repeated.

The nightly form, with at least 50 kills, is tools/kill_storm.py.
"""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from random import Random

import pytest
from kill_tools import Life, frozen
from sweep_worlds import Undisturbed, World, wait_until

from workbench.processes import identity, send
from workbench.store import embedded

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

FAILED, REFUSED = 1, 2


@pytest.fixture(params=["local", "temporal"])
def engine(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.mark.parametrize(
    ("engine", "seed", "aims"),
    [("local", 1, {"chunk", "embed", "retrieve"}), ("temporal", 8, {"context", "rerank", "generate"})],
    ids=["local", "temporal"],
)
def test_killed_in_the_middle_of_its_work(
    new_world: Callable[..., World], undisturbed: Undisturbed, engine: str, seed: int, aims: set[str]
) -> None:
    draw = Random(seed)
    world = new_world(lease=6)
    moments = [draw.uniform(0, undisturbed.seconds)]
    life = Life(world, world.write_sweep("every"), engine, draw, moments, sorted(aims)).run()
    counted = life.verify(undisturbed)
    assert counted["kills"] >= 2
    assert counted["on_the_way"] > 0, "every kill came when nothing was on the way"


def test_frozen_past_its_lease_it_does_no_harm(
    new_world: Callable[..., World], sweep_home: Path, undisturbed: Undisturbed, engine: str
) -> None:
    world = new_world(sweep_home, lease=1)
    file = world.write_sweep("every")
    runners = [world.start_sweep(file, engine)]
    world.wait_for("SELECT count(*) >= 8 FROM memo_call", runners[0])
    with ExitStack() as stack:
        claims = freeze_at_work(world, stack)
        if engine == "local":
            runners.append(world.start_sweep(file, engine))
        world.wait_for(f"SELECT bool_and(outcome = 'lost') FROM claim WHERE claim_id IN ({claims})")
        written = f"SELECT count(*) FROM memo_call WHERE claim_id IN ({claims})"
        world.wait_for("SELECT count(*) = 2 FROM stage WHERE kind = 'context' AND state = 'done'")
        before, rows = world.count(written), world.finished_rows()
    for runner in runners:
        assert world.finish(runner)["state"] == "done"
    assert rows <= world.finished_rows(), "what was finished is not even rewritten"
    assert world.count(written) == before, "the late writes were refused"
    assert world.outputs() == undisturbed.outputs
    ((held,),) = world.rows(f"SELECT sum(items) FROM claim WHERE claim_id IN ({claims})")
    assert 0 < world.count("SELECT sum(repeated) FROM claim") <= held - before
    assert sum(world.logged().values()) - len(world.logged()) <= held - before


def test_woken_while_its_successor_works_it_writes_nothing(
    new_world: Callable[..., World], sweep_home: Path, engine: str
) -> None:
    """Its calls have long been answered when it wakes, and its successor still waits for the same answers."""
    world = new_world(sweep_home, lease=1, documents=3)
    file = world.write_sweep("slow", '"retrieve.k" = [8]', llm="fake:words?delay=0.6&log=calls.jsonl")
    runners = [world.start_sweep(file, engine)]
    world.wait_for("SELECT count(*) >= 4 FROM memo_call", runners[0])
    with ExitStack() as stack:
        claims = freeze_at_work(world, stack)
        written = f"SELECT count(*) FROM memo_call WHERE claim_id IN ({claims})"
        before = world.count(written)
        if engine == "local":
            runners.append(world.start_sweep(file, engine))
        world.wait_for(f"SELECT bool_and(outcome = 'lost') FROM claim WHERE claim_id IN ({claims})")
    for runner in runners:
        assert world.finish(runner)["state"] == "done"
    assert world.count(written) == before, "the late writes were refused"
    twice = sum(world.logged().values()) - len(world.logged())
    assert twice > 0, "it had answers that it could not keep"
    assert world.count("SELECT sum(repeated) FROM claim") >= twice


def freeze_at_work(world: World, stack: ExitStack) -> str:
    """Freeze a process while it has calls on the way, until the stack ends; the ids of its open claims."""
    query = "SELECT min(pid), string_agg(claim_id::text, ',') FROM claim JOIN worker USING (worker_id)"
    query += " WHERE memo = 'memo_call' AND closed_at IS NULL"
    while True:
        ((pid, _),) = world.rows(query)
        if pid is not None:
            attempt = stack.enter_context(ExitStack())
            attempt.enter_context(frozen([pid]))
            ((_, claims),) = world.rows(f"{query} AND pid = {pid}")
            if claims and world.unfinished([identity(pid) or ""]) > 0:
                return str(claims)
            attempt.close()


def test_a_database_that_is_stopped_under_it_comes_back(
    new_world: Callable[..., World], undisturbed: Undisturbed, engine: str
) -> None:
    world = new_world(lease=6)
    file = world.write_sweep("every")
    runner = world.start_sweep(file, engine)
    world.wait_for("SELECT count(*) >= 10 FROM memo_call", runner)
    rows = world.finished_rows()
    send(world.postmaster() or 0, signal.SIGINT)  # a fast shutdown: connections are cut, open transactions undone
    assert world.finish(runner)["state"] == "done"
    with world.opened():
        assert rows <= world.finished_rows()
        assert world.outputs() == undisturbed.outputs
    world.wait_until_gone()


def test_a_database_of_another_that_is_lost_is_a_clear_error(
    new_world: Callable[..., World], tmp_path: Path, undisturbed: Undisturbed
) -> None:
    """A server that is not ours to start again: the run ends, says so, and goes on once the server is back."""
    with embedded.start(tmp_path / "server") as server:
        world = new_world(environment={"WORKBENCH_DATABASE_URL": server.url})
        watched = World(tmp_path / "watched", home=tmp_path / "server")
        file = world.write_sweep("every")
        runner = world.start_sweep(file, "local")
        watched.wait_for("SELECT count(*) >= 10 FROM memo_call", runner)
        rows = watched.finished_rows()
        send(watched.postmaster() or 0, signal.SIGINT)
        error = world.finish(runner, REFUSED)["error"]
        assert error["kind"] == "DatabaseError"
        assert "connection" in error["what"]
        assert error["hint"]
        server.ensure()
        assert world.sweep(file, "local")["state"] == "done"
        assert rows <= watched.finished_rows()
        assert watched.outputs() == undisturbed.outputs
        watched.close()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own with little room."""
    place = tmp_path / "disk"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=200m,mode=755", "tmpfs", str(place)]
    if os.geteuid() or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("only root can mount a small file system, where mounting is allowed")
    yield place
    wait_until(lambda: subprocess.run(["umount", place], capture_output=True, check=False).returncode == 0)


def test_a_full_disk_is_a_clear_error_and_heals(
    small_disk: Path, new_world: Callable[..., World], undisturbed: Undisturbed, engine: str
) -> None:
    world = new_world(small_disk / "home")
    file = world.write_sweep("every")
    with world.opened():
        runner = world.start_sweep(file, engine)
        world.wait_for("SELECT count(*) >= 10 FROM memo_call", runner)
        rows = world.finished_rows()
        fill(small_disk / "ballast")
        if engine == "local":
            body = world.finish(runner, FAILED, REFUSED)
            reasons = [body["error"]["what"]] if "error" in body else list(body["errors"].values())
            assert any("No space left on device" in reason for reason in reasons), reasons
        else:  # its workers try again until there is room
            world.wait_for("SELECT bool_or(error LIKE '%No space left on device%') FROM attempt", runner)
        (small_disk / "ballast").unlink()
        if engine == "temporal":
            assert world.finish(runner)["state"] == "done"
        assert world.sweep(file, engine)["state"] == "done"
        assert rows <= world.finished_rows()
        assert world.outputs() == undisturbed.outputs
    world.wait_until_gone()


def fill(file: Path) -> None:
    """Write until not one byte more fits on the disk."""
    with file.open("wb", buffering=0) as out:
        for size in (2**20, 1):
            try:
                while True:
                    out.write(b"\0" * size)
            except OSError:
                continue
