"""Chunks from a person: a file of spans (kind "given") and a function (kind "python")."""

from __future__ import annotations

import json
import sys
import types
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from workbench.errors import DatasetError, SpecError, StageError
from workbench.records import Document
from workbench.specs import Given, Python, TrialSpec
from workbench.stages.chunking import Chunker, build, chunk_documents, read_given, source_digest


def pairs(text: str) -> list[tuple[int, int]]:
    """A person's chunker: two characters each."""
    return [(at, min(at + 2, len(text))) for at in range(0, len(text), 2)]


# --- given ---

PAIR = [Document("a", "Some text here."), Document("b", "Übung 👍 macht")]


def lines(path: Path, rows: Iterable[Any]) -> Path:
    path.write_text(
        "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows), encoding="utf-8"
    )
    return path


def test_given_chunks_are_read_sorted_and_numbered(tmp_path: Path) -> None:
    rows = [{"doc_id": "b", "start": 6, "end": 7, "note": 1}, "", {"doc_id": "b", "start": 0, "end": 5}]
    given_spans = read_given(lines(tmp_path / "c.jsonl", rows), PAIR)
    frame = chunk_documents(build(Given(), given=given_spans), PAIR)
    assert frame.rows() == [(0, "b", 0, 5), (1, "b", 6, 7)]
    assert PAIR[1].text[6:7] == "👍"


def test_given_names_every_fault_at_once(tmp_path: Path) -> None:
    rows: list[Any] = [
        {"doc_id": "a", "start": 0, "end": 4},
        {"doc_id": "a", "start": 0, "end": 4},
        {"doc_id": "a", "start": 4, "end": 5},
        {"doc_id": "a", "start": 3, "end": 3},
        {"doc_id": "a", "start": 3, "end": 99},
        {"doc_id": "a", "start": -1, "end": 9},
        {"doc_id": "c", "start": 0, "end": 1},
        {"doc_id": "c", "start": 1, "end": 2},
        {"doc_id": "a", "start": 0.0, "end": True},
        {"doc_id": 7, "start": 0, "end": 1},
        {"start": 0},
        "[1, 2]",
        "{",
    ]
    path = lines(tmp_path / "c.jsonl", rows)
    with pytest.raises(DatasetError) as caught:
        read_given(path, PAIR)
    assert caught.value.where == str(path)
    expected = [
        "line 2: span 0:4 of 'a' was given on line 1",
        "line 3: span 4:5 of 'a' holds blanks only",
        "line 4: span 3:3 is empty or reversed of 'a'",
        "line 5: span 3:99 is outside the 15 characters of 'a'",
        "line 6: span -1:9 is outside",
        "line 9: start and end must be whole numbers",
        "line 10: doc_id must be a string",
        "line 11: missing doc_id, end",
        "line 12: an object is expected, not list",
        "line 13: not JSON",
        "line 7 and 1 more: no document 'c'",
    ]
    assert len(caught.value.faults) == len(expected)
    for fault, start in zip(caught.value.faults, expected, strict=True):
        assert fault.startswith(start)


def test_given_without_a_file_or_spans(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="cannot be read"):
        read_given(tmp_path / "none.jsonl", PAIR)
    with pytest.raises(SpecError, match=r"'chunks\.jsonl' were not passed.*read_given"):
        build(Given())


# --- python ---


def by_a_target(monkeypatch: pytest.MonkeyPatch, function: Any) -> Chunker:
    module = types.ModuleType("a_persons_module")
    module.split = function  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "a_persons_module", module)
    return build(Python(target="a_persons_module:split"))


@pytest.mark.parametrize(
    ("text", "returned", "expected"),
    [
        ("aaaa", ["aa", "aa"], [(0, 2), (2, 4)]),
        ("one two three", ["one two", "two three"], [(0, 7), (4, 13)]),
        ("a b a b", ["a", "b", " ", "", "a b"], [(0, 1), (2, 3), (4, 7)]),
        ("abc def", [(4, 7), [0, 3], (3, 4)], [(0, 3), (4, 7)]),
        ("abc", [], []),
    ],
)
def test_a_persons_chunker(monkeypatch: pytest.MonkeyPatch, text: str, returned: Any, expected: Any) -> None:
    assert by_a_target(monkeypatch, lambda _: iter(returned))(Document("d", text)) == expected


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        (["def", "ABC"], "no chunker returns text that is not in the document: 'ABC'"),
        (["def", "abc"], "'abc' is not found after offset"),
        ([(0, 99)], "span 0:99, which is empty or outside"),
        ([(2, 2)], "span 2:2, which is empty"),
        ([(0, 2), (0, 2)], "span 0:2 twice"),
        ([(0, 1.5)], "expected .start, end. pairs of whole numbers"),
        ([(0, 2), "abc"], "not a mixture"),
        ([3], "the chunker returned 3"),
        (None, "raised TypeError"),
    ],
)
def test_what_a_persons_chunker_may_not_return(monkeypatch: pytest.MonkeyPatch, returned: Any, message: str) -> None:
    with pytest.raises(StageError, match=message) as caught:
        by_a_target(monkeypatch, lambda _: returned)(Document("doc-7", "abc def"))
    assert caught.value.where == "a_persons_module:split, document 'doc-7'"


def test_an_exception_in_a_persons_chunker_names_target_and_document(monkeypatch: pytest.MonkeyPatch) -> None:
    def late(text: str) -> Iterable[str]:
        yield text
        raise KeyError("oops")

    with pytest.raises(StageError, match="a_persons_module:split, document 'd': the chunker raised KeyError: 'oops'"):
        by_a_target(monkeypatch, late)(Document("d", "abc"))


def test_a_target_that_cannot_be_imported() -> None:
    with pytest.raises(SpecError, match=r"'no_such_module' cannot be imported.*PYTHONPATH"):
        build(Python(target="no_such_module:split"))
    with pytest.raises(SpecError, match=r"'textwrap' has no 'wrapp'.*did you mean 'wrap'"):
        build(Python(target="textwrap:wrapp"))
    with pytest.raises(SpecError, match="is a str, not a function"):
        build(Python(target="string:digits"))
    with pytest.raises(SpecError, match=r"source of .*floor.* cannot be read"):
        source_digest(Python(target="math:floor"))


def test_the_source_digest_does_not_depend_on_how_the_function_is_named() -> None:
    spec = Python.of(pairs)
    assert source_digest(spec) == spec.source
    import textwrap

    assert source_digest(Python(target="textwrap:wrap")) == source_digest(Python.of(textwrap.wrap))


def test_a_callable_in_a_trial_is_a_chunker() -> None:
    trial = TrialSpec(chunk=pairs)  # type: ignore[arg-type]
    assert build(trial.chunk)(Document("d", "abcdef")) == [(0, 2), (2, 4), (4, 6)]
