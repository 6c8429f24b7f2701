"""Stages that ask a model: each call is made once, by whoever comes first, and what finished is kept."""

from __future__ import annotations

import dataclasses
import json
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from workbench.datasets import Dataset
from workbench.errors import CallError, ModelError, SpecError
from workbench.lab import Lab
from workbench.models.fakes import HashEmbedder
from workbench.pipeline import graph
from workbench.pipeline.execute import execute
from workbench.pipeline.job import Job
from workbench.records import Query
from workbench.specs import (
    Answer,
    Bm25,
    Dense,
    Fts,
    Headings,
    Hybrid,
    Lead,
    LlmRerank,
    NoContext,
    QueryLikelihood,
    Served,
    Situated,
    Spec,
    Summary,
    Title,
    TrialSpec,
)


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "calls.jsonl"


def asked(log: Path) -> Counter[str]:
    """How often each prompt reached the model, by its own log."""
    lines = log.read_text().splitlines() if log.exists() else []
    return Counter(json.loads(line)[1] for line in lines)


def situated(log: Path, **more: object) -> Situated:
    return Situated(model=f"fake:words?log={log}", **more)  # type: ignore[arg-type]


def answer(log: Path, **more: object) -> Answer:
    return Answer(model=f"fake:words?log={log}", **more)  # type: ignore[arg-type]


def test_every_chunk_is_situated_by_one_call_ever(lab: Lab, tiny: Dataset, bm25_trial: TrialSpec, log: Path) -> None:
    trial = bm25_trial.vary("context", situated(log))
    first = lab.run(trial, tiny)
    assert len(first.contexts) == len(first.chunks) == sum(asked(log).values())
    assert set(asked(log).values()) == {1}
    assert first.calls["live"] == len(first.chunks)
    assert first.calls["cached"] == 0
    assert first.calls["prompt_tokens"] > 0
    again = lab.run(trial.vary("retrieve", Fts(k=7)), tiny)
    assert again.calls == {**first.calls, "live": 0, "cached": len(first.chunks)}
    assert sum(asked(log).values()) == len(first.chunks)


def test_costs_stand_beside_their_theoretical_maximum(
    lab: Lab, tiny: Dataset, bm25_trial: TrialSpec, log: Path
) -> None:
    result = lab.run(bm25_trial.vary("context", situated(log, concurrency=1)), tiny)
    (row,) = result.costs.to_dicts()
    assert row["calls"] == len(result.chunks)
    assert 0 < row["cached"] <= row["cached_most"] < 1, "one call at a time: the fake's cache forgets nothing"
    assert row["cached"] == row["cached_most"]
    assert row["per_million"] > 1_000_000, "each chunk shows its document again"
    assert result.as_json()["calls"]["cached_tokens"] == round(row["cached"] * row["prompt_tokens"])


def test_a_summary_is_one_call_a_document(lab: Lab, tiny: Dataset, bm25_trial: TrialSpec, log: Path) -> None:
    result = lab.run(bm25_trial.vary("context", Summary(model=f"fake:words?log={log}")), tiny)
    assert sum(asked(log).values()) == len(tiny.documents)
    per_document = result.contexts.group_by("doc_id").n_unique()
    assert set(per_document["context"]) == {1}


@pytest.mark.parametrize("context", [Title(), Headings(), Lead(tokens=4)], ids=lambda c: c.kind)
def test_a_context_is_found_by_every_leg_that_sees_it(
    lab: Lab, tiny: Dataset, words_trial: TrialSpec, context: Spec
) -> None:
    documents = tuple(dataclasses.replace(d, title=f"Zanzibar{i}") for i, d in enumerate(tiny.documents))
    lead = [d.text.split()[1] for d in documents]
    words = lead if context.kind == "lead" else [d.title for d in documents]  # type: ignore[attr-defined]
    data = Dataset("titled", documents, (Query("q", f"{words[3]}"),))
    for retrieve in (Bm25(k=50), Fts(k=50)):
        plain = lab.run(words_trial.vary("retrieve", retrieve), data)
        seeing = lab.run(words_trial.vary("retrieve", retrieve).vary("context", context), data)
        blind = lab.run(
            words_trial.vary("retrieve", retrieve).vary("context", context.model_copy(update={"legs": ("dense",)})),
            data,
        )
        chunks = seeing.chunks.filter(seeing.chunks["doc_id"] == "d3")["chunk_no"]
        assert set(seeing.hits["chunk_no"]) >= set(chunks) - (set() if context.kind != "lead" else {chunks[0]})  # type: ignore[attr-defined]
        assert blind.hits.equals(plain.hits)


def test_who_sees_a_context_is_in_the_graph(lab: Lab, tiny: Dataset, words_trial: TrialSpec) -> None:
    trial = words_trial.vary("retrieve", Hybrid(depth=10, k=10))

    def legs(context: Spec) -> dict[str, str]:
        built = graph.build(trial.vary("context", context), tiny, lab.runtime)
        return {n.label: n.fingerprint for n in built.score.walk() if n.kind == "retrieve"}

    none, dense, both = legs(NoContext()), legs(Title(legs=("dense",))), legs(Title())
    assert dense["bm25"] == none["bm25"]
    assert dense["dense"] == both["dense"] != none["dense"]
    assert both["bm25"] != none["bm25"]
    assert len({none["hybrid"], dense["hybrid"], both["hybrid"]}) == 3


def test_what_an_answer_depends_on(lab: Lab, tiny: Dataset, bm25_trial: TrialSpec, tmp_path: Path) -> None:
    def of(**more: object) -> str:
        spec = Answer(model="fake:words", **more)  # type: ignore[arg-type]
        built = graph.build(bm25_trial.vary("generate", spec), tiny, lab.runtime)
        assert built.answers is not None
        return built.answers.fingerprint

    own = tmp_path / "mine.toml"
    own.write_text('user = "{{ question }} {{ refusal }} {{ passages }}"')
    first = of(prompt=str(own))
    assert of() == of(concurrency=1) == of(prefix_caching=False) == of(k=5)
    assert len({of(), first, of(temperature=0.5), of(seed=3), of(max_tokens=9), of(k=2), of(max_model_len=999)}) == 7
    own.write_text('user = "{{ question }}! {{ refusal }} {{ passages }}"')
    assert of(prompt=str(own)) != first, "the content of a prompt counts, not its name"
    with pytest.raises(SpecError, match=r"unknown prompt 'anwser-1' .did you mean 'answer-1'"):
        of(prompt="anwser-1")


def test_answers_are_stored_scored_and_asked_once(lab: Lab, tiny: Dataset, bm25_trial: TrialSpec, log: Path) -> None:
    queries = tuple(dataclasses.replace(q, answer="anchor basin") if q.evidence else q for q in tiny.queries)
    data = dataclasses.replace(tiny, queries=queries)
    result = lab.run(bm25_trial.vary("generate", answer(log, k=2)), data)
    assert result.answers["query_id"].to_list() == [q.query_id for q in data.queries]
    assert all(len(shown) == 2 for shown in result.answers.filter(result.answers["query_id"] != "q9")["shown"])
    assert {"exact_match", "token_f1", "answered", "abstained"} <= set(result.metrics)
    assert result.metrics["token_f1"]["n"] == 5
    assert set(asked(log).values()) == {1}
    more = dataclasses.replace(data, queries=(*queries, Query("q10", "what does line n2x7 say")))
    again = lab.run(bm25_trial.vary("generate", answer(log, k=2)), more)
    assert sum(asked(log).values()) == len(more.queries)
    assert again.calls["live"] == 1


def test_a_question_asked_now_gets_its_answer(lab: Lab, tiny: Dataset, bm25_trial: TrialSpec, log: Path) -> None:
    trial = bm25_trial.vary("generate", answer(log, k=2))
    found = lab.search("what does line n2x4 say", tiny, trial)
    (said,) = found.answers.values()
    assert said.endswith("what does line n2x4 say")
    assert said in str(found)
    assert found.as_json()["trials"][0]["answer"] == said
    lab.search("what does line n2x4 say", tiny, trial)
    assert sum(asked(log).values()) == 1


def test_what_finished_before_a_failure_is_never_asked_again(
    lab: Lab, tiny: Dataset, bm25_trial: TrialSpec, log: Path
) -> None:
    broken = situated(log, concurrency=2)
    broken = broken.model_copy(update={"model": f"{broken.model}&fail_after=5&fail_times=1"})
    trial = bm25_trial.vary("context", broken)
    with pytest.raises(CallError, match="asked for"):
        lab.run(trial, tiny)
    kept = asked(log)
    assert 5 <= sum(kept.values()) <= 6, "those on the way when it failed are kept too"
    result = lab.run(trial, tiny)
    assert set(asked(log).values()) == {1}
    assert result.calls["live"] == len(result.chunks) - sum(kept.values())
    assert {s.kind: s.repeated for s in result.stages}["context"] >= 1


def test_two_processes_that_ask_at_once_ask_each_thing_once(
    open_lab: Callable[..., Lab], tiny: Dataset, bm25_trial: TrialSpec, log: Path
) -> None:
    labs = [open_lab(), open_lab()]
    # Different retrievers below one context stage: they meet there.
    trials = [bm25_trial.vary("context", situated(log)).vary("retrieve", Bm25(k=k)) for k in (5, 6)]
    threads = [threading.Thread(target=lab.run, args=(t, tiny)) for lab, t in zip(labs, trials, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(asked(log).values()) == {1}
    assert sum(asked(log).values()) == len(labs[0].run(trials[0], tiny).chunks)


RERANKERS = [
    QueryLikelihood(model="fake:words", depth=6, k=4),
    LlmRerank(model="fake:words", depth=6, k=4, window=3, step=2),
    LlmRerank(model="fake:words", depth=6, k=4, mode="pointwise"),
]


@pytest.mark.parametrize("spec", RERANKERS, ids=lambda s: f"{s.kind} {getattr(s, 'mode', '')}")
def test_a_reranker_moves_hits_and_says_where_they_were(
    lab: Lab, tiny: Dataset, bm25_trial: TrialSpec, log: Path, spec: Served
) -> None:
    spec = spec.model_copy(update={"model": f"fake:words?log={log}"})
    plain = lab.run(bm25_trial, tiny)
    result = lab.run(bm25_trial.vary("rerank", spec), tiny)
    for query in tiny.queries:
        before = plain.hits.filter(plain.hits["query_id"] == query.query_id)["chunk_no"].to_list()[:6]
        after = result.hits.filter(result.hits["query_id"] == query.query_id)
        assert [before[rank - 1] for rank in after["rank_before"]] == after["chunk_no"].to_list()
        assert len(after) == min(4, len(before))
        scores = after["score"].to_list()
        assert scores == sorted(scores, reverse=True)
    if isinstance(spec, LlmRerank):  # the fake turns orders round, and grades by length
        assert (result.hits["rank"] != result.hits["rank_before"]).any()
    assert set(asked(log).values()) == {1}
    assert result.trial.scored.k == (1,), "5 hits were never kept"
    lab.run(bm25_trial.vary("rerank", spec.model_copy(update={"k": 2})), tiny)
    assert set(asked(log).values()) == {1}, "another k asks nothing"


def test_a_prompt_that_is_edited_after_the_plan_belongs_to_another_plan(
    lab: Lab, tiny: Dataset, bm25_trial: TrialSpec, log: Path, tmp_path: Path
) -> None:
    prompt = tmp_path / "mine.toml"
    prompt.write_text('user = "first {{ chunk }}"')
    trial = bm25_trial.vary("context", situated(log, prompt=str(prompt)))
    built = graph.build(trial, tiny, lab.runtime)
    prompt.write_text('user = "second {{ chunk }}"')
    execute(list(built.score.walk()), Job(lab.runtime, tiny))
    assert all(text.startswith("first ") for text in asked(log))


@pytest.mark.parametrize(
    ("stage", "text", "words"),
    [
        ("context", "{{ chunk }} {{ passages }}", "it may use title, document, chunk"),
        ("context", "{{ 1 / 0 }}", "division by zero"),
        ("generate", "{{ question }} {{ chunk }}", "it may use question, passages, refusal"),
        ("rerank", "{{ question }} {{ passage }}", "must end with the question"),
    ],
)
def test_a_prompt_for_another_stage_is_refused_before_any_work(
    lab: Lab, tiny: Dataset, bm25_trial: TrialSpec, tmp_path: Path, stage: str, text: str, words: str
) -> None:
    (tmp_path / "wrong.toml").write_text(f'user = "{text}"')
    given: dict[str, object] = {"model": "fake:words", "prompt": str(tmp_path / "wrong.toml")}
    kinds = {"context": Situated, "generate": Answer, "rerank": QueryLikelihood}
    with pytest.raises(SpecError, match=words):
        graph.build(bm25_trial.vary(stage, kinds[stage](**given)), tiny, lab.runtime)  # type: ignore[arg-type]


def test_a_model_whose_files_change_after_the_plan_is_not_used(
    lab: Lab, tiny: Dataset, bm25_trial: TrialSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    trial = bm25_trial.vary("retrieve", Dense(k=5))
    built = graph.build(trial, tiny, lab.runtime)
    changed = HashEmbedder(64)
    monkeypatch.setattr(HashEmbedder, "identity", {"weights": "another"})
    monkeypatch.setattr(lab.runtime, "embedder", lambda spec: changed)
    with pytest.raises(ModelError, match="changed since this run began"):
        execute(list(built.score.walk()), Job(lab.runtime, tiny))
