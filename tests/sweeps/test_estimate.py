"""Estimates: exact where the store tells, upper bounds else, unknown where nothing is known; nothing is written."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

import pytest

from workbench import datasets, display_plan
from workbench.datasets import Dataset
from workbench.errors import SpecError
from workbench.lab import Lab
from workbench.models.tokenizers import load_tokenizer
from workbench.parsing import parse
from workbench.settings import Price, Settings
from workbench.specs import (
    Answer,
    Bm25,
    Fixed,
    LlmRerank,
    Markdown,
    NoRerank,
    QueryLikelihood,
    Recursive,
    Sentence,
    Situated,
    Spec,
    Summary,
    SweepSpec,
    Title,
    TrialSpec,
)
from workbench.stages.chunking import build
from workbench.store.ledger import Begun
from workbench.sweeps.estimate import LATEST, Estimate, KindEstimate, estimate, read_past

FAKE = "fake:words"


@pytest.fixture
def estimated(lab: Lab, tiny: Dataset, bm25_trial: TrialSpec) -> Callable[..., Estimate]:
    """Plans a sweep of given fields over the tiny dataset and estimates it."""

    def make(data: Dataset = tiny, **fields: Any) -> Estimate:
        sweep = parse(SweepSpec, {"base": bm25_trial, "metric": "mrr", **fields})
        return estimate(lab.plan(sweep, data, name="sizes"), lab.runtime)

    return make


def kind(found: Estimate, name: str) -> KindEstimate:
    return next(k for k in found.kinds if k.name == name)


def rows(lab: Lab) -> dict[str, int]:
    """Rows of every table."""
    with lab.runtime.database.transaction() as connection:
        names = connection.execute(
            "SELECT table_name FROM information_schema.tables WHERE table_schema = current_schema()"
        ).fetchall()
        counts = {name: connection.execute(f'SELECT count(*) FROM "{name}"').fetchone() for (name,) in names}
    return {name: row[0] for name, row in counts.items() if row}


# --- what is done and what is known --------------------------------------------------------------


def test_without_a_past_no_time_is_named(estimated: Callable[..., Estimate], lab: Lab, tiny: Dataset) -> None:
    before = rows(lab)
    found = estimated(axes={"retrieve.kind": ["bm25", "dense"], "context": [{"kind": "none"}, {"kind": "title"}]})
    assert rows(lab) == before
    assert found.done == 0
    assert found.total.seconds is None
    assert set(found.unknown) == {k.name for k in found.kinds}
    assert {k.cost.seconds for k in found.kinds} == {None}
    assert kind(found, "chunk recursive").cost.items == len(tiny.documents)
    assert kind(found, "embed query").cost.items == len(tiny.queries)
    assert kind(found, "retrieve bm25").cost.items == 2 * len(tiny.queries)
    assert kind(found, "score").cost.items == 4 * len(tiny.queries)
    assert kind(found, "embed passage").rough, "the chunks are not cut yet"
    assert not kind(found, "score").rough
    assert (found.total.calls, found.total.money, found.unpriced) == (0, 0.0, ())


def test_what_is_done_costs_nothing(estimated: Callable[..., Estimate], lab: Lab, tiny: Dataset) -> None:
    sweep = {"axes": {"chunk.tokens": [15, 30], "retrieve.k": [5, 10]}}
    planned = estimated(**sweep)
    lab.run(planned.plan.trials[0].graph.trial, tiny)
    some = estimated(**sweep)
    assert some.done == 3
    assert [(k.name, k.stages, k.done) for k in some.kinds] == [
        ("chunk recursive", 2, 1),
        ("retrieve bm25", 4, 1),
        ("score", 4, 1),
    ]
    assert some.total.items == len(tiny.documents) + 2 * 3 * len(tiny.queries)
    lab.run_sweep(some.plan)
    whole = estimated(**sweep)
    assert whole.done == len(whole.plan.nodes) == 2 + 4 + 4
    assert (whole.total.items, whole.total.seconds, whole.total.money, whole.unknown) == (0, 0.0, 0.0, ())
    assert not whole.rough


def test_seconds_are_those_of_the_same_kind(estimated: Callable[..., Estimate], lab: Lab, tiny: Dataset) -> None:
    first = estimated()
    lab.run_sweep(first.plan)
    done = lab.runtime.ledger.done([n.fingerprint for n in first.plan.nodes])
    rate = {row.kind: row.seconds / row.computed for row in done.values()}
    found = estimated(axes={"retrieve.k": [5, 7], "context": [{"kind": "none"}, {"kind": "title"}]})
    assert found.unknown == ("context title",)
    assert kind(found, "context title").cost.seconds is None
    assert not kind(found, "context title").rough, "the chunks are there"
    assert kind(found, "retrieve bm25").cost.seconds == pytest.approx(rate["retrieve"] * 4 * len(tiny.queries))
    assert found.total.seconds == pytest.approx((rate["retrieve"] + rate["score"]) * 4 * len(tiny.queries))


def test_rates_are_of_the_latest_stages_that_computed_anything(lab: Lab) -> None:
    ledger = lab.runtime.ledger

    def past(number: int, seconds: float, computed: int, label: str = "a") -> None:
        begun = ledger.begin(f"{number:064x}", "chunk", 1, {"kind": label}, {})
        assert isinstance(begun, Begun)
        calls = {"calls": 2, "prompt_tokens": 10 * number, "output_tokens": 6, "cached_tokens": None}
        ledger.finish(begun, lambda *_: {"calls": calls}, items=9, computed=computed, seconds=lambda: seconds)

    for number in range(3):
        past(number, 1000.0, 1)
    for number in range(10, 10 + LATEST):
        past(number, 2.0, 4)
    past(90, 5000.0, 0)
    past(91, 7.0, 7, label="b")
    found = read_past(lab.runtime.database)
    assert set(found) == {("chunk", "a", None), ("chunk", "b", None)}
    one = found["chunk", "a", None]
    assert one.seconds_per_item == 0.5
    assert one.prompt_tokens == sum(10 * n for n in range(10, 10 + LATEST)) / (2 * LATEST)
    assert (one.output_tokens, one.cached) == (3, None)


# --- chunks --------------------------------------------------------------------------------------


CHUNKERS: list[tuple[Any, float]] = [
    (Fixed(tokens=150, tokenizer="words"), 0.1),
    (Fixed(tokens=150, tokenizer="words", overlap=60), 0.1),
    (Recursive(tokens=150, tokenizer="words"), 0.3),
    (Recursive(tokens=150, tokenizer="words", overlap=40), 0.3),
    (Sentence(tokens=150, tokenizer="characters"), 0.3),
    (Sentence(tokens=150, tokenizer="words", overlap=40), 0.3),
    (Markdown(tokens=150, tokenizer="words"), 0.3),
]


@pytest.mark.parametrize(("spec", "within"), CHUNKERS, ids=lambda v: getattr(v, "kind", ""))
def test_chunks_are_about_as_many_as_expected(lab: Lab, spec: Any, within: float) -> None:
    data = datasets.load("handbook")
    trial = TrialSpec(chunk=spec, context=Title(), retrieve=Bm25(k=5))
    expected = kind(estimate(lab.plan(SweepSpec(base=trial), data), lab.runtime), "context title").cost.items
    cut = build(spec, load_tokenizer(spec.tokenizer), None)
    assert expected == pytest.approx(sum(len(cut(d)) for d in data.documents), rel=within)


def test_a_chunker_without_a_size_is_estimated_by_characters(estimated: Callable[..., Estimate], tiny: Dataset) -> None:
    own = {"kind": "python", "target": "textwrap:dedent"}
    found = kind(estimated(base={"chunk": own, "retrieve": {"kind": "fts"}}), "index fts")
    assert found.rough
    assert found.cost.items == sum(math.ceil(len(d.text) / 800) for d in tiny.documents)


# --- model calls ---------------------------------------------------------------------------------

ASKING: list[tuple[str, Spec]] = [
    ("context", Summary(model=FAKE)),
    ("context", Situated(model=FAKE)),
    ("rerank", QueryLikelihood(model=FAKE, depth=4, k=4)),
    ("rerank", LlmRerank(model=FAKE, mode="pointwise", depth=50, k=4)),
    ("rerank", LlmRerank(model=FAKE, depth=9, k=4, window=4, step=2)),
    ("generate", Answer(model=FAKE, k=3)),
]


@pytest.mark.parametrize(("stage", "spec"), ASKING, ids=lambda v: v if isinstance(v, str) else type(v).__name__)
def test_calls_are_at_most_those_expected_and_tokens_near(
    estimated: Callable[..., Estimate], lab: Lab, tiny: Dataset, bm25_trial: TrialSpec, stage: str, spec: Spec
) -> None:
    lab.run(bm25_trial, tiny)  # the chunks are known then
    trial = bm25_trial.vary(stage, spec)
    found = estimated(base=trial)
    (asking,) = (k for k in found.kinds if k.cost.calls)
    assert asking.rough, "no call has shown its tokens"
    calls = lab.run(trial, tiny).calls
    assert 0.8 * asking.cost.calls <= calls["live"] <= asking.cost.calls
    # The fake counts words of six letters and says little; what matters is that nothing large is left out.
    assert asking.cost.prompt_tokens / 2.5 <= calls["prompt_tokens"] <= asking.cost.prompt_tokens
    assert calls["output_tokens"] <= asking.cost.output_tokens
    assert found.total.calls == asking.cost.calls


def test_tokens_and_seconds_come_from_past_calls_of_the_same_model(
    estimated: Callable[..., Estimate], lab: Lab, tiny: Dataset, bm25_trial: TrialSpec
) -> None:
    first = bm25_trial.vary("generate", Answer(model=FAKE, k=2))
    calls = lab.run(first, tiny).calls
    lab.run(bm25_trial.vary("retrieve.k", 9), tiny)
    found = estimated(base=first.vary("retrieve.k", 9))
    asking = kind(found, "generate answer")
    assert not asking.rough
    assert asking.cost.calls == len(tiny.queries)
    assert asking.cost.prompt_tokens == calls["prompt_tokens"] / calls["live"] * len(tiny.queries)
    assert asking.cost.output_tokens == calls["output_tokens"] / calls["live"] * len(tiny.queries)
    assert asking.cost.seconds is not None
    assert found.unknown == ()
    other = estimated(base=first.vary("generate.max_model_len", 2048))
    assert kind(other, "generate answer").rough, "another window is another model"
    assert other.unknown == ("generate answer",)
    both = estimated(base=first, axes={"generate.max_model_len": [4096, 2048], "generate.k": [1]})
    assert kind(both, "generate answer").cost.seconds is None, "half of the stages would look like all of them"
    assert both.total.seconds is not None


def test_money_is_tokens_times_prices(open_lab: Callable[..., Lab], tiny: Dataset, bm25_trial: TrialSpec) -> None:
    other = f"{FAKE}?delay=0"
    answers = ({"kind": "answer", "model": FAKE}, {"kind": "answer", "model": other, "max_model_len": 2048})
    sweep = SweepSpec(base=bm25_trial, metric="mrr", axes={"generate": answers})
    free = open_lab()
    none = estimate(free.plan(sweep, tiny), free.runtime)
    assert (none.total.money, none.unpriced) == (None, (FAKE, other))
    lab = open_lab(prices={FAKE: Price(input=2, output=10, cached=0.5)})
    found = estimate(lab.plan(sweep, tiny), lab.runtime)
    prompt, output = found.total.prompt_tokens / 2, found.total.output_tokens / 2
    assert found.total.money == pytest.approx((2 * prompt + 10 * output) / 1e6), "no past: nothing is cached"
    assert found.unpriced == (other,)
    assert kind(found, "generate answer").cost.money is None


def test_what_a_cache_found_costs_its_own_price(
    open_lab: Callable[..., Lab], tiny: Dataset, bm25_trial: TrialSpec
) -> None:
    lab = open_lab(prices={FAKE: Price(input=2, output=10, cached=0.5)})
    trial = bm25_trial.vary("generate", Answer(model=FAKE))
    calls = lab.run(trial, tiny).calls
    share = calls["cached_tokens"] / calls["prompt_tokens"]
    assert 0 < share < 1
    cost = estimate(lab.plan(SweepSpec(base=trial.vary("retrieve.k", 9)), tiny), lab.runtime).total
    prompt = cost.prompt_tokens * ((1 - share) * 2 + share * 0.5)
    assert cost.money == pytest.approx((prompt + cost.output_tokens * 10) / 1e6)


# --- prices --------------------------------------------------------------------------------------


def test_prices_are_read_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORKBENCH_PRICES", '{"some/model": {"input": 0.15, "output": 1, "cached": 0.075}}')
    assert Settings.read().prices == {"some/model": Price(input=0.15, output=1.0, cached=0.075)}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "WORKBENCH_PRICES: this is no JSON"),
        ("3", "WORKBENCH_PRICES: Input should be a valid"),
        ('{"m": {"input": 1}}', "WORKBENCH_PRICES.m.output: Field required"),
        ('{"m": {"input": "1", "output": 1}}', "WORKBENCH_PRICES.m.input: Input should be a valid number"),
        ('{"m": {"input": 1, "output": 1, "cache": 1}}', "WORKBENCH_PRICES.m.cache: Extra inputs"),
        ('{"m": {"input": -1, "output": 1}}', "WORKBENCH_PRICES.m.input: Input should be greater"),
        ('{"m": {"input": NaN, "output": 1}}', "WORKBENCH_PRICES.m.input: Input should be a finite"),
    ],
)
def test_prices_that_do_not_fit_are_named(monkeypatch: pytest.MonkeyPatch, text: str, message: str) -> None:
    monkeypatch.setenv("WORKBENCH_PRICES", text)
    with pytest.raises(SpecError) as caught:
        Settings.read()
    assert message in str(caught.value)


# --- how it is said ------------------------------------------------------------------------------


def test_the_json_object(estimated: Callable[..., Estimate]) -> None:
    found = estimated(axes={"lexical.b": [0.1, 0.2], "rerank": [NoRerank(), LlmRerank(model=FAKE)]}, question="why?")
    body = found.as_json()
    assert json.loads(json.dumps(body)) == body
    assert set(body) == {
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
    assert body["stages"] == {"unique": 9, "loop": 14, "done": 0, "todo": 9}
    assert (body["sweep"], body["dataset"], body["trials"], body["baseline"]) == ("sizes", "tiny", 4, "0.1 / none")
    assert set(body["expected"]) == {
        *("items", "calls", "prompt_tokens", "output_tokens", "seconds", "money"),
        *("unknown", "unpriced"),
    }
    assert body["expected"]["unpriced"] == [FAKE]
    assert sum(k["stages"] for k in body["by_kind"]) == 9


def test_a_plan_is_said_in_a_few_lines(
    estimated: Callable[..., Estimate], lab: Lab, tiny: Dataset, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep = {"axes": {"retrieve.ef_search": [5, 6], "generate": [{"kind": "none"}, {"model": FAKE}]}}
    found = estimated(**sweep, base={"retrieve": {"kind": "hybrid"}, "embed": {"model": "fake:hash-8"}})
    display_plan.show_plan(found, "the store")
    out = " ".join(capsys.readouterr().out.split())
    assert "4 trials share 10 stages; a loop over the trials would run 34. 0 are done. Expected: at most " in out
    assert "6 calls with" in out
    assert f"No price is set for {FAKE}" in out
    assert "warning: inert axis 'retrieve.ef_search'" in out
    assert "no past stage says how long these take: chunk recursive, " in out
    lab.run_sweep(found.plan)
    display_plan.show_plan(
        estimated(**sweep, base={"retrieve": {"kind": "hybrid"}, "embed": {"model": "fake:hash-8"}}), "x"
    )
    out = " ".join(capsys.readouterr().out.split())
    assert "All of them are in the store: nothing is computed." in out
    assert "seconds" not in out


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.2, "about 1 second"),
        (42.4, "about 42 seconds"),
        (840, "about 14 min"),
        (5399, "about 90 min"),
        (9000, "about 2.5 h"),
    ],
)
def test_durations_in_words(seconds: float, words: str) -> None:
    assert display_plan.duration(seconds) == words
