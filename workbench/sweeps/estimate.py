"""What a plan would cost: items, calls, tokens, seconds and money of the stages that are not done yet.

Nothing is guessed that only a machine can tell: seconds come from past stages of the same kind and model in
this store, and where there are none they are unknown. The other figures are upper bounds of what is expected:
the store may hold some of the items already.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

from workbench.datasets import Dataset
from workbench.pipeline.graph import Node
from workbench.records import Document
from workbench.runtime import Runtime
from workbench.settings import Price
from workbench.specs import (
    Answer,
    Fixed,
    LlmRerank,
    QueryLikelihood,
    Served,
    Situated,
    Summary,
    canonical_json,
)
from workbench.stages.reranking import window_spans
from workbench.store.database import Database
from workbench.store.ledger import StageRow
from workbench.sweeps.plan import Plan

if TYPE_CHECKING:
    from workbench.models.protocols import Tokenizer

LATEST = 20
"""Past stages of a kind that its rates come from."""
CHARACTERS_PER_CHUNK = 800
"""Where a chunker has no size in tokens."""
FULL = 0.8
"""Of a chunk's size, what is filled where chunks end at sentences, paragraphs or sections."""
CHARACTERS_PER_TOKEN = 4
"""Of English in the vocabulary of a language model, roughly."""
_SAMPLED = 50
"""Documents whose first `_CHARACTERS` tell how long a chunker's tokens are."""
_CHARACTERS = 1000


@dataclass(frozen=True, slots=True)
class Cost:
    """What stages are expected to take at most. None is unknown: no past stage, or no price."""

    items: int = 0
    calls: int = 0
    prompt_tokens: int = 0
    output_tokens: int = 0
    seconds: float | None = None
    money: float | None = None


@dataclass(frozen=True, slots=True)
class KindEstimate:
    """The stages of one kind. `cost` is of those that are not done; `rough` says that it rests on a spec alone:
    on chunks that are not cut yet, or on tokens that no past call has shown."""

    kind: str
    label: str
    stages: int
    done: int
    cost: Cost
    rough: bool

    @property
    def name(self) -> str:
        return self.kind if self.kind == self.label else f"{self.kind} {self.label}"

    def as_json(self) -> dict[str, Any]:
        place = {name: getattr(self, name) for name in ("kind", "label", "stages", "done")}
        return {**place, **dataclasses.asdict(self.cost), "rough": self.rough}


@dataclass(frozen=True)
class Estimate:
    """A plan with its expected cost.

    `unknown` are the kinds of which some stages have no past, so that their seconds are missing in the total;
    `unpriced` the models whose money is.
    """

    plan: Plan
    kinds: tuple[KindEstimate, ...]
    total: Cost
    unknown: tuple[str, ...]
    unpriced: tuple[str, ...]

    @property
    def rough(self) -> bool:
        return any(kind.rough for kind in self.kinds)

    @property
    def done(self) -> int:
        """Unique stages that are in the store."""
        return sum(kind.done for kind in self.kinds)

    def as_json(self) -> dict[str, Any]:
        """The JSON object of `workbench plan` (docs/sweeps.md)."""
        plan, unique = self.plan, len(self.plan.nodes)
        expected = {**dataclasses.asdict(self.total), "unknown": list(self.unknown), "unpriced": list(self.unpriced)}
        return {
            "sweep": plan.name,
            "dataset": plan.dataset.name,
            "question": plan.sweep.question,
            "metric": plan.sweep.metric,
            "baseline": plan.trials[plan.baseline].label,
            "trials": len(plan.trials),
            "labels": [trial.label for trial in plan.trials],
            "stages": {"unique": unique, "loop": plan.stages_of_a_loop, "done": self.done, "todo": unique - self.done},
            "expected": expected,
            "by_kind": [kind.as_json() for kind in self.kinds],
            "warnings": list(plan.warnings),
        }


_Kind = tuple[str, str]


def estimate(plan: Plan, runtime: Runtime) -> Estimate:
    """What is done of a plan and what the rest is expected to cost; the store is only read."""
    done = runtime.ledger.done([node.fingerprint for node in plan.nodes])

    @functools.cache
    def characters_per_token(tokenizer: str) -> float:
        return _characters_per_token(runtime.tokenizer(tokenizer), plan.dataset.documents)

    costs = _Costs(plan.dataset, done, read_past(runtime.database), runtime.settings.prices, characters_per_token)
    stages: Counter[_Kind] = Counter()
    found: Counter[_Kind] = Counter()
    todo: dict[_Kind, list[_Stage]] = {}
    for node in plan.nodes:
        kind: _Kind = (node.kind, node.label)
        stages[kind] += 1
        if node.fingerprint in done:
            found[kind] += 1
        else:
            todo.setdefault(kind, []).append(costs.of(node))
    kinds = []
    for kind, count in stages.items():
        each = todo.get(kind, [])
        whole = _sum([stage.cost for stage in each])
        if any(stage.cost.seconds is None for stage in each):  # a part of the stages would look like all of them
            whole = dataclasses.replace(whole, seconds=None)
        if any(stage.cost.money is None for stage in each):
            whole = dataclasses.replace(whole, money=None)
        kinds.append(KindEstimate(*kind, count, found[kind], whole, any(stage.rough for stage in each)))
    rest = [stage for each in todo.values() for stage in each]
    return Estimate(
        plan,
        tuple(kinds),
        _sum([stage.cost for stage in rest]),
        tuple(kind.name for kind in kinds if kind.cost.seconds is None),
        tuple(dict.fromkeys(stage.model for stage in rest if stage.model and stage.cost.money is None)),
    )


# --- the past ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Past:
    """What the latest stages of one kind and model took. Tokens are means of a call; None where none was made."""

    seconds_per_item: float
    prompt_tokens: float | None
    output_tokens: float | None
    cached: float | None
    """The share of prompt tokens that came from the service's cache."""


Model = str | None
"""The identity of a model as canonical JSON; None where a stage has no model."""


def read_past(database: Database) -> dict[tuple[str, str, Model], Past]:
    """By kind, label and model: rates of the latest `LATEST` stages that computed anything."""
    with database.transaction() as connection:
        rows = connection.execute(
            "WITH past AS ("
            "   SELECT kind, coalesce(spec->>'kind', spec->>'role', kind) AS label,"
            "     coalesce(spec->'language_model', spec->'weights') AS model,"
            "     seconds, computed, details->'calls' AS calls, finished_at, stage_id"
            "   FROM stage WHERE state = 'done' AND computed > 0"
            " ), ranked AS ("
            "   SELECT *, row_number() OVER (PARTITION BY kind, label, model ORDER BY finished_at DESC, stage_id DESC)"
            "     AS age FROM past"
            " )"
            " SELECT kind, label, model, sum(seconds), sum(computed)::int8, sum((calls->>'calls')::int8)::int8,"
            "   sum((calls->>'prompt_tokens')::int8)::int8, sum((calls->>'output_tokens')::int8)::int8,"
            "   sum((calls->>'cached_tokens')::int8)::int8,"
            "   sum((calls->>'prompt_tokens')::int8) FILTER (WHERE calls->>'cached_tokens' IS NOT NULL)::int8"
            " FROM ranked WHERE age <= %s GROUP BY kind, label, model",
            [LATEST],
        ).fetchall()
    found = {}
    for kind, label, model, seconds, computed, calls, prompt, output, cached, counted in rows:
        found[kind, label, None if model is None else canonical_json(model)] = Past(
            seconds / computed,
            prompt / calls if calls else None,
            output / calls if calls else None,
            cached / counted if counted else None,
        )
    return found


# --- one stage -----------------------------------------------------------------------------------


class _Stage(NamedTuple):
    cost: Cost
    rough: bool
    model: str | None
    """The name of the language model that it asks."""


class _Chunks(NamedTuple):
    number: int
    tokens: float
    """Of a chunk, on the average."""
    rough: bool


@dataclass(frozen=True)
class _Costs:
    """What stages of one dataset cost."""

    dataset: Dataset
    done: Mapping[str, StageRow]
    past: Mapping[tuple[str, str, Model], Past]
    prices: Mapping[str, Price]
    characters_per_token: Callable[[str], float]
    """Of a chunker's tokenizer, by its name."""
    _cut: dict[str, _Chunks] = field(default_factory=dict)

    @cached_property
    def lengths(self) -> list[int]:
        return [len(document.text) for document in self.dataset.documents]

    @cached_property
    def question(self) -> float:
        """Tokens of a question, on the average."""
        lengths = [len(query.text) for query in self.dataset.queries]
        return sum(lengths) / max(1, len(lengths)) / CHARACTERS_PER_TOKEN

    def of(self, node: Node) -> _Stage:
        """The cost of a stage that is not done."""
        identity = node.identity.get("language_model", node.identity.get("weights"))
        past = self.past.get((node.kind, node.label, None if identity is None else canonical_json(identity)))
        items, rough = self._items(node)
        cost = Cost(items=items, seconds=None if past is None else items * past.seconds_per_item, money=0.0)
        spec = node.config
        if not isinstance(spec, Served):
            return _Stage(cost, rough, None)
        prompt, output = self._tokens(node)
        if past is None or past.prompt_tokens is None or past.output_tokens is None:
            rough = True
        else:
            prompt, output = past.prompt_tokens, past.output_tokens
        tokens = math.ceil(items * prompt), math.ceil(items * output)
        price = self.prices.get(spec.model)
        money = None if price is None else _money(price, *tokens, past.cached if past else None)
        cost = dataclasses.replace(cost, calls=items, prompt_tokens=tokens[0], output_tokens=tokens[1], money=money)
        return _Stage(cost, rough, spec.model)

    def _items(self, node: Node) -> tuple[int, bool]:
        """How many items a stage has, and whether that is an estimate."""
        documents, queries, spec = len(self.lengths), len(self.dataset.queries), node.config
        if node.kind == "chunk" or isinstance(spec, Summary):
            return documents, False
        if node.kind in ("context", "index") or (node.kind, node.label) == ("embed", "passage"):
            chunks = self._chunks(_chunk_stage(node))
            return chunks.number, chunks.rough
        if node.kind == "rerank":
            chunks, candidates = self._chunks(node.node("chunks")), _candidates(node)
            rough = chunks.rough and chunks.number < candidates
            each = min(candidates, chunks.number)
            if isinstance(spec, LlmRerank) and spec.mode == "listwise":
                each = len(window_spans(each, spec.window, spec.step))
            return queries * each, rough
        return queries, False

    def _chunks(self, node: Node) -> _Chunks:
        """The chunks of a chunk stage: those in the store, or an estimate from its size in tokens."""
        if node.fingerprint not in self._cut:
            self._cut[node.fingerprint] = self._count(node)
        return self._cut[node.fingerprint]

    def _count(self, node: Node) -> _Chunks:
        if row := self.done.get(node.fingerprint):
            count, characters = row.details["chunks"], row.details["characters"]
            return _Chunks(count, characters / count / CHARACTERS_PER_TOKEN, False)
        spec, size = node.config, float(CHARACTERS_PER_CHUNK)
        step = size
        if hasattr(spec, "tokens"):
            token = self.characters_per_token(spec.tokenizer) * (1 if type(spec) is Fixed else FULL)
            size, step = spec.tokens * token, (spec.tokens - getattr(spec, "overlap", 0)) * token
        number = sum(1 + max(0, math.ceil((length - size) / step)) for length in self.lengths)
        return _Chunks(number, min(size, sum(self.lengths) / number) / CHARACTERS_PER_TOKEN, True)

    def _tokens(self, node: Node) -> tuple[float, float]:
        """Prompt and most output tokens of a call by its spec alone, at `CHARACTERS_PER_TOKEN`."""
        spec, chunk = node.config, self._chunks(node.node("chunks")).tokens
        output = 1 if isinstance(spec, QueryLikelihood) else spec.max_tokens
        shown = self.question
        if isinstance(spec, Summary | Situated):
            # A chunk of a long document is more probable than one of a short one; a summary is of each.
            weights = self.lengths if isinstance(spec, Situated) else [1] * len(self.lengths)
            parts = (w * min(n / CHARACTERS_PER_TOKEN, spec.window) for w, n in zip(weights, self.lengths, strict=True))
            shown = sum(parts) / sum(weights) + (chunk if isinstance(spec, Situated) else 0)
        elif isinstance(spec, Answer):
            shown += spec.k * chunk
        else:
            size = min(spec.window, _candidates(node)) if isinstance(spec, LlmRerank) and spec.mode == "listwise" else 1
            shown += size * min(chunk, spec.passage_tokens)
            if size > 1:
                output = max(output, 16 + 5 * size)  # what a window of this size asks for
        prompt = node.prompt
        template = (len(prompt.system) + len(prompt.user)) / CHARACTERS_PER_TOKEN if prompt else 0
        return min(template + shown, spec.max_model_len - output), output


def _characters_per_token(tokenizer: Tokenizer, documents: Sequence[Document]) -> float:
    sample = [d.text[:_CHARACTERS] for d in documents[:: max(1, len(documents) // _SAMPLED)]]
    return sum(map(len, sample)) / max(1, sum(len(tokenizer.spans(text)) for text in sample))


def _chunk_stage(node: Node) -> Node:
    """The chunks that a context, passage or index stage is made of."""
    while node.kind != "chunk":
        node = next(node.node(name) for name in ("vectors", "texts", "chunks") if name in node.inputs)
    return node


def _candidates(node: Node) -> int:
    """How many hits of a query a rerank stage looks at."""
    retrieved = node.node("hits").config
    k = retrieved[0].k if isinstance(retrieved, tuple) else retrieved.k
    return min(int(node.config.depth), int(k))


def _money(price: Price, prompt: int, output: int, cached: float | None) -> float:
    share = cached if cached is not None and price.cached is not None else 0.0
    per_token = (1 - share) * price.input + share * (price.cached or 0.0)
    return (prompt * per_token + output * price.output) / 1_000_000


def _sum(costs: Sequence[Cost]) -> Cost:
    return Cost(
        sum(cost.items for cost in costs),
        sum(cost.calls for cost in costs),
        sum(cost.prompt_tokens for cost in costs),
        sum(cost.output_tokens for cost in costs),
        _known([cost.seconds for cost in costs]),
        _known([cost.money for cost in costs if cost.calls]),
    )


def _known(values: Sequence[float | None]) -> float | None:
    """The sum of what is known; None where there is something and nothing of it is known."""
    known = [value for value in values if value is not None]
    return math.fsum(known) if known or not values else None
