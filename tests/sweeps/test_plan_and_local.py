"""Sweeps: the plan shares stages, a failure stops only what lies below it, and a rerun does what is missing."""

from __future__ import annotations

import dataclasses
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from workbench.datasets import Dataset
from workbench.errors import InputError, SpecError
from workbench.lab import Lab
from workbench.specs import Embed, Fixed, Recursive, SweepSpec, TrialSpec, read_sweep
from workbench.sweeps import local
from workbench.sweeps.plan import Plan, plan
from workbench.sweeps.results import load_sweep
from workbench.sweeps.runs import SweepRun


@pytest.fixture
def grid(words_trial: TrialSpec) -> SweepSpec:
    """Two chunk sizes and three retrievers; the baseline is the fifth of the six."""
    return SweepSpec(
        question="Which retriever, at which size?",
        base=words_trial,
        metric="recall@5",
        axes={"chunk.tokens": (15, 30), "retrieve.kind": ("dense", "bm25", "fts")},
        baseline={"chunk.tokens": 30, "retrieve.kind": "bm25"},
    )


def planned(lab: Lab, sweep: SweepSpec, data: Dataset) -> Plan:
    return plan(sweep, data, lab.runtime, name="test")


def state_of(lab: Lab, sweep_id: int) -> tuple[str, Counter[str]]:
    with lab.runtime.database.transaction() as connection:
        row = connection.execute("SELECT state FROM sweep WHERE sweep_id = %s", [sweep_id]).fetchone()
        trials = connection.execute("SELECT state FROM sweep_trial WHERE sweep_id = %s", [sweep_id]).fetchall()
    assert row is not None
    return row[0], Counter(t[0] for t in trials)


def labels(lab: Lab, sweep: SweepSpec, data: Dataset) -> list[str]:
    return [trial.label for trial in planned(lab, sweep, data).trials]


def computed(lab: Lab, run: SweepRun) -> list[str]:
    """The stages that the latest run computed, from the ledger of attempts."""
    with lab.runtime.database.transaction() as connection:
        rows = connection.execute(
            "SELECT a.kind || ' ' || a.label FROM attempt a JOIN sweep s USING (sweep_id)"
            " WHERE sweep_id = %s AND a.started_at >= s.started_at AND a.outcome = 'done'",
            [run.sweep_id],
        ).fetchall()
    return sorted(row[0] for row in rows)


# --- plan ----------------------------------------------------------------------------------------


def test_a_plan_shares_what_its_trials_agree_on(lab: Lab, grid: SweepSpec, tiny: Dataset) -> None:
    found = planned(lab, grid, tiny)
    assert len(found.trials) == 6
    # A size has: chunk; passage, index, retrieve, score; retrieve, score; index, retrieve, score. One query stage.
    assert len(found.nodes) == 2 * 10 + 1
    assert found.stages_of_a_loop == 2 * (6 + 3 + 4)
    assert found.baseline == 4
    assert found.trials[4].point == {"chunk.tokens": 30, "retrieve.kind": "bm25"}
    assert found.trials[4].label == "30 / bm25"
    seen: set[str] = set()
    for node in found.nodes:
        assert all(i in seen for name, i in node.input_fingerprints.items() if hasattr(node.inputs[name], "kind"))
        seen.add(node.fingerprint)
    assert len(seen) == len(found.nodes)
    assert {t.graph.fingerprint for t in found.trials} <= seen


def test_a_plan_computes_nothing(lab: Lab, grid: SweepSpec, tiny: Dataset) -> None:
    planned(lab, grid, tiny)
    with lab.runtime.database.transaction() as connection:
        rows = connection.execute("SELECT (SELECT count(*) FROM stage), (SELECT count(*) FROM sweep)").fetchone()
    assert rows == (0, 0)


def test_a_plans_identity_is_its_sweep_and_its_data(lab: Lab, grid: SweepSpec, tiny: Dataset) -> None:
    first = planned(lab, grid, tiny)
    assert planned(lab, grid, tiny).fingerprint == first.fingerprint
    assert plan(grid, tiny, lab.runtime, name="another name").fingerprint == first.fingerprint
    others = [
        planned(lab, grid.model_copy(update={"metric": "mrr"}), tiny),
        planned(lab, grid, tiny.limited(3)),
    ]
    assert first.fingerprint not in {p.fingerprint for p in others}


def test_without_a_baseline_it_is_the_first_trial(lab: Lab, grid: SweepSpec, tiny: Dataset) -> None:
    assert planned(lab, grid.model_copy(update={"baseline": {}}), tiny).baseline == 0


def test_an_unknown_metric_is_refused_before_any_work(lab: Lab, grid: SweepSpec, tiny: Dataset) -> None:
    with pytest.raises(SpecError, match="did you mean 'recall@5'"):
        planned(lab, grid.model_copy(update={"metric": "recal@5"}), tiny)
    with pytest.raises(SpecError, match="recall@7"):
        planned(lab, grid.model_copy(update={"metric": "recall@7"}), tiny)


def test_a_path_that_does_not_fit_is_refused_before_any_work(lab: Lab, grid: SweepSpec, tiny: Dataset) -> None:
    with pytest.raises(SpecError, match="did you mean 'tokens'"):
        planned(lab, grid.model_copy(update={"axes": {"chunk.tokns": (1,)}, "baseline": {}}), tiny)


# --- running -------------------------------------------------------------------------------------


def test_a_sweep_runs_each_stage_once_and_again_nothing(lab: Lab, grid: SweepSpec, tiny: Dataset) -> None:
    first = local.run(planned(lab, grid, tiny), lab.runtime)
    assert (first.state, len(first.results), first.errors) == ("done", 6, {})
    assert len(computed(lab, first)) == 21
    assert state_of(lab, first.sweep_id) == ("done", Counter(done=6))
    again = local.run(planned(lab, grid, tiny), lab.runtime)
    assert again.sweep_id == first.sweep_id
    assert computed(lab, again) == []
    assert {no: r.metrics for no, r in again.results.items()} == {no: r.metrics for no, r in first.results.items()}
    shown = again.as_json()
    assert shown["stages"] == {"unique": 21, "loop": 26, "computed": 0, "reused": 21, "failed": 0, "waiting": 0}
    assert shown["items"] == {"computed": 0, "repeated": 0}
    assert [r["trial"]["label"] for r in shown["results"]] == labels(lab, grid, tiny)


def test_the_store_alone_tells_the_same(lab: Lab, open_lab: Callable[..., Lab], grid: SweepSpec, tiny: Dataset) -> None:
    run = local.run(planned(lab, grid, tiny), lab.runtime)
    other = open_lab()
    result = load_sweep(other.runtime.database, run.sweep_id)
    assert (result.name, result.state, result.spec, result.failed) == ("test", "done", grid, {})
    assert result.labels == labels(lab, grid, tiny)
    assert result.baseline == 4
    for number, trial in enumerate(result.trials):
        live = run.results[number]
        assert trial.trial == live.trial
        assert trial.metrics == live.metrics
        assert trial.scores.equals(live.scores)
        assert trial.hits.equals(live.hits)
    assert dict(result.points[4]) == {"chunk.tokens": 30, "retrieve.kind": "bm25"}
    assert sorted(c.trial for c in result.comparisons) == [0, 1, 2, 3, 5]
    assert {c.baseline for c in result.comparisons} == {4}
    assert result.best
    assert set(result.best) <= set(result.labels)
    assert "recall@5" in result.verdict
    assert result.frame().height == 6
    with pytest.raises(InputError, match="no sweep 999"):
        load_sweep(other.runtime.database, 999)


def test_specs_may_stand_on_an_axis(lab: Lab, words_trial: TrialSpec, tiny: Dataset) -> None:
    chunkers = (Fixed(tokens=15, tokenizer="words"), Recursive(tokens=15, tokenizer="words"))
    sweep = SweepSpec(base=words_trial, axes={"chunk": chunkers}, baseline={"chunk": chunkers[1]})
    run = local.run(planned(lab, sweep, tiny), lab.runtime)
    assert [run.results[no].trial.chunk for no in (0, 1)] == list(chunkers)
    assert load_sweep(lab.runtime.database, run.sweep_id).baseline == 1


def test_trials_with_one_leaf_are_one_result(lab: Lab, words_trial: TrialSpec, tiny: Dataset) -> None:
    """What a trial does not use (ef_search without HNSW) is not in its identity."""
    sweep = SweepSpec(base=words_trial, axes={"retrieve.ef_search": (50, 60)})
    run = local.run(planned(lab, sweep, tiny), lab.runtime)
    assert run.results[0].trial_id == run.results[1].trial_id
    assert run.as_json()["stages"]["unique"] == 6
    assert load_sweep(lab.runtime.database, run.sweep_id).labels == ["50", "60"]


# --- failing and going on ------------------------------------------------------------------------


@pytest.fixture
def flaky(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a module with a chunker that raises while the file `broken` is beside it."""
    name = f"flaky_{abs(hash(tmp_path))}"
    source = (
        "from pathlib import Path\n"
        "def chunks(text):\n"
        "    if 'n3x0' in text and (Path(__file__).parent / 'broken').exists():\n"
        "        raise RuntimeError('no such luck')\n"
        "    return text.split('\\n\\n')\n"
    )
    (tmp_path / f"{name}.py").write_text(source, encoding="utf-8")
    (tmp_path / "broken").touch()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, name, raising=False)
    return name


def test_a_failing_stage_fails_only_the_trials_below_it(
    lab: Lab, words_trial: TrialSpec, tiny: Dataset, flaky: str, tmp_path: Path
) -> None:
    own = {"kind": "python", "target": f"{flaky}:chunks"}
    good = {"kind": "fixed", "tokens": 20, "tokenizer": "words"}
    sweep = SweepSpec(base=words_trial, axes={"chunk": (own, good), "retrieve.kind": ("dense", "bm25")})
    first = local.run(planned(lab, sweep, tiny), lab.runtime)
    assert first.state == "failed"
    assert sorted(first.results) == [2, 3]
    names = labels(lab, sweep, tiny)
    assert list(first.errors) == names[:2]
    for reason in first.errors.values():
        assert "RuntimeError: no such luck" in reason
        assert "document 'd3'" in reason
    assert state_of(lab, first.sweep_id) == ("failed", Counter(done=2, failed=2))
    assert first.as_json()["failed"] == 2
    result = load_sweep(lab.runtime.database, first.sweep_id)
    assert result.state == "failed"
    assert result.labels == names[2:]
    assert set(result.failed) == set(names[:2])
    assert all("no such luck" in reason for reason in result.failed.values())
    before = {no: r.metrics for no, r in first.results.items()}

    (tmp_path / "broken").unlink()
    second = local.run(planned(lab, sweep, tiny), lab.runtime)
    assert second.sweep_id == first.sweep_id
    assert second.state == "done"
    assert computed(lab, second) == sorted(
        [
            "chunk python",
            "embed passage",
            "index exact",
            "retrieve dense",
            "score score",
            "retrieve bm25",
            "score score",
        ]
    )
    assert {no: second.results[no].metrics for no in (2, 3)} == before
    assert state_of(lab, first.sweep_id) == ("done", Counter(done=4))
    assert load_sweep(lab.runtime.database, first.sweep_id).failed == {}


def test_a_model_that_fails_once_costs_only_what_it_did_not_do(lab: Lab, words_trial: TrialSpec, tiny: Dataset) -> None:
    failing = "fake:hash-32?fail_after=1&fail_times=1"  # the passages are embedded, the queries not
    sweep = SweepSpec(base=words_trial, axes={"embed.model": (failing, "fake:hash-64")})
    first = local.run(planned(lab, sweep, tiny), lab.runtime)
    assert (first.state, sorted(first.results), len(first.errors)) == ("failed", [1], 1)
    assert "a failure that was asked for" in next(iter(first.errors.values()))
    second = local.run(planned(lab, sweep, tiny), lab.runtime)
    assert second.state == "done"
    assert computed(lab, second) == ["embed query", "retrieve dense", "score score"]
    assert second.as_json()["items"] == {"computed": 18, "repeated": 6}


def test_a_sweep_whose_baseline_failed_compares_with_nothing_else(
    lab: Lab, words_trial: TrialSpec, tiny: Dataset
) -> None:
    failing = "fake:hash-32?fail_after=0"
    sweep = SweepSpec(
        base=words_trial,
        axes={"embed.model": ("fake:hash-64", "fake:hash-48", failing)},
        baseline={"embed.model": failing},
    )
    run = local.run(planned(lab, sweep, tiny), lab.runtime)
    assert list(run.errors) == labels(lab, sweep, tiny)[2:]
    result = load_sweep(lab.runtime.database, run.sweep_id)
    assert result.baseline is None
    assert result.comparisons == [], "no other trial takes the place of the declared baseline"
    assert "no result" in result.verdict


@pytest.mark.parametrize("after", [0, 3, 9])
def test_an_interrupted_sweep_goes_on(lab: Lab, grid: SweepSpec, tiny: Dataset, after: int) -> None:
    checks = iter(range(after))

    def stop() -> None:
        if next(checks, None) is None:
            raise KeyboardInterrupt

    made = planned(lab, grid, tiny)
    with pytest.raises(KeyboardInterrupt):
        local.run(made, lab.runtime, check=stop)
    with lab.runtime.database.transaction() as connection:
        row = connection.execute("SELECT sweep_id FROM sweep").fetchone()
        open_work = connection.execute(
            "SELECT (SELECT count(*) FROM claim WHERE closed_at IS NULL),"
            " (SELECT count(*) FROM stage WHERE state = 'running'), (SELECT count(*) FROM stage WHERE state = 'done')"
        ).fetchone()
    assert row is not None
    assert open_work is not None
    assert open_work[:2] == (0, 0)
    assert state_of(lab, row[0]) == ("interrupted", Counter(planned=6))
    with pytest.raises(InputError, match="has a result yet"):
        load_sweep(lab.runtime.database, row[0])
    rest = local.run(made, lab.runtime)
    assert rest.state == "done"
    assert rest.sweep_id == row[0]
    assert len(computed(lab, rest)) == 21 - open_work[2]
    assert state_of(lab, row[0]) == ("done", Counter(done=6))


def test_the_front_door_runs_a_file(lab: Lab, grid: SweepSpec, tiny: Dataset, tmp_path: Path) -> None:
    file = tmp_path / "sizes.toml"
    file.write_text(
        "metric = 'recall@5'\n[base.chunk]\nkind = 'recursive'\ntokenizer = 'words'\n"
        "[base.retrieve]\nkind = 'bm25'\n[axes]\n'chunk.tokens' = [15, 30]\n",
        encoding="utf-8",
    )
    result = lab.sweep(file, tiny)
    assert (result.name, result.labels, result.state) == ("sizes", ["15", "30"], "done")
    assert result.spec == read_sweep(file)
    limited = lab.run_sweep(file, tiny, limit=2)
    assert limited.sweep_id != result.sweep_id
    assert {len(r.dataset.queries) for r in limited.results.values()} == {2}


def test_the_same_sweep_on_a_renamed_dataset_is_another(lab: Lab, words_trial: TrialSpec, tiny: Dataset) -> None:
    sweep = SweepSpec(base=words_trial, axes={"retrieve.k": (5, 10)})
    first = local.run(planned(lab, sweep, tiny), lab.runtime)
    renamed = local.run(planned(lab, sweep, dataclasses.replace(tiny, name="other")), lab.runtime)
    assert renamed.sweep_id != first.sweep_id
    assert computed(lab, renamed) == []
    assert Embed(model="fake:hash-64") == renamed.results[0].trial.embed
