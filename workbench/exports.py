"""Scores and hits of a trial as files: Parquet, JSON lines, or a TREC run, by the file's ending."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Sequence
from pathlib import Path

import polars as pl

from workbench.errors import InputError
from workbench.pipeline.results import TrialResult


def check_ending(path: Path | None, endings: Sequence[str]) -> None:
    """Refuse a file that could not be written, before any work.

    Raises:
        InputError: unknown ending, or its folder is not there.
    """
    if path is None:
        return
    if path.suffix not in endings:
        raise InputError(f"the ending {path.suffix!r} is not known", where=str(path), hint="use " + ", ".join(endings))
    if not path.parent.is_dir():
        raise InputError("its folder is not there", where=str(path))


def write_scores(result: TrialResult, path: Path) -> None:
    """Per-query scores: query_id, metric, value, reason."""
    _write(result.scores, path)


def write_hits(result: TrialResult, path: Path) -> None:
    """Ranked hits: query_id, rank, doc_id, start, end, score; or a TREC run of `doc_id:start-end`."""
    hits = result.hits.select("query_id", "rank", "doc_id", "start", "end", "score")
    if path.suffix != ".trec":
        _write(hits, path)
        return
    # TREC files are split at blanks, so ids must not hold any.
    tag = re.sub(r"\W+", "-", result.label)
    lines = [
        f"{_word(q)} Q0 {_word(doc)}:{start}-{end} {rank} {score!r} {tag}\n"
        for q, rank, doc, start, end, score in hits.iter_rows()
    ]
    _replace(path, "".join(lines).encode())


def _word(text: str) -> str:
    return re.sub(r"\s", "_", text)


def _write(frame: pl.DataFrame, path: Path) -> None:
    if path.suffix == ".parquet":
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            frame.write_parquet(Path(folder) / path.name)
            (Path(folder) / path.name).replace(path)
    else:
        _replace(path, frame.write_ndjson().encode())


def _replace(path: Path, content: bytes) -> None:
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        (Path(folder) / path.name).write_bytes(content)
        (Path(folder) / path.name).replace(path)
