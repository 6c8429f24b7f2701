"""From a trial and a dataset to a graph of stage nodes, each known by its fingerprint.

A node is pulled from its leaf: a BM25 trial has no embedding node. Two trials that agree up to a stage
have nodes of equal fingerprints there, so they share it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from workbench import evaluation
from workbench.datasets import Dataset
from workbench.errors import DatasetError, ModelError, SpecError
from workbench.evaluation import statistics
from workbench.runtime import Runtime
from workbench.specs import (
    Answer,
    Bm25,
    Dense,
    Embed,
    Exact,
    Fts,
    Given,
    Hnsw,
    Hybrid,
    Lead,
    LlmRerank,
    NoContext,
    NoGeneration,
    NoRerank,
    Python,
    QueryLikelihood,
    Served,
    Situated,
    Summary,
    TrialSpec,
    fingerprint,
)
from workbench.stages import chunking, contextual, generation, reranking
from workbench.stages.prompting import Prompt, load_prompt
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
        seen: set[str] = set()

        def visit(node: Node) -> Iterator[Node]:
            if node.fingerprint not in seen:
                seen.add(node.fingerprint)
                for source in node.inputs.values():
                    if isinstance(source, Node):
                        yield from visit(source)
                yield node

        return visit(self)


@dataclass(frozen=True)
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
    chunk = _chunk(trial, dataset, runtime)
    context = _context(trial, chunk, runtime)
    retrieve = _retrieve(trial, trial.retrieve, chunk, context, dataset, runtime)
    hits = _rerank(trial, retrieve, chunk, context, dataset, runtime)
    answers = _generate(trial, hits, chunk, dataset, runtime)
    identity = {**trial.scored.identity(), "intervals": statistics.CODE_VERSION}
    inputs: dict[str, Node | str] = {"chunks": chunk, "hits": hits, "gold": dataset.gold_fingerprint}
    if answers is not None:
        identity["answers"] = evaluation.ANSWERS_VERSION
        inputs["answers"] = answers
    score = Node("score", "score", trial.scored, CODE["score"], identity, inputs)
    return TrialGraph(trial, chunk, hits, answers, score)


def _chunk(trial: TrialSpec, dataset: Dataset, runtime: Runtime) -> Node:
    spec = trial.chunk
    identity = spec.identity()
    inputs: dict[str, Node | str] = {"corpus": dataset.corpus_fingerprint}
    if isinstance(spec, Python):
        identity["source"] = chunking.source_digest(spec)
        identity.pop("target", None)  # a function moved from a cell to a module is the same function
    elif isinstance(spec, Given):
        if dataset.folder is None:
            raise SpecError("chunks of kind 'given' need a dataset that is a folder", where="chunk.kind")
        inputs["file"] = _file_digest(dataset.folder / spec.file)
        identity.pop("file", None)  # the content counts, not the name
    else:
        identity["tokenizer"] = dict(runtime.tokenizer(spec.tokenizer).identity)
    return Node("chunk", spec.kind, spec, chunking.CODE_VERSIONS[spec.kind], identity, inputs)


def _file_digest(path: Path) -> str:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        reason = error.strerror or str(error)
        raise DatasetError(f"the given chunks cannot be read: {reason}", [], where=str(path)) from None


def _served(spec: Served, runtime: Runtime) -> dict[str, Any]:
    """What of a spec and the model it names can change an answer: weights, not where they lie; text, not its name."""
    identity = {k: v for k, v in spec.identity().items() if k not in Served.model_fields}
    identity["language_model"] = dict(runtime.language_model_identity(spec))
    identity |= runtime.counting_identity(spec)
    return identity


def _prompt(spec: Any, identity: dict[str, Any]) -> Prompt | None:
    """The prompt of a stage that has one, tried out and noted in its identity.

    Raises:
        SpecError: no such prompt, or none for this kind of stage.
    """
    if not isinstance(spec, Summary | Situated | QueryLikelihood | LlmRerank | Answer):
        return None
    prompt = load_prompt(spec.prompt)
    shown = {**_SHOWN[spec.kind], **({"mode": spec.mode} if isinstance(spec, LlmRerank) else {})}
    whole = prompt.messages(**shown)
    asked = whole[-1]["content"]
    for name in _NEEDED[spec.kind]:
        if prompt.messages(**{**shown, name: type(shown[name])()}) == whole:
            raise SpecError(
                f"the prompt does not use {name}",
                where=prompt.name,
                hint=f"it is a Jinja template: put {{{{ {name} }}}} into it; it may use {', '.join(shown)}",
            )
    if isinstance(spec, QueryLikelihood) and not asked.endswith(shown["question"]):
        raise SpecError(
            "a prompt for query likelihood must end with the question",
            where=prompt.name,
            hint="put {{ question }} last, with nothing behind it",
        )
    identity["prompt"] = prompt.digest
    return prompt


_SHOWN: Mapping[str, Mapping[str, Any]] = {
    "summary": {"title": "Title", "document": "Text."},
    "situated": {"title": "Title", "document": "Text.", "chunk": "Text."},
    "query_likelihood": {"passage": "Text.", "question": "which?"},
    "llm": {"question": "which?", "passages": ["Text."]},
    "answer": {
        "question": "which?",
        "passages": [{"number": 1, "title": "Title", "text": "Text."}],
        "refusal": "Not here.",
    },
}
"""Values like those that each kind of stage gives to its prompt."""
_NEEDED: Mapping[str, tuple[str, ...]] = {
    "summary": ("document",),
    "situated": ("chunk",),
    "query_likelihood": ("passage", "question"),
    "llm": ("question", "passages"),
    "answer": ("question", "passages"),
}
"""Values without which every call of a stage would ask the same, or leave out what it is about."""


def _context(trial: TrialSpec, chunk: Node, runtime: Runtime) -> Node | None:
    spec = trial.context
    if isinstance(spec, NoContext):
        return None
    identity = _served(spec, runtime) if isinstance(spec, Served) else spec.identity()
    if isinstance(spec, Lead):
        identity["tokenizer"] = dict(runtime.tokenizer(spec.tokenizer).identity)
    identity.pop("legs", None)  # who sees a context does not change it
    prompt, code = _prompt(spec, identity), contextual.CODE_VERSIONS[spec.kind]
    return Node("context", spec.kind, spec, code, identity, {"chunks": chunk}, prompt=prompt)


def _seen_by(reader: str, trial: TrialSpec, context: Node | None) -> dict[str, Node | str]:
    """The context as an input of a reader, where it sees it."""
    if context is None or isinstance(trial.context, NoContext) or reader not in trial.context.legs:
        return {}
    return {"context": context}


def _embed(
    trial: TrialSpec,
    texts: Mapping[str, Node | str],
    role: Literal["query", "passage"],
    runtime: Runtime,
) -> Node:
    spec: Embed = trial.embed
    other = "passage_prefix" if role == "query" else "query_prefix"
    # The weights say which model it is: where it lies, and by which branch it came, change nothing.
    identity = {k: v for k, v in spec.identity().items() if k not in (other, "model", "revision")}
    identity |= {"role": role, "weights": dict(runtime.embedder_identity(spec))}
    return Node("embed", role, (spec, role), CODE["embed"], identity, texts)


def _index(trial: TrialSpec, spec: Exact | Hnsw, chunk: Node, context: Node | None, runtime: Runtime) -> Node:
    if spec.kind == "hnsw" and (dimensions := runtime.embedder_dimensions(trial.embed)):
        check_dimensions(spec, dimensions)
    vectors = _embed(trial, {"texts": chunk, **_seen_by("dense", trial, context)}, "passage", runtime)
    return Node("index", spec.kind, spec, CODE["index"], spec.identity(), {"vectors": vectors})


def _retrieve(
    trial: TrialSpec,
    spec: Dense | Bm25 | Fts | Hybrid,
    chunk: Node,
    context: Node | None,
    dataset: Dataset,
    runtime: Runtime,
) -> Node:
    code, queries = CODE["retrieve"], dataset.queries_fingerprint
    identity = spec.identity()
    if isinstance(spec, Dense):
        index = _index(trial, trial.index, chunk, context, runtime)
        if trial.index.kind == "exact":
            identity.pop("ef_search", None)
        embedded = _embed(trial, {"texts": queries}, "query", runtime)
        return Node(
            "retrieve",
            "dense",
            (spec, trial.index),
            code,
            identity,
            {"index": index, "queries": embedded},
            {"index": index.fingerprint, "query": embedded.recipe},
        )
    if isinstance(spec, Bm25):
        identity |= {"lexical": trial.lexical.identity(), "analyzer": analyzer_identity(trial.lexical)}
        texts = {"chunks": chunk, **_seen_by("bm25", trial, context)}
        return Node(
            "retrieve",
            "bm25",
            (spec, trial.lexical),
            code,
            identity,
            {**texts, "queries": queries},
            {name: node.fingerprint for name, node in texts.items() if isinstance(node, Node)},
        )
    if isinstance(spec, Fts):
        texts = {"chunks": chunk, **_seen_by("fts", trial, context)}
        index = Node("index", "fts", spec, CODE["index"], {"kind": "fts", "config": spec.config}, texts)
        return Node(
            "retrieve",
            "fts",
            spec,
            code,
            identity,
            {"index": index, "queries": queries},
            {"index": index.fingerprint},
        )
    legs: dict[str, Node | str] = {leg: _leg(trial, spec, leg, chunk, context, dataset, runtime) for leg in spec.legs}
    identity.pop("ef_search", None)  # it is the dense leg's
    return Node(
        "retrieve",
        "hybrid",
        spec,
        code,
        identity,
        legs,
        {leg: node.recipe for leg, node in legs.items() if isinstance(node, Node)},
    )


def _leg(
    trial: TrialSpec, spec: Hybrid, leg: str, chunk: Node, context: Node | None, dataset: Dataset, runtime: Runtime
) -> Node:
    specs: dict[str, Dense | Bm25 | Fts] = {
        "dense": Dense(k=spec.depth, ef_search=spec.ef_search),
        "bm25": Bm25(k=spec.depth),
        "fts": Fts(k=spec.depth),
    }
    return _retrieve(trial, specs[leg], chunk, context, dataset, runtime)


def _rerank(
    trial: TrialSpec, retrieve: Node, chunk: Node, context: Node | None, dataset: Dataset, runtime: Runtime
) -> Node:
    """The rerank node, or what was retrieved where there is none."""
    spec = trial.rerank
    if isinstance(spec, NoRerank):
        return retrieve
    if isinstance(spec, Served):
        identity = _served(spec, runtime)
    else:
        identity = {k: v for k, v in spec.identity().items() if k not in ("model", "revision")}
        identity["weights"] = dict(runtime.scorer_identity(spec))
    inputs = {
        "hits": retrieve,
        "chunks": chunk,
        "queries": dataset.queries_fingerprint,
        **_seen_by("rerank", trial, context),
    }
    prompt = _prompt(spec, identity)
    return Node("rerank", spec.kind, spec, reranking.CODE_VERSIONS[spec.kind], identity, inputs, prompt=prompt)


def _generate(trial: TrialSpec, hits: Node, chunk: Node, dataset: Dataset, runtime: Runtime) -> Node | None:
    spec = trial.generate
    if isinstance(spec, NoGeneration):
        return None
    inputs: dict[str, Node | str] = {"hits": hits, "chunks": chunk, "queries": dataset.queries_fingerprint}
    identity = _served(spec, runtime)
    prompt = _prompt(spec, identity)
    return Node("generate", spec.kind, spec, CODE["generate"], identity, inputs, prompt=prompt)
