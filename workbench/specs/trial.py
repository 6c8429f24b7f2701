"""A trial of all stages, how it is varied and how it is read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import Field, model_validator

from workbench.errors import SpecError, did_you_mean
from workbench.parsing import parse, parse_setting, read_toml
from workbench.specs.base import Depth, Spec
from workbench.specs.chunk import ChunkSpec, Python, Recursive
from workbench.specs.models import (
    ContextSpec,
    GenerateSpec,
    NoContext,
    NoGeneration,
    NoRerank,
    RerankSpec,
    Sampled,
)
from workbench.specs.retrieval import Dense, Embed, Exact, IndexSpec, Lexical, RetrieveSpec


class ScoreSpec(Spec):
    """Cut-offs and the two rules of evidence metrics (docs/metrics.md)."""

    k: Annotated[tuple[Depth, ...], Field(min_length=1)] = (1, 5, 10, 20, 100)
    coverage: Annotated[float, Field(gt=0, le=1)] = 1.0
    occurrences: Literal["same", "any"] = "same"

    def within(self, depth: int) -> ScoreSpec:
        """The scoring that `depth` hits allow: a deeper cut-off would judge what was never asked for."""
        kept = tuple(k for k in self.k if k <= depth)
        return self if kept == self.k else self.model_copy(update={"k": kept or (depth,)})


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
        """The scoring that the hits allow."""
        return self.score.within(self.hits_k)

    @property
    def sampling(self) -> tuple[str, ...]:
        """The stages that sample: asked again with another seed, their model may answer otherwise."""
        stages = ("context", "rerank", "generate")
        return tuple(s for s in stages if isinstance(of := getattr(self, s), Sampled) and of.temperature > 0)

    def seeds(self, replicate: int) -> dict[str, int]:
        """The seeds of a repetition as dotted paths, none for replicate 0, which is the trial itself."""
        return {f"{s}.seed": getattr(self, s).seed + replicate for s in self.sampling} if replicate else {}

    def vary(self, path: str, value: Any) -> TrialSpec:
        """A copy with one dotted path changed: `trial.vary("retrieve.k", 50)`.

        Varying a `kind` keeps the fields that the new kind knows too and takes its defaults for the rest.

        Raises:
            SpecError: unknown path, or a value that does not fit.
        """
        return self.varied({path: value})

    def varied(self, changes: Mapping[str, Any]) -> TrialSpec:
        """A copy with several dotted paths changed together, in whichever order they are given.

        Of a stage the whole is changed first, then its kind, then its fields at once: values may fit each other
        and not the old ones.

        Raises:
            SpecError: unknown path, or values that do not fit.
        """
        stages: dict[str, dict[str, Any]] = {}
        for path, value in changes.items():
            stage, _, field = path.partition(".")
            if stage not in type(self).model_fields:
                hint = did_you_mean(stage, type(self).model_fields)
                raise SpecError(f"unknown stage {stage!r}", where=path, hint=hint)
            stages.setdefault(stage, {})[field] = value
        trial = self
        for stage, values in stages.items():
            where = ", ".join(path for path in changes if path.partition(".")[0] == stage)
            others = {name: getattr(trial, name) for name in trial.model_fields_set if name != stage}
            trial = parse(TrialSpec, {**others, stage: trial._changed(stage, values, where)}, where=where)
        return trial

    def _changed(self, stage: str, values: Mapping[str, Any], where: str) -> Any:
        """What `parse` takes for a stage after a change; the path of the whole stage is ""."""
        current: Spec = getattr(self, stage)
        if "" in values:
            whole, values = values[""], {name: value for name, value in values.items() if name}
            if not values:
                return whole
            current = getattr(parse(TrialSpec, {stage: whole}, where=where), stage)
        kept = {k: v for k, v in dict(current).items() if k in current.model_fields_set}
        if isinstance(current, Python) and "target" in values:
            kept = {}  # another function: not this one's source
        if "kind" in type(current).model_fields:
            if "kind" in values:
                union = get_args(type(self).model_fields[stage].annotation)
                fields = (set(c.model_fields) for c in union if c.model_fields["kind"].default == values["kind"])
                known = next(fields, set())
                kept = {name: value for name, value in kept.items() if name in known}
            else:  # a field of an answer asks for one
                kept["kind"] = "answer" if isinstance(current, NoGeneration) else current.kind  # type: ignore[attr-defined]
        table = {**kept, **values}
        if isinstance(current, Python) and current.function is not None and not values.keys() & {"kind", "target"}:
            changed = parse(Python, table, where=where)
            changed._function = current.function
            return changed
        return table


def read_trial(path: Path) -> TrialSpec:
    """A trial from a TOML file of stage tables.

    Raises:
        SpecError: the file cannot be read, does not fit, or holds a sweep.
    """
    data = read_toml(path)
    if data.keys() & {"axes", "base", "include"}:
        raise SpecError("this is a sweep, not a trial", where=str(path), hint="use `workbench sweep`")
    return parse(TrialSpec, data, where=str(path))


def apply_settings(trial: TrialSpec, settings: Sequence[str]) -> TrialSpec:
    """A trial with `--set` settings applied together."""
    return trial.varied(dict(map(parse_setting, settings)))
