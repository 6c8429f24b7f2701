"""What the stages of one run share: the dataset, the runtime and the stages that are done."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import polars as pl

from workbench.datasets import Dataset
from workbench.pipeline.graph import Node
from workbench.runtime import Runtime
from workbench.store import tables
from workbench.store.ledger import StageRow
from workbench.store.memo import Key


@dataclass
class Job:
    """A dataset in the store, with the stages that are done so far in this run."""

    runtime: Runtime
    dataset: Dataset
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

    def chunk_texts(self, node: Node) -> list[str]:
        return [self.texts[doc][start:end] for _, doc, start, end in self.chunks(node).iter_rows()]

    def hits(self, node: Node) -> pl.DataFrame:
        """The Hit frame of a finished retrieve stage."""
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
