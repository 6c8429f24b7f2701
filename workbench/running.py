"""A sweep run for a person at the command line: inputs checked first, then plan, progress, table and report."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workbench import console, display, inputs
from workbench.exports import PAGES, check_output
from workbench.pipeline.execute import require_models
from workbench.progress import waiting
from workbench.specs import SweepSpec, read_sweep

if TYPE_CHECKING:
    from workbench.datasets import Dataset
    from workbench.lab import Engine, Lab
    from workbench.sweeps.runs import SweepRun


@dataclass(frozen=True)
class Task:
    """A sweep that was read and checked against its dataset; the store was not opened for it."""

    name: str
    spec: SweepSpec
    data: Dataset
    output: Path | None = None

    @classmethod
    def read(cls, file: Path, data: Dataset, output: Path | None = None) -> Task:
        """Check everything that can be checked without work.

        Raises:
            InputError: the sweep, its metric or the report's place does not fit.
        """
        spec = read_sweep(file)
        inputs.check_metric(spec.metric, (trial for _, trial in spec.trials()), data)
        check_output(output, PAGES, folder=True)
        return cls(file.stem, spec, data, output)


def run(
    task: Task,
    lab: Lab,
    *,
    quiet: bool,
    report: bool,
    title: str = "",
    engine: Engine = "local",
    workers: int = 1,
) -> tuple[SweepRun, dict[str, Any]]:
    """Run a task; returns the run and its JSON object. Unless `quiet`, everything is said on the way."""
    data = task.data
    plan = lab.plan(task.spec, data, name=task.name)
    done = lab.runtime.ledger.done([node.fingerprint for node in plan.nodes])
    todo = [node for node in plan.nodes if node.fingerprint not in done]
    require_models(todo, lab.runtime.settings)
    if not quiet:
        if title:
            console.say(f"\n{title}", "bold cyan")
        passages = sum(node.kind == "embed" and node.label == "passage" for node in todo)
        characters = passages * sum(len(d.text) for d in data.documents)
        display.show_plan(plan, todo, lab.runtime.database.name, characters)
    finished = lab.run_sweep(plan, engine=engine, workers=workers)
    result = lab.sweep_result(finished.sweep_id) if finished.results else None
    body = finished.as_json()
    if result is not None:
        body |= {"verdict": result.verdict, "best": result.best}
    if not quiet:
        display.show_sweep(finished, result)
    if report and result is not None:
        with waiting("rendering the report"):
            page = lab.report(result, task.output)
        body["report"] = str(page)
        if not quiet:
            display.show_page("report", page)
    return finished, body
