"""Datasets by name or folder: what ships with the workbench, and how any of them is opened."""

from __future__ import annotations

import html
from dataclasses import dataclass
from pathlib import Path

from workbench.datasets import bundled, files
from workbench.datasets.dataset import Dataset
from workbench.datasets.files import Reading
from workbench.datasets.filings import NAME as FILINGS
from workbench.datasets.filings import Filings, read_filings
from workbench.datasets.rows import Faults
from workbench.errors import DatasetError, did_you_mean

NAMES = ("handbook", "python-reference", "filings")


@dataclass(frozen=True)
class Entry:
    """One bundled dataset; counts are numbers of rows or files, read without checking them.

    Of a generated dataset they are those of its default size.
    """

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
    """The bundled datasets that are present, the generated one last."""
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
    if card.documents == "filings":
        return Filings().size, Filings().asked
    if card.documents == "pydoc-topics":
        return len(bundled.topics()), _lines(folder / bundled.QUESTIONS)
    if (folder / files.CORPUS).is_file():
        documents = _lines(folder / files.CORPUS)
    else:
        documents = sum(p.relative_to(folder).as_posix().lower() != "readme.md" for p in files.prose_files(folder))
    return documents, _lines(folder / files.QUERIES)


def _lines(path: Path) -> int:
    return sum(bool(line.strip()) for line in path.read_bytes().split(b"\n")) if path.is_file() else 0


def find(name_or_folder: str | Path) -> Path | Filings:
    """The folder that a catalogue name or a path means; a name wins over a folder of that name here.

    A name with parameters, `filings?chunks=200&control=1`, means what is generated from them.

    Raises:
        DatasetError: there is no such dataset or folder, with the closest names, or a parameter does not fit.
    """
    if isinstance(name_or_folder, str):
        if folder := bundled_folder(name_or_folder):
            return folder
        name, mark, parameters = name_or_folder.partition("?")
        if mark and name == FILINGS:
            return Filings.parse(parameters)
        if mark and name in NAMES:
            raise DatasetError(f"only {FILINGS!r} takes parameters", [], where=name_or_folder)
    path = Path(name_or_folder).expanduser()
    if path.is_dir():
        return path
    if path.exists():
        raise DatasetError("this is a file", [], where=str(path), hint="give the folder that holds it")
    near = did_you_mean(path.name.partition("?")[0], NAMES)
    raise DatasetError(
        "no such dataset or folder",
        [],
        where=str(name_or_folder),
        hint=f"{near}; or give a folder with {files.CORPUS} or with .md and .txt files",
    )


def read(found: Path | Filings) -> Reading:
    """Everything in a dataset that `find` found, with faults collected, by the reader its card asks for."""
    if isinstance(found, Filings):
        return _generated(found)
    faults = Faults()
    card = files.read_card(found, faults)
    if card.documents == "pydoc-topics":
        return bundled.read_topics(found, card, faults)
    if card.documents == "filings":
        return read_filings(found, card, faults)
    return files.read_folder(found)


def _generated(filings: Filings) -> Reading:
    folder = bundled_folder(FILINGS)
    if folder is None:
        raise DatasetError("its card is not installed", [], where=FILINGS, hint="install the package again")
    faults = Faults()
    return read_filings(folder, files.read_card(folder, faults), faults, filings)


def load(name_or_folder: str | Path, limit: int | None = None) -> Dataset:
    """A bundled dataset by name, or a folder; `limit` keeps the first queries over the whole corpus.

    `filings` is generated and takes parameters: `filings?chunks=200&control=1&seed=7&queries=40`.

    Raises:
        DatasetError: nothing of that name, a parameter that does not fit, or every fault of its files
            with file and line.
    """
    return read(find(name_or_folder)).dataset().limited(limit)
