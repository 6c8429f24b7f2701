"""Stages as rows: what another process reads is the very stage that was planned, or it is refused."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from psycopg import Connection
from psycopg.types.json import Json

from workbench.datasets import Dataset
from workbench.errors import DatabaseError
from workbench.pipeline import graph, nodes
from workbench.pipeline.graph import Node
from workbench.runtime import Runtime
from workbench.settings import Settings
from workbench.specs import (
    Answer,
    Bm25,
    ChunkSpec,
    ContextSpec,
    CrossEncoder,
    Dense,
    Embed,
    Exact,
    Fixed,
    Fts,
    GenerateSpec,
    Given,
    Headings,
    Hnsw,
    Hybrid,
    IndexSpec,
    LateInteraction,
    Lead,
    Lexical,
    LlmRerank,
    Markdown,
    NoContext,
    NoGeneration,
    NoRerank,
    Python,
    QueryLikelihood,
    Recursive,
    RerankSpec,
    RetrieveSpec,
    ScoreSpec,
    Sentence,
    Situated,
    Summary,
    Title,
    TrialSpec,
)

LLM = "fake:words"
CHUNKS: list[ChunkSpec] = [
    Fixed(tokens=20, overlap=3, tokenizer="words"),
    Recursive(tokens=15, tokenizer="words", separators=("\n\n", "\u2028", "")),
    Sentence(tokens=15, tokenizer="characters"),
    Markdown(tokens=15, tokenizer="words"),
    Given(),
    Python(target="textwrap:wrap", version=2),
]
CONTEXTS: list[ContextSpec] = [
    NoContext(),
    Title(legs=("dense",)),
    Headings(),
    Lead(tokens=7),
    Summary(model=LLM, max_tokens=8, arguments={"block-size": 32, "enforce-eager": True, "x": 0.5}),
    Situated(model=LLM, max_tokens=8, temperature=0.7, top_p=0.9, seed=3, stop=("\n", "é")),
]
RETRIEVERS: list[RetrieveSpec] = [
    Dense(k=9, ef_search=77),
    Bm25(k=9),
    Fts(k=9, match="all", config="simple"),
    Hybrid(legs=("fts", "bm25"), depth=9, k=8, fusion="weighted", weights=(0.1, 1 / 3)),
    Hybrid(legs=("dense", "bm25", "fts"), depth=9, k=8, rrf_k=7),
]
RERANKERS: list[RerankSpec] = [
    NoRerank(),
    LateInteraction(depth=6, k=3),
    CrossEncoder(via="server", model="scorer", depth=6, k=3),
    QueryLikelihood(model=LLM, depth=6, k=3),
    LlmRerank(model=LLM, depth=6, k=3, window=4, step=2),
    LlmRerank(model=LLM, mode="pointwise", depth=6, k=3),
]
GENERATORS: list[GenerateSpec] = [NoGeneration(), Answer(model=LLM, k=2, max_tokens=9)]
INDEXES: list[IndexSpec] = [Exact(storage="halfvec"), Hnsw(m=4, ef_construction=20)]
EMBEDDERS = [
    Embed(model="fake:hash-16", query_prefix="query: "),
    Embed(model="service", via="server"),
]

trials = st.builds(
    TrialSpec,
    chunk=st.sampled_from(CHUNKS),
    context=st.sampled_from(CONTEXTS),
    embed=st.sampled_from(EMBEDDERS),
    lexical=st.sampled_from([Lexical(), Lexical(k1=0.9, b=0.1)]),
    index=st.sampled_from(INDEXES),
    retrieve=st.sampled_from(RETRIEVERS),
    rerank=st.sampled_from(RERANKERS),
    generate=st.sampled_from(GENERATORS),
    score=st.builds(ScoreSpec, k=st.sampled_from([(1, 5), (3,)]), coverage=st.sampled_from([1.0, 0.1 + 0.2])),
)


@pytest.fixture(scope="module")
def runtime(server_home: Path) -> Iterator[Runtime]:
    settings = Settings(
        home=server_home,
        db_schema="t_nodes",
        embed_url="http://127.0.0.1:9/v1",
        rerank_url="http://127.0.0.1:9/v1",
    )
    with Runtime(settings) as opened:
        yield opened


@pytest.fixture
def data(tiny: Dataset, tmp_path: Path) -> Dataset:
    (tmp_path / "chunks.jsonl").write_text('{"doc_id": "d0", "start": 0, "end": 5}\n', encoding="utf-8")
    return dataclasses.replace(tiny, folder=tmp_path)


@pytest.fixture
def build(runtime: Runtime, data: Dataset) -> Callable[[TrialSpec], Node]:
    """The leaf of a trial's graph."""
    return lambda trial: graph.build(trial, data, runtime).score


def saved(runtime: Runtime, leaf: Node) -> dict[str, Node]:
    """A graph as it is read where nothing else was planned: plans of a stage may differ in what changes no output."""
    with runtime.database.transaction() as connection:
        connection.execute("DELETE FROM node")
        nodes.save(connection, leaf.walk())
        return nodes.load(connection, [leaf.fingerprint])


def is_the_same(a: Node, b: Node) -> None:
    assert (b.fingerprint, b.recipe, b.input_fingerprints) == (a.fingerprint, a.recipe, a.input_fingerprints)
    assert (b.kind, b.label, b.code) == (a.kind, a.label, a.code)
    assert b.config == a.config
    assert type(b.config) is type(a.config), "a tuple stays a tuple, a spec of one kind that kind"
    assert b.identity == a.identity
    assert b.recipe_inputs == a.recipe_inputs
    assert b.prompt == a.prompt


# --- there and back ------------------------------------------------------------------------------


@hypothesis_settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(trial=trials)
def test_what_is_read_is_what_was_planned(
    runtime: Runtime, build: Callable[[TrialSpec], Node], trial: TrialSpec
) -> None:
    leaf = build(trial)
    planned = {node.fingerprint: node for node in leaf.walk()}
    found = saved(runtime, leaf)
    assert found.keys() == planned.keys()
    for fingerprint, node in planned.items():
        is_the_same(node, found[fingerprint])
        assert json.loads(json.dumps(nodes.as_json(node))) == nodes.as_json(node), "it is plain JSON"
    assert [n.fingerprint for n in found[leaf.fingerprint].walk()] == [n.fingerprint for n in leaf.walk()]


def every_kind() -> list[TrialSpec]:
    """Trials in which each spec above stands once."""
    base = TrialSpec(chunk=CHUNKS[0], embed=EMBEDDERS[0], retrieve=RETRIEVERS[0])
    options: dict[str, list[Any]] = {
        "chunk": list(CHUNKS),
        "context": list(CONTEXTS),
        "embed": list(EMBEDDERS),
        "index": list(INDEXES),
        "retrieve": list(RETRIEVERS),
        "rerank": list(RERANKERS),
        "generate": list(GENERATORS),
    }
    return [base.model_copy(update={stage: spec}) for stage, specs in options.items() for spec in specs]


def test_every_kind_of_every_stage_is_among_them(runtime: Runtime, build: Callable[[TrialSpec], Node]) -> None:
    labels = set()
    for trial in every_kind():
        leaf = build(trial)
        found = saved(runtime, leaf)
        for node in leaf.walk():
            is_the_same(node, found[node.fingerprint])
            labels.add((node.kind, node.label))
    assert {kind for kind, _ in labels} == set(nodes._CONFIG)
    for kind in ("chunk", "context", "rerank"):
        assert {label for of, label in labels if of == kind} == kinds_of(kind)


def kinds_of(stage: str) -> set[str]:
    """The kinds of a stage that make a node, as the specs have them."""
    annotation: Any = TrialSpec.model_fields[stage].annotation
    kinds = {member.model_fields["kind"].default for member in annotation.__args__}
    return kinds - {"none"}


def test_nodes_of_many_leaves_are_saved_twice_and_read_at_once(
    runtime: Runtime, build: Callable[[TrialSpec], Node]
) -> None:
    leaves = [build(trial) for trial in every_kind()]
    with runtime.database.transaction() as connection:
        nodes.save(connection, graph.walk(leaves))
        nodes.save(connection, graph.walk(leaves))
        found = nodes.load(connection, [leaf.fingerprint for leaf in leaves])
    assert found.keys() == {node.fingerprint for node in graph.walk(leaves)}
    shared = [n.node("chunks") for n in found.values() if n.kind == "score"]
    assert len({id(node) for node in shared}) == len({node.fingerprint for node in shared}), "one object a stage"


def test_what_changes_no_output_is_as_it_was_planned_last(runtime: Runtime, build: Callable[[TrialSpec], Node]) -> None:
    first, again = (
        build(TrialSpec(chunk=Recursive(tokens=15, tokenizer="words"), context=Situated(model=LLM, concurrency=n)))
        for n in (2, 16)
    )
    assert first.fingerprint == again.fingerprint
    for leaf, asked in ((first, 2), (again, 16)):
        with runtime.database.transaction() as connection:
            nodes.save(connection, leaf.walk())
            found = nodes.load(connection, [leaf.fingerprint])
        assert {n.config.concurrency for n in found.values() if n.kind == "context"} == {asked}


def test_nothing_asked_is_nothing_read(runtime: Runtime) -> None:
    with runtime.database.transaction() as connection:
        assert nodes.load(connection, []) == {}


# --- what is refused -----------------------------------------------------------------------------


def test_what_was_not_planned_here_is_named(runtime: Runtime) -> None:
    with runtime.database.transaction() as connection, pytest.raises(DatabaseError, match="no stage ffffffffffff"):
        nodes.load(connection, ["ff" * 32])


def test_an_input_that_is_not_there_is_named(runtime: Runtime, build: Callable[[TrialSpec], Node]) -> None:
    leaf = build(TrialSpec(chunk=Fixed(tokens=19, tokenizer="words"), retrieve=Bm25(k=9)))
    chunk = leaf.node("chunks")
    with runtime.database.transaction() as connection:
        nodes.save(connection, [node for node in leaf.walk() if node is not chunk])
        with pytest.raises(DatabaseError, match=f"no stage {chunk.fingerprint[:12]} was planned"):
            nodes.load(connection, [leaf.fingerprint])


def rewrite(connection: Connection[Any], node: Node, **changes: Any) -> None:
    connection.execute(
        "UPDATE node SET node = %s WHERE fingerprint = %s",
        [Json(nodes.as_json(node) | changes), bytes.fromhex(node.fingerprint)],
    )


@pytest.mark.parametrize(
    "changes",
    [
        {"code": 99},
        {"identity": {"tokens": 21}},
        {"inputs": {"corpus": {"is": "another"}}},
    ],
)
def test_what_is_not_the_stage_of_its_name_is_refused(
    runtime: Runtime, build: Callable[[TrialSpec], Node], changes: dict[str, Any]
) -> None:
    leaf = build(TrialSpec(chunk=Fixed(tokens=18, tokenizer="words"), retrieve=Bm25(k=9)))
    saved(runtime, leaf)
    with runtime.database.transaction() as connection:
        rewrite(connection, leaf.node("chunks"), **changes)
        with pytest.raises(DatabaseError, match=r"chunk \(fixed\) was planned by another version") as refused:
            nodes.load(connection, [leaf.fingerprint])
        connection.rollback()
    assert "run the same version on every machine, or plan the sweep again" in str(refused.value)


def test_a_stage_of_other_code_is_refused_with_both_versions(
    runtime: Runtime, build: Callable[[TrialSpec], Node], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its fingerprint fits: the planner was of one mind. Its code is not ours, so its output would not be."""
    leaf = build(TrialSpec(chunk=Fixed(tokens=17, tokenizer="words"), retrieve=Bm25(k=9)))
    saved(runtime, leaf)
    ours = graph.CODE["retrieve"]
    monkeypatch.setattr(graph, "CODE", {**graph.CODE, "retrieve": ours + 1})
    with runtime.database.transaction() as connection:
        with pytest.raises(DatabaseError, match=r"retrieve \(bm25\) was planned by another version") as refused:
            nodes.load(connection, [leaf.fingerprint])
        assert f"code version {ours}, here {ours + 1}" in str(refused.value)
        monkeypatch.undo()
        assert leaf.fingerprint in nodes.load(connection, [leaf.fingerprint])


# --- what cannot travel --------------------------------------------------------------------------


def halves(text: str) -> list[str]:
    return [text[: len(text) // 2], text[len(text) // 2 :]]


def test_what_only_this_process_can_make(build: Callable[[TrialSpec], Node]) -> None:
    def chunk_of(spec: ChunkSpec) -> Node:
        return build(TrialSpec(chunk=spec, retrieve=Bm25(k=9))).node("chunks")

    bound = [spec for spec in CHUNKS if nodes.bound_to_process(chunk_of(spec))]
    assert bound == [Given()]
    own = build(TrialSpec(chunk=Python.of(halves), retrieve=Bm25(k=9)))
    assert [node.kind for node in own.walk() if nodes.bound_to_process(node)] == ["chunk"]


def test_a_function_does_not_travel_but_its_name_and_source_do(
    runtime: Runtime, build: Callable[[TrialSpec], Node]
) -> None:
    own = build(TrialSpec(chunk=Python.of(halves), retrieve=Bm25(k=9)))
    found = saved(runtime, own)[own.node("chunks").fingerprint]
    assert found.identity == own.node("chunks").identity
    assert found.config.function is None
    assert found.config.source == own.node("chunks").config.source
