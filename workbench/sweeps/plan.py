"""From a SweepSpec to its trials and the unique stages they share. Pure: nothing is stored or computed."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence, Set
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
from workbench.specs import Served, SweepSpec, TrialSpec, canonical_json, digest
from workbench.specs.sweep import REPLICATE, agrees, same

_NAMED = 5
"""Groups of equal trials that a warning names."""
_SERVING = ("model", "revision", "dtype", "quantization", "max_model_len", "arguments", "prefix_caching")
"""The fields of a spec that say which server answers."""


@dataclass(frozen=True, slots=True)
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
        """Every unique stage, inputs before what needs them, those of one served model together (`order`)."""
        return order(tuple(graph.walk(trial.graph.score for trial in self.trials)))

    @cached_property
    def stages_of_a_loop(self) -> int:
        """How many stages a loop over the trials would run, sharing nothing."""
        return sum(sum(1 for _ in trial.graph.score.walk()) for trial in self.trials)

    @property
    def fingerprint(self) -> str:
        data = self.dataset
        return digest(
            {
                "sweep": self.sweep.identity(),
                "dataset": [data.name, data.corpus_fingerprint, data.queries_fingerprint, data.gold_fingerprint],
            }
        )

    @cached_property
    def warnings(self) -> tuple[str, ...]:
        """What a person may not have meant: axes that change nothing, trials that are the same. They stop nothing."""
        points = [{path: same(value) for path, value in trial.point.items()} for trial in self.trials]
        leaves = [trial.graph.fingerprint for trial in self.trials]
        inert = [path for path in self.sweep.axes if _is_inert(path, points, leaves)]
        found = [f"inert axis {path!r}: no stage of any trial depends on it" for path in inert]
        equal: dict[str, dict[frozenset[tuple[str, str]], str]] = {}
        for trial, point, leaf in zip(self.trials, points, leaves, strict=True):
            rest = frozenset((path, value) for path, value in point.items() if path not in inert)
            equal.setdefault(leaf, {}).setdefault(rest, trial.label)
        groups = [tuple(labels.values()) for labels in equal.values() if len(labels) > 1]
        if groups:
            named = "; ".join(" = ".join(map(repr, labels[:_NAMED])) for labels in groups[:_NAMED])
            more = f" and {len(groups) - _NAMED:,} more" if len(groups) > _NAMED else ""
            count = sum(len(labels) - 1 for labels in groups)
            which = "1 trial is" if count == 1 else f"{count:,} trials are"
            found.append(f"{which} the same as another, stage by stage: {named}{more}")
        return tuple(found)


def _is_inert(path: str, points: Sequence[Mapping[str, str]], leaves: Sequence[str]) -> bool:
    """Whether trials that differ in this path alone, of which there are some, always have one leaf."""
    groups: dict[frozenset[tuple[str, str]], list[str]] = {}
    for point, leaf in zip(points, leaves, strict=True):
        if path in point:
            groups.setdefault(frozenset(pair for pair in point.items() if pair[0] != path), []).append(leaf)
    compared = [of for of in groups.values() if len(of) > 1]
    return bool(compared) and all(len(set(of)) == 1 for of in compared)


def plan(sweep: SweepSpec, dataset: Dataset, runtime: Runtime, *, name: str = "sweep") -> Plan:
    """The trials of a sweep; the baseline is the declared point, or else the first trial.

    Raises:
        SpecError: a path or value that does not fit, an unknown primary metric, an unfit baseline.
        DatasetError, ModelError: something that a trial names is not there.
    """
    points = sweep.trials()
    check_metric(sweep.metric, (trial for _, trial in points), dataset)
    builder = graph.Builder(dataset, runtime)
    labels: Counter[str] = Counter()
    trials = []
    for number, (point, trial) in enumerate(points):
        label = _label(point, trial, sweep)
        labels[label] += 1
        if labels[label] > 1:
            label = f"{label} ({labels[label]})"
        trials.append(PlannedTrial(number, point, label, builder.build(trial)))
    baseline = next((t.trial_no for t in trials if agrees(t.point, sweep.baseline)), None)
    if baseline is None:
        raise SpecError("no trial fits the baseline", where="baseline")
    return Plan(name, sweep, dataset, tuple(trials), baseline)


def check_metric(metric: str, trials: Iterable[TrialSpec], dataset: Dataset) -> None:
    """Refuse a primary metric that one of the trials does not score on this dataset.

    Raises:
        SpecError: as `evaluation.check_metric`.
    """
    different = {(trial.scored.k, trial.generates): trial for trial in trials}
    for trial in different.values():
        evaluation.check_metric(metric, trial.scored, dataset.queries, answers=trial.generates)


def _label(point: Mapping[str, Any], trial: TrialSpec, sweep: SweepSpec) -> str:
    """The values on the axes; others with their paths; a repetition by its number, from 1."""
    values = [
        short(value) if path in sweep.axes else f"{path} {short(value)}"
        for path, value in point.items()
        if path != REPLICATE
    ]
    label = " / ".join(values) or describe(trial)
    return f"{label} #{point[REPLICATE] + 1}" if REPLICATE in point else label


def short(value: Any) -> str:
    """A point's value as labels write it: of a whole stage its kind."""
    if isinstance(value, Mapping):
        return str(value["kind"]) if "kind" in value else ", ".join(f"{k} {short(v)}" for k, v in value.items())
    return " + ".join(map(short, value)) if isinstance(value, tuple | list) else str(value)


# --- the order of stages -------------------------------------------------------------------------


def server_of(node: Node) -> str | None:
    """What names the served model that a stage asks; None where it asks none."""
    if not isinstance(node.config, Served):
        return None
    return canonical_json(
        {name: value for name, value in node.config.model_dump(mode="json").items() if name in _SERVING}
    )


def order(nodes: Sequence[Node]) -> tuple[Node, ...]:
    """Stages with inputs before what needs them, and each served model in few stretches: loading one takes minutes.

    What asks no model comes as soon as it can. A model is left only when no stage that asks it is ready; next
    is one that can then be finished for good, else the one that heads the longest chain of models still to be
    loaded one after the other, else the one with the most stages ready. With one or two models no order
    switches less often.

    `nodes` are in some order with inputs first, which is kept where nothing speaks against it; inputs that are not
    among them count as done.
    """
    place = {node.fingerprint: i for i, node in enumerate(nodes)}
    asks = [server_of(node) for node in nodes]
    inputs = [{place[i] for i in node.input_fingerprints.values() if i in place} for node in nodes]
    users: list[list[int]] = [[] for _ in nodes]
    for i, of in enumerate(inputs):
        for source in of:
            users[source].append(i)
    chains = _chains(asks, users)
    missing = [len(of) for of in inputs]
    # Of each model a heap: the first in the given order is taken first.
    ready: dict[str | None, list[int]] = {model: [] for model in (None, *asks)}
    for i, count in enumerate(missing):
        if not count:
            ready[asks[i]].append(i)
    found: list[int] = []
    current: str | None = None
    while len(found) < len(nodes):
        if ready[None]:
            stage = heapq.heappop(ready[None])
        else:
            if not ready[current]:
                current = _next_model(set(found), asks, inputs, ready, chains)
            stage = heapq.heappop(ready[current])
        found.append(stage)
        for user in users[stage]:
            missing[user] -= 1
            if not missing[user]:
                heapq.heappush(ready[asks[user]], user)
    return tuple(nodes[i] for i in found)


def _chains(asks: Sequence[str | None], users: Sequence[Sequence[int]]) -> list[dict[str, int]]:
    """Of each stage, by first model: the longest chain of models, one loaded after the other, from it on."""
    chains: list[dict[str, int]] = [{} for _ in asks]
    for i in reversed(range(len(asks))):
        after: dict[str, int] = {}
        for user in users[i]:
            for model, length in chains[user].items():
                after[model] = max(after.get(model, 0), length)
        own = asks[i]
        if own is not None:
            after = {own: max((length + (model != own) for model, length in after.items()), default=1)}
        chains[i] = after
    return chains


def _next_model(
    done: Set[int],
    asks: Sequence[str | None],
    inputs: Sequence[Iterable[int]],
    ready: Mapping[str | None, Sequence[int]],
    chains: Sequence[Mapping[str, int]],
) -> str:
    """The model to load next, of those that have a stage ready."""
    needs: dict[int, set[str]] = {}  # the models behind each stage that is not done
    unfinishable = set()
    for i, own in enumerate(asks):
        if i not in done:
            needs[i] = {m for source in inputs[i] if source in needs for m in (*needs[source], asks[source]) if m}
            if own is not None and needs[i] - {own}:
                unfinishable.add(own)

    def rank(model: str) -> tuple[bool, int, int]:
        return model not in unfinishable, max(chains[i][model] for i in ready[model]), len(ready[model])

    return max((model for model, stages in ready.items() if model is not None and stages), key=rank)
