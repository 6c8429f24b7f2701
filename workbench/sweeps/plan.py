"""From a SweepSpec to its trials and the unique stages they share. Pure: nothing is stored or computed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from workbench import evaluation
from workbench.datasets import Dataset
from workbench.errors import SpecError
from workbench.pipeline import graph
from workbench.pipeline.graph import Node, TrialGraph
from workbench.pipeline.results import describe
from workbench.runtime import Runtime
from workbench.specs import SweepSpec, digest


@dataclass(frozen=True)
class PlannedTrial:
    """One point of a sweep. `label` names what varies."""

    trial_no: int
    point: Mapping[str, Any]
    label: str
    graph: TrialGraph


@dataclass(frozen=True)
class Plan:
    """A sweep's trials over a dataset and the stages that bring them to done."""

    name: str
    sweep: SweepSpec
    dataset: Dataset
    trials: tuple[PlannedTrial, ...]
    baseline: int

    @cached_property
    def nodes(self) -> tuple[Node, ...]:
        """Every unique stage, inputs before what needs them."""
        unique: dict[str, Node] = {}
        for trial in self.trials:
            for node in trial.graph.score.walk():
                unique.setdefault(node.fingerprint, node)
        return tuple(unique.values())

    @property
    def stages_of_a_loop(self) -> int:
        """How many stages a loop over the trials would run, sharing nothing."""
        return sum(len(list(trial.graph.score.walk())) for trial in self.trials)

    @property
    def fingerprint(self) -> str:
        data = self.dataset
        return digest(
            {
                "sweep": self.sweep.model_dump(mode="json"),
                "dataset": [data.name, data.corpus_fingerprint, data.queries_fingerprint, data.gold_fingerprint],
            }
        )


def plan(sweep: SweepSpec, dataset: Dataset, runtime: Runtime, *, name: str = "sweep") -> Plan:
    """The trials of a sweep; the baseline is the declared point, or else the first trial.

    Raises:
        SpecError: a path or value that does not fit, an unknown primary metric, an unfit baseline.
        DatasetError, ModelError: something that a trial names is not there.
    """
    labels: Counter[str] = Counter()
    trials = []
    for number, point in enumerate(sweep.points()):
        trial = sweep.trial(point)
        evaluation.check_metric(sweep.metric, trial.scored, dataset.queries, answers=trial.generates)
        label = " / ".join(short(value) for value in point.values()) or describe(trial)
        labels[label] += 1
        if labels[label] > 1:
            label = f"{label} ({labels[label]})"
        trials.append(PlannedTrial(number, point, label, graph.build(trial, dataset, runtime)))
    matching = [t.trial_no for t in trials if all(t.point[path] == value for path, value in sweep.baseline.items())]
    if not matching:
        raise SpecError("no trial fits the baseline", where="baseline")
    return Plan(name, sweep, dataset, tuple(trials), matching[0])


def short(value: Any) -> str:
    """A point's value as labels write it: of a whole stage its kind."""
    if isinstance(value, Mapping):
        return str(value["kind"]) if "kind" in value else ", ".join(f"{k} {short(v)}" for k, v in value.items())
    return " + ".join(map(short, value)) if isinstance(value, tuple | list) else str(value)
