"""Datasets by name or folder: what ships with the workbench, and how any of them is opened."""

from __future__ import annotations

import html
from dataclasses import dataclass
from pathlib import Path

from workbench.datasets import bundled, files
from workbench.datasets.dataset import Dataset
from workbench.datasets.files import Reading
from workbench.datasets.rows import Faults
from workbench.errors import DatasetError, did_you_mean

NAMES = ("handbook", "python-reference")


@dataclass(frozen=True)
class Entry:
    """One bundled dataset; counts are numbers of rows or files, read without checking them."""

    name: str
    description: str
    licence: str
    documents: int
    queries: int
    folder: Path

    def _repr_html_(self) -> str:
        counts = f"{self.documents:,} documents, {self.queries:,} queries, {html.escape(self.licence)}"
        return f"<p><b>{html.escape(self.name)}</b>: {html.escape(self.description)} ({counts})</p>"


def bundled_folder(name: str) -> Path | None:
    """Folder of a bundled dataset: inside an installed package, or beside it in a source checkout."""
    if name not in NAMES:
        return None
    package = Path(__file__).parents[1]
    # site-packages may hold Hugging Face's `datasets` beside us, hence the card as proof.
    for root in (package / "_share" / "datasets", package.parent / "datasets"):
        if (root / name / files.CARD).is_file():
            return root / name
    return None


def catalogue() -> list[Entry]:
    """The bundled datasets that are present, by name."""
    entries = []
    for name in NAMES:
        folder = bundled_folder(name)
        if folder is None:
            continue
        card = files.read_card(folder, Faults())
        documents, queries = _counts(folder, card)
        entries.append(Entry(name, card.description, card.licence, documents, queries, folder))
    return entries


def _counts(folder: Path, card: files.Card) -> tuple[int, int]:
    if card.documents == "pydoc-topics":
        return len(bundled.topics()), _lines(folder / bundled.QUESTIONS)
    if (folder / files.CORPUS).is_file():
        documents = _lines(folder / files.CORPUS)
    else:
        documents = sum(p.relative_to(folder).as_posix().lower() != "readme.md" for p in files.prose_files(folder))
    return documents, _lines(folder / files.QUERIES)


def _lines(path: Path) -> int:
    return sum(bool(line.strip()) for line in path.read_bytes().split(b"\n")) if path.is_file() else 0


def find(name_or_folder: str | Path) -> Path:
    """The folder that a catalogue name or a path means; a name wins over a folder of that name here.

    Raises:
        DatasetError: there is no such dataset or folder, with the closest names.
    """
    if isinstance(name_or_folder, str) and (folder := bundled_folder(name_or_folder)):
        return folder
    path = Path(name_or_folder).expanduser()
    if path.is_dir():
        return path
    if path.exists():
        raise DatasetError("this is a file", [], where=str(path), hint="give the folder that holds it")
    near = did_you_mean(path.name, NAMES)
    raise DatasetError(
        "no such dataset or folder",
        [],
        where=str(name_or_folder),
        hint=f"{near}; or give a folder with {files.CORPUS} or with .md and .txt files",
    )


def read(folder: Path) -> Reading:
    """Everything in a dataset's folder, with faults collected, by the reader its card asks for."""
    faults = Faults()
    card = files.read_card(folder, faults)
    if card.documents == "pydoc-topics":
        return bundled.read_topics(folder, card, faults)
    return files.read_folder(folder)


def load(name_or_folder: str | Path, limit: int | None = None) -> Dataset:
    """A bundled dataset by name, or a folder; `limit` keeps the first queries over the whole corpus.

    Raises:
        DatasetError: nothing of that name, or every fault of its files with file and line.
    """
    return read(find(name_or_folder)).dataset().limited(limit)
