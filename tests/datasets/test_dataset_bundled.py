"""What ships with the workbench loads, is sound and says what it is."""

import json
import platform
from pathlib import Path

import pytest

from workbench.datasets import bundled, catalog, catalogue, check, files, load
from workbench.datasets.bundled import AnchorRow, read_topics, span
from workbench.datasets.checking import leaks
from workbench.datasets.rows import Faults
from workbench.errors import DatasetError
from workbench.records import Evidence

FOLDER = Path(__file__).parents[2] / "datasets" / "python-reference"


@pytest.mark.parametrize("name", catalog.NAMES)
def test_bundled_dataset_is_sound(name: str) -> None:
    report = check(name)
    assert report.faults == ()
    assert report.leaking == ()
    assert report.duplicates == () or name == "python-reference"
    assert report.unanswerable > 0 or name == "filings"
    found = load(name, limit=5)
    assert (len(found.queries), found.name.partition("?")[0]) == (5, name)
    assert found.licence != "unknown"
    (entry,) = (e for e in catalogue() if e.name == name)
    assert (entry.documents, entry.queries) == (report.documents, report.queries + len(report.notes))


def test_python_reference_keeps_its_promises() -> None:
    found = load("python-reference")
    texts = {d.doc_id: d.text for d in found.documents}
    # A Python release may lose a few anchors: those questions are reported and left out, which is no failure.
    assert len(found.notes) <= 10
    assert platform.python_version() in found.source
    assert len(found.queries) >= 80
    assert sum(not q.evidence for q in found.queries) >= 6
    assert len({e.doc_id for q in found.queries for e in q.evidence}) >= 30
    for q in found.queries:
        assert not leaks(q, texts)
        assert (not q.evidence) == (q.metadata["kind"] == "unanswerable")
        assert all(60 <= e.end - e.start <= 900 for e in q.evidence), q.query_id


def test_anchors_are_short() -> None:
    rows = [json.loads(line) for line in (FOLDER / "questions.jsonl").read_text(encoding="utf-8").splitlines()]
    anchors = [e[end] for row in rows for e in row["evidence"] for end in ("from", "to")]
    assert max(len(anchor.split()) for anchor in anchors) <= 6


@pytest.mark.parametrize(
    ("text", "result"),
    [
        ("a b one\n   two x three\tfour.", Evidence("t", 4, 27)),
        ("three four one two", "'three four' does not follow 'one two' in topic 't'"),
        ("one two three", "'three four' does not follow 'one two' in topic 't'"),
        ("one two one two three four", "'one two' stands 2 times in topic 't'"),
        ("one  three four", "'one two' does not stand in topic 't'"),
        (None, "this Python has no topic 't'"),
    ],
)
def test_anchored_span(text: str | None, result: Evidence | str) -> None:
    anchors = AnchorRow.model_validate({"doc_id": "t", "from": "one two", "to": "three four"})
    assert span(text, anchors) == result


def test_a_question_that_this_python_cannot_answer_is_left_out_and_noted() -> None:
    texts = bundled.topics()
    lacking = {**texts, "assert": "Nothing of the kind."}
    reading = read_topics(FOLDER, files.read_card(FOLDER, Faults()), Faults(), lacking)
    assert reading.faults.found == []
    (note,) = reading.notes
    assert "is left out" in note
    assert len(reading.queries) == len(load(FOLDER).queries) - 1


def test_faults_of_the_questions_are_told(tmp_path: Path) -> None:
    (tmp_path / "dataset.toml").write_text('documents = "pydoc-topics"\n')
    (tmp_path / "questions.jsonl").write_text(
        '{"query_id": "1", "text": "?", "evidence": [{"doc_id": "del", "form": "x", "to": "y"}]}\n'
        '{"query_id": "2", "text": " "}\n{"query_id": "2", "text": "?"}\n'
    )
    with pytest.raises(DatasetError) as caught:
        load(tmp_path)
    said = "\n".join(caught.value.faults)
    assert "questions.jsonl:1: missing field 'evidence[0].from'" in said
    assert "unknown field 'evidence[0].form': did you mean 'from'?" in said
    assert "text of '2' is blank" in said
    assert "query_id '2' is taken by questions.jsonl:2" in said


def test_a_name_wins_over_a_folder_of_that_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "python-reference").mkdir()
    monkeypatch.chdir(tmp_path)
    assert catalog.find("python-reference") == FOLDER
    assert catalog.find("./python-reference") == Path("./python-reference")


def test_an_installed_package_brings_its_own_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalog, "__file__", str(tmp_path / "workbench" / "datasets" / "catalog.py"))
    (tmp_path / "datasets" / "handbook").mkdir(parents=True)  # another package of that name, without a card
    assert catalog.bundled_folder("handbook") is None
    assert catalogue() == []
    shared = tmp_path / "workbench" / "_share" / "datasets" / "handbook"
    shared.mkdir(parents=True)
    (shared / "dataset.toml").write_text("description = 'd'")
    assert catalog.bundled_folder("handbook") == shared
    assert [e.name for e in catalogue()] == ["handbook"]
    assert catalog.bundled_folder("../handbook") is None


def test_entries_are_escaped() -> None:
    page = catalog.Entry("<i>", "<u>", "<s>", 1, 2, FOLDER)._repr_html_()
    assert not any(tag in page for tag in ("<i>", "<u>", "<s>"))
