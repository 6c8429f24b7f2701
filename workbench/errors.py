"""Every error a person can meet, in one tree.

WorkbenchError
├── InputError            what was asked for is wrong; nothing was started (exit code 2)
│   ├── SpecError         a trial, sweep or setting: unknown field, wrong type, wrong kind
│   ├── DatasetError      documents, queries or gold spans
│   └── FrameError        a frame that does not fit the record it claims to hold
├── ServiceError          something the work needs is not there (exit code 2)
│   ├── DatabaseError     PostgreSQL is unreachable, too old, too new, or lacks pgvector
│   └── ModelError        a model, the package that runs it, or its server is missing or unusable
├── StageError            a stage failed while it ran; finished items are kept (exit code 1)
│   ├── ShortResultError  an index returned fewer hits than it holds rows for
│   ├── CallError         a model request failed for good; calls that finished are kept
│   └── StageCrashed      its process died several times in a row, before one item was finished
├── ReportError           a report could not be rendered; what is in the store is untouched (exit code 1)
├── Stopped               a person paused or cancelled the sweep; finished items are kept (exit code 130)
└── LeaseLost             another process took this work over; the late write was refused
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence


class WorkbenchError(Exception):
    """What is wrong, where, and the next step.

    `where` is a place a person can open (a file and key, a document, a URL without
    credentials); `hint` is the next step.
    """

    exit_code = 1

    def __init__(self, what: str, *, where: str | None = None, hint: str | None = None) -> None:
        self.what, self.where, self.hint = what, where, hint
        super().__init__(what, where, hint)

    def __str__(self) -> str:
        place = f"{self.where}: " if self.where else ""
        step = f" ({self.hint})" if self.hint else ""
        return f"{place}{self.what}{step}"


class InputError(WorkbenchError):
    exit_code = 2


class SpecError(InputError):
    pass


class _Faults(InputError):
    """An input error that lists every fault found at once."""

    def __init__(self, what: str, faults: Sequence[str], *, where: str | None = None, hint: str | None = None) -> None:
        super().__init__(what, where=where, hint=hint)
        self.faults = tuple(faults)

    def __str__(self) -> str:
        return "\n".join([super().__str__(), *(f"  - {fault}" for fault in self.faults)])


class DatasetError(_Faults):
    pass


class FrameError(_Faults):
    pass


class ServiceError(WorkbenchError):
    exit_code = 2


class DatabaseError(ServiceError):
    pass


class ModelError(ServiceError):
    pass


class StageError(WorkbenchError):
    pass


class ShortResultError(StageError):
    pass


class CallError(StageError):
    pass


class StageCrashed(StageError):
    pass


class ReportError(WorkbenchError):
    pass


class Stopped(WorkbenchError):
    exit_code = 130


class LeaseLost(WorkbenchError):
    pass


LISTED = 20
"""Known words that a hint names at most: a dataset has hundreds of query ids."""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """A hint that names the closest known words, or the known ones (the first 20) when none is close."""
    choices = sorted(set(known))
    close = difflib.get_close_matches(word, choices, n=2, cutoff=0.6)
    if close:
        return "did you mean " + " or ".join(repr(c) for c in close) + "?"
    more = f" and {len(choices) - LISTED:,} more" if len(choices) > LISTED else ""
    return "known: " + ", ".join(choices[:LISTED]) + more
