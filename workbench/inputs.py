"""What commands take: trials, datasets, metrics, checked before the store is opened and anything is computed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from workbench.errors import InputError

if TYPE_CHECKING:
    from workbench.datasets import Dataset
    from workbench.lab import Lab
    from workbench.pipeline.results import TrialResult
    from workbench.specs import TrialSpec


def open_lab() -> Lab:
    """The lab over the store that the environment names.

    Raises:
        InputError: a variable does not fit, or nothing can be written to the home.
        DatabaseError: the store is down, too old, too new, or lacks pgvector.
    """
    from workbench.doctor import require_home
    from workbench.lab import Lab
    from workbench.progress import waiting
    from workbench.settings import Settings

    settings = Settings.read()
    if (
        settings.database_url and settings.database_url.get_secret_value()
    ):  # the embedded server looks after its home itself, and says more
        require_home(settings.home)
    with waiting("opening the store"):
        return Lab(settings)


def trial(path: Path | None, settings: Sequence[str] | None = None) -> TrialSpec:
    """A trial from a file (none: the defaults) with `--set` settings applied.

    Raises:
        SpecError: the file is missing or a field or setting does not fit.
    """
    from workbench.specs import TrialSpec, apply_settings, read_trial

    return apply_settings(TrialSpec() if path is None else read_trial(path), settings or [])


def dataset(name: str, limit: int | None = None, *, scored: bool = True) -> Dataset:
    """A dataset by name or folder; `scored` asks for one with queries.

    Raises:
        InputError: none was given, it is not there, it has faults, or it has no queries.
    """
    from workbench import datasets

    if not name:
        raise InputError("no dataset was given", where="--dataset", hint="`workbench data ls` lists names")
    data = datasets.load(name, limit)
    if scored and not data.queries:
        raise InputError("this dataset has no queries to score", where=name, hint="`workbench search` needs none")
    return data


def check_metric(metric: str, trials: Iterable[TrialSpec], data: Dataset) -> None:
    """Refuse a metric that one of these trials does not score, or that this dataset's gold does not allow.

    Raises:
        InputError: with the nearest names that are there.
    """
    from workbench.sweeps.plan import check_metric as check

    check(metric, trials, data)
    if not any(q.evidence for q in data.queries):
        raise InputError("no query here has evidence, so nothing can be scored", where=data.name, hint="add gold spans")


class Operand:
    """A trial as `compare` and `inspect` take it: checked when it is named, run or loaded once the lab is open."""

    def __init__(self, name: str, folder: str, limit: int | None, metric: str) -> None:
        self.name = name
        self.id = int(name) if name.isdecimal() else None
        self.data: Dataset | None = None
        if self.id is None:
            self.spec = trial(Path(name))
            self.data = dataset(folder, limit)
            if metric:
                check_metric(metric, [self.spec], self.data)

    def result(self, lab: Lab, label: str | None = None) -> TrialResult:
        """The trial's result under a label; what the store already holds is not computed again."""
        if self.id is not None:
            return lab.trial(self.id)
        return lab.run(self.spec, self.data, label=label)
