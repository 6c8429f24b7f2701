"""The fault ledger: what was tried again, stopped, repeated or waited for is counted, stage by stage, and shown."""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any, Literal

import polars as pl
import pytest
from scripted_llm import Rule, ScriptedServer

from workbench.datasets import Dataset
from workbench.errors import InputError
from workbench.lab import Lab
from workbench.reports import sections
from workbench.specs import Embed, Situated, SweepSpec, TrialSpec
from workbench.store.attempts import Attempt, Attempts
from workbench.store.worker import Worker
from workbench.sweeps import local
from workbench.sweeps.faults import FAULTS, totals, with_faults
from workbench.sweeps.plan import plan
from workbench.sweeps.runs import SweepRun


def sweep_of(trial: TrialSpec) -> SweepSpec:
    return SweepSpec(base=trial, metric="recall@5", axes={"retrieve.k": (9, 10)})


@pytest.fixture
def run(lab: Lab, tiny: Dataset) -> Callable[..., SweepRun]:
    def one(trial: TrialSpec, in_lab: Lab = lab, **given: Any) -> SweepRun:
        return local.run(plan(sweep_of(trial), tiny, in_lab.runtime), in_lab.runtime, **given)

    return one


def row(ledger: pl.DataFrame, stage: str) -> dict[str, Any]:
    (found,) = ledger.filter(pl.col("stage") == stage).to_dicts()
    return found


def odd(ledger: pl.DataFrame, stage: str) -> dict[str, Any]:
    """What is not 0 of a stage's faults."""
    return {name: value for name, value in row(ledger, stage).items() if name in FAULTS and value}


def test_an_undisturbed_sweep_has_no_fault(lab: Lab, bm25_trial: TrialSpec, run: Callable[..., SweepRun]) -> None:
    sweep = run(bm25_trial).sweep_id
    ledger = lab.faults(sweep)
    assert ledger["stage"].to_list() == ["chunk recursive", *["retrieve bm25", "score score"] * 2]
    assert ledger["attempts"].to_list() == [1] * 5
    assert with_faults(ledger).is_empty()
    assert set(totals(ledger).items()) == {*((name, 0.0) for name in (*FAULTS, "calls", "retried")), ("attempts", 5.0)}
    run(bm25_trial)
    assert lab.faults(sweep).equals(ledger), "what was reused was not attempted"
    shown = sections.faults(lab.sweep_result(sweep))
    assert (
        shown.text == "No fault: 5 attempts at stages and 0 model calls, and none was tried again, lost or waited for."
    )
    assert "<table" not in shown.body


def test_a_model_that_fails_once_is_a_failed_attempt_and_its_items_are_repeated(
    lab: Lab, words_trial: TrialSpec, run: Callable[..., SweepRun]
) -> None:
    failing = words_trial.model_copy(update={"embed": Embed(model="fake:hash?dimensions=16&fail_after=0&fail_times=1")})
    first = run(failing)
    assert (first.state, first.results) == ("failed", {})
    again = run(failing)
    assert (again.state, len(again.results)) == ("done", 2)
    ledger = lab.faults(first.sweep_id)
    passages = row(ledger, "embed passage")
    assert (passages["attempts"], passages["failed"]) == (2, 1)
    assert odd(ledger, "embed passage") == {"failed": 1, "repeated": passages["repeated"]}
    # By what the claims say: every chunk was claimed, none got a value, all were claimed again.
    with lab.runtime.database.transaction() as connection:
        counted = connection.execute(
            "SELECT sum(c.items) FILTER (WHERE outcome = 'released'), sum(c.repeated)"
            " FROM claim c JOIN stage USING (stage_id)"
            " WHERE stage.kind = 'embed' AND stage.spec->>'role' = 'passage'"
        ).fetchone()
    assert counted == (passages["repeated"], passages["repeated"])
    assert again.status.items["repeated"] == passages["repeated"] > 0
    assert odd(ledger, "chunk recursive") == {}
    assert row(ledger, "chunk recursive")["attempts"] == 1
    assert with_faults(ledger)["stage"].to_list() == ["embed passage"]
    assert totals(ledger)["failed"] == 1.0


def test_an_interrupt_is_no_failure(lab: Lab, bm25_trial: TrialSpec, run: Callable[..., SweepRun]) -> None:
    """Ctrl-C in the second stage's items: the first stays, the second was stopped, and nobody failed."""
    trial = bm25_trial.model_copy(update={"context": Situated(model="fake:words", max_tokens=8)})

    def check() -> None:
        with lab.runtime.database.transaction() as connection:
            found = connection.execute("SELECT count(*) FROM memo_call").fetchone()
        if found is not None and found[0] >= 3:
            raise KeyboardInterrupt

    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            run(trial, check=check)
    body = lab.sweeps().to_dicts()[0]
    assert body["state"] == "interrupted"
    run(trial)
    ledger = lab.faults(body["sweep"])
    assert row(ledger, "context situated")["stopped"] == 1
    assert row(ledger, "context situated")["attempts"] == 2, "the second run was stopped before it"
    assert set(odd(ledger, "context situated")) <= {"stopped", "repeated"}
    assert with_faults(ledger)["stage"].to_list() == ["context situated"]
    assert row(ledger, "context situated")["calls"] == 72


def test_calls_that_were_tried_again_are_counted_with_their_reasons(
    open_lab: Callable[..., Lab], bm25_trial: TrialSpec, run: Callable[..., SweepRun]
) -> None:
    rules = [Rule(times=2, status=503, retry_after="0"), Rule(times=1, fault="drop", after=2)]
    with ScriptedServer(rules=rules, key=None) as server:
        lab = open_lab(llm_url=server.url)
        trial = bm25_trial.model_copy(update={"context": Situated(model=server.model, max_tokens=8)})
        sweep = run(trial, in_lab=lab).sweep_id
        received, well = server.counts["received"], server.counts["ok"]
    ledger = lab.faults(sweep)
    asked = row(ledger, "context situated")
    assert asked["calls"] == well == 72
    assert asked["retries"] == received - well == 3, "what the server saw is what we say"
    assert 1 <= asked["retried"] <= 3
    assert "503 x2" in asked["faults"]
    assert (asked["attempts"], asked["failed"], asked["repeated"]) == (1, 0, 0), "the stage itself went well"
    assert asked["backoff"] >= 0
    assert with_faults(ledger)["stage"].to_list() == ["context situated"]

    result = lab.sweep_result(sweep)
    shown = sections.faults(result)
    assert "503 x2" in shown.body
    assert "calls tried again" in re.sub(r"<[^>]+>|&nbsp;|\s+", " ", shown.body).replace("  ", " ")
    assert "context situated" in shown.body
    assert "score score" not in shown.body, "only where something went wrong"
    assert shown.text.startswith("Of 6 attempts at stages and 72 model calls.")


def test_what_crashed_was_lost_or_waited_is_counted_from_the_attempts(
    lab: Lab, bm25_trial: TrialSpec, run: Callable[..., SweepRun]
) -> None:
    """Attempts as other processes leave them: two died, one with its attempt still open, and one is at work."""
    sweep = run(bm25_trial).sweep_id
    database = lab.runtime.database
    with database.transaction() as connection:
        (key,) = connection.execute("SELECT encode(fingerprint, 'hex') FROM stage WHERE kind = 'chunk'").fetchall()

    with ExitStack() as stack:
        workers = [stack.enter_context(Worker(database, {"test": "ledger"}, 3600)) for _ in range(4)]
        attempts = [Attempts(database, worker) for worker in workers]

        def open_one(by: int) -> Attempt:
            return attempts[by].open(key[0], "chunk", "recursive", None)

        def expire(by: int) -> None:
            with database.transaction() as connection:
                connection.execute(
                    "UPDATE worker SET lease_until = now() - interval '1 s' WHERE worker_id = %s",
                    [workers[by].worker_id],
                )

        open_one(0)
        expire(0)
        outcomes: list[tuple[Literal["lost", "shared"], float]] = [("lost", 1.5), ("shared", 0.25)]
        for outcome, waited in outcomes:
            ended = open_one(1)  # which closes the first as crashed
            ended.waited = waited
            attempts[1].close(ended, outcome)
        open_one(3)
        open_one(2)
        expire(2)
        chunks = row(lab.faults(sweep), "chunk recursive")
    assert (chunks["attempts"], chunks["crashed"], chunks["lost"], chunks["waited"]) == (6, 2, 1, 1.75)
    assert (chunks["failed"], chunks["stopped"], chunks["repeated"]) == (0, 0, 0)
    assert with_faults(lab.faults(sweep))["stage"].to_list() == ["chunk recursive"]


def test_a_stage_that_two_sweeps_share_is_in_the_ledger_of_both(
    lab: Lab, tiny: Dataset, bm25_trial: TrialSpec, run: Callable[..., SweepRun]
) -> None:
    failing = bm25_trial.model_copy(
        update={"context": Situated(model="fake:words?fail_after=5&fail_times=1", max_tokens=8)}
    )
    one = run(failing)
    assert one.state == "failed"
    other = local.run(
        plan(sweep_of(failing).model_copy(update={"axes": {"retrieve.k": (7, 8)}}), tiny, lab.runtime), lab.runtime
    )
    assert other.state == "done"
    assert odd(lab.faults(other.sweep_id), "context situated") == odd(lab.faults(one.sweep_id), "context situated")
    assert row(lab.faults(one.sweep_id), "context situated")["failed"] == 1


def test_a_ledger_without_rows_has_its_columns(lab: Lab) -> None:
    ledger = lab.faults(99)
    assert ledger.is_empty()
    assert {"stage", "attempts", "faults", *FAULTS} <= set(ledger.columns)
    assert set(totals(ledger).values()) == {0.0}
    with pytest.raises(InputError, match="no sweep 99"):
        lab.sweep_result(99)
