"""What to do, as frozen values: one spec a stage, a trial of all stages, a sweep of trials.

A spec is read strictly (unknown kinds and fields are refused with the nearest known name) from TOML,
from Python or from `--set path=value`. `fingerprint` turns a spec and the fingerprints of its inputs
into the identity of a result: SHA-256 of canonical JSON, with fields that equal their default left
out, so that a new field with a default keeps every stored result.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self, get_args

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PrivateAttr,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from workbench.errors import SpecError, did_you_mean
from workbench.parsing import parse, parse_setting, read_toml
from workbench.sources import source_digest

TARGET = re.compile(r"^[A-Za-z_][\w.]*:[A-Za-z_<][\w.<>]*$")


def canonical_json(value: Any) -> str:
    """JSON with sorted keys, no blanks, no NaN: equal values have equal text."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def digest(value: Any) -> str:
    """SHA-256 of the canonical JSON of a value, as 64 hexadecimal digits."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def fingerprint(kind: str, code_version: int, spec: Any, inputs: Mapping[str, str]) -> str:
    """The identity of a stage's output: kind, code version, spec and the fingerprints of its inputs."""
    body = spec.identity() if isinstance(spec, Spec) else spec
    return digest({"kind": kind, "code": code_version, "spec": body, "inputs": dict(inputs)})


class Spec(BaseModel):
    """Base of all specs: frozen, strict, no unknown fields."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)
    not_identity: ClassVar[frozenset[str]] = frozenset()
    """Fields that cannot change an output (and so are not in the fingerprint)."""

    def identity(self) -> dict[str, Any]:
        """The fields that can change an output and differ from their default; `kind` is always there."""
        body = self.model_dump(mode="json", exclude_defaults=True, exclude=set(self.not_identity))
        if "kind" in type(self).model_fields:
            body["kind"] = self.kind  # type: ignore[attr-defined]
        return body

    @model_serializer(mode="wrap")
    def _keep_kind(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        body: dict[str, Any] = handler(self)
        return {"kind": self.kind, **body} if hasattr(self, "kind") else body


Tokens = Annotated[int, Field(ge=1, le=1_000_000)]
Depth = Annotated[int, Field(ge=1, le=10_000)]
Name = Annotated[str, Field(min_length=1, max_length=200)]


# --- chunk ---------------------------------------------------------------------------------------


class Fixed(Spec):
    """Windows of `tokens` tokens; each starts `tokens - overlap` after the one before."""

    kind: Literal["fixed"] = "fixed"
    tokens: Tokens = 200
    overlap: Annotated[int, Field(ge=0)] = 0
    tokenizer: Name = "wordpiece"

    @model_validator(mode="after")
    def _overlap_fits(self) -> Self:
        if self.overlap >= self.tokens:
            raise ValueError(f"overlap ({self.overlap}) must be smaller than tokens ({self.tokens})")
        return self


class Recursive(Fixed):
    """Split at the first separator that helps, merge neighbours up to `tokens`, recurse into what is too long."""

    kind: Literal["recursive"] = "recursive"  # type: ignore[assignment]
    separators: tuple[str, ...] = ("\n\n", "\n", ". ", "? ", "! ", " ", "")


class Sentence(Fixed):
    """Whole sentences up to `tokens`; `overlap` tokens of whole sentences are repeated."""

    kind: Literal["sentence"] = "sentence"  # type: ignore[assignment]


class Markdown(Spec):
    """Sections, tables, lists and code blocks of Markdown kept whole where they fit in `tokens`."""

    kind: Literal["markdown"] = "markdown"
    tokens: Tokens = 200
    tokenizer: Name = "wordpiece"


class Given(Spec):
    """Chunks from a file of {doc_id, start, end} lines in the dataset's folder."""

    kind: Literal["given"] = "given"
    file: Name = "chunks.jsonl"

    @model_validator(mode="after")
    def _inside_the_folder(self) -> Self:
        if Path(self.file).is_absolute() or ".." in Path(self.file).parts:
            raise ValueError(f"file {self.file!r} must lie inside the dataset's folder")
        return self


class Python(Spec):
    """A person's own function in the place of a stage; its identity is its source and `version`.

    `target` is "module:function". A callable may be given instead; then `source` is its digest
    (`sources.source_digest`) and the callable itself travels beside the spec, within this process only.
    """

    kind: Literal["python"] = "python"
    target: Annotated[str, Field(pattern=TARGET.pattern)]
    version: Annotated[int, Field(ge=1)] = 1
    source: str | None = None
    _function: Callable[..., Any] | None = PrivateAttr(default=None)

    @classmethod
    def of(cls, function: Callable[..., Any], *, version: int = 1) -> Self:
        """Wrap a callable (a notebook cell's chunker).

        Raises:
            SpecError: its source, or a value that it reads, cannot be identified.
        """
        name = getattr(function, "__qualname__", type(function).__name__)
        spec = cls(target=f"{function.__module__}:{name}", version=version, source=source_digest(function))
        spec._function = function
        return spec

    @property
    def function(self) -> Callable[..., Any] | None:
        return self._function


ChunkSpec = Annotated[Fixed | Recursive | Sentence | Markdown | Given | Python, Field(discriminator="kind")]


# --- embed, lexical, index -----------------------------------------------------------------------


class Embed(Spec):
    """A sentence-embedding model. Vectors have unit length, so cosine and inner product agree.

    `long` says what happens to a text beyond the model's window: "pool" embeds consecutive windows
    and averages them; "truncate" drops the rest. Both are counted.
    """

    model: Name = "minilm"
    revision: str | None = None
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    query_prefix: str = ""
    passage_prefix: str = ""
    long: Literal["pool", "truncate"] = "pool"
    max_tokens: Tokens | None = None


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


# --- retrieve ------------------------------------------------------------------------------------


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


# --- score, trial, sweep -------------------------------------------------------------------------


class ScoreSpec(Spec):
    """Cut-offs and the two rules of evidence metrics (docs/metrics.md)."""

    k: Annotated[tuple[Depth, ...], Field(min_length=1)] = (1, 5, 10, 20, 100)
    coverage: Annotated[float, Field(gt=0, le=1)] = 1.0
    occurrences: Literal["same", "any"] = "same"


class TrialSpec(Spec):
    """One choice for every stage. Tables that a trial does not use do not enter its results' identity."""

    chunk: ChunkSpec = Recursive()
    embed: Embed = Embed()
    lexical: Lexical = Lexical()
    index: IndexSpec = Exact()
    retrieve: RetrieveSpec = Dense()
    score: ScoreSpec = ScoreSpec()

    @model_validator(mode="before")
    @classmethod
    def _wrap_callables(cls, data: Any) -> Any:
        if not isinstance(data, Mapping):
            return data
        # A table without a kind is of the default kind, as a missing table is.
        named = {stage: cls.model_fields[stage].default.kind for stage in ("chunk", "index", "retrieve")}
        data = {
            stage: {"kind": named[stage], **table}
            if stage in named and isinstance(table, Mapping) and "kind" not in table
            else table
            for stage, table in data.items()
        }
        chunk = data.get("chunk")
        if isinstance(chunk, type) and issubclass(chunk, Spec):
            return {**data, "chunk": chunk()}  # Recursive for Recursive()
        return {**data, "chunk": Python.of(chunk)} if callable(chunk) else data

    @property
    def scored(self) -> ScoreSpec:
        """The scoring that `retrieve.k` hits allow: a deeper cut-off would judge what was never asked for."""
        kept = tuple(k for k in self.score.k if k <= self.retrieve.k)
        return self.score if kept == self.score.k else self.score.model_copy(update={"k": kept or (self.retrieve.k,)})

    def vary(self, path: str, value: Any) -> TrialSpec:
        """A copy with one dotted path changed: `trial.vary("retrieve.k", 50)`.

        Varying a `kind` keeps the fields that the new kind knows too and takes its defaults for the rest.

        Raises:
            SpecError: unknown path, or a value that does not fit.
        """
        stage, _, key = path.partition(".")
        if stage not in type(self).model_fields:
            raise SpecError(f"unknown stage {stage!r}", where=path, hint=did_you_mean(stage, type(self).model_fields))
        current: Spec = getattr(self, stage)
        changed: Any
        if not key:
            changed = value
        elif isinstance(current, Python) and key == "target":
            changed = {"kind": "python", "target": value}  # another function: not this one's source
        elif isinstance(current, Python) and current.function is not None and key == "version":
            changed = parse(Python, {**dict(current), "version": value}, where=path)
            changed._function = current.function
        elif key == "kind" and "kind" in type(current).model_fields:
            union = get_args(type(self).model_fields[stage].annotation) or (type(current),)
            fields = next((set(c.model_fields) for c in union if c.model_fields["kind"].default == value), set())
            kept = {k: v for k, v in dict(current).items() if k in fields and k in current.model_fields_set}
            changed = {**kept, "kind": value}
        else:
            changed = {**{k: v for k, v in dict(current).items() if k in current.model_fields_set}, key: value}
            if "kind" in type(current).model_fields:
                changed["kind"] = current.kind  # type: ignore[attr-defined]
        others = {name: getattr(self, name) for name in self.model_fields_set if name != stage}
        return parse(TrialSpec, {**others, stage: changed}, where=path)


class SweepSpec(Spec):
    """A question, a base trial and the axes along which it is varied.

    `metric` and `baseline` are declared before looking: the family of comparisons is every trial
    against the baseline on that metric.
    """

    question: str = ""
    base: TrialSpec = TrialSpec()
    metric: Name = "recall@5"
    baseline: Mapping[str, Any] = {}
    replicates: Literal[1] = 1
    """No stage here samples, so a replicate would repeat the same figures."""
    axes: Mapping[str, tuple[Any, ...]] = {}

    @model_validator(mode="before")
    @classmethod
    def _plain_values(cls, data: Any) -> Any:
        """Specs on an axis become the tables that TOML would hold: a sweep's points are stored as JSON."""
        if not isinstance(data, Mapping):
            return data
        axes, baseline = data.get("axes"), data.get("baseline")
        if isinstance(axes, Mapping):
            axes = {p: tuple(map(_plain, v)) if isinstance(v, list | tuple) else v for p, v in axes.items()}
            data = {**data, "axes": axes}
        if isinstance(baseline, Mapping):
            data = {**data, "baseline": {path: _plain(value) for path, value in baseline.items()}}
        return data

    @model_validator(mode="after")
    def _axes_have_values(self) -> Self:
        for path, values in self.axes.items():
            if not values:
                raise ValueError(f"axis {path!r} has no values")
        for path in self.baseline:
            if path not in self.axes:
                raise ValueError(f"baseline names {path!r}, which is no axis: {did_you_mean(path, self.axes)}")
            if self.baseline[path] not in self.axes[path]:
                raise ValueError(f"baseline value {self.baseline[path]!r} of {path!r} is not on its axis")
        return self

    def points(self) -> list[dict[str, Any]]:
        """Every combination of the axes' values, in declaration order."""
        return [dict(zip(self.axes, values, strict=True)) for values in itertools.product(*self.axes.values())]

    def trial(self, point: Mapping[str, Any]) -> TrialSpec:
        """The base with one point's values; kinds are varied first, so that their fields can follow."""
        trial = self.base
        for path in sorted(point, key=lambda p: (not p.endswith(".kind"), list(point).index(p))):
            trial = trial.vary(path, point[path])
        return trial


def _plain(value: Any) -> Any:
    if callable(value) or (isinstance(value, Python) and value.function is not None):
        raise ValueError('a function cannot stand on an axis: give {"kind": "python", "target": "module:function"}')
    return value.identity() if isinstance(value, Spec) else value


# --- reading -------------------------------------------------------------------------------------


def read_trial(path: Path) -> TrialSpec:
    """A trial from a TOML file of stage tables.

    Raises:
        SpecError: the file cannot be read, does not fit, or holds a sweep.
    """
    data = read_toml(path)
    if "axes" in data or "base" in data:
        raise SpecError("this is a sweep, not a trial", where=str(path), hint="use `workbench sweep`")
    return parse(TrialSpec, data, where=str(path))


def read_sweep(path: Path) -> SweepSpec:
    """A sweep from a TOML file; `base` is another file beside it, or inline tables."""
    data = read_toml(path)
    if data and set(data) <= set(TrialSpec.model_fields):
        raise SpecError("this is a trial, not a sweep", where=str(path), hint="use `workbench run`")
    if isinstance(data.get("base"), str):
        data["base"] = read_trial(path.parent / data["base"])
    return parse(SweepSpec, data, where=str(path))


def apply_settings(trial: TrialSpec, settings: Sequence[str]) -> TrialSpec:
    """A trial with `--set` settings applied, kinds first."""
    pairs = sorted((parse_setting(s) for s in settings), key=lambda pair: not pair[0].endswith(".kind"))
    for path, value in pairs:
        trial = trial.vary(path, value)
    return trial
