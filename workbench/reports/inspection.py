"""What an inspection holds and how it becomes HTML: the view of `inspector.inspect`."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from markupsafe import Markup

from workbench.records import Document, Evidence, Query
from workbench.reports.page import POLICY, Fragment, environment, exact, number, style, write_atomically
from workbench.reports.segments import Marked, Part, fold, segments

SHOWN = 10
"""Ranks that are marked in documents and listed openly; deeper ones are folded, or marked where they touch gold."""
LONG_FOLD = 20_000
"""In a notebook a fold longer than this is left out: the page of the same query has it."""


@dataclass(frozen=True)
class Gold:
    """A piece of evidence; `ranks` has the rank at which each trial found it (None: missed).

    `shares` has the part of its characters that each trial retrieved: a near miss and a far one look alike
    in a score.
    """

    number: int
    evidence: Evidence
    title: str
    text: str
    ranks: tuple[int | None, ...]
    shares: tuple[float, ...]

    @property
    def is_span(self) -> bool:
        return self.evidence.unit == "span"


@dataclass(frozen=True)
class ShownHit:
    """A retrieved chunk with the numbers of the gold that it touches."""

    rank: int
    score: float
    doc_id: str
    title: str
    start: int
    end: int
    text: str
    gold: tuple[int, ...]


@dataclass(frozen=True)
class Side:
    """What one trial made of the query. `letter` names it where two stand side by side."""

    letter: str
    label: str
    trial_id: int
    hits: tuple[ShownHit, ...]
    metrics: Mapping[str, float | None]
    reasons: tuple[str, ...]
    ranks: tuple[int | None, ...]

    @property
    def found(self) -> bool:
        return bool(self.ranks) and None not in self.ranks

    @property
    def sentence(self) -> str:
        """Found at which rank, or missed."""
        if not self.ranks:
            return "No evidence is known for this question: nothing can be scored."
        depth = f"among {len(self.hits)} hits" if self.hits else "as nothing was retrieved"
        found = sorted(r for r in self.ranks if r is not None)
        if not found:
            return f"Missed {depth}."
        if len(self.ranks) == 1:
            return f"Found at rank {found[0]}."
        places = ", ".join(map(str, found))
        if len(found) == len(self.ranks):
            return f"All {len(found)} pieces of evidence found, at rank{'s' if len(set(found)) > 1 else ''} {places}."
        return f"{len(found)} of {len(self.ranks)} pieces of evidence found (rank {places}); the rest missed {depth}."

    @property
    def metric_rows(self) -> tuple[tuple[int, ...], list[tuple[str, list[str]]], list[tuple[str, str]]]:
        """Cut-offs, families with a value a cut-off, and metrics without one."""
        cutoffs = sorted({int(name.partition("@")[2]) for name in self.metrics if "@" in name})
        families = dict.fromkeys(name.partition("@")[0] for name in self.metrics if "@" in name)
        grid = [(f, [number(self.metrics.get(f"{f}@{k}"), 2) for k in cutoffs]) for f in families if f != "failure"]
        return tuple(cutoffs), grid, [(n, number(v, 2)) for n, v in self.metrics.items() if "@" not in n]


@dataclass(frozen=True)
class ShownDocument:
    """A document that holds gold: shown around its spans, folded elsewhere."""

    document: Document
    gold: tuple[Gold, ...]
    marks: tuple[Marked, ...]

    @cached_property
    def parts(self) -> list[Part]:
        text, spans = self.document.text, [g.evidence for g in self.gold if g.is_span]
        around = [(e.start, e.end) for e in spans]
        touching = [
            (m.start, m.end)
            for m in self.marks
            if isinstance(m.key, tuple) and any(m.start < e.end and m.end > e.start for e in spans)
        ]
        # A document judged as a whole has no spans; its beginning tells a reader what it is.
        return fold(text, around + touching or [(0, 1)])

    def html(self, part: Part) -> Markup:
        """A part's text, letter for letter, with its marks."""
        text = self.document.text
        return Markup("").join(
            _segment(text[s.start : s.end], s.keys) for s in segments(part.start, part.end, self.marks)
        )

    def hits_in(self, part: Part) -> str:
        """The ranks that a fold hides, as words."""
        hidden = [m.key for m in self.marks if isinstance(m.key, tuple) and m.start < part.end and m.end > part.start]
        names = [f"{letter}{rank}" for letter, rank in sorted(dict.fromkeys(hidden))]
        return f", with {' '.join(names)}" if names else ""


def _segment(text: str, keys: Sequence[Any]) -> Markup:
    """One segment: gold is a number, a hit is (letter, rank). Nothing is added to its text."""
    gold = [key for key in keys if not isinstance(key, tuple)]
    hits = [key for key in keys if isinstance(key, tuple)]
    inner: Markup = exact(text)
    names = " ".join(f"{letter}{rank}" for letter, rank in hits)
    sides = " ".join(sorted({f"wb-hit-{letter.lower()}" for letter, _ in hits}))
    if hits:
        inner = Markup('<span class="wb-hit {}" data-hit="{}" title="retrieved: {}">{}</span>').format(
            sides, names, names, inner
        )
    if gold:
        numbers = " ".join(map(str, gold))
        state = "wb-got" if hits else "wb-lost"
        title = f"gold {numbers}; " + (f"retrieved: {names}" if hits else "not retrieved")
        inner = Markup('<mark class="gold {}" data-evidence="{}" title="{}">{}</mark>').format(
            state, numbers, title, inner
        )
    return inner


@dataclass(frozen=True, repr=False)
class Inspection:
    """What `inspect` found; `html()` is a whole page, and a notebook shows the same without its frame."""

    query: Query
    dataset: str
    sides: tuple[Side, ...]
    gold: tuple[Gold, ...]
    documents: tuple[ShownDocument, ...]
    failures: tuple[str, ...]
    previous: str | None
    """The failure before this query, in query order."""
    next: str | None
    """The failure after it."""
    metric: str
    """The metric by which `failures` fall short."""

    def hit_html(self, hit: ShownHit) -> Markup:
        """A hit's text with the gold it touches; not class gold, which stands for the document's own text."""
        marks = [
            Marked(g.evidence.start, g.evidence.end, g.number)
            for g in self.gold
            if g.is_span and g.evidence.doc_id == hit.doc_id
        ]
        return Markup("").join(
            Markup('<mark class="wb-touch">{}</mark>').format(exact(text)) if s.keys else exact(text)
            for s in segments(hit.start, hit.end, marks)
            for text in [hit.text[s.start - hit.start : s.end - hit.start]]
        )

    def html(self) -> str:
        """A whole page that needs nothing beside itself."""
        template = environment().get_template("inspector.html.j2")
        sheet = Markup(style())  # noqa: S704 -- our own file
        return template.render(view=self, style=sheet, policy=POLICY, shown=SHOWN, whole=True)

    def fragment(self) -> Fragment:
        """The page's content for a notebook or a report; very long folds are left out."""
        template = environment().get_template("inspection.html.j2")
        body = template.render(view=self, shown=SHOWN, whole=False, level=3)
        words = " ".join(f"{side.label}: {side.sentence}" for side in self.sides)
        return Fragment(f'<div class="wb-inspection">{body}</div>', f"{self.query.query_id}: {words}")

    def write(self, path: str | Path) -> Path:
        """Write the page, whole or not at all; returns its path."""
        return write_atomically(Path(path), self.html())

    def percent(self, share: float) -> str:
        """A share that was missed, never rounded up to all of it."""
        return f"{math.floor(share * 1000) / 10:g} %"

    def folded(self, part: Part, whole: bool) -> bool:
        """Whether a fold keeps its text."""
        return whole or part.end - part.start <= LONG_FOLD

    def _repr_html_(self) -> str:
        return self.fragment()._repr_html_()

    def __repr__(self) -> str:
        return f"<Inspection of {self.query.query_id}: {'; '.join(f'{s.label}: {s.sentence}' for s in self.sides)}>"

    def as_json(self) -> dict[str, Any]:
        return {
            "query": {"id": self.query.query_id, "text": self.query.text, "answer": self.query.answer},
            "dataset": self.dataset,
            "gold": [
                {
                    "number": g.number,
                    **dataclasses.asdict(g.evidence),
                    "text": g.text,
                    "ranks": list(g.ranks),
                    "shares": list(g.shares),
                }
                for g in self.gold
            ],
            "trials": [
                {
                    "trial": {"id": side.trial_id, "label": side.label},
                    "verdict": side.sentence,
                    "metrics": dict(side.metrics),
                    "hits": [{**dataclasses.asdict(hit), "gold": list(hit.gold)} for hit in side.hits],
                }
                for side in self.sides
            ],
            "failures": {"metric": self.metric, "previous": self.previous, "next": self.next, "of": len(self.failures)},
        }
