"""`check` reports faults without raising, and counts and warns about the rest."""

import json
from pathlib import Path

import pytest

from workbench.datasets import check
from workbench.datasets.texts import shares_words
from workbench.errors import DatasetError

GOLD = "Restart the primary before you touch the replica, then wait."


def test_report(tmp_path: Path) -> None:
    corpus = [{"doc_id": "a", "text": GOLD}, {"doc_id": "b", "text": GOLD}, {"doc_id": "c", "text": "𝔘x"}]
    queries = [
        {"query_id": "copied", "text": "Why PRIMARY before you touch the replica?", "evidence": []},
        {"query_id": "leaks", "text": "restart “the primary” before you touch?", "evidence": []},
        {"query_id": "none", "text": "Who?"},
    ]
    for q in queries[:2]:
        q["evidence"] = [{"doc_id": "a", "start": 0, "end": len(GOLD)}]
    (tmp_path / "corpus.jsonl").write_text("\n".join(map(json.dumps, corpus)))
    (tmp_path / "queries.jsonl").write_text("\n".join(map(json.dumps, queries)))
    report = check(tmp_path)
    assert report.ok
    assert (report.documents, report.characters, report.queries) == (3, 2 * len(GOLD) + 2, 3)
    assert (report.evidence, report.unanswerable) == (2, 1)
    assert report.leaking == ("copied", "leaks")
    assert report.duplicates == (("a", "b"),)
    body = json.loads(json.dumps(report.as_json()))
    assert body["ok"] is True
    assert body["duplicates"] == [["a", "b"]]
    assert body["folder"] == str(tmp_path)


def test_faults_are_reported_and_not_raised(tmp_path: Path) -> None:
    (tmp_path / "corpus.jsonl").write_text('{"doc_id": "a", "text": "x"}\n' + "{\n" * 60)
    report = check(tmp_path)
    assert not report.ok
    assert len(report.faults) == 60
    assert report.documents == 1
    with pytest.raises(DatasetError):
        check(tmp_path / "nowhere")


def test_six_shared_words_are_needed() -> None:
    assert shares_words("one two three four five six", "x one, TWO three four five-six y")
    assert not shares_words("one two three four five", "one two three four five")
    assert not shares_words("one two three x four five six", "one two three four five six")
