"""The stages that ask a model: contexts of chunks, reranking, generated answers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from workbench.specs.base import Depth, Name, Spec, Tokens
from workbench.specs.retrieval import Reader

Scalar = bool | int | float | str
READERS: tuple[Reader, ...] = ("dense", "bm25", "fts", "rerank")


class Served(Spec):
    """A language model, and what of its serving can change an answer.

    `model` is a short name that works offline, a folder, or a hub name; with `WORKBENCH_LLM_URL` it is the
    name that the service knows. `arguments` are further arguments of vLLM by their long names
    (`{ "block-size" = 32 }`). `tokenizer` counts tokens for a service that we have no files of.
    Concurrency and prefix caching change when an answer comes, not which: they are not part of its identity.
    """

    not_identity: ClassVar[frozenset[str]] = frozenset({"concurrency", "prefix_caching"})

    model: Name = "smollm2-135m"
    revision: str | None = None
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = "auto"
    quantization: Name | None = None
    max_model_len: Tokens = 4096
    arguments: Mapping[str, Scalar] = {}
    tokenizer: Name | None = None
    concurrency: Annotated[int, Field(ge=1, le=256)] = 8
    prefix_caching: bool = True


class Sampled(Served):
    """A served model that writes text: greedy at temperature 0, else sampled with a seed."""

    prompt: Name
    """A prompt that ships with the workbench, or a .toml file of yours; its content is its identity."""
    max_tokens: Tokens = 64
    temperature: Annotated[float, Field(ge=0, le=2)] = 0.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    seed: Annotated[int, Field(ge=0, le=2**31 - 1)] = 0
    stop: Annotated[tuple[Annotated[str, Field(min_length=1)], ...], Field(max_length=4)] = ()
    """Texts that end an answer; they are no part of it. Small models ramble on after what was asked for."""

    @model_validator(mode="after")
    def _room_for_a_prompt(self) -> Self:
        if self.max_tokens >= self.max_model_len:
            raise ValueError(f"max_tokens ({self.max_tokens}) must leave room in max_model_len ({self.max_model_len})")
        return self


# --- context -------------------------------------------------------------------------------------


class NoContext(Spec):
    """Chunks are indexed as they are."""

    kind: Literal["none"] = "none"


class _Context(Spec):
    legs: Annotated[tuple[Reader, ...], Field(min_length=1)] = READERS
    """Which legs see the context, and whether the reranker does; the others see the chunk alone."""


class Title(_Context):
    """The title of the chunk's document."""

    kind: Literal["title"] = "title"


class Headings(_Context):
    """A breadcrumb: the title, then the headings of the sections around the chunk, or, in source code, the
    definitions around it."""

    kind: Literal["headings"] = "headings"


class Lead(_Context):
    """The first `tokens` tokens of the chunk's document."""

    kind: Literal["lead"] = "lead"
    tokens: Tokens = 60
    tokenizer: Name = "words"


class Summary(Sampled, _Context):
    """A model's summary of the first `window` tokens of the chunk's document: one call a document."""

    kind: Literal["summary"] = "summary"
    prompt: Name = "summary-1"
    window: Tokens = 2000


class Situated(Sampled, _Context):
    """A model's short context for each chunk, given the document around it (Anthropic, September 2024).

    `window` is how many tokens of the document are shown: the whole document where it fits, else a window
    around the chunk on a grid, so that neighbours share it.
    """

    kind: Literal["situated"] = "situated"
    prompt: Name = "situated-1"
    window: Tokens = 2000


ContextSpec = Annotated[NoContext | Title | Headings | Lead | Summary | Situated, Field(discriminator="kind")]


# --- rerank --------------------------------------------------------------------------------------


class NoRerank(Spec):
    """The ranking stays as retrieved."""

    kind: Literal["none"] = "none"


class _Rerank(Spec):
    depth: Depth = 100
    """How many hits are looked at."""
    k: Depth = 20
    """How many are kept."""

    @model_validator(mode="after")
    def _keeps_what_it_saw(self) -> Self:
        if self.k > self.depth:
            raise ValueError(f"k ({self.k}) must not exceed depth ({self.depth})")
        return self


class LateInteraction(_Rerank):
    """MaxSim over token vectors (Khattab & Zaharia 2020, section 3.3), of any encoder."""

    kind: Literal["late_interaction"] = "late_interaction"
    model: Name = "minilm"
    revision: str | None = None
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    max_tokens: Tokens | None = None


class CrossEncoder(_Rerank):
    """A model that reads question and passage together; `via` says who runs it.

    "local" is sentence-transformers in this process; "server" is the /rerank or /score of `WORKBENCH_RERANK_URL`.
    """

    kind: Literal["cross_encoder"] = "cross_encoder"
    model: Name = "cross-encoder/ms-marco-MiniLM-L6-v2"
    revision: str | None = None
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    max_tokens: Tokens | None = None
    via: Literal["local", "server"] = "local"


class QueryLikelihood(Served, _Rerank):
    """Mean log-probability of the question's tokens given the passage (Sachan et al. 2022, section 2.2)."""

    kind: Literal["query_likelihood"] = "query_likelihood"
    prompt: Name = "query-likelihood-1"
    depth: Depth = 20
    passage_tokens: Tokens = 300


class LlmRerank(Sampled, _Rerank):
    """A model that is asked: for an order of `window` passages at a time, the window moving up by `step`
    (listwise; Sun et al. 2023, section 4.1), or for a grade of each passage (pointwise)."""

    kind: Literal["llm"] = "llm"
    prompt: Name = "rerank-1"
    mode: Literal["listwise", "pointwise"] = "listwise"
    depth: Depth = 20
    window: Annotated[int, Field(ge=2, le=100)] = 10
    step: Annotated[int, Field(ge=1, le=100)] = 5
    passage_tokens: Tokens = 120

    @model_validator(mode="after")
    def _windows_overlap(self) -> Self:
        if self.step > self.window:
            raise ValueError(f"step ({self.step}) must not exceed window ({self.window})")
        return self


RerankSpec = Annotated[
    NoRerank | LateInteraction | CrossEncoder | QueryLikelihood | LlmRerank, Field(discriminator="kind")
]


# --- generate ------------------------------------------------------------------------------------


class NoGeneration(Spec):
    """Retrieval only."""

    kind: Literal["none"] = "none"


class Answer(Sampled):
    """An answer from the first `k` passages, numbered, with citations; "not in the passages" is allowed."""

    kind: Literal["answer"] = "answer"
    prompt: Name = "answer-1"
    k: Annotated[int, Field(ge=1, le=100)] = 5


GenerateSpec = Annotated[NoGeneration | Answer, Field(discriminator="kind")]
