"""Ask a question now: the hits of one or two trials side by side, no gold needed.

A question is a query set of one, so asking runs the same stages and memo as an experiment: the index is
shared with every trial that has it, and a question asked again costs nothing.
"""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl

from workbench.datasets import Dataset
from workbench.errors import InputError
from workbench.pipeline import graph
from workbench.pipeline.execute import Progress, execute
from workbench.pipeline.job import Job
from workbench.pipeline.results import describe
from workbench.records import Query
from workbench.runtime import Runtime
from workbench.specs import TrialSpec


@dataclass(frozen=True)
class SearchResult:
    """Ranked hits a trial: frames of rank, score, doc_id, title, start, end, text; and the answers of trials that
    generate."""

    text: str
    dataset: str
    hits: Mapping[str, pl.DataFrame]
    answers: Mapping[str, str]

    def as_json(self) -> dict[str, Any]:
        return {
            "query": self.text,
            "dataset": self.dataset,
            "trials": [
                {"trial": label, "answer": self.answers.get(label), "hits": frame.to_dicts()}
                for label, frame in self.hits.items()
            ],
        }

    def __repr__(self) -> str:
        return f"SearchResult({self.text!r}, {self.dataset!r}, {', '.join(map(repr, self.hits))})"

    def __str__(self) -> str:
        lines = [self.text]
        for label, frame in self.hits.items():
            lines += ["", label, *([self.answers[label]] if label in self.answers else [])]
            for h in frame.iter_rows(named=True):
                lines.append(f"{h['rank']:>3}  {h['score']:.3f}  {h['doc_id']} {h['start']}:{h['end']}")
                lines.append(f"     {' '.join(h['text'].split())}")
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        columns = []
        for label, frame in self.hits.items():
            items = "".join(
                f"<li><b>{html.escape(h['title'] or h['doc_id'])}</b> <small>{h['start']}:{h['end']},"
                f" score {h['score']:.3f}</small><div style='white-space:pre-wrap'>{html.escape(h['text'])}</div></li>"
                for h in frame.iter_rows(named=True)
            )
            answer = f"<p>{html.escape(self.answers[label])}</p>" if label in self.answers else ""
            columns.append(
                "<td style='vertical-align:top;text-align:left'>"
                f"<b>{html.escape(label)}</b>{answer}<ol>{items}</ol></td>"
            )
        return f"<table><caption>{html.escape(self.text)}</caption><tr>{''.join(columns)}</tr></table>"


def search(
    runtime: Runtime,
    dataset: Dataset,
    text: str,
    trials: Sequence[TrialSpec],
    *,
    k: int = 5,
    progress: Progress | None = None,
) -> SearchResult:
    """The first k hits of each trial for a question.

    Raises:
        InputError: a blank question, or none or too many trials.
    """
    if not text.strip():
        raise InputError("the question is blank", where="search")
    if not 1 <= len(trials) <= 2:
        raise InputError(f"search shows one or two trials side by side, not {len(trials)}", where="search")
    asked = dataset.asking((Query("asked", text),))
    job = Job(runtime, asked)
    titles = {d.doc_id: d.title for d in dataset.documents}
    found: dict[str, pl.DataFrame] = {}
    answers: dict[str, str] = {}
    for trial in trials:
        built = graph.build(trial, asked, runtime)
        execute(list((built.answers or built.hits).walk()), job, progress=progress)
        spans = job.chunks(built.chunk)
        hits = job.hits(built.hits).head(k).join(spans, on="chunk_no", how="left", maintain_order="left")
        label = describe(trial)
        label = label if label not in found else f"{label} (2)"
        if built.answers is not None:
            answers[label] = job.answers(built.answers)["text"][0]
        found[label] = pl.DataFrame(
            [
                {
                    **{name: h[name] for name in ("rank", "score", "doc_id")},
                    "title": titles[h["doc_id"]],
                    "start": h["start"],
                    "end": h["end"],
                    "text": job.texts[h["doc_id"]][h["start"] : h["end"]],
                }
                for h in hits.iter_rows(named=True)
            ],
            schema={
                "rank": pl.Int64,
                "score": pl.Float64,
                "doc_id": pl.String,
                "title": pl.String,
                "start": pl.Int64,
                "end": pl.Int64,
                "text": pl.String,
            },
        )
    return SearchResult(text, dataset.name, found, answers)
