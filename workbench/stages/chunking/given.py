"""Chunks that somebody made elsewhere, from a file of {doc_id, start, end} lines."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from workbench.errors import DatasetError, did_you_mean
from workbench.records import Document
from workbench.stages.chunking._spans import Spans

GivenSpans = Mapping[str, Sequence[tuple[int, int]]]
_FORM = 'expected lines like {"doc_id": "a", "start": 0, "end": 120}, offsets in code points, end exclusive'


def from_mapping(given: GivenSpans, document: Document) -> Spans:
    """The document's given spans, in order; a document that is not named has none."""
    return sorted(given.get(document.doc_id, ()))


def read_given(path: Path, documents: Sequence[Document]) -> dict[str, Spans]:
    """Chunks by document from JSON Lines {doc_id, start, end}; other keys are ignored, blank lines too.

    Returns:
        doc_id -> spans (start, end) in code points, ordered by (start, end), no two alike.

    Raises:
        DatasetError: with all faults: lines that are no such object, unknown documents, spans that are
            empty, out of range, blank or given twice; or the file cannot be read.
    """
    texts = {document.doc_id: document.text for document in documents}
    try:
        content = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        hint = "the file of chunk.file belongs in the dataset's folder"
        raise DatasetError("the chunks cannot be read", [str(error)], where=str(path), hint=hint) from error
    faults: list[str] = []
    seen: dict[tuple[str, int, int], int] = {}
    unknown: dict[str, list[int]] = {}
    for number, line in enumerate(content.split("\n"), start=1):
        if not line.strip():
            continue
        row = _row(line)
        if isinstance(row, str):
            faults.append(f"line {number}: {row}")
            continue
        doc_id, start, end = row
        text = texts.get(doc_id)
        if text is None:
            unknown.setdefault(doc_id, []).append(number)
        elif not 0 <= start < end <= len(text):
            fault = "is empty or reversed" if end <= start else f"is outside the {len(text)} characters"
            faults.append(f"line {number}: span {start}:{end} {fault} of {doc_id!r}")
        elif row in seen:
            faults.append(f"line {number}: span {start}:{end} of {doc_id!r} was given on line {seen[row]}")
        elif text[start:end].isspace():
            faults.append(f"line {number}: span {start}:{end} of {doc_id!r} holds blanks only")
        else:
            seen[row] = number
    for doc_id, numbers in unknown.items():
        more = f" and {len(numbers) - 1} more" if len(numbers) > 1 else ""
        faults.append(f"line {numbers[0]}{more}: no document {doc_id!r}; {did_you_mean(doc_id, texts)[:200]}")
    if faults:
        raise DatasetError("the chunks do not fit the documents", faults, where=str(path), hint=_FORM)
    given: dict[str, Spans] = {}
    for doc_id, start, end in sorted(seen):
        given.setdefault(doc_id, []).append((start, end))
    return given


def _row(line: str) -> tuple[str, int, int] | str:
    """The three values of a line, or what is wrong with it."""
    try:
        value: Any = json.loads(line)
    except ValueError as error:
        return f"not JSON: {error}"
    if not isinstance(value, dict):
        return f"an object is expected, not {type(value).__name__}"
    missing = [key for key in ("doc_id", "start", "end") if key not in value]
    if missing:
        return f"missing {', '.join(missing)}"
    doc_id, start, end = value["doc_id"], value["start"], value["end"]
    if not isinstance(doc_id, str):
        return f"doc_id must be a string, not {doc_id!r}"
    if type(start) is not int or type(end) is not int:
        return f"start and end must be whole numbers, not {start!r} and {end!r}"
    return doc_id, start, end
