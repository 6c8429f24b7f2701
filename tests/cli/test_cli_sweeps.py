"""Looking at sweeps, stopping them and going on, at the command line; and what has nothing to stop or to go on with."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from command_line import Cli, Outcome

from workbench.lab import Lab

CHUNKER = '''"""A chunker of a person's own that is interrupted, or fails, while a file says so."""
from pathlib import Path

def paragraphs(text):
    if Path("interrupt").exists():
        raise KeyboardInterrupt
    if Path("fail").exists():
        raise RuntimeError("no such luck")
    return text.split("\\n\\n")
'''
OWN = """
question = "Does a chunker of my own help?"
metric = "recall@5"
base = "bm25.toml"

[axes]
chunk = [
    { kind = "recursive", tokens = 15, tokenizer = "words" },
    { kind = "python", target = "own_chunker:paragraphs" },
]
"""
STATUS_KEYS = {
    "sweep",
    "name",
    "dataset",
    "engine",
    "state",
    "wanted",
    "trials",
    "done",
    "failed",
    "errors",
    "stages",
    "items",
    "seconds",
    "started_at",
    "working",
}


@pytest.fixture
def own(place: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A sweep whose second trial has a chunker of its own."""
    (place / "own_chunker.py").write_text(CHUNKER)
    (place / "own.toml").write_text(OWN)
    monkeypatch.syspath_prepend(str(place))
    monkeypatch.delitem(sys.modules, "own_chunker", raising=False)
    return place


def mistaken(outcome: Outcome, *said: str) -> None:
    """One message, with its parts in order, and nothing on stdout."""
    assert (outcome.code, outcome.out) == (2, ""), outcome
    assert outcome.err.startswith("error: ")
    assert outcome.err.count("\n") == 1, outcome.err
    assert re.search(".*".join(map(re.escape, said)), outcome.err), f"{said} not in {outcome.err}"


# --- looking -------------------------------------------------------------------------------------


def test_an_empty_database_says_how_to_begin(run_cli: Cli) -> None:
    assert run_cli("status", "--json").body == {"sweeps": []}
    shown = run_cli("status")
    assert (shown.code, shown.err) == (0, "")
    assert shown.out == "No sweep was run in this database yet: workbench sweep SWEEP.toml --dataset D\n"


def test_status_of_all_and_of_one(run_cli: Cli, own: Path, wide: Callable[[int], None]) -> None:
    first = run_cli("sweep", "sweep.toml", "-d", "data", "--json").body
    second = run_cli("sweep", "own.toml", "-d", "data", "--json").body
    listed = run_cli("status", "--json").body["sweeps"]
    assert [(s["sweep"], s["name"], s["state"]) for s in listed] == [
        (second["sweep"], "own", "done"),
        (first["sweep"], "sweep", "done"),
    ], "the latest first"

    body = run_cli("status", str(first["sweep"]), "--json").body
    assert set(body) >= STATUS_KEYS
    faults = body.pop("faults")
    assert faults.pop("attempts") == 6
    assert set(faults.values()) == {0}, "nothing went wrong, no model was asked"
    assert body == {name: first[name] for name in body}
    assert (body["engine"], body["wanted"], body["errors"], body["working"]) == ("local", None, {}, [])
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", body["started_at"])
    assert all(body[name] == listed[1][name] for name in listed[1] if name != "sweep")

    wide(100)
    table = run_cli("status").out.splitlines()
    assert len(table) == 3
    assert re.match(rf" *{second['sweep']} +own +data +done +2 +0 +2 ", table[1])
    shown = run_cli("status", str(first["sweep"])).out
    assert shown.startswith(f"sweep {first['sweep']}, sweep on data: done (local)\n")
    assert "2 of 2 trials done, 0 failed; 6 of 6 stages done, 6 computed by the latest run, 0 failed" in shown
    assert "No fault in 6 attempts: nothing was repeated, lost or waited for." in shown
    assert "resume" not in shown


def test_a_failed_sweep_says_what_failed_and_heals(run_cli: Cli, own: Path) -> None:
    (own / "fail").touch()
    failed = run_cli("sweep", "own.toml", "-d", "data", "--json")
    assert (failed.code, failed.body["state"], failed.body["failed"]) == (1, "failed", 1)
    sweep = str(failed.body["sweep"])
    shown = run_cli("status", sweep).out
    assert "1 of 2 trials done, 1 failed; 3 of 6 stages done" in shown
    assert re.search(r"^failed: python: .*RuntimeError: no such luck", shown, re.MULTILINE)
    assert f"Go on with: workbench resume {sweep}\n" in shown
    assert re.search(r"^chunk python +1 +1 +0 ", shown, re.MULTILINE), "the fault ledger"
    mistaken(run_cli("pause", sweep), "status", f"sweep {sweep} is failed: nothing runs")

    still = run_cli("resume", sweep)
    assert (still.code, still.err) == (1, ""), "some trials failed, again"
    (own / "fail").unlink()
    healed = run_cli("resume", sweep, "--json")
    assert (healed.code, healed.body["state"], healed.body["done"]) == (0, "done", 2)
    assert (healed.body["stages"]["computed"], healed.body["stages"]["reused"]) == (3, 3)


# --- stopping and going on -----------------------------------------------------------------------


def interrupted(run_cli: Cli, own: Path) -> str:
    """The id of a sweep that Ctrl-C ended in the middle."""
    (own / "interrupt").touch()
    outcome = run_cli("sweep", "own.toml", "-d", "data")
    assert outcome.code == 130
    assert "Traceback" not in outcome.err
    (own / "interrupt").unlink()
    (listed,) = run_cli("status", "--json").body["sweeps"]
    assert (listed["state"], listed["done"]) == ("interrupted", 1)
    return str(listed["sweep"])


@pytest.mark.parametrize("as_json", [False, True])
def test_an_interrupted_sweep_goes_on_from_the_store_alone(run_cli: Cli, own: Path, as_json: bool) -> None:
    sweep = interrupted(run_cli, own)
    shown = run_cli("status", sweep).out
    assert f"Go on with: workbench resume {sweep}\n" in shown
    assert re.search(r"^chunk python +1 +0 +0 +1 ", shown, re.MULTILINE), "stopped once"
    for name in ("own.toml", "bm25.toml"):
        (own / name).unlink()
    outcome = run_cli("resume", sweep, *(["--json"] if as_json else []))
    assert (outcome.code, outcome.err) == (0, "")
    if as_json:
        assert set(outcome.body) >= {*STATUS_KEYS, "results"}
        assert (outcome.body["state"], outcome.body["done"], len(outcome.body["results"])) == ("done", 2, 2)
        assert (outcome.body["stages"]["computed"], outcome.body["stages"]["reused"]) == (3, 3)
    else:
        assert re.search(rf"^sweep {sweep}: 3 stages computed, 3 reused", outcome.out, re.MULTILINE)
        assert re.search(r"^python +\d+ +[\d.]+ ", outcome.out, re.MULTILINE)
    again = run_cli("resume", sweep, "--json").body
    assert (again["stages"]["computed"], again["items"]["computed"]) == (0, 0)


def test_what_was_interrupted_may_be_cancelled_and_still_gone_on_with(run_cli: Cli, own: Path) -> None:
    sweep = interrupted(run_cli, own)
    paused = run_cli("pause", sweep, "--json").body
    assert set(paused) >= STATUS_KEYS
    assert (paused["state"], paused["wanted"]) == ("paused", "pause")
    cancelled = run_cli("cancel", sweep)
    assert (cancelled.code, cancelled.err) == (0, "")
    assert cancelled.out.startswith(f"sweep {sweep}, own on data: cancelled (local)\n")
    for command in ("cancel", "pause"):
        mistaken(run_cli(command, sweep), f"sweep {sweep} is cancelled: nothing runs")
    body = run_cli("resume", sweep, "--json").body
    assert (body["state"], body["wanted"], body["done"]) == ("done", None, 2)


@pytest.mark.parametrize("command", ["pause", "cancel"])
def test_what_does_not_run_cannot_be_stopped(run_cli: Cli, command: str) -> None:
    sweep = str(run_cli("sweep", "sweep.toml", "-d", "data", "--json").body["sweep"])
    mistaken(run_cli(command, sweep), f"sweep {sweep} is done: nothing runs")
    told = run_cli(command, sweep, "--json")
    assert (told.code, set(told.body)) == (2, {"error"})
    assert run_cli("status", sweep, "--json").body["state"] == "done"


@pytest.mark.parametrize("command", ["status", "pause", "cancel", "resume"])
def test_an_unknown_sweep_is_named(run_cli: Cli, command: str) -> None:
    mistaken(run_cli(command, "99"), "no sweep 99 in this database", "`workbench status` lists them")
    mistaken(run_cli(command, "first"), "SWEEP", "valid integer", f"{command} --help")


# --- planning ------------------------------------------------------------------------------------

PLAN_KEYS = {
    "sweep",
    "dataset",
    "question",
    "metric",
    "baseline",
    "trials",
    "labels",
    "stages",
    "expected",
    "by_kind",
    "warnings",
}


def test_a_plan_tells_what_is_done_and_runs_nothing(run_cli: Cli) -> None:
    planned = run_cli("plan", "sweep.toml", "-d", "data", "--json")
    assert (planned.code, planned.err) == (0, "")
    body = planned.body
    assert set(body) >= PLAN_KEYS
    assert (body["sweep"], body["dataset"], body["metric"], body["baseline"]) == ("sweep", "data", "recall@5", "15")
    assert (body["trials"], body["labels"]) == (2, ["15", "40"])
    assert body["stages"] == {"unique": 6, "loop": 6, "done": 0, "todo": 6}
    assert run_cli("sweep", "sweep.toml", "-d", "data", "--dry-run", "--json").out == planned.out
    assert run_cli("status", "--json").body == {"sweeps": []}

    assert run_cli("run", "bm25.toml", "-d", "data").code == 0
    assert run_cli("plan", "sweep.toml", "-d", "data", "--json").body["stages"]["done"] == 3
    shown = run_cli("plan", "sweep.toml", "-d", "data")
    assert shown.out.startswith("Do chunks of fifteen words help?\n")
    assert "2 trials share 6 stages; a loop over the trials would run 6. 3 are done." in shown.out
    assert run_cli("sweep", "sweep.toml", "-d", "data", "--dry-run").out == shown.out
    assert run_cli("status", "--json").body == {"sweeps": []}


@pytest.mark.parametrize("command", [["plan"], ["sweep", "--dry-run"]], ids=" ".join)
def test_a_plan_of_what_does_not_fit_is_refused(run_cli: Cli, own: Path, command: list[str]) -> None:
    mistaken(run_cli(*command, "sweep.toml"), "--dataset", "no dataset was given")
    mistaken(run_cli(*command, "swep.toml", "-d", "data"), "swep.toml", "no such file", "did you mean 'sweep.toml'")
    (own / "own.toml").write_text(OWN.replace("paragraphs", "sentences"))
    mistaken(run_cli(*command, "own.toml", "-d", "data"), "sentences")


def test_an_axis_that_changes_nothing_is_warned_of(run_cli: Cli, place: Path) -> None:
    text = (place / "sweep.toml").read_text() + '"index.kind" = ["exact", "hnsw"]\n'
    (place / "inert.toml").write_text(text)
    assert any(
        "inert axis 'index.kind'" in said
        for said in run_cli("plan", "inert.toml", "-d", "data", "--json").body["warnings"]
    )
    assert "warning: inert axis 'index.kind'" in run_cli("plan", "inert.toml", "-d", "data").out


# --- workers -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--queues", "gpus"], ["--queues", "no queue 'gpus'", "did you mean 'gpu'?"]),
        (["--queues", "cpu,disk"], ["--queues", "no queue 'disk'"]),
        (["--queues", " , "], ["--queues", "no queue", "cpu, llm, gpu"]),
        (["--concurrency", "0"], ["--concurrency", "worker --help"]),
    ],
    ids=lambda v: " ".join(v),
)
def test_a_worker_is_told_its_mistake_before_the_store_is_opened(
    run_cli: Cli, monkeypatch: pytest.MonkeyPatch, arguments: list[str], said: list[str]
) -> None:
    pytest.importorskip("temporalio")

    def opened(*_: object, **__: object) -> None:
        raise AssertionError("the store was opened")

    monkeypatch.setattr(Lab, "__init__", opened)
    mistaken(run_cli("worker", *arguments), *said)


def test_a_worker_without_a_server_says_how_to_get_one(run_cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    connection = pytest.importorskip("workbench.sweeps.temporal.connection")
    for name in ("TEMPORAL_ADDRESS", "TEMPORAL_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TEMPORAL_CONFIG_FILE", "/dev/null")
    monkeypatch.setattr(connection, "PATIENCE", 0.1)
    mistaken(run_cli("worker"), "no Temporal server is known", "--engine temporal", "TEMPORAL_ADDRESS")


@pytest.mark.parametrize(
    "arguments",
    [["sweep", "sweep.toml", "-d", "data", "--engine", "ray"], ["resume", "1", "--engine", "ray"]],
    ids=lambda v: v[0],
)
def test_an_unknown_engine_is_refused_with_those_there_are(run_cli: Cli, arguments: list[str]) -> None:
    mistaken(run_cli(*arguments), "--engine", "'ray'", "local", "temporal")
