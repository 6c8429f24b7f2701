"""Metrics on character spans, and on pieces of evidence found.

Gold is character spans, so any two ways of cutting and ranking a corpus are scored on one ruler.
The span metrics are those of Smith & Troynikov, "Evaluating Chunking Strategies for Retrieval"
(Chroma technical report, July 2024), section "Metrics", with spans where the chunks really are.
docs/metrics.md has every formula.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import accumulate

import numpy as np
import polars as pl

from workbench.evaluation.door import enter
from workbench.evaluation.metrics import metric_names, score_frame, scored_queries
from workbench.records import Evidence, Query
from workbench.specs import ScoreSpec

LOCATE_FROM = 40
"""Shorter evidence is not located elsewhere: an equal short text is often a coincidence, not the answer."""

Range = tuple[int, int]
Place = tuple[str, int, int]
Occurrences = Mapping[Evidence, tuple[Place, ...]]


def score_spans(
    hits: pl.DataFrame,
    chunks: pl.DataFrame,
    queries: Sequence[Query],
    texts: Mapping[str, str],
    spec: ScoreSpec,
    *,
    occurrences: Occurrences | None = None,
) -> pl.DataFrame:
    """Span metrics and evidence metrics of every query with span evidence.

    A query with no evidence at all has null values with reason "no evidence"; one judged only by
    documents has no rows here. A query with nothing retrieved scores 0 (failure@k: 1). The span
    metrics look at the recorded spans only, whatever `spec.occurrences` says.

    Args:
        hits: Hit frame of these queries; any depth, `mrr` looks at all of it.
        chunks: Chunk frame, all chunks of the corpus (`precision_omega` needs them).
        queries: with unique ids.
        texts: doc_id -> text; offsets count its code points.
        spec: cut-offs, coverage and the rule for occurrences.
        occurrences: what `locate_occurrences` returned, where it is to be located once for many
            trials; located here when None and `spec.occurrences` is "any".

    Returns:
        Score frame: queries in their order, metrics in the order of `metric_names`. Values in [0, 1].

    Raises:
        FrameError: an input does not fit (`door.enter`).
    """
    rankings, chunks = enter(hits, chunks, queries, texts)
    scored = scored_queries(queries, "span")
    elsewhere: Occurrences = {}
    if spec.occurrences == "any":
        elsewhere = locate_occurrences(scored, texts) if occurrences is None else occurrences
    names = metric_names(spec, "span")
    cutoffs = sorted(set(spec.k))
    layouts = _layouts(chunks)
    values = np.full((len(scored), len(names)), np.nan)
    for row, query in enumerate(scored):
        if evidence := _span_evidence(query):
            retrieved = rankings.of(query.query_id)
            found = _found_ranks(evidence, retrieved, texts, spec.coverage, elsewhere)
            values[row] = [
                *_span_scores(evidence, retrieved, cutoffs),
                _precision_omega(evidence, layouts),
                *_evidence_scores(found, cutoffs),
            ]
    return score_frame([q.query_id for q in scored], names, values)


def locate_occurrences(queries: Sequence[Query], texts: Mapping[str, str]) -> dict[Evidence, tuple[Place, ...]]:
    """Where else the text of each evidence stands, letter for letter.

    The text is stripped of blanks at both ends first, and must then have `LOCATE_FROM` (40) code
    points or more. Overlapping occurrences are all listed; the recorded one is not.

    Returns:
        Evidence -> its other places (doc_id, start, end), for evidence that has any.

    Raises:
        KeyError: evidence names a document that `texts` lacks.
    """
    owners: dict[str, list[Evidence]] = {}
    for query in queries:
        for e in _span_evidence(query):
            needle = texts[e.doc_id][e.start : e.end].strip()
            if len(needle) >= LOCATE_FROM:
                owners.setdefault(needle, []).append(e)
    # One pass over the corpus, whatever the number of needles: cut each text into blocks half as long
    # as the shortest needle. Each occurrence then starts in the block's length before exactly one block
    # that lies wholly inside it, and that block is one of the needle's first substrings.
    block = LOCATE_FROM // 2
    anchors: dict[str, list[tuple[str, int]]] = {}
    for needle in owners:
        for shift in range(block):
            anchors.setdefault(needle[shift : shift + block], []).append((needle, shift))
    places: dict[str, list[Place]] = {needle: [] for needle in owners}
    for doc_id, text in texts.items() if owners else ():
        for at in range(0, len(text), block):
            for needle, shift in anchors.get(text[at : at + block], ()):
                start = at - shift
                if start >= 0 and text.startswith(needle, start):
                    places[needle].append((doc_id, start, start + len(needle)))
    result: dict[Evidence, tuple[Place, ...]] = {}
    for needle, evidence in owners.items():
        for e in evidence:
            own = (e.doc_id, *_trimmed(e, texts[e.doc_id]))
            if others := tuple(place for place in sorted(places[needle]) if place != own):
                result[e] = others
    return result


# --- characters ----------------------------------------------------------------------------------


def _span_scores(evidence: Sequence[Evidence], retrieved: Sequence[Place], cutoffs: Sequence[int]) -> list[float]:
    """span_recall, span_precision and span_iou at each cut-off."""
    missing = _by_document((e.doc_id, e.start, e.end) for e in evidence)
    total = sum(map(_size, missing.values()))
    covered, lengths = [0], [0]
    for doc_id, start, end in retrieved[: cutoffs[-1]]:
        gain = 0
        if open_ := missing.get(doc_id):
            missing[doc_id], gained = _cut(open_, start, end)
            gain = _size(gained)
        covered.append(covered[-1] + gain)
        lengths.append(lengths[-1] + end - start)
    at = [min(k, len(covered) - 1) for k in cutoffs]
    return [
        *(covered[r] / total for r in at),
        *(covered[r] / lengths[r] if r else 0.0 for r in at),
        *(covered[r] / (lengths[r] + total - covered[r]) for r in at),
    ]


@dataclass(frozen=True, slots=True)
class _Layout:
    """A document's chunks by start; `reach[i]` is the furthest end of chunks 0..i, so it can be bisected."""

    starts: list[int]
    ends: list[int]
    reach: list[int]

    def touching(self, start: int, end: int) -> list[Range]:
        first, last = bisect_left(self.reach, start), bisect_right(self.starts, end)
        return [(self.starts[i], self.ends[i]) for i in range(first, last) if self.ends[i] >= start]


def _layouts(chunks: pl.DataFrame) -> dict[str, _Layout]:
    grouped = chunks.sort("start", "end").group_by("doc_id", maintain_order=True).agg("start", "end")
    return {doc: _Layout(starts, ends, list(accumulate(ends, max))) for doc, starts, ends in grouped.iter_rows()}


def _precision_omega(evidence: Sequence[Evidence], layouts: Mapping[str, _Layout]) -> float:
    """Intersection over union of the evidence and of all chunks that touch it; a shared border touches."""
    intersection = union = 0
    for doc_id, gold in _by_document((e.doc_id, e.start, e.end) for e in evidence).items():
        layout = layouts.get(doc_id)
        spans = [(e.start, e.end) for e in evidence if e.doc_id == doc_id]
        touching = _merge(t for start, end in spans for t in layout.touching(start, end)) if layout else []
        missed = gold
        for start, end in touching:
            missed, _ = _cut(missed, start, end)
        intersection += _size(gold) - _size(missed)
        union += _size(touching) + _size(missed)
    return intersection / union


# --- evidence ------------------------------------------------------------------------------------


def _found_ranks(
    evidence: Sequence[Evidence],
    retrieved: Sequence[Place],
    texts: Mapping[str, str],
    coverage: float,
    elsewhere: Occurrences,
) -> list[float]:
    """For each evidence the first rank at which the union of the spans so far covers it; infinite if none does.

    Any one of its occurrences is enough; each is covered by itself, parts of two do not add up.
    """
    places = [[(e.doc_id, *_trimmed(e, texts[e.doc_id])), *elsewhere.get(e, ())] for e in evidence]
    wanted = {doc_id for several in places for doc_id, _, _ in several}
    by_document: dict[str, list[tuple[int, int, int]]] = {}
    for rank, (doc_id, start, end) in enumerate(retrieved, 1):
        if doc_id in wanted:
            by_document.setdefault(doc_id, []).append((rank, start, end))
    ranks = []
    for several in places:
        doc_id, start, end = several[0]
        text = texts[doc_id][start:end]
        # inked[i]: how many of the first i characters count. Of an evidence that is all blank, all do.
        blank = text.isspace()
        inked = list(accumulate((blank or not c.isspace() for c in text), initial=0))
        # As a decimal, so that 0.7 of 10 characters is 7 and not the next float above it.
        needed = math.ceil(Fraction(str(coverage)) * inked[-1])
        first = math.inf
        for doc_id, start, end in several:
            first = min(first, _covered_at(start, end, inked, needed, by_document.get(doc_id, ()), first))
        ranks.append(first)
    return ranks


def _covered_at(
    start: int,
    end: int,
    inked: Sequence[int],
    needed: int,
    spans: Sequence[tuple[int, int, int]],
    stop: float,
) -> float:
    open_, covered = [(start, end)], 0
    for rank, left, right in spans:
        if rank >= stop:
            break
        if left < end and right > start:
            open_, gained = _cut(open_, left, right)
            covered += sum(inked[b - start] - inked[a - start] for a, b in gained)
            if covered >= needed:
                return rank
    return math.inf


def _evidence_scores(found: Sequence[float], cutoffs: Sequence[int]) -> list[float]:
    """recall, failure, success and complete at each cut-off, then mrr."""
    counts = [sum(rank <= k for rank in found) for k in cutoffs]
    recalls = [count / len(found) for count in counts]
    return [
        *recalls,
        *(1 - recall for recall in recalls),
        *(float(count > 0) for count in counts),
        *(float(count == len(found)) for count in counts),
        1 / min(found),
    ]


# --- ranges --------------------------------------------------------------------------------------


def _span_evidence(query: Query) -> list[Evidence]:
    """Positive span evidence; the same span recorded twice counts once."""
    spans = {(e.doc_id, e.start, e.end): e for e in query.evidence if e.unit == "span" and e.grade > 0}
    return list(spans.values())


def _trimmed(e: Evidence, text: str) -> Range:
    """The span without blanks at its ends, which no metric of evidence counts; all of it if it is all blank."""
    span = text[e.start : e.end]
    inner = span.strip()
    if not inner:
        return e.start, e.end
    start = e.start + len(span) - len(span.lstrip())
    return start, start + len(inner)


def _by_document(places: Iterable[Place]) -> dict[str, list[Range]]:
    grouped: dict[str, list[Range]] = {}
    for doc_id, start, end in places:
        grouped.setdefault(doc_id, []).append((start, end))
    return {doc_id: _merge(spans) for doc_id, spans in grouped.items()}


def _merge(spans: Iterable[Range]) -> list[Range]:
    """The union as disjoint ranges in order."""
    merged: list[Range] = []
    for start, end in sorted(spans):
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((start, end))
    return merged


def _cut(ranges: list[Range], start: int, end: int) -> tuple[list[Range], list[Range]]:
    """Cut [start, end) out of disjoint ranges: what is left, and what was cut out."""
    left, out = [], []
    for a, b in ranges:
        if b <= start or a >= end:
            left.append((a, b))
            continue
        out.append((max(a, start), min(b, end)))
        if a < start:
            left.append((a, start))
        if b > end:
            left.append((end, b))
    return left, out


def _size(ranges: Iterable[Range]) -> int:
    return sum(b - a for a, b in ranges)
