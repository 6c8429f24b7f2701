"""A sweep of trials: a grid of values, what is left out of it and added to it, and how it is read."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import Field, model_validator

from workbench.errors import SpecError, did_you_mean
from workbench.parsing import parse, read_toml
from workbench.specs.base import Name, Spec, canonical_json
from workbench.specs.chunk import Python
from workbench.specs.trial import TrialSpec, read_trial

MOST_POINTS = 100_000
"""A grid beyond this is a mistake in its axes, and would take all memory before it is seen."""
REPLICATE = "replicate"
"""The key of a point that says which repetition it is, from 0; no stage has this name."""

Point = Mapping[str, Any]
"""Dotted path -> value."""


class SweepSpec(Spec):
    """A question, a base trial and the points at which it is tried.

    The points are every combination of the values on the axes, without those that agree with an entry of
    `exclude` on all its paths, and then those of `include`, whose paths need not be axes; without axes they
    are those of `include` alone. `replicates` repeats each trial that samples with other seeds.

    `metric` and `baseline` are declared before looking: the family of comparisons is every trial
    against the baseline on that metric. The baseline is the first point that agrees with it.
    """

    question: str = ""
    base: TrialSpec = TrialSpec()
    metric: Name = "recall@5"
    baseline: Mapping[str, Any] = {}
    replicates: Annotated[int, Field(ge=1, le=1000)] = 1
    axes: Mapping[str, tuple[Any, ...]] = {}
    include: tuple[Point, ...] = ()
    exclude: tuple[Point, ...] = ()

    @model_validator(mode="before")
    @classmethod
    def _plain_values(cls, data: Any) -> Any:
        """Specs in a point become the tables that TOML would hold: a sweep's points are stored as JSON."""
        if not isinstance(data, Mapping):
            return data
        data = dict(data)
        if isinstance(axes := data.get("axes"), Mapping):
            data["axes"] = {p: tuple(map(_plain, v)) if isinstance(v, list | tuple) else v for p, v in axes.items()}
        if "baseline" in data:
            data["baseline"] = _plain_point(data["baseline"])
        for name in ("include", "exclude"):
            if isinstance(points := data.get(name), list | tuple):
                data[name] = tuple(map(_plain_point, points))
        return data

    @model_validator(mode="after")
    def _points_fit(self) -> Self:
        for path, values in self.axes.items():
            if not values:
                raise ValueError(f"axis {path!r} has no values")
            keys = [same(value) for value in values]
            if again := [v for i, v in enumerate(values) if keys[i] in keys[:i]]:
                raise ValueError(f"axis {path!r} names {again[0]!r} more than once")
        count = math.prod(map(len, self.axes.values())) + len(self.include)
        if count * self.replicates > MOST_POINTS:
            raise ValueError(f"{count * self.replicates:,} points: a sweep has at most {MOST_POINTS:,}")
        points = self._declared()
        if REPLICATE in {path for point in (*points, *self.exclude) for path in point}:
            raise ValueError(f"{REPLICATE!r} is no path of a trial: set replicates")
        self._baseline_fits(points)
        return self

    def _baseline_fits(self, points: Sequence[Point]) -> None:
        declared = {path: value for path, value in self.baseline.items() if path != REPLICATE or self.replicates == 1}
        for path, value in declared.items():
            values = {same(point[path]) for point in points if path in point}
            if not values:
                known = {path for point in points for path in point}
                raise ValueError(f"baseline names {path!r}, which is no axis: {did_you_mean(path, known)}")
            if same(value) not in values:
                raise ValueError(f"baseline value {value!r} of {path!r} is not on its axis, nor in a point")
        if not any(agrees(point, declared) for point in points):
            raise ValueError(f"no point agrees with the baseline {declared}; is it excluded?")

    def _declared(self) -> list[dict[str, Any]]:
        """The points but for replicates: the grid without what is excluded, then what is included."""
        axes = [[((path, same(value)), value) for value in values] for path, values in self.axes.items()]
        rules = [_identity(rule) for rule in self.exclude]
        idle = set(range(len(rules)))
        found: dict[frozenset[tuple[str, str]], dict[str, Any]] = {}
        for combination in itertools.product(*axes) if axes or not self.include else ():
            key = frozenset(pair for pair, _ in combination)
            matching = {i for i, rule in enumerate(rules) if rule <= key}
            idle -= matching
            if not matching:
                found[key] = {path: value for (path, _), value in combination}
        if idle:
            rule = self.exclude[min(idle)]
            unknown = [did_you_mean(path, self.axes) for path in rule if path not in self.axes]
            raise ValueError("; ".join([f"exclude {dict(rule)} fits no point of the grid", *unknown]))
        for point in self.include:
            if (key := _identity(point)) in found:
                raise ValueError(f"include {dict(point)} is a point already")
            found[key] = dict(point)
        if not found:
            raise ValueError("every point is excluded: nothing is left to try")
        return list(found.values())

    def points(self) -> list[dict[str, Any]]:
        """Every point in declaration order; of repeated trials with their number, from 0, as "replicate".

        Raises:
            SpecError: as `trials`.
        """
        return [point for point, _ in self.trials()]

    def trials(self) -> list[tuple[dict[str, Any], TrialSpec]]:
        """Every point with its trial. Trials that agree on a stage share the object of its spec.

        Raises:
            SpecError: a path or value that does not fit, or replicates where nothing samples.
        """
        made: dict[str, Spec] = {}
        found = []
        for point in self._declared():
            trial = self._trial(point, made)
            if self.replicates == 1 or not trial.sampling:
                found.append((point, trial))
                continue
            for number in range(self.replicates):
                again = self._trial({**point, **trial.seeds(number)}, made)
                found.append(({**point, REPLICATE: number}, again))
        if self.replicates > 1 and not any(trial.sampling for _, trial in found):
            raise SpecError(
                "no stage of any trial samples, so every replicate would be the same",
                where="replicates",
                hint="set a temperature above 0, or replicates = 1",
            )
        return found

    def trial(self, point: Point) -> TrialSpec:
        """The base with one point's values.

        Raises:
            SpecError: a path or value that does not fit.
        """
        values = {path: value for path, value in point.items() if path != REPLICATE}
        trial = self._trial(values, {})
        return trial.varied(trial.seeds(point.get(REPLICATE, 0)))

    def _trial(self, point: Point, made: dict[str, Spec]) -> TrialSpec:
        """`made` keeps the specs of stages by the values that make them: a grid has few for each stage."""
        stages: dict[str, dict[str, Any]] = {}
        for path, value in point.items():
            stages.setdefault(path.partition(".")[0], {})[path] = value
        specs = {}
        for stage, values in stages.items():
            if (key := same(values)) not in made:
                made[key] = getattr(self.base.varied(values), stage)
            specs[stage] = made[key]
        return self.base.model_copy(update=specs)


def same(value: Any) -> str:
    """Text that is equal for values that mean the same in a spec: lists and tuples, 1 and 1.0, but not 1 and true."""
    try:
        return canonical_json(_whole_numbers(value))
    except TypeError:
        raise ValueError(f"{value!r} is no value of a spec") from None


def _whole_numbers(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _whole_numbers(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_whole_numbers(inner) for inner in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def agrees(point: Point, values: Point) -> bool:
    """Whether a point has all of these values."""
    return all(path in point and same(point[path]) == same(value) for path, value in values.items())


def _identity(point: Point) -> frozenset[tuple[str, str]]:
    return frozenset((path, same(value)) for path, value in point.items())


def _plain_point(point: Any) -> Any:
    return {path: _plain(value) for path, value in point.items()} if isinstance(point, Mapping) else point


def _plain(value: Any) -> Any:
    if callable(value) or (isinstance(value, Python) and value.function is not None):
        raise ValueError('a function cannot stand on an axis: give {"kind": "python", "target": "module:function"}')
    return value.model_dump(mode="json", exclude_defaults=True) if isinstance(value, Spec) else value


def read_sweep(path: Path) -> SweepSpec:
    """A sweep from a TOML file; `base` is another file beside it, or inline tables.

    Raises:
        SpecError: the file cannot be read, does not fit, or holds a trial.
    """
    data = read_toml(path)
    if data and set(data) <= set(TrialSpec.model_fields):
        raise SpecError("this is a trial, not a sweep", where=str(path), hint="use `workbench run`")
    if isinstance(data.get("base"), str):
        data["base"] = read_trial(path.parent / data["base"])
    return parse(SweepSpec, data, where=str(path))
