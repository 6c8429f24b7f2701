"""A folder as a dataset: `corpus.jsonl` or .md/.txt files, with `queries.jsonl`, `questions.csv` or neither."""

from __future__ import annotations

import csv
import difflib
import io
import os
import re
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from workbench.datasets.dataset import Dataset, evidence_faults
from workbench.datasets.rows import LISTED, Faults, Row, decode, listed, parse_row, read_bytes, read_jsonl
from workbench.datasets.texts import bad_character, first_heading, loose_occurrences, occurrences, shortened
from workbench.errors import DatasetError, did_you_mean
from workbench.records import Document, Evidence, Query, Unit

CARD, CORPUS, QUERIES, QUESTIONS = "dataset.toml", "corpus.jsonl", "queries.jsonl", "questions.csv"
PROSE = {".md", ".txt"}
NO_PROSE = {"node_modules", "__pycache__"}  # folders of tools, skipped as hidden ones are
ALIKE = ("'‘’‚‛′`´", '"“”„‟″«»', "-‐‑‒–—―−")
"""Characters that editors put in each other's place: quotation marks, single and double, and dashes."""


class Card(Row):
    """`dataset.toml`. `documents` names a corpus that is made when it is loaded, not read from the folder."""

    name: str | None = None
    licence: str = "unknown"
    source: str = ""
    description: str = ""
    documents: Literal["pydoc-topics", "filings"] | None = None


class DocumentRow(Row):
    doc_id: str
    text: str
    title: str | None = None
    uri: str | None = None
    metadata: dict[str, Any] = Field(default_factory=dict)


class EvidenceRow(Row):
    doc_id: str | None = None
    start: int | None = None
    end: int | None = None
    quote: str | None = None
    grade: int = 1
    unit: Unit = "span"


class QueryRow(Row):
    query_id: str
    text: str
    evidence: list[EvidenceRow] = Field(default_factory=list)
    answer: str | None = None
    metadata: dict[str, Any] = Field(default_factory=dict)


@dataclass
class Reading:
    """What a folder holds as far as it could be read, with every fault and finding."""

    folder: Path
    card: Card
    documents: list[Document] = field(default_factory=list)
    queries: list[Query] = field(default_factory=list)
    faults: Faults = field(default_factory=Faults)
    notes: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        return self.card.name or self.folder.resolve().name or "dataset"

    def dataset(self) -> Dataset:
        """The dataset, if nothing is wrong.

        Raises:
            DatasetError: every fault with its file and line (the first 50, and how many more).
        """
        if found := self.faults.found:
            count = f"{len(found)} fault{'s' if len(found) > 1 else ''}"
            raise DatasetError(f"{count} in this dataset", listed(found), where=str(self.folder))
        return Dataset(
            name=self.name,
            documents=tuple(self.documents),
            queries=tuple(self.queries),
            licence=self.card.licence,
            source=self.card.source,
            description=self.card.description,
            folder=self.folder.resolve(),
            notes=tuple(self.notes),
        )


def read_card(folder: Path, faults: Faults) -> Card:
    """`dataset.toml` of a folder, or an empty card where there is none."""
    path = folder / CARD
    if not path.is_file():
        return Card()
    text = decode(read_bytes(path, faults) or b"", CARD, faults)
    try:
        value = tomllib.loads(text or "")
    except tomllib.TOMLDecodeError as error:
        faults.add(CARD, f"not TOML: {error}")
        return Card()
    return parse_row(value, Card, CARD, faults) or Card()


def read_folder(folder: Path) -> Reading:
    """Read everything in a folder; faults are collected, none is raised."""
    faults = Faults()
    reading = Reading(folder, read_card(folder, faults), faults=faults)
    if (folder / CORPUS).is_file():
        reading.documents = list(_corpus_rows(folder / CORPUS, faults))
    else:
        reading.documents = list(_prose(folder, reading))
    if not reading.documents and not faults.found:
        faults.add(str(folder), f"no documents: neither {CORPUS} nor .md or .txt files with text")
    texts = {d.doc_id: d.text for d in reading.documents}
    if (folder / QUERIES).is_file():
        reading.queries = list(_query_rows(folder / QUERIES, texts, faults))
        if (folder / QUESTIONS).is_file():
            reading.notes.append(f"{QUESTIONS} is not read, because there is {QUERIES}")
    elif (folder / QUESTIONS).is_file():
        reading.queries = list(_question_rows(folder / QUESTIONS, texts, faults))
    else:
        reading.notes.extend(_misnamed(folder))
    return reading


def _misnamed(folder: Path) -> Iterator[str]:
    for path in sorted(folder.iterdir()):
        if path.suffix in (".jsonl", ".csv", ".json", ".tsv") and difflib.get_close_matches(
            path.name, [QUERIES, QUESTIONS, "queries.csv", "questions.jsonl"], n=1, cutoff=0.8
        ):
            yield f"{path.name} is not read: questions are in {QUERIES} or {QUESTIONS}"


# --- documents -----------------------------------------------------------------------------------


def _corpus_rows(path: Path, faults: Faults) -> Iterator[Document]:
    seen: dict[str, str] = {}
    for placed in read_jsonl(path, DocumentRow, faults):
        row, where = placed.row, placed.where
        if not row.doc_id.strip():
            faults.add(where, "field 'doc_id' is blank")
        elif first := seen.get(row.doc_id):
            faults.add(where, f"doc_id {row.doc_id!r} is taken by {first}")
        elif not row.text.strip():
            faults.add(where, f"text of {row.doc_id!r} is blank")
        else:
            yield Document(row.doc_id, row.text, row.title, row.uri, row.metadata)
        seen.setdefault(row.doc_id, where)


def _prose(folder: Path, reading: Reading) -> Iterator[Document]:
    described = any((folder / name).is_file() for name in (CARD, QUERIES, QUESTIONS))
    # A dataset with a card keeps its documents apart in docs/; elsewhere that is a folder like any other.
    apart = "docs/" if (folder / CARD).is_file() else ""
    paths: dict[str, Path] = {}
    for path in prose_files(folder):
        inside = path.relative_to(folder).as_posix()
        if described and inside.lower() == "readme.md":
            continue
        doc_id = inside.removeprefix(apart)
        if doc_id in paths:
            reading.faults.add(inside, f"doc_id {doc_id!r} is taken by {paths[doc_id].relative_to(folder).as_posix()}")
        paths.setdefault(doc_id, path)
    for doc_id in sorted(paths):
        where = paths[doc_id].relative_to(folder).as_posix()
        # A file name that is not UTF-8 reaches us with lone surrogates, which no message could show.
        if bad := bad_character(where):
            reading.faults.add(ascii(where)[1:-1], f"the file's name holds a {bad}")
            continue
        data = read_bytes(paths[doc_id], reading.faults, where)
        text = None if data is None else decode(data, where, reading.faults)
        if text is None:
            continue
        if bad := bad_character(text):
            reading.faults.add(where, f"holds {bad}")
        elif not text.strip():
            reading.notes.append(f"{where} is blank and was left out")
        else:
            title = first_heading(text) if where.lower().endswith(".md") else None
            yield Document(doc_id, text, title)


def prose_files(folder: Path) -> Iterator[Path]:
    """Prose files below a folder; hidden files and folders (.git, .venv) and tools' folders are no documents."""
    for root, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".") and name not in NO_PROSE]
        yield from (
            Path(root, name) for name in names if not name.startswith(".") and Path(name).suffix.lower() in PROSE
        )


# --- queries -------------------------------------------------------------------------------------


def _query_rows(path: Path, texts: dict[str, str], faults: Faults) -> Iterator[Query]:
    seen: dict[str, str] = {}
    for placed in read_jsonl(path, QueryRow, faults):
        row, where = placed.row, placed.where
        before = len(faults.found)
        if not row.query_id.strip():
            faults.add(where, "field 'query_id' is blank")
        elif first := seen.get(row.query_id):
            faults.add(where, f"query_id {row.query_id!r} is taken by {first}")
        seen.setdefault(row.query_id, where)
        if not row.text.strip():
            faults.add(where, f"text of {row.query_id!r} is blank")
        evidence: list[Evidence] = []
        for i, item in enumerate(row.evidence):
            # TREC and BEIR judgements name unjudged and irrelevant documents with grade 0: no evidence.
            if item.grade <= 0:
                continue
            place = f"{where}: evidence[{i}]"
            found = _resolve(item, texts, place, faults)
            if found and found in evidence:
                faults.add(place, f"repeats evidence[{evidence.index(found)}]")
            elif found:
                evidence.append(found)
        if len(faults.found) == before:
            yield Query(row.query_id, row.text, tuple(evidence), row.answer, row.metadata)


def _resolve(item: EvidenceRow, texts: dict[str, str], where: str, faults: Faults) -> Evidence | None:
    """One evidence with its offsets, or None with a fault."""
    if item.doc_id is not None and item.doc_id not in texts:
        # Looking for the nearest name is slow, and nobody reads the hint of the thousandth fault.
        near = _near(item.doc_id, texts) if len(faults.found) < LISTED else "not in the corpus"
        faults.add(where, f"unknown doc_id {item.doc_id!r}: {near}")
        return None
    if (item.start is None) != (item.end is None):
        faults.add(where, "'start' and 'end' go together")
        return None
    if item.doc_id is None and (item.unit == "document" or item.start is not None):
        faults.add(where, "missing field 'doc_id'")
        return None
    if item.unit == "document":
        return _whole(item, texts, where, faults)
    if item.start is None or item.end is None or item.doc_id is None:
        if item.quote is None:
            faults.add(where, "give 'start' and 'end', or a 'quote'")
            return None
        found = locate(item.quote, texts if item.doc_id is None else {item.doc_id: texts[item.doc_id]})
        if isinstance(found, str):
            faults.add(where, found)
            return None
        return Evidence(*found, item.grade)
    evidence = Evidence(item.doc_id, item.start, item.end, item.grade)
    text = texts[item.doc_id]
    wrong = evidence_faults(evidence, text)
    span = text[item.start : item.end]
    if not wrong and item.quote is not None and item.quote != span:
        wrong = [
            f"quote {shortened(item.quote)} is not the text {shortened(span)} at {item.start}:{item.end} of "
            f"{item.doc_id!r}{_elsewhere(item.quote, text)}"
        ]
    for fault in wrong:
        faults.add(where, fault)
    return None if wrong else evidence


def _whole(item: EvidenceRow, texts: dict[str, str], where: str, faults: Faults) -> Evidence | None:
    if item.quote is not None:
        faults.add(where, "unit 'document' takes no quote")
        return None
    end = len(texts[item.doc_id or ""])
    if item.start is not None and (item.start, item.end) != (0, end):
        faults.add(where, f"unit 'document' spans 0:{end}, not {item.start}:{item.end}; leave 'start' and 'end' out")
        return None
    return Evidence(item.doc_id or "", 0, end, item.grade, "document")


def _near(doc_id: str, texts: dict[str, str]) -> str:
    """A hint that stays one line over a large corpus."""
    hint = did_you_mean(doc_id, texts) if len(texts) < 10_000 else ""
    return hint if hint and not hint.startswith("known") else f"none of the {len(texts)} in the corpus is like it"


def _elsewhere(quote: str, text: str) -> str:
    places = list(occurrences(text, quote)) if quote else []
    return f" (it stands at {places[0]}:{places[0] + len(quote)})" if len(places) == 1 else ""


def locate(quote: str, texts: dict[str, str]) -> tuple[str, int, int] | str:
    """(doc_id, start, end) of the one place where a quote stands in these texts, or what is wrong with it."""
    if not quote.strip():
        return "the quote is blank"
    places = [(doc_id, at) for doc_id, text in texts.items() for at in occurrences(text, quote)]
    if len(places) == 1:
        doc_id, at = places[0]
        return doc_id, at, at + len(quote)
    scope = repr(next(iter(texts))) if len(texts) == 1 else f"{len(texts)} documents"
    if places:
        shown = ", ".join(f"{doc_id!r} at {at}" for doc_id, at in places[:3]) + (", …" if len(places) > 3 else "")
        return f"quote {shortened(quote)} stands {len(places)} times in {scope} ({shown}); make it longer"
    return f"quote {shortened(quote)} is not in {scope}{_almost(quote, texts)}"


def _almost(quote: str, texts: dict[str, str]) -> str:
    """Where a quote stands but for what copying changes, if in one place alone."""
    but = "white space"
    if not (loose := [(doc_id, *span) for doc_id, text in texts.items() for span in loose_occurrences(text, quote)]):
        but = "case, white space, quotation marks and dashes"
        alike = {mark: f"[{re.escape(marks)}]" for marks in ALIKE for mark in marks}
        words = ("".join(alike.get(c, re.escape(c)) for c in word) for word in quote.split())
        pattern = re.compile(r"\s+".join(words), re.IGNORECASE)
        loose = [(doc_id, *match.span()) for doc_id, text in texts.items() for match in pattern.finditer(text)]
    if len(loose) != 1:
        return ""
    doc_id, start, end = loose[0]
    return f"; but for {but} it stands at {start}:{end} of {doc_id!r}"


def _question_rows(path: Path, texts: dict[str, str], faults: Faults) -> Iterator[Query]:
    """Rows of question, quote and answer; rows of one question are one query."""
    gathered: dict[str, tuple[list[str], list[Evidence]]] = {}
    blank: dict[str, str] = {}
    for where, question, quote, answer in _csv_rows(path, faults):
        answers, evidence = gathered.setdefault(question, ([], []))
        if answer.strip() and answer not in answers:
            answers.append(answer)
            if len(answers) > 1:
                faults.add(where, f"{shortened(question)} has two answers: {' and '.join(map(shortened, answers[:2]))}")
        if not quote.strip():
            blank[question] = where
            continue
        found = locate(quote, texts)
        if isinstance(found, str):
            faults.add(where, found)
        elif Evidence(*found) in evidence:
            faults.add(where, f"quote {shortened(quote)} is given twice for {shortened(question)}")
        else:
            evidence.append(Evidence(*found))
    for number, (question, (answers, evidence)) in enumerate(gathered.items(), 1):
        if evidence and question in blank:
            faults.add(blank[question], f"{shortened(question)} has rows with a quote and one without (unanswerable)")
        yield Query(f"q-{number:03}", question, tuple(evidence), answers[0] if answers else None)


def _csv_rows(path: Path, faults: Faults) -> Iterator[tuple[str, str, str, str]]:
    """(place, question, quote, answer) of each row that is not blank."""
    text = decode(read_bytes(path, faults) or b"", path.name, faults)
    # newline="" keeps line breaks inside quoted cells as they are.
    reader = csv.reader(io.StringIO(text or "", newline=""), strict=True)
    columns: list[str] = []
    while True:
        where = f"{path.name}:{reader.line_num + 1}"
        try:
            cells = next(reader)
        except StopIteration:
            break
        except csv.Error as error:
            faults.add(where, f"not CSV: {error}")
            break
        if not any(cell.strip() for cell in cells):
            continue
        if not columns:
            columns = [cell.strip() for cell in cells]
            if not _columns_fit(columns, where, faults):
                return
            continue
        if len(cells) != len(columns):
            faults.add(where, f"{len(cells)} cells under {len(columns)} columns; quote cells that hold a comma")
            continue
        row = dict(zip(columns, cells, strict=True))
        bad = [(name, what) for name, cell in row.items() if (what := bad_character(cell))]
        for name, what in bad:
            faults.add(where, f"{name} holds {what}")
        question = row["question"].strip()
        if not question:
            faults.add(where, "the question is blank")
        elif not bad:
            yield where, question, row["quote"], row.get("answer", "")
    if not columns and text is not None:
        faults.add(path.name, "no header: the first line names the columns question, quote and, if you like, answer")


def _columns_fit(columns: list[str], where: str, faults: Faults) -> bool:
    known = ["question", "quote", "answer"]
    before = len(faults.found)
    for name in dict.fromkeys(columns):
        if columns.count(name) > 1:
            faults.add(where, f"column {name!r} is given {columns.count(name)} times")
        elif name not in known:
            faults.add(where, f"unknown column {shortened(name)}: {did_you_mean(name, known)} (commas part columns)")
    for name in known[:2]:
        if name not in columns:
            faults.add(where, f"missing column {name!r}")
    return len(faults.found) == before
