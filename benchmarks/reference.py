"""Our figures beside published ones, on the same chunks and questions.

    python benchmarks/reference.py [--data ../shared/data] [--home DIR] [--json]

chroma: span metrics of 5 chunks by exact MiniLM search, against `exact_true_offsets` of chroma-minilm.json
(the published chunks where they really are). anthropic: recall of the published chunks without context,
against anthropic-minilm.json. Needs the data beside the checkout; embeddings are kept in `--home`, so a
second run only looks them up.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from machine import describe_machine

import workbench
from workbench.lab import Lab
from workbench.specs import Bm25, Dense, Embed, Given, Hybrid, Lexical, ScoreSpec, TrialSpec

SPAN_METRICS = {"recall": "span_recall@5", "precision": "span_precision@5", "iou": "span_iou@5"}
TOLERANCE = {"chroma": 0.001, "anthropic": 0.008}
"""Allowed difference: rounding of the span metrics; one of 125 queries."""


@dataclass(frozen=True)
class Line:
    """One figure: what was measured, as published, and here with its interval."""

    table: str
    configuration: str
    metric: str
    published: float
    ours: float
    low: float
    high: float
    n: int

    @property
    def difference(self) -> float:
        return self.ours - self.published


def chroma(lab: Lab, data: Path) -> Iterator[Line]:
    """Every published configuration whose chunks lie beside the data."""
    folder = data / "datasets" / "chroma-chunking"
    published = json.loads((data / "reference" / "chroma-minilm.json").read_text(encoding="utf-8"))["configs"]
    dataset = lab.load(folder)
    for file in sorted(folder.glob("chunks.*.jsonl")):
        name = file.name.removeprefix("chunks.").removesuffix(".jsonl")
        expected = published[name]["exact_true_offsets"]["three_corpora"]
        trial = TrialSpec(
            chunk=Given(file=file.name),
            embed=Embed(long="truncate"),
            retrieve=Dense(k=5),
            score=ScoreSpec(k=(5,)),
        )
        metrics = lab.run(trial, dataset).metrics
        for short, metric in {**SPAN_METRICS, "precision_omega": "precision_omega"}.items():
            m = metrics[metric]
            yield Line("chroma", name, metric, expected[short], m["mean"], m["low"], m["high"], m["n"])


def anthropic(lab: Lab, data: Path) -> Iterator[Line]:
    """Lexical, dense and fused search over the published chunks, no context."""
    published = json.loads((data / "reference" / "anthropic-minilm.json").read_text(encoding="utf-8"))["runs"]
    dataset = lab.load(data / "datasets" / "anthropic-codebase")
    plain = Lexical(stopwords="none", min_length=1, k1=1.2)
    code = plain.model_copy(update={"split_identifiers": True})
    window = Embed(long="truncate")
    fused = Hybrid(legs=("dense", "bm25"), depth=150, k=150)
    runs: dict[str, tuple[Embed, Lexical, Dense | Bm25 | Hybrid]] = {
        "bm25s-en": (window, Lexical(), Bm25(k=150)),
        "bm25-plain": (window, plain, Bm25(k=150)),
        "bm25-code": (window, code, Bm25(k=150)),
        "dense": (window, Lexical(), Dense(k=150)),
        "densewin": (Embed(long="pool"), Lexical(), Dense(k=150)),
        "rrf60(dense, bm25s-en)": (window, Lexical(), fused),
        "rrf60(dense, bm25-code)": (window, code, fused),
        "w0.8/0.2(dense, bm25s-en)": (window, Lexical(), fused.model_copy(update={"rrf_k": 0, "weights": (0.8, 0.2)})),
    }
    for name, (embed, lexical, retrieve) in runs.items():
        score = ScoreSpec(k=(5, 10, 20), occurrences="any")
        trial = TrialSpec(chunk=Given(), embed=embed, lexical=lexical, retrieve=retrieve, score=score)
        metrics = lab.run(trial, dataset).metrics
        for k in (5, 10, 20):
            m = metrics[f"recall@{k}"]
            expected = published[f"{name} | none"][f"recall@{k}"]
            yield Line("anthropic", name, f"recall@{k}", expected, m["mean"], m["low"], m["high"], m["n"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path(__file__).resolve().parents[2] / "shared" / "data")
    parser.add_argument("--home", type=Path)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    if not given.data.is_dir():
        parser.error(f"no benchmark data at {given.data}")
    with tempfile.TemporaryDirectory() as folder, workbench.open(home=given.home or Path(folder) / "home") as lab:
        lines = [*chroma(lab, given.data), *anthropic(lab, given.data)]
    if given.json:
        print(json.dumps({"machine": describe_machine(), "lines": [asdict(line) for line in lines]}))
        return
    print(describe_machine())
    for table, title in (("chroma", "recall, precision, IoU, precision omega"), ("anthropic", "recall@5, @10, @20")):
        print(f"\n| {table} | published: {title} | measured | largest difference |\n|---|---|---|---|")
        rows = [line for line in lines if line.table == table]
        for name in dict.fromkeys(line.configuration for line in rows):
            mine = [line for line in rows if line.configuration == name]
            published, ours = (" / ".join(f"{getattr(r, side):.4f}" for r in mine) for side in ("published", "ours"))
            print(f"| {name} | {published} | {ours} | {max(abs(r.difference) for r in mine):.4f} |")
    worst = {t: max(abs(r.difference) for r in lines if r.table == t) for t in TOLERANCE}
    print("\nlargest difference: " + ", ".join(f"{t} {d:.5f} (allowed {TOLERANCE[t]})" for t, d in worst.items()))


if __name__ == "__main__":
    main()
