"""The `filings` dataset: reports of invented companies, generated from a seed at any size.

Every report has the same sections in nearly the same words, and none of them names its company or its
period: only the title does. A question asks for a figure of one company in one period, so as many chunks
fit it as there are reports, until the title tells them apart.

The control asks other questions of the very same corpus. They name neither company nor period but a name
of three words that stands in one sentence of the corpus, the gold. The title holds nothing of what they
ask for, whatever the chunks and the index are, and every chunk of a report shares it: it cannot help. A
gain by titles on the control is a fault of the code under test.

Made to show an effect, so it proves that code is correct and never that a method is good.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

from workbench.datasets.dataset import Dataset
from workbench.datasets.files import Card, Reading
from workbench.datasets.filings_reports import PERIODS, SECTIONS, SUBJECTS, Report, compose, scattered
from workbench.datasets.rows import Faults
from workbench.errors import DatasetError, did_you_mean
from workbench.records import Document, Evidence, Query

NAME = "filings"
SMALLEST, LARGEST, USUAL = 50, 1_000_000, 2_000
"""Chunks: the bounds and the default."""
MOST_QUERIES = 10_000
LARGEST_SEED = 2**63 - 1


@dataclass(frozen=True)
class Filings:
    """The parameters of the dataset: equal parameters give equal bytes in every process.

    `chunks` is what `recursive` with 200 wordpieces makes of the corpus (8 of a report), `control` asks
    the questions that a title cannot help with, `queries` is their number (None: one to four reports, but
    at least 30 and at most 400). What a company reports for a period is the same at every size.

    Raises:
        DatasetError: a parameter has the wrong type or is out of range; all faults at once.
    """

    chunks: int = USUAL
    seed: int = 0
    control: bool = False
    queries: int | None = None

    def __post_init__(self) -> None:
        if faults := [*self._faults()]:
            raise DatasetError("the parameters do not fit", faults, where=NAME)

    def _faults(self) -> Iterator[str]:
        given: dict[str, Any] = {f.name: getattr(self, f.name) for f in fields(self)}
        if type(given["control"]) is not bool:
            yield f"'control' must be true or false, not {given['control']!r}"
        sized = type(given["chunks"]) is int and SMALLEST <= self.chunks <= LARGEST
        facts = self.size * SUBJECTS if sized else MOST_QUERIES
        ranges = {
            "chunks": (SMALLEST, LARGEST),
            "seed": (0, LARGEST_SEED),
            "queries": (1, min(facts, MOST_QUERIES)),
        }
        for name, (low, high) in ranges.items():
            value = given[name]
            if name == "queries" and value is None:
                continue
            if type(value) is not int:
                yield f"{name!r} must be a whole number, not {value!r}"
            elif not low <= value <= high:
                yield f"{name!r} must lie between {low:,} and {high:,}, not at {value:,}"

    @classmethod
    def parse(cls, text: str) -> Filings:
        """Parameters from `chunks=200&control=1`; `control` is 1, 0, true or false.

        Raises:
            DatasetError: every unknown, repeated or empty parameter, or every value that does not fit.
        """
        known = [f.name for f in fields(cls)]
        values: dict[str, Any] = {}
        faults = []
        for part in text.split("&"):
            name, _, value = part.partition("=")
            if name not in known:
                faults.append(f"unknown parameter {name!r}: {did_you_mean(name, known)}")
            elif name in values:
                faults.append(f"{name!r} is given twice")
            elif not value:
                faults.append(f"{name!r} has no value")
            values[name] = _value(name, value)
        if faults:
            raise DatasetError("the parameters do not fit", faults, where=NAME, hint=f"as in {NAME}?chunks=200&seed=7")
        return cls(**values)

    @cached_property
    def name(self) -> str:
        """What `datasets.load` makes this dataset from; parameters that equal their default are left out."""
        given = {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) != f.default}
        return "?".join([NAME, *filter(None, ["&".join(f"{name}={int(value)}" for name, value in given.items())])])

    @property
    def size(self) -> int:
        """Number of reports."""
        return round(self.chunks / SECTIONS)

    @property
    def asked(self) -> int:
        """Number of queries."""
        return min(max(self.size // 4, 30), 400) if self.queries is None else self.queries

    def documents(self) -> Iterator[Document]:
        """The reports one by one, company after company; none is kept."""
        for index in range(self.size):
            report = self.report(index)
            metadata = {"company": report.company, "period": report.period}
            yield Document(_doc_id(index), report.text, report.title, metadata=metadata)

    def questions(self) -> Iterator[Query]:
        """One question a report in a scattered order, then a second one; no fact is asked for twice."""
        for number in range(self.asked):
            lap, place = divmod(number, self.size)
            index = scattered(place, self.size, self.seed, "questions")
            report = self.report(index)
            fact = (report.marked if self.control else report.stated)[(place + lap) % SUBJECTS]
            start = report.text.index(fact.sentence)
            evidence = Evidence(_doc_id(index), start, start + len(fact.sentence))
            yield Query(f"q-{number + 1:05}", fact.question, (evidence,), fact.figure, {"subject": fact.subject})

    def report(self, index: int) -> Report:
        """The report at a place of the corpus, from 0."""
        companies = max(math.ceil(math.sqrt(self.size)), math.ceil(self.size / PERIODS))
        company, period = divmod(index, math.ceil(self.size / companies))
        return compose(self.seed, company, period)


def filings(chunks: int = USUAL, seed: int = 0, control: bool = False, queries: int | None = None) -> Dataset:
    """The dataset of these parameters, which `Filings` describes.

    Raises:
        DatasetError: a parameter has the wrong type or is out of range.
    """
    made = Filings(chunks, seed, control, queries)
    return Dataset(made.name, tuple(made.documents()), tuple(made.questions()), "MIT", "generated from a seed")


def read_filings(folder: Path, card: Card, faults: Faults, parameters: Filings | None = None) -> Reading:
    """The dataset of these parameters (None: of the defaults) under the card of its folder."""
    made = parameters or Filings()
    card = card.model_copy(update={"name": made.name})
    return Reading(folder, card, list(made.documents()), list(made.questions()), faults)


def _doc_id(index: int) -> str:
    return f"report-{index + 1:06}"


def _value(name: str, text: str) -> int | bool | str:
    """A parameter's value; a text that is none is left for the check of types to name."""
    if name == "control":
        return {"1": True, "true": True, "0": False, "false": False}.get(text, text)
    return int(text) if re.fullmatch(r"-?[0-9]{1,20}", text) else text
