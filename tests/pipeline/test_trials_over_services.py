"""Trials over services of others: their origin is part of every result, their key of none, their faults are clear."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from pydantic import SecretStr
from scripted_llm import Rule, ScriptedServer

from workbench.datasets import Dataset
from workbench.errors import CallError, SpecError
from workbench.lab import Lab
from workbench.pipeline import graph
from workbench.specs import CrossEncoder, Dense, Embed, Situated, TrialSpec

KEY = "sk-very-secret"


def situating(trial: TrialSpec, model: str) -> TrialSpec:
    return trial.vary("context", Situated(model=model, max_tokens=8))


def test_a_service_is_asked_each_thing_once(open_lab: Callable[..., Lab], tiny: Dataset, bm25_trial: TrialSpec) -> None:
    with ScriptedServer(key=KEY) as server:
        lab = open_lab(llm_url=server.url, llm_key=SecretStr(KEY))
        trial = situating(bm25_trial, server.model)
        result = lab.run(trial, tiny)
        assert server.counts["received"] == len(result.chunks) == len(result.contexts)
        open_lab(llm_url=server.url, llm_key=SecretStr(KEY)).run(trial.vary("retrieve.k", 9), tiny)
        assert server.counts["received"] == len(result.chunks)
        with lab.runtime.database.transaction() as connection:
            rows = connection.execute("SELECT spec::text, details::text FROM stage").fetchall()
        assert KEY not in str(rows)


def test_the_origin_of_a_service_is_part_of_the_identity(
    open_lab: Callable[..., Lab], tiny: Dataset, bm25_trial: TrialSpec
) -> None:
    prints = set()
    for url in ("http://one.example/v1", "http://two.example/v1", "https://one.example/v1"):
        lab = open_lab(llm_url=url, llm_key=SecretStr(KEY))
        prints.add(graph.build(situating(bm25_trial, "m"), tiny, lab.runtime).fingerprint)
    assert len(prints) == 3
    with_key = open_lab(llm_url="http://one.example/v1")
    assert graph.build(situating(bm25_trial, "m"), tiny, with_key.runtime).fingerprint in prints


def test_a_wrong_key_is_one_clear_error_that_does_not_show_it(
    open_lab: Callable[..., Lab], tiny: Dataset, bm25_trial: TrialSpec
) -> None:
    with ScriptedServer(key=KEY) as server:
        lab = open_lab(llm_url=server.url, llm_key=SecretStr("sk-wrong-one"))
        with pytest.raises(CallError, match="WORKBENCH_LLM_KEY") as failure:
            lab.run(situating(bm25_trial, server.model), tiny)
    assert "sk-wrong-one" not in str(failure.value)


def test_a_service_that_fails_for_a_while_is_asked_again_and_that_is_counted(
    open_lab: Callable[..., Lab], tiny: Dataset, bm25_trial: TrialSpec
) -> None:
    rules = [Rule(times=2, status=503, retry_after="0"), Rule(times=1, fault="drop", after=2)]
    with ScriptedServer(rules=rules, key=None) as server:
        result = open_lab(llm_url=server.url).run(situating(bm25_trial, server.model), tiny)
    (stage,) = (s for s in result.stages if s.kind == "context")
    assert sum(stage.details["calls"]["faults"].values()) == 3
    assert stage.details["calls"]["faults"]["503"] == 2
    assert result.costs["retried"][0] >= 1


def test_embeddings_and_rerankers_come_from_services(
    open_lab: Callable[..., Lab], tiny: Dataset, words_trial: TrialSpec
) -> None:
    with ScriptedServer(key=None) as server:
        base = server.url.removesuffix("/v1")
        lab = open_lab(embed_url=server.url, rerank_url=base)
        trial = words_trial.vary("embed", Embed(model=server.model, via="server")).vary("retrieve", Dense(k=8))
        plain = lab.run(trial, tiny)
        assert len(plain.hits) == 8 * len(tiny.queries)
        received = server.counts["received"]
        reranked = lab.run(trial.vary("rerank", CrossEncoder(model=server.model, via="server", depth=8, k=8)), tiny)
        assert set(reranked.hits["rank_before"]) == set(range(1, 9))
        assert server.counts["received"] > received


@pytest.mark.parametrize(("stage", "spec"), [("embed", Embed(via="server")), ("rerank", CrossEncoder(via="server"))])
def test_a_service_that_is_not_set_is_named(
    lab: Lab, tiny: Dataset, words_trial: TrialSpec, stage: str, spec: Embed | CrossEncoder
) -> None:
    with pytest.raises(SpecError, match=f"WORKBENCH_{stage.upper()}_URL is not set"):
        lab.run(words_trial.vary(stage, spec), tiny)
