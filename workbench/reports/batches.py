"""A sweep as a folder of executed notebooks: which notebook for which trial, and which of them are there already.

Whether a notebook is done is asked of the store: a kernel that was killed leaves a notebook that says it completed.
"""

from __future__ import annotations

import html
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import workbench
from workbench.errors import SpecError
from workbench.parsing import parse
from workbench.reports.page import write_atomically
from workbench.reports.parameters import Template
from workbench.runtime import Runtime
from workbench.specs import TrialSpec, digest
from workbench.store.ledger import StageRow
from workbench.sweeps.plan import Plan, PlannedTrial

if TYPE_CHECKING:
    from nbformat import NotebookNode

STAMP = "workbench"
"""Where a notebook's metadata say what it was made from, or why it failed."""


@dataclass(frozen=True)
class Entry:
    """One notebook of a batch: its trial, its file, what it is given, and the fingerprint that tells it again."""

    trial: PlannedTrial
    file: Path
    parameters: Mapping[str, Any]
    fingerprint: str

    @property
    def label(self) -> str:
        return self.trial.label

    @property
    def leaf(self) -> str:
        """The fingerprint of the stage that its trial ends in."""
        return self.trial.graph.fingerprint

    @property
    def failed_file(self) -> Path:
        """Where it is kept with its error if it fails."""
        return self.file.with_name(f"{self.file.stem}.failed.ipynb")


@dataclass(frozen=True)
class Outcome:
    """What became of one notebook; `mean` is that of the sweep's metric, `seconds` are those of this run."""

    label: str
    state: Literal["done", "reused", "failed"]
    file: Path
    mean: float | None = None
    seconds: float = 0.0
    error: str | None = None

    def as_json(self) -> dict[str, Any]:
        """One object of `results` in the JSON of `workbench notebooks run`."""
        body = {"label": self.label, "state": self.state, "mean": self.mean, "seconds": round(self.seconds, 3)}
        return {**body, "file": str(self.file), "error": self.error}


@dataclass(frozen=True)
class Batch:
    """A plan's trials as notebooks in a folder."""

    plan: Plan
    template: Template
    folder: Path
    entries: tuple[Entry, ...]

    def mean(self, row: StageRow) -> float | None:
        """The mean of the sweep's metric in a finished score stage; None where nothing was scored."""
        mean: float | None = row.details["metrics"][self.plan.sweep.metric]["mean"]
        return mean


def arrange(
    plan: Plan,
    template: Template,
    folder: Path,
    *,
    dataset: str,
    limit: int | None = None,
    parameters: Mapping[str, Any] | None = None,
) -> Batch:
    """Give each trial of a plan its parameters and its file.

    Args:
        dataset: how the notebook names the dataset: a name of the catalogue, or an absolute path.
        limit: the limit that the plan's dataset was loaded with.
        parameters: further parameters, as `parameters.parse_parameters` returns them.

    Raises:
        InputError: the notebook lacks a parameter or has one of another type.
        SpecError: a trial cannot be written down.
    """
    if limit is not None:
        template.require("limit")
    entries = []
    for trial in plan.trials:
        offered = {"label": trial.label, "metric": plan.sweep.metric, "limit": limit}
        given = {
            "dataset": dataset,
            "trial": tables(trial.graph.trial),
            **{name: value for name, value in offered.items() if name in template.defaults},
            **(parameters or {}),
        }
        for name, value in given.items():
            if value is not None:
                template.check(name, value)
        slug = re.sub(r"[^\w.-]+", "-", trial.label).strip("-.")[:80] or "trial"
        file = folder / f"{trial.trial_no + 1:03}-{slug}.ipynb"
        made_from = [template.digest, given, trial.graph.fingerprint, workbench.__version__]
        entries.append(Entry(trial, file, given, digest(made_from)))
    return Batch(plan, template, folder, tuple(entries))


def tables(trial: TrialSpec) -> dict[str, Any]:
    """The stage tables of a trial as TOML would hold them; what equals its default is left out.

    Raises:
        SpecError: they would not be read back as the same trial: it holds a function of this process.
    """
    body: dict[str, Any] = trial.model_dump(mode="json", exclude_defaults=True)
    if parse(TrialSpec, body) != trial:
        hint = 'give it as kind = "python", target = "module:function"'
        raise SpecError("a function cannot be passed on to a notebook", where="chunk", hint=hint)
    return body


def stored(runtime: Runtime, leaves: Sequence[str]) -> dict[str, StageRow]:
    """Those of these leaves that are done and recorded as trials."""
    found = runtime.ledger.done(leaves)
    with runtime.database.transaction() as connection:
        rows = connection.execute(
            "SELECT DISTINCT encode(fingerprint, 'hex') FROM trial WHERE fingerprint = ANY(%s)",
            [[bytes.fromhex(leaf) for leaf in found]],
        ).fetchall()
    return {leaf: found[leaf] for (leaf,) in rows}


def fingerprint_of(file: Path) -> str | None:
    """The fingerprint that a notebook was written with; None where there is no whole notebook of ours."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))["metadata"][STAMP]["fingerprint"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return found if isinstance(found, str) else None


def keep(notebook: NotebookNode, entry: Entry, template: Template) -> None:
    """Write an executed notebook whole or not at all, stamped; one that failed before goes."""
    _write(notebook, entry.file, template, {"fingerprint": entry.fingerprint})
    entry.failed_file.unlink(missing_ok=True)


def keep_failed(notebook: NotebookNode, error: str, entry: Entry, template: Template) -> None:
    """Write a notebook that failed beside the others, headed by its error where no cell shows it."""
    import nbformat

    if not any(o.output_type == "error" for cell in notebook.cells for o in cell.get("outputs", ())):
        notebook.cells.insert(0, nbformat.v4.new_markdown_cell(f"**This notebook failed:** {html.escape(error)}"))
    _write(notebook, entry.failed_file, template, {"error": error})


def _write(notebook: NotebookNode, file: Path, template: Template, stamp: Mapping[str, str]) -> None:
    import nbformat

    notebook.metadata[STAMP] = dict(stamp)
    if "papermill" in notebook.metadata:  # which notes where this machine keeps its files
        notebook.metadata["papermill"] |= {"input_path": template.path.name, "output_path": file.name}
    write_atomically(file, nbformat.writes(notebook) + "\n")
