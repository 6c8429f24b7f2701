"""Each command on a small dataset in this process: what people read, and the JSON of the design key by key."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from command_line import Cli

from workbench import __version__

Wide = Callable[[int], None]
ESCAPE = "\x1b"


def is_run(body: dict[str, Any]) -> None:
    """The `run` object of the design."""
    assert {"trial", "dataset", "queries", "metrics", "stages", "calls"} <= set(body)
    assert {"id", "label", "spec"} <= set(body["trial"])
    assert body["queries"] == 6
    for name, summary in body["metrics"].items():
        assert set(summary) == {"mean", "low", "high", "n", "unscored"}, name
        assert summary["mean"] is None or summary["low"] <= summary["mean"] <= summary["high"]
    for stage in body["stages"]:
        assert {"kind", "fingerprint", "state", "items", "seconds"} <= set(stage)
        assert stage["state"] in ("computed", "reused", "failed")
        assert re.fullmatch("[0-9a-f]{64}", stage["fingerprint"])
    assert set(body["calls"]) == {"live", "cached", "prompt_tokens", "cached_tokens", "output_tokens"}


def test_run(run_cli: Cli) -> None:
    first = run_cli("run", "bm25.toml", "-d", "data", "--json")
    assert (first.code, first.err) == (0, "")
    is_run(first.body)
    assert first.body["dataset"] == "data"
    assert {s["state"] for s in first.body["stages"]} == {"computed"}
    again = run_cli("run", "bm25.toml", "-d", "data", "--json").body
    assert {s["state"] for s in again["stages"]} == {"reused"}
    assert again["metrics"] == first.body["metrics"]
    shown = run_cli("run", "bm25.toml", "-d", "data")
    assert (shown.code, shown.err) == (0, "")
    assert shown.out.startswith(f"trial {again['trial']['id']}: recursive 15 / bm25 on data\n")
    mean = again["metrics"]["recall@5"]["mean"]
    assert re.search(rf"^recall@5 +{mean:.3f} +[\d.]+ to [\d.]+ +5 +0$", shown.out, re.MULTILINE)
    assert "chunk recursive: 6 items, reused" in shown.out


def test_settings_and_limits(run_cli: Cli) -> None:
    body = run_cli(
        "run",
        "bm25.toml",
        "-d",
        "data",
        "--set",
        "retrieve.kind=fts",
        "--set",
        "retrieve.k=3",
        "--limit",
        "2",
        "--json",
    ).body
    assert body["queries"] == 2
    assert body["trial"]["spec"]["retrieve"] == {"kind": "fts", "k": 3, "match": "any", "config": "english"}


@pytest.mark.parametrize("ending", ["parquet", "jsonl", "trec"])
def test_scores_and_hits_as_files(run_cli: Cli, place: Path, ending: str) -> None:
    scores, hits = f"scores.{ending.replace('trec', 'jsonl')}", f"hits.{ending}"
    assert run_cli("run", "bm25.toml", "-d", "data", "--queries", scores, "--hits", hits).code == 0
    read = {"parquet": pl.read_parquet, "jsonl": pl.read_ndjson}
    table = read[scores.partition(".")[2]](scores)
    assert table.columns == ["query_id", "metric", "value", "reason"]
    assert set(table["query_id"]) == {"q0", "q1", "q2", "q3", "q4", "q9"}
    if ending == "trec":
        rows = [line.split(" ") for line in Path(hits).read_text().splitlines()]
        assert all(len(row) == 6 and row[1] == "Q0" for row in rows)
        found = [(row[0], int(row[3]), *re.fullmatch(r"(.+):(\d+)-(\d+)", row[2]).groups()) for row in rows]  # type: ignore[union-attr]
        ranks = [int(row[3]) for row in rows if row[0] == "q0"]
    else:
        frame = read[ending](hits)
        assert frame.columns == ["query_id", "rank", "doc_id", "start", "end", "score"]
        ranks = frame.filter(pl.col("query_id") == "q0")["rank"].to_list()
        found = frame.rows()
    assert ranks == list(range(1, len(ranks) + 1))
    assert found
    assert [p.name for p in place.iterdir() if p.name.startswith(".")] == []


def test_search_shows_one_trial_or_two(run_cli: Cli, wide: Wide) -> None:
    one = run_cli("search", "harbor lagoon", "bm25.toml", "-d", "data", "-k", "2")
    assert (one.code, one.err) == (0, "")
    assert one.out.startswith("bm25.toml: recursive 15 / bm25\n  1  ")
    body = run_cli("search", "bm25.toml", "fts.toml", "harbor lagoon", "-d", "data", "-k", "2", "--json").body
    assert set(body) == {"query", "dataset", "trials"}
    assert [t["trial"] for t in body["trials"]] == ["recursive 15 / bm25", "recursive 15 / fts"]
    hit = body["trials"][0]["hits"][0]
    assert set(hit) == {"rank", "score", "doc_id", "title", "start", "end", "text"}
    assert f"{hit['doc_id']} {hit['start']}:{hit['end']}" in one.out

    two = ("search", "bm25.toml", "fts.toml", "harbor lagoon", "-d", "data", "-k", "2")
    wide(140)
    beside = run_cli(*two).out
    assert re.search(r"^bm25.toml: .* fts.toml: ", beside, re.MULTILINE)
    wide(60)
    stacked = run_cli(*two).out
    assert re.search(r"^fts.toml: ", stacked, re.MULTILINE)
    for text, width in ((beside, 140), (stacked, 60)):
        assert max(map(len, text.splitlines())) <= width
        assert ESCAPE not in text
        assert " ".join(hit["text"].split()[:3]) in text


def test_search_needs_no_queries_and_finds_nothing_politely(run_cli: Cli, place: Path) -> None:
    Path("data/queries.jsonl").unlink()
    outcome = run_cli("search", "bm25.toml", "qwertyuiop", "-d", "data")
    assert outcome.code == 0
    assert "no hits" in outcome.out


def test_text_from_documents_cannot_steer_the_terminal(run_cli: Cli, place: Path) -> None:
    row = json.loads(Path("data/corpus.jsonl").read_text().splitlines()[0])
    row |= {"doc_id": "d\x1b]0;title\x07", "text": "harbor \x1b[2J\x9b31m [b]harbor[/b] :smile:"}
    Path("data/corpus.jsonl").write_text(json.dumps(row))
    Path("data/queries.jsonl").unlink()
    out = run_cli("search", "bm25.toml", "harbor", "-d", "data", "--set", "chunk.tokens=50").out
    assert "[b]harbor[/b] :smile:" in out
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]", out)


SWEEP_KEYS = {"sweep", "state", "trials", "done", "failed", "stages", "items", "seconds", "results"}


def test_sweep(run_cli: Cli, wide: Wide) -> None:
    outcome = run_cli("sweep", "sweep.toml", "-d", "data", "--json")
    assert (outcome.code, outcome.err) == (0, "")
    body = outcome.body
    assert set(body) >= SWEEP_KEYS
    assert (body["state"], body["trials"], body["done"], body["failed"]) == ("done", 2, 2, 0)
    assert {"unique", "computed", "reused", "failed"} <= set(body["stages"])
    assert body["stages"]["computed"] == body["stages"]["unique"] == 6
    assert set(body["items"]) == {"computed", "repeated"}
    for result in body["results"]:
        is_run(result)
    assert "recall@5" in body["verdict"]
    assert "report" not in body

    wide(60)
    again = run_cli("sweep", "sweep.toml", "-d", "data")
    assert again.code == 0
    assert max(map(len, again.out.splitlines())) <= 60
    assert "Do chunks of fifteen words help?" in again.out
    assert "Every stage is in the store already" in again.out
    assert re.search(r"^15 \(baseline\) +\d+ +[\d.]+ +[\d.]+ to [\d.]+ +5$", again.out, re.MULTILINE)
    assert re.search(rf"^sweep {body['sweep']}: 0 stages computed, 6 reused", again.out, re.MULTILINE)


def test_the_first_run_says_what_it_will_cost(run_cli: Cli, place: Path) -> None:
    first = run_cli("sweep", "sweep.toml", "-d", "data").out
    assert "2 trials on data (6 documents, 6 queries): 6 unique stages instead of the 6 of a loop" in first
    assert "0 of 6 stages are in the store" in first
    Path("sweep.toml").write_text(Path("sweep.toml").read_text().replace("bm25.toml", "dense.toml"))
    # The chunks are there from before; each of two chunkings embeds the whole corpus.
    text = run_cli("sweep", "sweep.toml", "-d", "data").out
    found = re.search(r"to embed ([\d,]+) characters", text)
    documents = [json.loads(line)["text"] for line in Path("data/corpus.jsonl").read_text().splitlines()]
    assert found
    assert int(found[1].replace(",", "")) == 2 * sum(map(len, documents))


def test_compare(run_cli: Cli, wide: Wide) -> None:
    body = run_cli("compare", "bm25.toml", "dense.toml", "-d", "data", "-m", "recall@1", "--json").body
    assert {"metric", "a", "b", "difference", "low", "high", "p", "n", "improved", "worsened", "verdict"} <= set(body)
    assert body["metric"] == "recall@1"
    by_id = run_cli("compare", str(body["a"]["id"]), str(body["b"]["id"]), "-m", "recall@1", "--json").body
    assert by_id == body
    wide(60)
    shown = run_cli("compare", "bm25.toml", "dense.toml", "-d", "data").out
    assert "On recall@5" in shown
    assert max(map(len, shown.splitlines())) <= 60


def test_trials_of_equal_names_are_told_apart_by_their_files(run_cli: Cli, place: Path) -> None:
    Path("shallow.toml").write_text(Path("bm25.toml").read_text().replace("k = 10", "k = 7"))
    verdict = run_cli("compare", "bm25.toml", "shallow.toml", "-d", "data", "--json").body["verdict"]
    assert "bm25" in verdict
    assert "shallow" in verdict


def test_inspect(run_cli: Cli, place: Path) -> None:
    outcome = run_cli("inspect", "bm25.toml", "-d", "data", "-q", "q1", "-o", "page.html", "--json")
    assert outcome.code == 0
    assert outcome.body["page"] == str(place / "page.html")
    assert outcome.body["query"]["id"] == "q1"
    assert "</html>" in Path("page.html").read_text()
    trial = str(run_cli("run", "bm25.toml", "-d", "data", "--json").body["trial"]["id"])
    beside = run_cli("inspect", trial, "--against", "fts.toml", "-d", "data", "-q", "q1", "-o", "two.html")
    assert beside.out == f"query q1: {place / 'two.html'}\n"
    assert run_cli("inspect", trial, "-q", "q77").code == 2


def test_inspect_takes_the_first_failure(run_cli: Cli, place: Path) -> None:
    Path("data/queries.jsonl").write_text(Path("data/queries.jsonl").read_text().replace("line n2x4", "qwertyuiop"))
    trial = run_cli("run", "bm25.toml", "-d", "data", "--json").body["trial"]["id"]
    outcome = run_cli("inspect", str(trial), "--json")
    failed = outcome.body["query"]["id"] if outcome.code == 0 else ""
    assert failed == "q2", outcome


def test_data(run_cli: Cli) -> None:
    listed = run_cli("data", "ls", "--json").body["datasets"]
    assert {d["name"] for d in listed} == {"filings", "handbook", "python-reference"}
    assert all(set(d) == {"name", "description", "licence", "documents", "queries"} for d in listed)
    (one,) = (d for d in listed if d["name"] == "handbook")
    assert re.search(rf"^handbook +{one['documents']} +{one['queries']} ", run_cli("data", "ls").out, re.M)
    body = run_cli("data", "show", "data", "--json").body
    assert (body["name"], body["documents"], body["queries"], body["evidence"]) == ("data", 6, 6, 5)
    shown = run_cli("data", "show", "data", "-n", "6").out
    assert "documents: 6\n" in shown
    assert "q9  where is the moon\n  no evidence: unanswerable\n" in shown
    checked = run_cli("data", "check", "data")
    assert checked.code == 0
    assert checked.out.endswith("sound; 6 documents, 6 queries, 5 evidence, 1 unanswerable\n")
    assert run_cli("data", "check", "data", "--json").body["ok"]


def test_version_and_help(run_cli: Cli) -> None:
    assert run_cli("version").out == run_cli("--version").out == f"rag-workbench {__version__}\n"
    assert run_cli("version", "--json").body == {"version": __version__}
    bare = run_cli()
    assert (bare.code, bare.err) == (2, "")
    assert "Usage: workbench" in bare.out
    assert run_cli("run", "-h").code == 0


def test_a_path_is_never_broken(run_cli: Cli, place: Path, wide: Wide) -> None:
    wide(40)
    long = "a-file-with-a-name-that-is-much-longer-than-the-terminal-is-wide.html"
    out = run_cli("inspect", "bm25.toml", "-d", "data", "-q", "q1", "-o", long).out
    assert str(place / long) in out


def test_forced_colours_are_the_only_colours(run_cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    assert ESCAPE not in run_cli("run", "bm25.toml", "-d", "data").out
    monkeypatch.setenv("FORCE_COLOR", "1")
    coloured = run_cli("run", "bm25.toml", "-d", "data")
    assert ESCAPE in coloured.out
    assert coloured.err == "", "no progress bar where nobody watches"
    assert ESCAPE not in run_cli("run", "bm25.toml", "-d", "data", "--json").out
