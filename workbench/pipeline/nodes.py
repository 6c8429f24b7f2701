"""Stages as rows: what a process that has only the database needs to run them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

from psycopg import Connection
from psycopg.types.json import Json
from pydantic import TypeAdapter

from workbench.errors import DatabaseError
from workbench.pipeline import graph
from workbench.pipeline.graph import Node
from workbench.specs import (
    Bm25,
    ChunkSpec,
    ContextSpec,
    Dense,
    Embed,
    Fts,
    GenerateSpec,
    Given,
    Hybrid,
    IndexSpec,
    Lexical,
    Python,
    RerankSpec,
    ScoreSpec,
)
from workbench.stages.prompting import Prompt

_CONFIG: Mapping[str, TypeAdapter[Any]] = {
    "chunk": TypeAdapter(ChunkSpec),
    "context": TypeAdapter(ContextSpec),
    "embed": TypeAdapter(tuple[Embed, Literal["query", "passage"]]),
    "index": TypeAdapter(IndexSpec | Fts),
    "retrieve": TypeAdapter(tuple[Dense, IndexSpec] | tuple[Bm25, Lexical] | Fts | Hybrid),
    "rerank": TypeAdapter(RerankSpec),
    "generate": TypeAdapter(GenerateSpec),
    "score": TypeAdapter(ScoreSpec),
}
"""The type of `Node.config` by kind of stage."""


def bound_to_process(node: Node) -> bool:
    """Whether only the process that planned a stage can run it: a function of a notebook, a file of the dataset."""
    return isinstance(node.config, Given) or (isinstance(node.config, Python) and node.config.function is not None)


def as_json(node: Node) -> dict[str, Any]:
    """A node without its inputs' own: they are named by fingerprint."""
    prompt = node.prompt
    return {
        "kind": node.kind,
        "label": node.label,
        "code": node.code,
        "identity": node.identity,
        "config": _CONFIG[node.kind].dump_python(node.config, mode="json"),
        "inputs": {n: {"node": i.fingerprint} if isinstance(i, Node) else {"is": i} for n, i in node.inputs.items()},
        "recipe_inputs": node.recipe_inputs,
        "prompt": [prompt.name, prompt.system, prompt.user] if prompt else None,
    }


def save(connection: Connection[Any], nodes: Iterable[Node]) -> None:
    """Keep nodes as they were planned last: how fast to ask, and where weights lie, are not in their fingerprints."""
    connection.cursor().executemany(
        "INSERT INTO node (fingerprint, node) VALUES (%s, %s) ON CONFLICT (fingerprint) DO UPDATE"
        " SET node = excluded.node WHERE node.node::jsonb IS DISTINCT FROM excluded.node::jsonb",
        [(bytes.fromhex(node.fingerprint), Json(as_json(node))) for node in nodes],
    )


def load(connection: Connection[Any], fingerprints: Sequence[str]) -> dict[str, Node]:
    """Stored nodes by fingerprint, those that they are made from included.

    Raises:
        DatabaseError: one is not there, or was planned by a version of the workbench with other code for it.
    """
    bodies: dict[str, Any] = {}
    wanted = set(fingerprints)
    while wanted:
        rows = connection.execute(
            "SELECT encode(fingerprint, 'hex'), node FROM node WHERE fingerprint = ANY(%s)",
            [[bytes.fromhex(f) for f in wanted]],
        ).fetchall()
        bodies |= dict(rows)
        if missing := wanted - bodies.keys():
            raise DatabaseError(f"no stage {min(missing)[:12]} was planned in this database")
        named = {i["node"] for f in wanted for i in bodies[f]["inputs"].values() if "node" in i}
        wanted = named - bodies.keys()
    nodes: dict[str, Node] = {}

    def build(fingerprint: str) -> Node:
        if fingerprint not in nodes:
            nodes[fingerprint] = _node(fingerprint, bodies[fingerprint], build)
        return nodes[fingerprint]

    for fingerprint in bodies:
        build(fingerprint)
    return nodes


def _node(fingerprint: str, body: Mapping[str, Any], build: Any) -> Node:
    kind = body["kind"]
    node = Node(
        kind,
        body["label"],
        _CONFIG[kind].validate_json(json.dumps(body["config"])),
        body["code"],
        body["identity"],
        {name: build(i["node"]) if "node" in i else i["is"] for name, i in body["inputs"].items()},
        body["recipe_inputs"],
        Prompt(*body["prompt"]) if body["prompt"] else None,
    )
    ours = graph.code_version(kind, node.label)
    if node.fingerprint != fingerprint or ours != node.code:
        raise DatabaseError(
            f"stage {kind} ({node.label}) was planned by another version of the workbench",
            where=f"code version {node.code}, here {ours}",
            hint="run the same version on every machine, or plan the sweep again",
        )
    return node
