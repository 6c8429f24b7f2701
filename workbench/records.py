"""The records that travel between stages, their Polars schemas, and the check at each stage's door.

Offsets count Unicode code points (Python `str` indices) into `Document.text`; `end` is exclusive.
`docs/datamodel.md` shows the same as one table.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import polars as pl

from workbench.errors import FrameError

Unit = Literal["span", "document"]


@dataclass(frozen=True, slots=True)
class Document:
    """One text, exactly as loaded: it is never normalised afterwards."""

    doc_id: str
    text: str
    title: str | None = None
    uri: str | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Evidence:
    """Where an answer stands: `text[start:end]` of the document, or the whole document (unit "document")."""

    doc_id: str
    start: int
    end: int
    grade: int = 1
    unit: Unit = "span"


@dataclass(frozen=True, slots=True)
class Query:
    """A question with its gold evidence; no evidence means that the corpus does not answer it."""

    query_id: str
    text: str
    evidence: tuple[Evidence, ...] = ()
    answer: str | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Chunk:
    """A span of a document; its text *is* `text[start:end]`."""

    chunk_no: int
    doc_id: str
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Hit:
    """One retrieved chunk; ranks count from 1 and ties go to the smaller chunk_no, so rankings are total orders."""

    query_id: str
    rank: int
    chunk_no: int
    score: float


@dataclass(frozen=True, slots=True)
class Score:
    """One metric of one query; `value` None means unscored, with the reason."""

    query_id: str
    metric: str
    value: float | None
    reason: str | None = None


_EVIDENCE = pl.Schema({"doc_id": pl.String, "start": pl.Int64, "end": pl.Int64, "grade": pl.Int64, "unit": pl.String})

SCHEMAS: Mapping[type, pl.Schema] = {
    Document: pl.Schema(
        {"doc_id": pl.String, "text": pl.String, "title": pl.String, "uri": pl.String, "metadata": pl.String}
    ),
    Evidence: pl.Schema([("query_id", pl.String), *_EVIDENCE.items()]),
    Query: pl.Schema(
        [
            ("query_id", pl.String),
            ("text", pl.String),
            ("evidence", pl.List(pl.Struct(dict(_EVIDENCE)))),
            ("answer", pl.String),
            ("metadata", pl.String),
        ]
    ),
    Chunk: pl.Schema({"chunk_no": pl.Int64, "doc_id": pl.String, "start": pl.Int64, "end": pl.Int64}),
    Hit: pl.Schema({"query_id": pl.String, "rank": pl.Int64, "chunk_no": pl.Int64, "score": pl.Float64}),
    Score: pl.Schema({"query_id": pl.String, "metric": pl.String, "value": pl.Float64, "reason": pl.String}),
}
"""One schema a record. `metadata` is JSON text in a frame; an Evidence frame also names its query."""

_KEYS: Mapping[type, tuple[str, ...]] = {
    Document: ("doc_id",),
    Query: ("query_id",),
    Chunk: ("chunk_no",),
    Hit: ("query_id", "rank"),
    Score: ("query_id", "metric"),
}
_NULLABLE = {"title", "uri", "answer", "value", "reason"}


def frame(record: type, rows: Iterable[Any]) -> pl.DataFrame:
    """Rows (records, or tuples in the order of the schema) as a frame with the record's schema."""
    return pl.DataFrame([_row(row) for row in rows], schema=SCHEMAS[record], orient="row")


def _row(row: Any) -> tuple[Any, ...]:
    if not dataclasses.is_dataclass(row):
        return tuple(row)
    values = {f.name: getattr(row, f.name) for f in dataclasses.fields(row)}
    if "metadata" in values:
        values["metadata"] = json.dumps(dict(values["metadata"]), sort_keys=True, ensure_ascii=False)
    if "evidence" in values:
        values["evidence"] = [dataclasses.asdict(e) for e in values["evidence"]]
    return tuple(values.values())


def check_frame(
    record: type, data: pl.DataFrame, *, stage: str, text_lengths: Mapping[str, int] | None = None
) -> pl.DataFrame:
    """Validate a frame at a stage's door and return it with its columns in schema order.

    Names every missing and extra column, wrong type, null, duplicate key and, where `text_lengths`
    (doc_id -> number of code points) is given, unknown document and out-of-range span at once.

    Raises:
        FrameError: with all faults.
    """
    schema = SCHEMAS[record]
    what = f"{record.__name__} frame"
    faults = [f"missing column {name!r} ({kind})" for name, kind in schema.items() if name not in data.columns]
    faults += [f"extra column {name!r}" for name in data.columns if name not in schema]
    for name, kind in schema.items():
        if name in data.columns and data.schema[name] != kind:
            faults.append(f"column {name!r} is {data.schema[name]}, expected {kind}")
    if faults:
        raise FrameError(f"{what} does not fit", faults, where=stage)
    for name in schema:
        nulls = data[name].null_count()
        if nulls and name not in _NULLABLE:
            faults.append(f"column {name!r} has {nulls} null value{'s' if nulls > 1 else ''}")
    if keys := _KEYS.get(record):
        doubled = data.group_by(keys).len().filter(pl.col("len") > 1).sort(keys)
        faults += [
            f"duplicate {', '.join(keys)}: {', '.join(map(repr, row[:-1]))} ({row[-1]} times)"
            for row in doubled.head(20).iter_rows()
        ]
    if "start" in schema:
        faults += _span_faults(data, text_lengths)
    if faults:
        raise FrameError(f"{what} does not fit", faults, where=stage)
    return data.select(list(schema))


def _span_faults(data: pl.DataFrame, text_lengths: Mapping[str, int] | None) -> list[str]:
    rows = data.select("doc_id", "start", "end")
    faults = [
        f"span {start}:{end} of {doc!r} is empty or reversed"
        for doc, start, end in rows.filter((pl.col("start") < 0) | (pl.col("end") <= pl.col("start")))
        .head(20)
        .iter_rows()
    ]
    if text_lengths is not None:
        lengths = pl.DataFrame(
            {"doc_id": list(text_lengths), "length": list(text_lengths.values())},
            schema={"doc_id": pl.String, "length": pl.Int64},
        )
        joined = rows.join(lengths, on="doc_id", how="left")
        faults += [
            f"span names unknown document {doc!r}"
            for doc in joined.filter(pl.col("length").is_null())["doc_id"].unique(maintain_order=True).head(20)
        ]
        faults += [
            f"span {start}:{end} of {doc!r} ends after its {length} characters"
            for doc, start, end, length in joined.filter(pl.col("end") > pl.col("length")).head(20).iter_rows()
        ]
    return faults


def text_lengths(documents: Sequence[Document]) -> dict[str, int]:
    """doc_id -> length of its text in code points."""
    return {d.doc_id: len(d.text) for d in documents}
