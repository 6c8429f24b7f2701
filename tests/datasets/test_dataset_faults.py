"""Every fault of a dataset is told at once, with its file and line and what was expected."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from workbench.datasets import Dataset, load
from workbench.errors import DatasetError
from workbench.records import Document, Evidence, Query

GOOD = '{"doc_id": "a", "text": "The cat sat. The cat ran."}'


def faults(folder: Path) -> tuple[str, ...]:
    with pytest.raises(DatasetError) as caught:
        load(folder)
    assert str(folder) in str(caught.value)
    assert caught.value.exit_code == 2
    return caught.value.faults


def query(**fields: Any) -> str:
    return json.dumps({"query_id": "q", "text": "?", **fields})


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", "corpus.jsonl:2: not JSON: "),
        ("[]", "corpus.jsonl:2: expected a JSON object, not list"),
        ('{"doc_id": "b"}', "corpus.jsonl:2: missing field 'text'"),
        ('{"doc_id": "b", "text": "x", "titel": "t"}', "unknown field 'titel': did you mean 'title'?"),
        ('{"doc_id": 7, "text": "x"}', "field 'doc_id' must be text, not 7"),
        ('{"doc_id": "b", "text": "x", "metadata": []}', "field 'metadata' must be an object, not []"),
        ('{"doc_id": "a", "text": "x"}', "corpus.jsonl:2: doc_id 'a' is taken by corpus.jsonl:1"),
        ('{"doc_id": " ", "text": "x"}', "field 'doc_id' is blank"),
        ('{"doc_id": "b", "text": " \\n"}', "text of 'b' is blank"),
        ('{"doc_id": "b", "text": "x\\u0000"}', "text of 'b' holds U+0000 at character 1"),
        ('{"doc_id": "b", "text": "\\ud800"}', "text of 'b' holds lone surrogate U+D800 at character 0"),
        ('{"doc_id": "b", "text": "x", "metadata": {"k": ["\\u0000"]}}', "metadata.k[0] of 'b' holds U+0000"),
        ('{"doc_id": "b", "text": "x", "metadata": {"k": NaN}}', "NaN is no JSON number"),
        ('{"doc_id": "b", "text": "x", "metadata": {"k": 1e999}}', "beyond the range"),
        ('{"doc_id": "b", "text": "x", "text": "y"}', "field 'text' is given twice"),
        ("[" * 100_000, "corpus.jsonl:2: not "),
    ],
)
def test_corpus_fault(tmp_path: Path, line: str, said: str) -> None:
    (tmp_path / "corpus.jsonl").write_text(f"{GOOD}\n{line}\n")
    (fault,) = faults(tmp_path)
    assert said in fault
    assert fault.startswith("corpus.jsonl:2: ")


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (query(evidence=[{"doc_id": "b", "start": 0, "end": 1}]), "evidence[0]: unknown doc_id 'b'"),
        (query(evidence=[{"doc_id": "a", "start": 3, "end": 3}]), "span 3:3 of 'a' is empty"),
        (query(evidence=[{"doc_id": "a", "start": -1, "end": 3}]), "span -1:3 of 'a' is empty, reversed or negative"),
        (query(evidence=[{"doc_id": "a", "start": 3, "end": 26}]), "span 3:26 of 'a' ends after its 25 characters"),
        (query(evidence=[{"doc_id": "a", "start": 3, "end": 4}]), "holds only white space"),
        (query(evidence=[{"doc_id": "a", "start": 3}]), "'start' and 'end' go together"),
        (query(evidence=[{"doc_id": "a"}]), "give 'start' and 'end', or a 'quote'"),
        (query(evidence=[{"start": 0, "end": 2}]), "missing field 'doc_id'"),
        (query(evidence=[{"doc_id": "a", "start": True, "end": 2}]), "'evidence[0].start' must be a whole number"),
        (query(evidence=[{"doc_id": "a", "start": 0, "end": 2.0}]), "'evidence[0].end' must be a whole number"),
        (query(evidence=[{"doc_id": "a", "strat": 0, "end": 2}]), "'evidence[0].strat': did you mean 'start'?"),
        (query(evidence=[{"doc_id": "a", "unit": "page"}]), "field 'evidence[0].unit': "),
        (query(evidence=["a"]), "field 'evidence[0]' must be an object"),
        (
            query(evidence=[{"doc_id": "a", "start": 4, "end": 7, "quote": "sat"}]),
            "quote 'sat' is not the text 'cat' at 4:7 of 'a' (it stands at 8:11)",
        ),
        (query(evidence=[{"quote": "dog"}]), "quote 'dog' is not in 'a'"),
        (query(evidence=[{"quote": "The cat"}]), "quote 'The cat' stands 2 times in 'a' ('a' at 0, 'a' at 13)"),
        (query(evidence=[{"quote": "sat.\nThe"}]), "but for white space it stands at 8:16 of 'a'"),
        (query(evidence=[{"quote": "  "}]), "the quote is blank"),
        (query(evidence=[{"doc_id": "a", "unit": "document", "quote": "sat"}]), "takes no quote"),
        (query(evidence=[{"doc_id": "a", "unit": "document", "start": 0, "end": 3}]), "spans 0:25, not 0:3"),
        (
            query(evidence=[{"quote": "sat"}, {"doc_id": "a", "start": 8, "end": 11}]),
            "evidence[1]: repeats evidence[0]",
        ),
        (query(text=" "), "text of 'q' is blank"),
        (query(query_id=""), "field 'query_id' is blank"),
        (query(text="\0"), "text of 'q' holds U+0000"),
        (query(anwser="x"), "unknown field 'anwser': did you mean 'answer'?"),
        (query() + "\n" + query(), "query_id 'q' is taken by queries.jsonl:1"),
    ],
)
def test_query_fault(tmp_path: Path, line: str, said: str) -> None:
    (tmp_path / "corpus.jsonl").write_text(GOOD)
    (tmp_path / "queries.jsonl").write_text(line)
    (fault,) = faults(tmp_path)
    assert said in fault
    assert fault.startswith(("queries.jsonl:1: ", "queries.jsonl:2: "))


def test_a_broken_line_is_reported_and_not_utf8_names_the_byte(tmp_path: Path) -> None:
    (tmp_path / "corpus.jsonl").write_bytes(GOOD.encode() + b'\n{"doc_id": "b", "text": "\xe9"}')
    assert faults(tmp_path) == ("corpus.jsonl:2: byte 25 (0xE9) is not UTF-8; save the file as UTF-8",)


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("", "questions.csv: no header"),
        ("question,quot\n", "questions.csv:1: unknown column 'quot': did you mean 'quote'?"),
        ("question;quote\n", "(commas part columns)"),
        ("question,quote,quote\n", "column 'quote' is given 2 times"),
        ("answer,quote\n", "missing column 'question'"),
        ("question,quote\nWho?,a,b\n", "questions.csv:2: 3 cells under 2 columns"),
        ("question,quote\n ,cat sat\n", "questions.csv:2: the question is blank"),
        ("question,quote\nWho?,dog\n", "questions.csv:2: quote 'dog' is not in 'a.md'"),
        ("question,quote\n\n\nWho?,The cat\n", "questions.csv:4: quote 'The cat' stands 2 times"),
        ("question,quote,answer\nWho?,sat,x\nWho?,ran,y\n", "questions.csv:3: 'Who?' has two answers: 'x' and 'y'"),
        ("question,quote\nWho?,sat\nWho?,sat\n", "is given twice"),
        ("question,quote\nWho?,sat\nWho?,\n", "questions.csv:3: 'Who?' has rows with a quote and one without"),
        ('question,quote\n"Who?\nWhat?",dog\n', "questions.csv:2: quote 'dog'"),
        ('question,quote\n"Who"?,sat\n', "questions.csv:2: not CSV"),
    ],
)
def test_csv_fault(tmp_path: Path, body: str, said: str) -> None:
    (tmp_path / "a.md").write_text("The cat sat. The cat ran.")
    (tmp_path / "questions.csv").write_text(body)
    assert any(said in fault for fault in faults(tmp_path))


def test_prose_faults(tmp_path: Path) -> None:
    (tmp_path / "dataset.toml").touch()  # a bundle: its docs/ is not part of the names
    (tmp_path / "docs").mkdir()
    (tmp_path / "a.md").write_text("x")
    (tmp_path / "docs" / "a.md").write_text("y")
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    (tmp_path / "null.txt").write_bytes(b"a\0b")
    found = faults(tmp_path)
    assert len(found) == 3
    assert any("doc_id 'a.md' is taken by" in fault for fault in found)
    assert "latin.txt: byte 3 (0xE9) is not UTF-8; save the file as UTF-8" in found
    assert "null.txt: holds U+0000 at character 1" in found


@pytest.mark.skipif(os.name == "nt", reason="file names are bytes on POSIX only")
def test_a_file_name_that_is_not_utf8_is_told_readably(tmp_path: Path) -> None:
    try:
        Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.md")).write_text("x")
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    (fault,) = faults(tmp_path)
    assert fault.startswith("\\udcff.md: the file's name holds")


@pytest.mark.parametrize(
    ("card", "said"),
    [
        ("license = 'MIT'", "dataset.toml: unknown field 'license': did you mean 'licence'?"),
        ("name = 1979-05-27", "field 'name' must be text, not \"1979-05-27\""),
        ("name = ", "dataset.toml: not TOML"),
    ],
)
def test_card_fault(tmp_path: Path, card: str, said: str) -> None:
    (tmp_path / "dataset.toml").write_text(card)
    (tmp_path / "a.md").write_text("x")
    (fault,) = faults(tmp_path)
    assert said in fault


def test_faults_of_both_files_come_at_once_and_the_listing_is_capped(tmp_path: Path) -> None:
    (tmp_path / "corpus.jsonl").write_text(GOOD + "\n" + "{\n" * 40)
    (tmp_path / "queries.jsonl").write_text("{\n" * 40)
    found = faults(tmp_path)
    assert len(found) == 51
    assert found[-1] == "and 30 more"
    assert any(fault.startswith("queries.jsonl:1:") for fault in found)


def test_no_documents(tmp_path: Path) -> None:
    (fault,) = faults(tmp_path)
    assert "no documents" in fault


def test_missing_folder_suggests_names(tmp_path: Path) -> None:
    with pytest.raises(DatasetError) as caught:
        load("handbok")
    assert "did you mean 'handbook'?" in str(caught.value)
    (tmp_path / "corpus.jsonl").write_text(GOOD)
    with pytest.raises(DatasetError, match="give the folder"):
        load(tmp_path / "corpus.jsonl")


def test_a_dataset_built_in_python_holds_the_same_rules() -> None:
    documents = (Document("a", "text"), Document("a", "\0"), Document("b", " "))
    queries = (
        Query("q", "?", (Evidence("c", 0, 1), Evidence("b", 0, 2))),
        Query("q", " ", (Evidence("b", 0, 1, grade=0), Evidence("b", 0, 1, grade=0))),
    )
    with pytest.raises(DatasetError) as caught:
        Dataset("mine", documents, queries)
    assert len(caught.value.faults) == 9
