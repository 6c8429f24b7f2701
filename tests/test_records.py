"""Records, their frames, and the check at a stage's door."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from workbench.errors import FrameError
from workbench.records import SCHEMAS, Chunk, Document, Evidence, Hit, Query, Score, check_frame, frame, text_lengths

LENGTHS = {"a": 10, "b": 4}


def faults_of(record: type, data: pl.DataFrame, lengths: dict[str, int] | None = None) -> tuple[str, ...]:
    with pytest.raises(FrameError) as caught:
        check_frame(record, data, stage="the door", text_lengths=lengths)
    assert str(caught.value).startswith(f"the door: {record.__name__} frame does not fit")
    return caught.value.faults


def test_missing_extra_and_wrong_columns_are_named_at_once() -> None:
    data = pl.DataFrame({"chunk_no": ["0"], "doc_id": ["a"], "begin": [0], "end": [1.5], "note": [None]})
    assert faults_of(Chunk, data) == (
        "missing column 'start' (Int64)",
        "extra column 'begin'",
        "extra column 'note'",
        "column 'chunk_no' is String, expected Int64",
        "column 'end' is Float64, expected Int64",
    )


def test_values_are_checked_at_once() -> None:
    rows = [
        (0, "a", 0, 5),
        (0, "a", 5, 10),
        (1, "a", 3, 3),
        (2, "a", -1, 2),
        (3, "b", 2, 5),
        (4, "nowhere", 0, 1),
        (5, None, 0, 1),
    ]
    found = faults_of(Chunk, frame(Chunk, rows), LENGTHS)
    assert "column 'doc_id' has 1 null value" in found
    assert "duplicate chunk_no: 0 (2 times)" in found
    assert "span 3:3 of 'a' is empty or reversed" in found
    assert "span -1:2 of 'a' is empty or reversed" in found
    assert "span 2:5 of 'b' ends after its 4 characters" in found
    assert "span names unknown document 'nowhere'" in found


@pytest.mark.parametrize(
    ("record", "rows", "fault"),
    [
        (Document, [("a", "x", None, None, "{}")] * 2, "duplicate doc_id: 'a' (2 times)"),
        (Query, [("q", "x", [], None, "{}")] * 3, "duplicate query_id: 'q' (3 times)"),
        (Hit, [("q", 1, 3, 0.5), ("q", 1, 4, 0.4)], "duplicate query_id, rank: 'q', 1 (2 times)"),
        (Score, [("q", "mrr", 1.0, None)] * 2, "duplicate query_id, metric: 'q', 'mrr' (2 times)"),
        (Evidence, [("q", "a", 4, 2, 1, "span")], "span 4:2 of 'a' is empty or reversed"),
        (Score, [("q", None, 1.0, None)], "column 'metric' has 1 null value"),
        (Hit, [("q", 1, None, 1.0), ("q", 2, None, 1.0)], "column 'chunk_no' has 2 null values"),
    ],
)
def test_keys_and_nulls_of_every_record(record: type, rows: list[Any], fault: str) -> None:
    assert fault in faults_of(record, frame(record, rows))


def test_a_fitting_frame_comes_back_in_the_order_of_the_schema() -> None:
    data = frame(Chunk, [Chunk(0, "a", 0, 10), Chunk(1, "b", 1, 4)])
    mixed = data.select("end", "doc_id", "chunk_no", "start")
    assert check_frame(Chunk, mixed, stage="x", text_lengths=LENGTHS).equals(data)
    empty = frame(Chunk, [])
    assert check_frame(Chunk, empty, stage="x", text_lengths={}).schema == SCHEMAS[Chunk]


def test_unscored_is_null_and_passes_the_door() -> None:
    data = frame(Score, [Score("q", "mrr", None, "no evidence"), Score("q", "recall@1", 0.0)])
    assert check_frame(Score, data, stage="x").rows() == [
        ("q", "mrr", None, "no evidence"),
        ("q", "recall@1", 0.0, None),
    ]


texts = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=12)
numbers = st.integers(0, 2**40)
metadata = st.dictionaries(texts, st.none() | st.integers(-5, 5) | texts, max_size=2)
evidence = st.builds(Evidence, texts, numbers, numbers, st.integers(0, 3), st.sampled_from(["span", "document"]))
floats = st.floats(allow_nan=False)
RECORDS: dict[type, st.SearchStrategy[Any]] = {
    Document: st.builds(Document, texts, texts, st.none() | texts, st.none() | texts, metadata),
    Query: st.builds(Query, texts, texts, st.lists(evidence, max_size=2).map(tuple), st.none() | texts, metadata),
    Chunk: st.builds(Chunk, numbers, texts, numbers, numbers),
    Hit: st.builds(Hit, texts, numbers, numbers, floats),
    Score: st.builds(Score, texts, texts, st.none() | floats, st.none() | texts),
}


def rebuilt(record: type, row: dict[str, Any]) -> Any:
    if "metadata" in row:
        row["metadata"] = json.loads(row["metadata"])
    if "evidence" in row:
        row["evidence"] = tuple(Evidence(**e) for e in row["evidence"])
    return record(**row)


@given(st.data())
def test_records_survive_their_frame(data: st.DataObject) -> None:
    record = data.draw(st.sampled_from(list(RECORDS)))
    rows = data.draw(st.lists(RECORDS[record], max_size=4))
    made = frame(record, rows)
    assert made.schema == SCHEMAS[record]
    assert [rebuilt(record, row) for row in made.iter_rows(named=True)] == rows


@given(st.lists(st.tuples(texts, evidence), max_size=4))
def test_an_evidence_frame_also_names_its_query(rows: list[tuple[str, Evidence]]) -> None:
    made = frame(Evidence, [(query_id, *dataclasses.astuple(e)) for query_id, e in rows])
    assert made.schema == SCHEMAS[Evidence]
    assert [(row[0], Evidence(*row[1:])) for row in made.iter_rows()] == rows


def test_every_record_has_a_schema_of_its_fields() -> None:
    for record, schema in SCHEMAS.items():
        fields = [f.name for f in dataclasses.fields(record)]
        assert list(schema) == (["query_id", *fields] if record is Evidence else fields)


def test_lengths_are_code_points() -> None:
    assert text_lengths([Document("d", "a\U0001d54f\u0301é")]) == {"d": 4}
