"""A trial of all stages, a sweep of trials, and how both are read."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import Field, model_validator

from workbench.errors import SpecError, did_you_mean
from workbench.parsing import parse, parse_setting, read_toml
from workbench.specs.base import Depth, Name, Spec
from workbench.specs.chunk import ChunkSpec, Python, Recursive
from workbench.specs.models import Answer, ContextSpec, GenerateSpec, NoContext, NoGeneration, NoRerank, RerankSpec
from workbench.specs.retrieval import Dense, Embed, Exact, IndexSpec, Lexical, RetrieveSpec


class ScoreSpec(Spec):
    """Cut-offs and the two rules of evidence metrics (docs/metrics.md)."""

    k: Annotated[tuple[Depth, ...], Field(min_length=1)] = (1, 5, 10, 20, 100)
    coverage: Annotated[float, Field(gt=0, le=1)] = 1.0
    occurrences: Literal["same", "any"] = "same"


class TrialSpec(Spec):
    """One choice for every stage. Tables that a trial does not use do not enter its results' identity."""

    chunk: ChunkSpec = Recursive()
    context: ContextSpec = NoContext()
    embed: Embed = Embed()
    lexical: Lexical = Lexical()
    index: IndexSpec = Exact()
    retrieve: RetrieveSpec = Dense()
    rerank: RerankSpec = NoRerank()
    generate: GenerateSpec = NoGeneration()
    score: ScoreSpec = ScoreSpec()

    @model_validator(mode="before")
    @classmethod
    def _wrap_callables(cls, data: Any) -> Any:
        if not isinstance(data, Mapping):
            return data
        # A table without a kind is of the default kind, as a missing table is; [generate] asks for answers.
        named = {stage: cls.model_fields[stage].default.kind for stage in ("chunk", "index", "retrieve")}
        named["generate"] = "answer"
        data = {
            stage: {"kind": named[stage], **table}
            if stage in named and isinstance(table, Mapping) and "kind" not in table
            else table
            for stage, table in data.items()
        }
        # Recursive for Recursive()
        data = {k: v() if isinstance(v, type) and issubclass(v, Spec) else v for k, v in data.items()}
        chunk = data.get("chunk")
        return {**data, "chunk": Python.of(chunk)} if callable(chunk) else data

    @property
    def generates(self) -> bool:
        """Whether the trial has answers."""
        return not isinstance(self.generate, NoGeneration)

    @property
    def hits_k(self) -> int:
        """How many hits a query has at most, at the end of retrieval and reranking."""
        return self.retrieve.k if isinstance(self.rerank, NoRerank) else min(self.retrieve.k, self.rerank.k)

    @property
    def scored(self) -> ScoreSpec:
        """The scoring that the hits allow: a deeper cut-off would judge what was never asked for."""
        kept = tuple(k for k in self.score.k if k <= self.hits_k)
        return self.score if kept == self.score.k else self.score.model_copy(update={"k": kept or (self.hits_k,)})

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
        if key and key != "kind" and isinstance(current, NoGeneration):
            current = Answer()  # a field of an answer asks for one
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
    """Stages that sample have a seed: an axis over `generate.seed` repeats them."""
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
