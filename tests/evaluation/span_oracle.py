"""The span and evidence metrics again, as plainly as they can be said: sets of code-point positions.

Imports nothing from workbench but records, and shares no idea with workbench/evaluation/spans.py.
"""

from __future__ import annotations

import math
from decimal import Decimal

from workbench.records import Chunk, Query

Position = tuple[str, int]


def positions(doc_id: str, start: int, end: int) -> set[Position]:
    return {(doc_id, i) for i in range(start, end)}


def ink(found: set[Position], texts: dict[str, str]) -> set[Position]:
    return {(doc_id, i) for doc_id, i in found if not texts[doc_id][i].isspace()}


def span_gold(query: Query) -> list[tuple[str, int, int]]:
    return sorted({(e.doc_id, e.start, e.end) for e in query.evidence if e.unit == "span" and e.grade > 0})


def oracle(
    ranking: list[Chunk],
    chunks: list[Chunk],
    query: Query,
    texts: dict[str, str],
    ks: list[int],
    coverage: float = 1.0,
    anywhere: bool = False,
) -> dict[str, float]:
    """Every span and evidence metric of one query with span evidence."""
    gold = span_gold(query)
    gold_positions: set[Position] = set().union(*(positions(*g) for g in gold))
    scores: dict[str, float] = {}
    for k in ks:
        top = ranking[:k]
        union: set[Position] = set().union(*(positions(c.doc_id, c.start, c.end) for c in top))
        hit = len(union & gold_positions)
        length = sum(c.end - c.start for c in top)
        scores[f"span_recall@{k}"] = hit / len(gold_positions)
        scores[f"span_precision@{k}"] = hit / length if length else 0.0
        scores[f"span_iou@{k}"] = hit / (length + len(gold_positions - union))
    touching: set[Position] = set()
    for c in chunks:
        if any(c.doc_id == d and c.start <= end and c.end >= start for d, start, end in gold):
            touching |= positions(c.doc_id, c.start, c.end)
    scores["precision_omega"] = len(gold_positions & touching) / len(gold_positions | touching)

    ranks = []
    for doc_id, start, end in gold:
        alternatives = [positions(doc_id, start, end)]
        text = texts[doc_id][start:end].strip()
        if anywhere and len(text) >= 40:
            alternatives += [
                positions(d, i, i + len(text))
                for d, whole in texts.items()
                for i in range(len(whole))
                if whole[i : i + len(text)] == text
            ]
        best = math.inf
        for rank in range(1, len(ranking) + 1):
            union = set().union(*(positions(c.doc_id, c.start, c.end) for c in ranking[:rank]))
            for place in alternatives:
                target = ink(place, texts) or place
                if Decimal(len(target & union)) >= Decimal(str(coverage)) * len(target):
                    best = min(best, rank)
        ranks.append(best)
    for k in ks:
        found = sum(rank <= k for rank in ranks)
        scores[f"recall@{k}"] = found / len(ranks)
        scores[f"failure@{k}"] = 1 - found / len(ranks)
        scores[f"success@{k}"] = 1.0 if found else 0.0
        scores[f"complete@{k}"] = 1.0 if found == len(ranks) else 0.0
    scores["mrr"] = 0.0 if min(ranks) == math.inf else 1 / min(ranks)
    return scores
