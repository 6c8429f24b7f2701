"""Charts and tables: the same bytes twice, escaped, self-contained, and true to the results."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from workbench.lab import Lab
from workbench.reports import charts, drawing, sections, tables
from workbench.reports.reproduce import environments, sweep_toml
from workbench.specs import Bm25, Hybrid, Recursive, ScoreSpec, SweepSpec, TrialSpec, parse
from workbench.sweeps.results import SweepResult

SECTIONS = [
    "head",
    "answer",
    "results",
    "intervals",
    "curves",
    "difference",
    "hardest",
    "hardest_inspected",
    "work",
    "work_table",
    "calls",
    "unscored",
    "reproduce",
    "environment",
]


def drawn(lab: Lab, result: SweepResult, width: int) -> dict[str, str]:
    made = {
        "intervals": charts.intervals(result, width=width),
        "curves": charts.recall_curves(result, width=width),
        "differences": charts.differences(lab.compare(result.trials[0], result.trials[3]), width=width),
        "work": charts.work(result, width=width),
    }
    return {name: drawing.svg(chart) for name, chart in made.items() if chart is not None}


@pytest.mark.parametrize("width", [drawing.WIDE, drawing.NARROW])
def test_charts_are_stable_self_contained_and_named(reports_lab: Lab, swept: SweepResult, width: int) -> None:
    first = drawn(reports_lab, swept, width)
    assert len(first) >= 3
    assert drawn(reports_lab, swept, width) == first
    for name, svg in first.items():
        root = ElementTree.fromstring(svg)
        assert root.get("role") == "img", name
        assert root.get("viewBox"), name
        assert re.search(r"<title>[^<]+</title><desc>[^<]+</desc>", svg), name
        assert not re.search(r"<(script|image|a|foreignObject|style)\b|url\(|\bon\w+=", svg), name
        assert not re.search(r"https?://(?!www\.w3\.org/)", svg), name
        low, high = (width * 0.9, width * 1.1) if width == drawing.NARROW else (width * 0.6, width * 1.1)
        assert low <= float(root.get("viewBox").split()[2]) <= high, name


def test_labels_are_escaped_in_a_chart(reports_lab: Lab, swept: SweepResult) -> None:
    from dataclasses import replace

    trials = tuple(replace(t, label=f"</text><script>{i}</script>") for i, t in enumerate(swept.trials))
    svg = drawing.svg(charts.intervals(replace(swept, trials=trials)))
    assert "<script" not in svg
    assert "&lt;script&gt;0&lt;/script&gt;" in svg


def test_a_standalone_chart_brings_the_colours_of_both_themes(swept: SweepResult) -> None:
    assert "prefers-color-scheme:dark" in drawing.svg(charts.work(swept), standalone=True)


def test_stage_work_counts_unique_stages_against_a_loop(swept: SweepResult) -> None:
    frame = charts.stage_work(swept)
    by_kind = {row["kind"]: row for row in frame.iter_rows(named=True)}
    assert (by_kind["chunk"]["stages"], by_kind["chunk"]["loop"]) == (2, 4)
    assert (by_kind["score"]["stages"], by_kind["score"]["loop"]) == (4, 4)
    assert by_kind["score"]["spared"] == 0
    assert frame["loop"].sum() == sum(len(t.stages) for t in swept.trials)


def test_tables_are_stable_escaped_and_complete(swept: SweepResult) -> None:
    made = tables.fragment(tables.results(swept), "a <caption>").body
    assert tables.fragment(tables.results(swept), "a <caption>").body == made
    assert "<style" not in made
    assert "a &lt;caption&gt;" in made
    for trial in swept.trials:
        assert trial.label in made
        assert f"{trial.metrics['recall@5']['mean']:.3f}" in made
    assert made.count("<tr>") == len(swept.trials)
    question = sections.hardest(swept).body
    assert "<script" not in question


def test_hardest_lists_what_every_trial_misses_first(swept: SweepResult) -> None:
    frame = tables.hardest(swept)
    assert frame["query_id"][0] == "lost"
    assert frame["best"][0] == 0
    assert tables.missed(swept) == sum(
        all(t.score_of("recall@5")[q.query_id] == 0 for t in swept.trials) for q in swept.dataset.queries if q.evidence
    )
    assert "nobody" not in frame["query_id"]


@pytest.mark.parametrize(
    "spec",
    [
        SweepSpec(),
        SweepSpec(
            question='quotes " \\ and\nlines \x7f é 𝒷',
            base=TrialSpec(chunk=Recursive(tokens=50, separators=("\n", " ")), retrieve=Bm25(k=7)),
            metric="mrr",
            baseline={"retrieve.k": 5},
            axes={"retrieve.k": (5, 10), "score.coverage": (0.5, 1.0), "chunk.overlap": (0,)},
        ),
        SweepSpec(base=TrialSpec(retrieve=Hybrid(legs=("bm25", "fts"))), axes={"retrieve.legs": (("bm25", "fts"),)}),
    ],
)
def test_a_sweep_survives_toml(spec: SweepSpec) -> None:
    assert parse(SweepSpec, tomllib.loads(sweep_toml(spec))) == spec


def test_every_section_is_escaped_and_has_words(swept: SweepResult) -> None:
    for name in SECTIONS:
        made = getattr(sections, name)(swept)
        bundle = made._repr_mimebundle_()
        assert bundle["text/plain"] == repr(made), name
        assert "<script" not in bundle["text/html"], name
        assert "<img" not in bundle["text/html"], name
    assert "nobody" in sections.unscored(swept).body
    assert environments(swept)[0]["workbench"]


def test_the_fingerprint_follows_what_a_report_shows(swept: SweepResult) -> None:
    from dataclasses import replace

    own = sections.fingerprint(swept)
    assert sections.fingerprint(swept) == own
    for changed in (
        replace(swept, name="other"),
        replace(swept, trials=swept.trials[:-1]),
        replace(swept, failed={"x": "no"}),
        replace(swept, spec=swept.spec.model_copy(update={"question": "another"})),
    ):
        assert sections.fingerprint(changed) != own


def odd_sweep(lab: Lab, folder: Path, name: str) -> SweepResult:
    """Small sweeps off the beaten path: one trial, one cut-off, document-level gold, nothing answerable."""
    texts = {f"d{i}": f"The {word} lies on shelf {i}." for i, word in enumerate(("lamp", "rope", "saw", "nail"))}
    gold = {
        "documents": [{"doc_id": "d1", "start": 0, "end": len(texts["d1"]), "unit": "document", "grade": 2}],
        "nothing": [],
    }.get(name, [{"doc_id": "d1", "start": 0, "end": 8}])
    folder.mkdir()
    lines = [json.dumps({"doc_id": d, "text": t}) for d, t in texts.items()]
    (folder / "corpus.jsonl").write_text("\n".join(lines))
    (folder / "queries.jsonl").write_text(json.dumps({"query_id": "q", "text": "where is the rope", "evidence": gold}))
    base = TrialSpec(
        chunk=Recursive(tokens=9, tokenizer="words"),
        retrieve=Bm25(k=5),
        score=ScoreSpec(k=(5,) if name == "one" else (1, 5)),
    )
    axes: dict[str, tuple[Any, ...]] = {} if name == "single" else {"retrieve.kind": ("bm25", "fts")}
    if name == "models":  # a reranker keeps fewer hits than were found, so trials have different cut-offs
        models = {"model": "fake:words"}
        axes = {
            "context": ({"kind": "none"}, {"kind": "situated", **models}),
            "rerank": ({"kind": "none"}, {"kind": "llm", "depth": 4, "k": 2, "window": 2, "step": 1, **models}),
            "generate": ({"kind": "answer", **models},),
        }
    metric = (
        "ndcg@5"
        if name == "documents"
        else "mrr"
        if name == "one"
        else "failure@1"
        if name == "models"
        else "failure@5"
    )
    return lab.sweep(SweepSpec(base=base, metric=metric, axes=axes), folder)


@pytest.mark.parametrize("name", ["single", "one", "documents", "lower is better", "models"])
def test_sections_stand_on_odd_sweeps(reports_lab: Lab, tmp_path: Path, name: str) -> None:
    result = odd_sweep(reports_lab, tmp_path / "data", name)
    sections.check(result)
    for section in SECTIONS:
        assert getattr(sections, section)(result).text, section
    inspected = reports_lab.inspect(result.trials[0], "q")
    assert inspected.sides[0].sentence == "Found at rank 1."
    assert ("<mark" in inspected.html()) == (name != "documents") or "the whole document" in inspected.html()
    assert "Inspection of q" in repr(inspected)


def test_model_calls_are_in_the_report(reports_lab: Lab, tmp_path: Path) -> None:
    result = odd_sweep(reports_lab, tmp_path / "data", "models")
    assert set(result.costs["stage"].str.split(" ").list.first()) == {"context", "rerank", "generate"}
    body = sections.calls(result).body
    assert "context situated" in body
    assert body.count("<tr") == len(result.costs) + 1
    assert charts.recall_curves(result) is not None


def test_nothing_to_score_says_so(reports_lab: Lab, tmp_path: Path) -> None:
    result = odd_sweep(reports_lab, tmp_path / "data", "nothing")
    assert "No query could be scored on failure@5." in sections.answer(result).text
    assert "No evidence" in reports_lab.inspect(result.trials[0], "q").sides[0].sentence
