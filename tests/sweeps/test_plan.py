"""A plan: points, shared stages, what it warns of, and the order that loads each served model in few stretches."""

from __future__ import annotations

import functools
import itertools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from workbench.datasets import Dataset
from workbench.errors import SpecError
from workbench.parsing import parse
from workbench.pipeline import graph
from workbench.pipeline.graph import Node
from workbench.runtime import Runtime
from workbench.settings import Settings
from workbench.specs import Answer, Bm25, Hnsw, LlmRerank, Situated, SweepSpec, TrialSpec
from workbench.sweeps.plan import Plan, check_metric, order, plan, server_of

FAKE = "fake:words"


@pytest.fixture(scope="module")
def runtime(server_home: Path) -> Iterator[Runtime]:
    with Runtime(Settings(home=server_home, db_schema="t_plan")) as opened:
        yield opened


@pytest.fixture
def planned(runtime: Runtime, tiny: Dataset, words_trial: TrialSpec) -> Callable[..., Plan]:
    """Plans a sweep of given fields over the tiny dataset."""

    def make(**fields: Any) -> Plan:
        return plan(parse(SweepSpec, {"base": words_trial, **fields}), tiny, runtime)

    return make


# --- trials and what they share ------------------------------------------------------------------


def test_a_plan_has_the_stages_of_its_trials_built_alone(
    planned: Callable[..., Plan], runtime: Runtime, tiny: Dataset
) -> None:
    found = planned(
        axes={
            "chunk.tokens": [15, 30],
            "context.kind": ["none", "title"],
            "retrieve": [{"kind": "dense", "k": 10}, {"kind": "bm25", "k": 10}, {"kind": "hybrid", "k": 10}],
            "rerank": [{"kind": "none"}, {"kind": "llm", "model": FAKE}],
            "generate": [{"kind": "none"}, {"model": FAKE, "k": 2}],
        },
        include=[{"retrieve.kind": "fts", "retrieve.k": 7}],
    )
    alone = [graph.build(trial.graph.trial, tiny, runtime) for trial in found.trials]
    assert len(alone) == 2 * 2 * 3 * 2 * 2 + 1
    assert [t.graph.fingerprint for t in found.trials] == [g.fingerprint for g in alone]
    assert {n.fingerprint for n in found.nodes} == {n.fingerprint for g in alone for n in g.score.walk()}
    assert len({n.fingerprint for n in found.nodes}) == len(found.nodes)
    assert found.stages_of_a_loop == sum(len(list(g.score.walk())) for g in alone)
    # Of the grid each stage is one object, whichever trial it is reached from.
    grid = [node for trial in found.trials[:-1] for node in trial.graph.score.walk()]
    assert len({id(node) for node in grid}) == len({node.fingerprint for node in grid})


def test_what_trials_name_is_looked_at_once(
    planned: Callable[..., Plan], runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def counting(name: str) -> Callable[[Any], Mapping[str, Any]]:
        original = getattr(runtime, name)

        def identity(spec: Any) -> Mapping[str, Any]:
            asked.append(name)
            found: Mapping[str, Any] = original(spec)
            return found

        return identity

    for name in ("embedder_identity", "language_model_identity"):
        monkeypatch.setattr(runtime, name, counting(name))
    many = planned(
        base={"embed": {"model": "fake:hash-8"}, "generate": {"model": FAKE}, "chunk": {"tokenizer": "words"}},
        axes={"chunk.tokens": [10, 20, 30], "retrieve.k": list(range(5, 55))},
        metric="answered",
    )
    assert len(many.trials) == 150
    assert sorted(asked) == ["embedder_identity", "language_model_identity"]


def test_labels_name_the_values_and_paths_that_are_no_axes(planned: Callable[..., Plan]) -> None:
    found = planned(
        axes={"retrieve.kind": ["dense", "bm25"], "retrieve.k": [5, 10]},
        include=[{"retrieve.kind": "hybrid", "retrieve.legs": ["dense", "fts"]}, {}],
    )
    assert [t.label for t in found.trials] == [
        "dense / 5",
        "dense / 10",
        "bm25 / 5",
        "bm25 / 10",
        "hybrid / retrieve.legs dense + fts",
        "recursive 15 / dense",
    ]


def test_the_baseline_may_be_an_included_point(planned: Callable[..., Plan]) -> None:
    found = planned(
        axes={"retrieve.k": [5, 10]}, include=[{"retrieve.kind": "bm25"}], baseline={"retrieve.kind": "bm25"}
    )
    assert found.baseline == 2
    one = planned(axes={"lexical.k1": [1, 2.5]}, base={"retrieve": {"kind": "bm25"}}, baseline={"lexical.k1": 1.0})
    assert one.baseline == 0, "1 and 1.0 are one value"


def test_points_are_what_the_store_keeps(planned: Callable[..., Plan]) -> None:
    found = planned(
        base={"generate": {"model": FAKE, "temperature": 0.5}},
        axes={"chunk": [{"kind": "markdown", "tokens": 30, "tokenizer": "words"}], "retrieve.k": [5, 10]},
        replicates=2,
        metric="answered",
    )
    for trial in found.trials:
        again = found.sweep.trial(json.loads(json.dumps(trial.point)))
        assert again == trial.graph.trial


# --- replicates ----------------------------------------------------------------------------------


def test_replicates_repeat_what_samples_and_share_the_rest(planned: Callable[..., Plan]) -> None:
    found = planned(
        base={"generate": {"model": FAKE, "seed": 7}, "retrieve": {"kind": "bm25"}},
        axes={"generate.temperature": [0.0, 0.8]},
        replicates=3,
        metric="answered",
    )
    assert [dict(t.point) for t in found.trials] == [
        {"generate.temperature": 0.0},
        *({"generate.temperature": 0.8, "replicate": number} for number in range(3)),
    ]
    assert [t.label for t in found.trials] == ["0.0", "0.8 #1", "0.8 #2", "0.8 #3"]
    assert [t.graph.trial.generate.seed for t in found.trials] == [7, 7, 8, 9]  # type: ignore[union-attr]
    assert len({t.graph.fingerprint for t in found.trials}) == 4
    assert len({id(t.graph.hits) for t in found.trials}) == 1
    assert len(found.nodes) == 2 + 4 * 2
    assert found.warnings == ()


def test_every_stage_that_samples_gets_another_seed(planned: Callable[..., Plan], words_trial: TrialSpec) -> None:
    trial = words_trial.varied(
        {
            "context": Situated(model=FAKE, temperature=1.0, seed=3),
            "rerank": LlmRerank(model=FAKE, temperature=0.1),
            "generate": Answer(model=FAKE),
        }
    )
    assert trial.sampling == ("context", "rerank")
    first, second = (t.graph for t in planned(base=trial, replicates=2).trials)
    assert first.trial == trial
    assert second.trial == trial.varied({"context.seed": 4, "rerank.seed": 1})
    assert first.chunk is second.chunk
    kinds = [{n.kind for n in g.score.walk()} for g in (first, second)]
    same = {n.fingerprint for n in first.score.walk()} & {n.fingerprint for n in second.score.walk()}
    assert kinds[0] == kinds[1]
    assert {n.kind for n in first.score.walk() if n.fingerprint in same} == {"chunk", "embed"}
    assert [n.label for n in first.score.walk() if n.fingerprint in same] == ["recursive", "query"]


def test_replicates_without_sampling_are_refused(planned: Callable[..., Plan]) -> None:
    with pytest.raises(SpecError, match="no stage of any trial samples"):
        planned(axes={"retrieve.k": [5, 10]}, replicates=2)


def test_a_seed_that_cannot_be_raised_is_refused(planned: Callable[..., Plan]) -> None:
    with pytest.raises(SpecError, match=r"generate\.seed"):
        planned(
            base={"generate": {"model": FAKE, "temperature": 1, "seed": 2**31 - 1}}, replicates=2, metric="answered"
        )


# --- refusals and warnings -----------------------------------------------------------------------


def test_an_axis_without_effect_is_named(planned: Callable[..., Plan]) -> None:
    found = planned(axes={"retrieve.ef_search": [50, 60], "retrieve.k": [5, 10], "lexical.b": [0.1, 0.2]})
    assert found.warnings == (
        "inert axis 'retrieve.ef_search': no stage of any trial depends on it",
        "inert axis 'lexical.b': no stage of any trial depends on it",
    )
    assert len({t.graph.fingerprint for t in found.trials}) == 2


def test_an_axis_that_counts_somewhere_is_not_inert(planned: Callable[..., Plan]) -> None:
    found = planned(axes={"index.kind": ["exact", "hnsw"], "retrieve.ef_search": [50, 60, 70]})
    assert found.warnings == (
        "2 trials are the same as another, stage by stage: 'exact / 50' = 'exact / 60' = 'exact / 70'",
    )
    assert planned(axes={"index.kind": ["exact", "hnsw"], "retrieve.k": [5, 6]}).warnings == ()


def test_an_axis_of_one_value_is_not_called_inert(planned: Callable[..., Plan]) -> None:
    assert planned(axes={"lexical.b": [0.1], "retrieve.k": [5, 6]}).warnings == ()


def test_a_point_that_repeats_another_is_named(planned: Callable[..., Plan]) -> None:
    found = planned(axes={"retrieve.k": [5, 10]}, include=[{"chunk.tokens": 15}])
    assert found.warnings == ("1 trial is the same as another, stage by stage: '10' = 'chunk.tokens 15'",), (
        "the base has 15 tokens and k = 10"
    )
    both = planned(
        axes={"lexical.b": [0.1, 0.2], "index.kind": ["exact", "hnsw"], "index.m": [8]},
        exclude=[{"index.kind": "exact"}],
    )
    assert both.warnings == ("inert axis 'lexical.b': no stage of any trial depends on it",)


def test_many_equal_trials_are_counted_and_some_are_named(planned: Callable[..., Plan]) -> None:
    found = planned(
        axes={"index.kind": ["exact", "hnsw"], "retrieve.k": list(range(5, 13)), "retrieve.ef_search": [50, 60]}
    )
    (warning,) = found.warnings
    assert warning.startswith("8 trials are the same as another, stage by stage: 'exact / 5 / 50' = 'exact / 5 / 60'; ")
    assert warning.endswith("'exact / 9 / 60' and 3 more")


def test_the_metric_is_checked_on_every_trial(tiny: Dataset) -> None:
    trials = [TrialSpec(retrieve=Bm25(k=k)) for k in (10, 3)]
    check_metric("recall@5", trials[:1], tiny)
    with pytest.raises(SpecError, match=r"k = 5 is not in \[1, 3\]|k = 5 is not in \[1\]"):
        check_metric("recall@5", trials, tiny)


# --- the order of stages -------------------------------------------------------------------------

MODELS = ("a", "b", "c")


def stages(shape: Sequence[tuple[str | None, set[int]]]) -> list[Node]:
    """Nodes, each with the model it asks and the positions of its inputs."""
    nodes: list[Node] = []
    for number, (model, inputs) in enumerate(shape):
        config = None if model is None else Answer(model=model, k=number + 1)
        nodes.append(
            Node("generate", str(number), config, 1, {"no": number}, {f"i{i}": nodes[i] for i in sorted(inputs)})
        )
    return nodes


@st.composite
def shapes(draw: st.DrawFn, models: int, most: int) -> list[tuple[str | None, set[int]]]:
    count = draw(st.integers(1, most))
    asked = st.sampled_from([None, *MODELS[:models]])
    return [(draw(asked), draw(st.sets(st.integers(0, i - 1), max_size=3)) if i else set()) for i in range(count)]


def loads(nodes: Sequence[Node]) -> int:
    """How often a model is loaded when stages run in this order."""
    return len(list(itertools.groupby(n.config.model for n in nodes if n.config is not None)))


def fewest_loads(shape: Sequence[tuple[str | None, set[int]]]) -> int:
    """The minimum over all orders that have inputs first, by exhaustion."""
    whole = frozenset(range(len(shape)))

    @functools.cache
    def rest(done: frozenset[int], current: str | None) -> int:
        if done == whole:
            return 0
        costs = []
        for number in whole - done:
            model, inputs = shape[number]
            if inputs <= done:
                loaded = int(model is not None and model != current)
                costs.append(loaded + rest(done | {number}, current if model is None else model))
        return min(costs)

    return rest(frozenset(), None)


@given(shapes(models=3, most=12))
def test_an_order_has_inputs_first_and_each_stage_once(shape: list[tuple[str | None, set[int]]]) -> None:
    nodes = stages(shape)
    found = order(nodes)
    assert sorted(n.fingerprint for n in found) == sorted(n.fingerprint for n in nodes)
    place = {n.fingerprint: i for i, n in enumerate(found)}
    assert all(place[i] < place[n.fingerprint] for n in nodes for i in n.input_fingerprints.values())
    assert order(nodes) == found


@settings(max_examples=200)
@given(shapes(models=2, most=8))
def test_with_two_models_no_order_loads_less_often(shape: list[tuple[str | None, set[int]]]) -> None:
    assert loads(order(stages(shape))) == fewest_loads(shape)


@given(shapes(models=3, most=10))
def test_a_model_is_left_only_when_nothing_that_asks_it_is_ready(shape: list[tuple[str | None, set[int]]]) -> None:
    found = order(stages(shape))
    done: set[str] = set()
    current: str | None = None
    for position, node in enumerate(found):
        rest = [n for n in found[position:] if set(n.input_fingerprints.values()) <= done]
        waiting = {n.config and n.config.model for n in rest}
        model = node.config and node.config.model
        if model is not None:
            assert None not in waiting, "what asks no model goes first"
            assert model == current or current not in waiting
            current = model
        done.add(node.fingerprint)


@given(shapes(models=0, most=12))
def test_without_models_the_order_is_the_given_one(shape: list[tuple[str | None, set[int]]]) -> None:
    assert order(nodes := stages(shape)) == tuple(nodes)


def test_inputs_that_are_not_there_count_as_done() -> None:
    nodes = stages([(None, set()), ("a", {0}), ("a", {0, 1})])
    assert order(nodes[1:]) == tuple(nodes[1:])
    assert order([]) == ()


def test_the_order_of_an_everyday_sweep(planned: Callable[..., Plan]) -> None:
    """Contexts of a small model, reranking by a large one, answers of both: three loads, whatever trial is first."""
    small, large = {"model": FAKE, "max_model_len": 2048}, {"model": FAKE}
    found = planned(
        base={"retrieve": {"kind": "bm25", "k": 5}, "chunk": {"tokenizer": "words"}},
        axes={
            "rerank": [{"kind": "llm", **large}, {"kind": "none"}],
            "context": [{"kind": "none"}, {"kind": "situated", **small}],
            "generate": [{"kind": "none"}, small, large],
        },
        include=[{"context": {"kind": "summary", **small}}],
    )
    served = [server_of(node) for node in found.nodes if server_of(node)]
    assert len(set(served)) == 2
    assert len(list(itertools.groupby(served))) == 3
    assert found.nodes[0].kind == "chunk"


def test_only_what_changes_the_server_makes_another_one() -> None:
    def server(**answer: Any) -> str | None:
        return server_of(Node("generate", "answer", Answer(**answer), 1, {}, {}))

    for same in ({"k": 3}, {"temperature": 0.5}, {"max_tokens": 3}, {"concurrency": 2}, {"tokenizer": "words"}):
        assert server(**same) == server(), same
    for other in ({"model": "x"}, {"dtype": "float16"}, {"max_model_len": 99}, {"prefix_caching": False}):
        assert server(**other) != server(), other
    asked = {server_of(Node("context", "", spec, 1, {}, {})) for spec in (Answer(), Situated(), LlmRerank())}
    assert len(asked) == 1, "what is asked for is not the server's business"
    assert server_of(Node("index", "hnsw", Hnsw(), 1, {}, {})) is None
