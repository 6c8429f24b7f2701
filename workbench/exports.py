"""Scores and hits of a trial as files: Parquet, JSON lines, or a TREC run, by the file's ending."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import polars as pl

from workbench.errors import InputError
from workbench.pipeline.results import TrialResult

SCORES = (".parquet", ".jsonl")
HITS = (".parquet", ".jsonl", ".trec")
PAGES = (".html", ".htm")


def check_output(path: Path | None, endings: Sequence[str], *, folder: bool = False) -> None:
    """Refuse a file that could not be written, before any work; `folder` allows an existing folder too.

    Raises:
        InputError: unknown ending, its folder is not there, or nothing can be written there.
    """
    if path is None:
        return
    here = path if folder and path.is_dir() else path.parent
    if here != path:
        if path.is_dir():
            raise InputError("this is a folder", where=str(path), hint=f"name a file: {' or '.join(endings)}")
        if path.suffix.lower() not in endings:
            what = f"the ending {path.suffix!r} is not known" if path.suffix else "the file's name has no ending"
            raise InputError(what, where=str(path), hint="use " + ", ".join(endings))
    if not here.is_dir():
        raise InputError("its folder is not there", where=str(path), hint=f"make it: mkdir -p {here}")
    try:
        # Trying is the one honest test: permissions, a read-only mount and a full disk look alike from here.
        with tempfile.TemporaryFile(dir=here) as probe:
            probe.write(b"x")
    except OSError as error:
        reason = error.strerror or str(error)
        raise InputError(f"nothing can be written there: {reason}", where=str(path), hint="choose another") from None


def write_scores(result: TrialResult, path: Path) -> None:
    """Per-query scores: query_id, metric, value, reason."""
    _write(result.scores, path)


def write_hits(result: TrialResult, path: Path) -> None:
    """Ranked hits: query_id, rank, doc_id, start, end, score; or a TREC run of `doc_id:start-end`."""
    hits = result.hits.select("query_id", "rank", "doc_id", "start", "end", "score")
    if path.suffix.lower() != ".trec":
        _write(hits, path)
        return
    # TREC files are split at blanks, so ids must not hold any.
    tag = re.sub(r"\W+", "-", result.label)
    lines = [
        f"{_word(q)} Q0 {_word(doc)}:{start}-{end} {rank} {score!r} {tag}\n"
        for q, rank, doc, start, end, score in hits.iter_rows()
    ]
    _replace(path, lambda file: file.write_bytes("".join(lines).encode()))


def _word(text: str) -> str:
    return re.sub(r"\s", "_", text)


def _write(frame: pl.DataFrame, path: Path) -> None:
    write = frame.write_parquet if path.suffix.lower() == ".parquet" else frame.write_ndjson
    _replace(path, lambda file: write(file))


def _replace(path: Path, write: Callable[[Path], object]) -> None:
    """Write beside the file, then move into its place: readers see the old or the new one, whole."""
    try:
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=".") as folder:
            write(Path(folder) / path.name)
            (Path(folder) / path.name).replace(path)
    except (OSError, pl.exceptions.PolarsError) as error:
        raise InputError(
            f"it could not be written: {error}", where=str(path), hint="the trial is kept: run the same command again"
        ) from error
