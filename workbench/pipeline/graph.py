"""From a trial and a dataset to a graph of stage nodes, each known by its fingerprint.

A node is pulled from its leaf: a BM25 trial has no embedding node. Two trials that agree up to a stage
have nodes of equal fingerprints there, so they share it.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Concatenate, Literal, ParamSpec, TypeVar

from workbench import evaluation
from workbench.datasets import Dataset
from workbench.errors import DatasetError, ModelError, SpecError
from workbench.evaluation import statistics
from workbench.pipeline.prompts import tried_prompt
from workbench.runtime import Runtime
from workbench.specs import (
    Bm25,
    ChunkSpec,
    ContextSpec,
    CrossEncoder,
    Dense,
    Embed,
    Exact,
    Fts,
    GenerateSpec,
    Given,
    Hnsw,
    Hybrid,
    IndexSpec,
    LateInteraction,
    Lead,
    Leg,
    Lexical,
    LlmRerank,
    NoContext,
    NoGeneration,
    NoRerank,
    Python,
    QueryLikelihood,
    RerankSpec,
    RetrieveSpec,
    ScoreSpec,
    Served,
    TrialSpec,
    fingerprint,
)
from workbench.specs.retrieval import Reader
from workbench.stages import chunking, contextual, generation, reranking
from workbench.stages.prompting import Prompt
from workbench.stages.retrieval import analyzer_identity
from workbench.store.vectors import check_dimensions

Kind = Literal["chunk", "context", "embed", "index", "retrieve", "rerank", "generate", "score"]

CODE: Mapping[Kind, int] = {
    "embed": 1,
    "index": 1,
    "retrieve": 1,
    "generate": generation.CODE_VERSION,
    "score": evaluation.CODE_VERSION,
}
"""Code version of each stage; raised when its output or a default changes. Chunkers, contexts and rerankers have one
a kind."""


def code_version(kind: Kind, label: str) -> int:
    """The code version of a kind of stage, or of one of its kinds (the node's label)."""
    kinds: Mapping[str, Mapping[str, int]] = {
        "chunk": chunking.CODE_VERSIONS,
        "context": contextual.CODE_VERSIONS,
        "rerank": reranking.CODE_VERSIONS,
    }
    return kinds[kind][label] if kind in kinds else CODE[kind]


@dataclass(frozen=True)
class Node:
    """One stage of a trial.

    `config` is the spec object that its work needs; `identity` is what of it can change the output.
    `recipe` identifies the computation without the items it is applied to, so that an item's key is
    recipe + item, and one more query or one edited document costs one item.
    """

    kind: Kind
    label: str
    config: Any
    code: int
    identity: Mapping[str, Any]
    inputs: Mapping[str, Node | str]
    recipe_inputs: Mapping[str, str] = field(default_factory=dict)
    prompt: Prompt | None = None
    """What a model is asked with, read once: a file that is edited later belongs to another node."""

    @cached_property
    def fingerprint(self) -> str:
        return fingerprint(self.kind, self.code, self.identity, self.input_fingerprints)

    @cached_property
    def recipe(self) -> str:
        return fingerprint(self.kind, self.code, self.identity, self.recipe_inputs)

    @cached_property
    def input_fingerprints(self) -> dict[str, str]:
        return {name: i.fingerprint if isinstance(i, Node) else i for name, i in self.inputs.items()}

    def node(self, name: str) -> Node:
        """An input that is a node."""
        found = self.inputs[name]
        assert isinstance(found, Node)
        return found

    def optional(self, name: str) -> Node | None:
        """An input that is a node, where there is one."""
        return self.node(name) if name in self.inputs else None

    def require_model(self, identity: Mapping[str, Any]) -> None:
        """Refuse a model that is not the one this node was planned with: results are kept under that one's name.

        Raises:
            ModelError: its files changed meanwhile.
        """
        planned = self.identity["language_model" if "language_model" in self.identity else "weights"]
        if dict(identity) != planned:
            raise ModelError("the files of the model changed since this run began", where=self.label, hint="run again")

    def walk(self) -> Iterator[Node]:
        """This node's graph, inputs before what needs them, each once."""
        return walk([self])


def walk(leaves: Iterable[Node]) -> Iterator[Node]:
    """The graphs of nodes, inputs before what needs them, each stage once."""
    seen: set[str] = set()

    def visit(node: Node) -> Iterator[Node]:
        seen.add(node.fingerprint)
        for source in node.inputs.values():
            if isinstance(source, Node) and source.fingerprint not in seen:
                yield from visit(source)
        yield node

    for leaf in leaves:
        if leaf.fingerprint not in seen:
            yield from visit(leaf)


@dataclass(frozen=True, slots=True)
class TrialGraph:
    """The nodes of a trial; `score` is the leaf, `hits` the final ranking."""

    trial: TrialSpec
    chunk: Node
    hits: Node
    answers: Node | None
    score: Node

    @property
    def fingerprint(self) -> str:
        """A trial's identity is its leaf's: tables that it does not use are not in it."""
        return self.score.fingerprint


def build(trial: TrialSpec, dataset: Dataset, runtime: Runtime) -> TrialGraph:
    """The graph of a trial over a dataset.

    Raises:
        SpecError, DatasetError, ModelError: what the trial names is not there or does not fit.
    """
    return Builder(dataset, runtime).build(trial)


_P = ParamSpec("_P")
_T = TypeVar("_T")
_BY_VALUE = (str, int, type(None))


def _once(make: Callable[Concatenate[Builder, _P], _T]) -> Callable[Concatenate[Builder, _P], _T]:
    """A method that makes a thing once of the same arguments; a spec or node is the same where it is one object."""

    @functools.wraps(make)
    def made(self: Builder, /, *args: _P.args, **kwargs: _P.kwargs) -> _T:
        key = (make.__name__, *(arg if isinstance(arg, _BY_VALUE) else id(arg) for arg in args))
        if key not in self._made:
            self._made[key] = (make(self, *args, **kwargs), args)  # while they are kept no other object has their ids
        found: _T = self._made[key][0]
        return found

    return made


class Builder:
    """Builds the graphs of many trials over one dataset: trials that agree on a stage share its node.

    What a trial names (files, weights, prompts) is looked at once, so that all graphs are of one moment.
    """

    def __init__(self, dataset: Dataset, runtime: Runtime) -> None:
        self._dataset, self._runtime = dataset, runtime
        self._made: dict[tuple[str | int | None, ...], tuple[Any, tuple[Any, ...]]] = {}

    def build(self, trial: TrialSpec) -> TrialGraph:
        """As `graph.build`."""
        chunk = self._chunk(trial.chunk)
        context = self._context(trial.context, chunk)
        retrieve = self._retrieve(trial, trial.retrieve, chunk, context)
        hits = self._rerank(trial.rerank, retrieve, chunk, context)
        answers = self._generate(trial.generate, hits, chunk)
        score = self._score(self._scored(trial.score, trial.hits_k), hits, chunk, answers)
        return TrialGraph(trial, chunk, hits, answers, score)

    @_once
    def _chunk(self, spec: ChunkSpec) -> Node:
        identity = spec.identity()
        inputs: dict[str, Node | str] = {"corpus": self._dataset.corpus_fingerprint}
        if isinstance(spec, Python):
            identity["source"] = chunking.source_digest(spec)
            identity.pop("target", None)  # a function moved from a cell to a module is the same function
        elif isinstance(spec, Given):
            if self._dataset.folder is None:
                raise SpecError("chunks of kind 'given' need a dataset that is a folder", where="chunk.kind")
            inputs["file"] = _file_digest(self._dataset.folder / spec.file)
            identity.pop("file", None)  # the content counts, not the name
        else:
            identity["tokenizer"] = dict(self._runtime.tokenizer(spec.tokenizer).identity)
        return Node("chunk", spec.kind, spec, code_version("chunk", spec.kind), identity, inputs)

    # --- contexts and embeddings ---

    @_once
    def _context(self, spec: ContextSpec, chunk: Node) -> Node | None:
        if isinstance(spec, NoContext):
            return None
        if isinstance(spec, Served):
            identity, prompt = self._asking(spec)
        else:
            identity, prompt = spec.identity(), None
        if isinstance(spec, Lead):
            identity["tokenizer"] = dict(self._runtime.tokenizer(spec.tokenizer).identity)
        identity = {k: v for k, v in identity.items() if k != "legs"}  # who sees a context does not change it
        code = code_version("context", spec.kind)
        return Node("context", spec.kind, spec, code, identity, {"chunks": chunk}, prompt=prompt)

    @_once
    def _asking(self, spec: Served) -> tuple[dict[str, Any], Prompt | None]:
        """What of a spec and the model it names can change an answer (weights, not where they lie; text, not its name),
        and its prompt."""
        identity = {k: v for k, v in spec.identity().items() if k not in Served.model_fields}
        identity["language_model"] = dict(self._runtime.language_model_identity(spec))
        identity |= self._runtime.counting_identity(spec)
        prompt = tried_prompt(spec)
        return identity | ({"prompt": prompt.digest} if prompt else {}), prompt

    @_once
    def _weights(self, spec: Embed) -> dict[str, Any]:
        return dict(self._runtime.embedder_identity(spec))

    def _embed(self, spec: Embed, role: Literal["query", "passage"], texts: Mapping[str, Node | str]) -> Node:
        other = "passage_prefix" if role == "query" else "query_prefix"
        # The weights say which model it is: where it lies, and by which branch it came, change nothing.
        identity = {k: v for k, v in spec.identity().items() if k not in (other, "model", "revision")}
        identity |= {"role": role, "weights": self._weights(spec)}
        return Node("embed", role, (spec, role), CODE["embed"], identity, texts)

    @_once
    def _passages(self, spec: Embed, chunk: Node, context: Node | None) -> Node:
        return self._embed(spec, "passage", {"texts": chunk, **_seen_by("dense", context)})

    @_once
    def _questions(self, spec: Embed) -> Node:
        return self._embed(spec, "query", {"texts": self._dataset.queries_fingerprint})

    @_once
    def _index(self, spec: IndexSpec, vectors: Node) -> Node:
        embed, _ = vectors.config
        if isinstance(spec, Hnsw) and (dimensions := self._runtime.embedder_dimensions(embed)):
            check_dimensions(spec, dimensions)
        return Node("index", spec.kind, spec, CODE["index"], spec.identity(), {"vectors": vectors})

    # --- retrieval ---

    def _retrieve(self, trial: TrialSpec, spec: RetrieveSpec, chunk: Node, context: Node | None) -> Node:
        if isinstance(spec, Dense):
            index = self._index(trial.index, self._passages(trial.embed, chunk, context))
            return self._dense(spec, index, self._questions(trial.embed))
        if isinstance(spec, Bm25):
            return self._bm25(spec, trial.lexical, chunk, context)
        if isinstance(spec, Fts):
            return self._fts(spec, chunk, context)
        plain = (self._leg(leg, spec.depth, spec.ef_search if leg == "dense" else None) for leg in spec.legs)
        return self._hybrid(spec, *(self._retrieve(trial, leg, chunk, context) for leg in plain))

    @_once
    def _dense(self, spec: Dense, index: Node, queries: Node) -> Node:
        identity = spec.identity()
        if isinstance(index.config, Exact):
            identity.pop("ef_search", None)
        config, inputs = (spec, index.config), {"index": index, "queries": queries}
        recipe = {"index": index.fingerprint, "query": queries.recipe}
        return Node("retrieve", "dense", config, CODE["retrieve"], identity, inputs, recipe)

    @_once
    def _bm25(self, spec: Bm25, lexical: Lexical, chunk: Node, context: Node | None) -> Node:
        identity = {**spec.identity(), **self._terms(lexical)}
        texts = {"chunks": chunk, **_seen_by("bm25", context)}
        inputs: dict[str, Node | str] = {**texts, "queries": self._dataset.queries_fingerprint}
        recipe = {name: node.fingerprint for name, node in texts.items()}
        return Node("retrieve", "bm25", (spec, lexical), CODE["retrieve"], identity, inputs, recipe)

    @_once
    def _terms(self, spec: Lexical) -> dict[str, Any]:
        return {"lexical": spec.identity(), "analyzer": analyzer_identity(spec)}

    @_once
    def _fts(self, spec: Fts, chunk: Node, context: Node | None) -> Node:
        texts = {"chunks": chunk, **_seen_by("fts", context)}
        index = Node("index", "fts", spec, CODE["index"], {"kind": "fts", "config": spec.config}, texts)
        inputs: dict[str, Node | str] = {"index": index, "queries": self._dataset.queries_fingerprint}
        return Node("retrieve", "fts", spec, CODE["retrieve"], spec.identity(), inputs, {"index": index.fingerprint})

    @_once
    def _leg(self, leg: Leg, k: int, ef_search: int | None) -> RetrieveSpec:
        return Dense(k=k, ef_search=ef_search) if leg == "dense" else Bm25(k=k) if leg == "bm25" else Fts(k=k)

    @_once
    def _hybrid(self, spec: Hybrid, *nodes: Node) -> Node:
        identity = spec.identity()
        identity.pop("ef_search", None)  # it is the dense leg's
        legs: dict[str, Node] = dict(zip(spec.legs, nodes, strict=True))
        recipe = {leg: node.recipe for leg, node in legs.items()}
        return Node("retrieve", "hybrid", spec, CODE["retrieve"], identity, legs, recipe)

    # --- what follows ---

    @_once
    def _rerank(self, spec: RerankSpec, retrieve: Node, chunk: Node, context: Node | None) -> Node:
        """The rerank node, or what was retrieved where there is none."""
        if isinstance(spec, NoRerank):
            return retrieve
        identity, prompt = self._scoring(spec)
        nodes = {"hits": retrieve, "chunks": chunk, **_seen_by("rerank", context)}
        inputs: dict[str, Node | str] = {**nodes, "queries": self._dataset.queries_fingerprint}
        return Node("rerank", spec.kind, spec, code_version("rerank", spec.kind), identity, inputs, prompt=prompt)

    @_once
    def _scoring(
        self, spec: LateInteraction | CrossEncoder | QueryLikelihood | LlmRerank
    ) -> tuple[dict[str, Any], Prompt | None]:
        if isinstance(spec, Served):
            return self._asking(spec)
        identity = {k: v for k, v in spec.identity().items() if k not in ("model", "revision")}
        return {**identity, "weights": dict(self._runtime.scorer_identity(spec))}, None

    @_once
    def _generate(self, spec: GenerateSpec, hits: Node, chunk: Node) -> Node | None:
        if isinstance(spec, NoGeneration):
            return None
        identity, prompt = self._asking(spec)
        queries = self._dataset.queries_fingerprint
        inputs: dict[str, Node | str] = {"hits": hits, "chunks": chunk, "queries": queries}
        return Node("generate", spec.kind, spec, CODE["generate"], identity, inputs, prompt=prompt)

    @_once
    def _scored(self, spec: ScoreSpec, depth: int) -> ScoreSpec:
        return spec.within(depth)

    @_once
    def _score(self, spec: ScoreSpec, hits: Node, chunk: Node, answers: Node | None) -> Node:
        identity = {**spec.identity(), "intervals": statistics.CODE_VERSION}
        inputs: dict[str, Node | str] = {"chunks": chunk, "hits": hits, "gold": self._dataset.gold_fingerprint}
        if answers is not None:
            identity["answers"] = evaluation.ANSWERS_VERSION
            inputs["answers"] = answers
        return Node("score", "score", spec, CODE["score"], identity, inputs)


def _seen_by(reader: Reader, context: Node | None) -> dict[str, Node]:
    """The context as an input of a reader, where it sees it."""
    return {} if context is None or reader not in context.config.legs else {"context": context}


def _file_digest(path: Path) -> str:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        reason = error.strerror or str(error)
        raise DatasetError(f"the given chunks cannot be read: {reason}", [], where=str(path)) from None
