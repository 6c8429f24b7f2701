"""How chunks are indexed and found: embedding, terms, index, retrieval legs and their fusion."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from workbench.specs.base import Depth, Name, Spec, Tokens


class Embed(Spec):
    """A sentence-embedding model. Vectors have unit length, so cosine and inner product agree.

    `long` says what happens to a text beyond the model's window: "pool" embeds consecutive windows
    and averages them; "truncate" drops the rest. Both are counted. `via` says who runs the model: "local"
    is this process; "server" is the /v1/embeddings of `WORKBENCH_EMBED_URL`, which has its own window.
    """

    model: Name = "minilm"
    revision: str | None = None
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    query_prefix: str = ""
    passage_prefix: str = ""
    long: Literal["pool", "truncate"] = "pool"
    max_tokens: Tokens | None = None
    via: Literal["local", "server"] = "local"


class Lexical(Spec):
    """How text becomes terms, and the two parameters of BM25 (Robertson & Zaragoza 2009, section 3.1)."""

    stopwords: Literal["english", "none"] = "english"
    stemmer: Literal["none", "english"] = "none"
    split_identifiers: bool = False
    min_length: Annotated[int, Field(ge=1, le=10)] = 2
    k1: Annotated[float, Field(ge=0, le=10)] = 1.5
    b: Annotated[float, Field(ge=0, le=1)] = 0.75


class Exact(Spec):
    """No index: every vector is compared."""

    kind: Literal["exact"] = "exact"
    storage: Literal["vector", "halfvec"] = "vector"


class Hnsw(Spec):
    """pgvector's hierarchical navigable small world graph (Malkov & Yashunin 2018)."""

    kind: Literal["hnsw"] = "hnsw"
    storage: Literal["vector", "halfvec"] = "vector"
    m: Annotated[int, Field(ge=2, le=100)] = 16
    ef_construction: Annotated[int, Field(ge=4, le=1000)] = 64

    @model_validator(mode="after")
    def _wide_enough(self) -> Self:
        if self.ef_construction < 2 * self.m:
            raise ValueError(f"ef_construction ({self.ef_construction}) must be at least 2 * m ({2 * self.m})")
        return self


IndexSpec = Annotated[Exact | Hnsw, Field(discriminator="kind")]


class Dense(Spec):
    """Nearest chunks by cosine similarity; `ef_search` counts for HNSW only (default: what k needs)."""

    kind: Literal["dense"] = "dense"
    k: Depth = 100
    ef_search: Annotated[int, Field(ge=1, le=1000)] | None = None


class Bm25(Spec):
    """BM25 over the trial's `[lexical]` terms; only positive scores are hits."""

    kind: Literal["bm25"] = "bm25"
    k: Depth = 100


class Fts(Spec):
    """PostgreSQL full-text search ranked by ts_rank_cd; `match` joins the question's words by OR or AND."""

    kind: Literal["fts"] = "fts"
    k: Depth = 100
    match: Literal["any", "all"] = "any"
    config: Annotated[str, Field(pattern=r"^[a-z_]{1,40}$")] = "english"


Leg = Literal["dense", "bm25", "fts"]
Reader = Literal[Leg, "rerank"]
"""What may see a chunk's context: the legs, and the reranker after them."""


class Hybrid(Spec):
    """Several legs fused: reciprocal ranks (Cormack et al. 2009) or weighted min-max scores."""

    kind: Literal["hybrid"] = "hybrid"
    legs: tuple[Leg, ...] = ("dense", "bm25")
    depth: Depth = 100
    fusion: Literal["rrf", "weighted"] = "rrf"
    rrf_k: Annotated[int, Field(ge=0, le=10_000)] = 60
    weights: tuple[Annotated[float, Field(ge=0)], ...] | None = None
    k: Depth = 100
    ef_search: Annotated[int, Field(ge=1, le=1000)] | None = None

    @model_validator(mode="after")
    def _legs_fit(self) -> Self:
        if len(self.legs) < 2 or len(set(self.legs)) < len(self.legs):
            raise ValueError("legs must name at least two different legs")
        if self.weights is not None and (len(self.weights) != len(self.legs) or not any(self.weights)):
            raise ValueError(f"weights must give one number for each of {list(self.legs)}, not all zero")
        return self


RetrieveSpec = Annotated[Dense | Bm25 | Fts | Hybrid, Field(discriminator="kind")]
