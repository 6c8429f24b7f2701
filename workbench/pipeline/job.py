"""What the stages of one run share (the dataset, the runtime, the stages that are done), and the form of their work."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import polars as pl
from psycopg import Connection

from workbench.datasets import Dataset
from workbench.pipeline.graph import Node
from workbench.runtime import Runtime
from workbench.stages.contextual import contextual_text
from workbench.store import tables
from workbench.store.ledger import StageRow
from workbench.store.memo import Compute, Key, Memo, Stream

Write = Callable[[Connection[Any], int], Mapping[str, Any]]
"""Writes a stage's output under its stage_id and returns details to keep beside it."""


@dataclass(frozen=True)
class Phase:
    """Items that are computed through the memo: in batches by `compute`, or one by one by `stream`."""

    memo: Memo
    keys: Sequence[Key]
    compute: Compute | None = None
    stream: Stream | None = None
    batch: int = 256
    claim_size: int | None = None
    """Keys claimed at a time; None: four batches."""


@dataclass(frozen=True)
class Work:
    """The items of a stage and its end.

    A later phase may be made of the values of an earlier one, so phases are asked for one at a time. A
    stage without phases counts `items` rows of output.
    """

    finish: Callable[[], Write]
    phases: Iterable[Phase] = ()
    items: int = 0


@dataclass
class Job:
    """A dataset in the store, with the stages that are done so far in this run.

    `check` is called between items, and while a model is waited for; it may raise to stop. `sweep_id` is the
    sweep that asks for the work, if any.
    """

    runtime: Runtime
    dataset: Dataset
    check: Callable[[], None] = lambda: None
    sweep_id: int | None = None
    done: dict[str, StageRow] = field(default_factory=dict)
    _chunks: dict[str, pl.DataFrame] = field(default_factory=dict)

    @cached_property
    def dataset_id(self) -> int:
        with self.runtime.database.transaction() as connection:
            return tables.save_dataset(connection, self.dataset)

    @cached_property
    def texts(self) -> dict[str, str]:
        """doc_id -> text."""
        return {d.doc_id: d.text for d in self.dataset.documents}

    @cached_property
    def query_ids(self) -> list[str]:
        return [q.query_id for q in self.dataset.queries]

    def stage_id(self, node: Node) -> int:
        return self.done[node.fingerprint].stage_id

    def chunks(self, node: Node) -> pl.DataFrame:
        """The Chunk frame of a finished chunk stage."""
        if node.fingerprint not in self._chunks:
            with self.runtime.database.transaction() as connection:
                self._chunks[node.fingerprint] = tables.read_chunks(connection, self.stage_id(node))
        return self._chunks[node.fingerprint]

    def chunk_texts(self, node: Node, context: Node | None = None) -> list[str]:
        """The texts of a finished chunk stage, each after its context where one is given."""
        texts = [self.texts[doc][start:end] for _, doc, start, end in self.chunks(node).iter_rows()]
        if context is None:
            return texts
        return [contextual_text(*pair) for pair in zip(self.contexts(context), texts, strict=True)]

    def contexts(self, node: Node) -> list[str]:
        """The context of every chunk of a finished context stage, in chunk order."""
        with self.runtime.database.transaction() as connection:
            return tables.read_contexts(connection, self.stage_id(node))

    def rankings(self, node: Node) -> list[tuple[list[int], list[float]]]:
        """Chunk numbers and scores of every query of a finished retrieve or rerank stage, best first."""
        with self.runtime.database.transaction() as connection:
            return tables.read_rankings(connection, self.stage_id(node), len(self.query_ids))

    def answers(self, node: Node) -> pl.DataFrame:
        """The answers of a finished generate stage, as `tables.read_answers` gives them."""
        with self.runtime.database.transaction() as connection:
            return tables.read_answers(connection, self.stage_id(node), self.query_ids)

    def hits(self, node: Node) -> pl.DataFrame:
        """The Hit frame of a finished retrieve or rerank stage."""
        with self.runtime.database.transaction() as connection:
            return tables.read_hits(connection, self.stage_id(node), self.query_ids)


def item_keys(node: Node, texts: Sequence[str]) -> list[Key]:
    """Recipe + item, hashed: the memo keys of texts under a node."""
    prefix = hashlib.sha256(bytes.fromhex(node.recipe))
    keys = []
    for text in texts:
        key = prefix.copy()
        key.update(text.encode())
        keys.append(key.digest())
    return keys
