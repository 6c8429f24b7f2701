"""A sweep in the store: its trials, its unique stages and how far they are. Whoever runs it reads and writes here."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from psycopg import Connection
from psycopg.types.json import Json

from workbench.errors import InputError, Stopped
from workbench.pipeline import nodes as stored
from workbench.pipeline.graph import Node
from workbench.pipeline.job import Job
from workbench.pipeline.results import record_trial
from workbench.settings import Settings
from workbench.specs import CrossEncoder, Embed, LateInteraction, Served
from workbench.store.database import Database
from workbench.sweeps.plan import Plan, server_of

Queue = Literal["cpu", "llm", "gpu"]
"""What a stage mostly needs: a processor, calls to a model's server, or an accelerator if there is one."""
QUEUES: tuple[Queue, ...] = ("cpu", "llm", "gpu")


@dataclass(frozen=True, slots=True)
class Ready:
    """A stage whose inputs are done."""

    stage_no: int
    fingerprint: str
    kind: str
    label: str
    queue: str
    model: str | None


class Book:
    """One sweep's pages: what is asked for, what is ready, what failed. Cheap to make; holds no connection."""

    CHECK = 1.0
    """Seconds between two looks at what a person wants."""

    def __init__(self, database: Database, sweep_id: int) -> None:
        self._database, self.sweep_id = database, sweep_id
        self._looked = float("-inf")

    # --- what a person wants ---------------------------------------------------------------------

    def check(self) -> None:
        """To be called between items; looks once a `CHECK`.

        Raises:
            Stopped: the sweep was paused or cancelled.
        """
        if time.monotonic() - self._looked < self.CHECK:
            return
        self._looked = time.monotonic()
        self.require_wanted()

    def require_wanted(self) -> None:
        """Refuse to go on where a person asked to stop.

        Raises:
            Stopped: the sweep was paused or cancelled.
        """
        if wanted := self.wanted():
            word = "paused" if wanted == "pause" else "cancelled"
            raise Stopped(f"sweep {self.sweep_id} was {word}", hint=f"go on with `workbench resume {self.sweep_id}`")

    def wanted(self) -> str | None:
        """ "pause", "cancel", or None."""
        return self._row("SELECT wanted FROM sweep WHERE sweep_id = %s")[0]  # type: ignore[no-any-return]

    def want(self, what: Literal["pause", "cancel"]) -> None:
        """Ask whoever runs the sweep to pause or to cancel it; a later run takes that back."""
        with self._database.transaction() as connection:
            connection.execute("UPDATE sweep SET wanted = %s WHERE sweep_id = %s", [what, self.sweep_id])

    # --- state -----------------------------------------------------------------------------------

    def state(self) -> str:
        return str(self._row("SELECT state FROM sweep WHERE sweep_id = %s")[0])

    def set_state(self, state: str) -> None:
        with self._database.transaction() as connection:
            connection.execute(
                "UPDATE sweep SET state = %s, finished_at = CASE WHEN %s = 'running' THEN NULL ELSE now() END"
                " WHERE sweep_id = %s",
                [state, state, self.sweep_id],
            )

    def dataset_id(self) -> int:
        return int(self._row("SELECT dataset_id FROM sweep WHERE sweep_id = %s")[0])

    def _row(self, query: str) -> tuple[Any, ...]:
        with self._database.transaction() as connection:
            row: tuple[Any, ...] | None = connection.execute(query.encode(), [self.sweep_id]).fetchone()
        if row is None:
            raise InputError(f"no sweep {self.sweep_id} in this database", hint="`workbench status` lists them")
        return row

    # --- stages ----------------------------------------------------------------------------------

    def ready(self, limit: int, running: Sequence[int] = ()) -> list[Ready]:
        """Stages that can begin now, in the plan's order; of served models those of one model at a time.

        `running` are left out; while one of them asks a served model, no stage of another model is ready.
        """
        with self._database.transaction() as connection:
            rows = connection.execute(
                "SELECT s.stage_no, encode(s.fingerprint, 'hex'), s.kind, s.label, s.queue, s.model FROM sweep_stage s"
                " WHERE s.sweep_id = %(sweep)s AND s.state = 'waiting' AND s.stage_no <> ALL(%(running)s::int[])"
                "   AND NOT EXISTS (SELECT FROM sweep_stage i WHERE i.sweep_id = s.sweep_id"
                "     AND i.stage_no = ANY(s.inputs) AND i.state NOT IN ('computed', 'reused'))"
                " ORDER BY s.stage_no LIMIT %(limit)s",
                {"sweep": self.sweep_id, "running": list(running), "limit": limit},
            ).fetchall()
            held = connection.execute(
                "SELECT model FROM sweep_stage WHERE sweep_id = %s AND stage_no = ANY(%s::int[]) AND model IS NOT NULL"
                " LIMIT 1",
                [self.sweep_id, list(running)],
            ).fetchone()
        found = [Ready(*row) for row in rows]
        model = held[0] if held else next((stage.model for stage in found if stage.model), None)
        return [stage for stage in found if stage.model in (None, model)]

    def waiting(self) -> int:
        """How many stages are not done and have not failed."""
        return int(
            self._row(
                "SELECT (SELECT count(*) FROM sweep_stage t WHERE t.sweep_id = s.sweep_id AND state = 'waiting')"
                " FROM sweep s WHERE sweep_id = %s"
            )[0]
        )

    def items(self, stage_no: int) -> int:
        """About how many items a stage has, its inputs being done: chunks of its chunk stage, or queries."""
        node = self.node(stage_no)
        with self._database.transaction() as connection:
            queries = connection.execute(
                "SELECT count(*) FROM sweep JOIN dataset USING (dataset_id) JOIN query USING (query_set_id)"
                " WHERE sweep_id = %s",
                [self.sweep_id],
            ).fetchone()
            chunks = connection.execute(
                "SELECT (details->>'chunks')::int8 FROM stage WHERE fingerprint = ANY(%s) AND kind = 'chunk'",
                [[bytes.fromhex(n.fingerprint) for n in node.walk()]],
            ).fetchone()
        assert queries is not None
        if node.kind in ("context", "embed"):
            return int(chunks[0]) if chunks else 0
        pairs = getattr(node.config, "depth", 1) if isinstance(node.config, LateInteraction | CrossEncoder) else 1
        return int(queries[0]) * pairs

    def node(self, stage_no: int) -> Node:
        """A stage of the sweep, from the store."""
        with self._database.transaction() as connection:
            row = connection.execute(
                "SELECT encode(fingerprint, 'hex') FROM sweep_stage WHERE sweep_id = %s AND stage_no = %s",
                [self.sweep_id, stage_no],
            ).fetchone()
            if row is None:
                raise InputError(f"sweep {self.sweep_id} has no stage {stage_no}")
            return stored.load(connection, [row[0]])[row[0]]

    def done(self, stage_no: int, state: Literal["computed", "reused"]) -> None:
        """A stage is done; the trials that end with it have their result."""
        with self._database.transaction() as connection:
            connection.execute(
                "UPDATE sweep_stage SET state = %s, error = NULL WHERE sweep_id = %s AND stage_no = %s"
                " AND state IN ('waiting', 'failed')",
                [state, self.sweep_id, stage_no],
            )
            self._record(connection, [stage_no])

    def failed(self, stage_no: int, error: str) -> None:
        """A stage failed, and with it whatever is made from it."""
        with self._database.transaction() as connection:
            connection.execute(
                "WITH RECURSIVE lost(stage_no) AS (VALUES (%(stage)s::int) UNION"
                "   SELECT s.stage_no FROM sweep_stage s JOIN lost l ON l.stage_no = ANY(s.inputs)"
                "   WHERE s.sweep_id = %(sweep)s)"
                " , marked AS (UPDATE sweep_stage s SET state = 'failed', error = %(error)s FROM lost l"
                "   WHERE s.sweep_id = %(sweep)s AND s.stage_no = l.stage_no AND s.state = 'waiting'"
                "   RETURNING s.stage_no)"
                " UPDATE sweep_trial t SET state = 'failed', error = %(error)s FROM marked m"
                " WHERE t.sweep_id = %(sweep)s AND t.leaf = m.stage_no AND t.state = 'planned'",
                {"stage": stage_no, "sweep": self.sweep_id, "error": error[:10_000]},
            )

    def _record(self, connection: Connection[Any], stage_nos: Sequence[int]) -> None:
        """Trials that end with these stages are done."""
        rows = connection.execute(
            "SELECT t.trial_no, t.spec, s.dataset_id, encode(l.fingerprint, 'hex')"
            " FROM sweep_trial t JOIN sweep s USING (sweep_id) JOIN sweep_stage l USING (sweep_id)"
            " WHERE t.sweep_id = %s AND t.leaf = ANY(%s::int[]) AND l.stage_no = t.leaf AND t.state <> 'done'",
            [self.sweep_id, list(stage_nos)],
        ).fetchall()
        leaves = stored.load(connection, [row[3] for row in rows]) if rows else {}
        for trial_no, spec, dataset_id, leaf in rows:
            trial_id = record_trial(connection, leaves[leaf], spec, dataset_id)
            connection.execute(
                "UPDATE sweep_trial SET state = 'done', trial_id = %s, error = NULL"
                " WHERE sweep_id = %s AND trial_no = %s",
                [trial_id, self.sweep_id, trial_no],
            )

    def conclude(self) -> str:
        """The state that the stages add up to, kept as the sweep's."""
        with self._database.transaction() as connection:
            row = connection.execute(
                "SELECT bool_or(state = 'waiting'), bool_or(state = 'failed') FROM sweep_stage WHERE sweep_id = %s",
                [self.sweep_id],
            ).fetchone()
        assert row is not None
        wanted = {"pause": "paused", "cancel": "cancelled", None: "interrupted"}[self.wanted()]
        state = wanted if row[0] else "failed" if row[1] else "done"
        self.set_state(state)
        return state


def open_book(plan: Plan, job: Job, engine: str) -> Book:
    """Write a plan down, or find it again: what is done stays done, what failed is tried again."""
    database = job.runtime.database
    done = job.runtime.ledger.done([node.fingerprint for node in plan.nodes])
    job.done.update(done)
    number = {node.fingerprint: no for no, node in enumerate(plan.nodes)}
    with database.transaction() as connection:
        row = connection.execute(
            "INSERT INTO sweep (fingerprint, name, dataset_id, spec, baseline, loop_stages, engine, runner_id, state)"
            " VALUES (%s, %s, %s, %s, %s, %s, %s, %s, 'running')"
            " ON CONFLICT (fingerprint) DO UPDATE SET state = 'running', name = excluded.name, wanted = NULL,"
            "   loop_stages = excluded.loop_stages, engine = excluded.engine, runner_id = excluded.runner_id,"
            "   started_at = now(), finished_at = NULL"
            " RETURNING sweep_id, xmax = 0",
            [
                bytes.fromhex(plan.fingerprint),
                plan.name,
                job.dataset_id,
                Json(plan.sweep.model_dump(mode="json")),
                plan.baseline,
                plan.stages_of_a_loop,
                engine,
                job.runtime.worker.worker_id,
            ],
        ).fetchone()
        assert row is not None
        book, new = Book(database, row[0]), row[1]
        if not new and _changed(connection, book.sweep_id, plan):
            # The same sweep, but a prompt, a model or the code is another one: other stages.
            connection.execute("DELETE FROM sweep_stage WHERE sweep_id = %s", [book.sweep_id])
            connection.execute("DELETE FROM sweep_trial WHERE sweep_id = %s", [book.sweep_id])
            new = True
        stored.save(connection, plan.nodes)
        if new:
            _write(connection, book.sweep_id, plan, number, job.runtime.settings)
        found = [no for fingerprint, no in number.items() if fingerprint in done]
        connection.execute(
            "UPDATE sweep_stage SET error = NULL,"
            " state = CASE WHEN stage_no = ANY(%(found)s::int[]) THEN 'reused' ELSE 'waiting' END"
            " WHERE sweep_id = %(sweep)s AND (state IN ('waiting', 'failed')"
            "   OR NOT stage_no = ANY(%(found)s::int[]))",
            {"found": found, "sweep": book.sweep_id},
        )
        connection.execute(
            "UPDATE sweep_trial SET state = 'planned', error = NULL WHERE sweep_id = %s AND state = 'failed'",
            [book.sweep_id],
        )
        book._record(connection, found)
    job.sweep_id = book.sweep_id
    return book


def _changed(connection: Connection[Any], sweep_id: int, plan: Plan) -> bool:
    rows = connection.execute(
        "SELECT encode(fingerprint, 'hex') FROM sweep_stage WHERE sweep_id = %s", [sweep_id]
    ).fetchall()
    return {row[0] for row in rows} != {node.fingerprint for node in plan.nodes}


def _write(
    connection: Connection[Any], sweep_id: int, plan: Plan, number: Mapping[str, int], settings: Settings
) -> None:
    connection.cursor().executemany(
        "INSERT INTO sweep_trial (sweep_id, trial_no, label, point, spec, leaf, state)"
        " VALUES (%s, %s, %s, %s, %s, %s, 'planned')",
        [
            (
                sweep_id,
                t.trial_no,
                t.label,
                Json(dict(t.point)),
                Json(t.graph.trial.model_dump(mode="json")),
                number[t.graph.fingerprint],
            )
            for t in plan.trials
        ],
    )
    connection.cursor().executemany(
        "INSERT INTO sweep_stage (sweep_id, stage_no, fingerprint, kind, label, inputs, queue, model, state)"
        " VALUES (%s, %s, %s, %s, %s, %s, %s, %s, 'waiting')",
        [
            (
                sweep_id,
                no,
                bytes.fromhex(node.fingerprint),
                node.kind,
                node.label,
                [number[i.fingerprint] for i in node.inputs.values() if isinstance(i, Node)],
                queue_of(node),
                model_of(node, settings),
            )
            for no, node in enumerate(plan.nodes)
        ],
    )


def queue_of(node: Node) -> Queue:
    """The task queue of a stage."""
    spec = node.config[0] if node.kind == "embed" else node.config
    if isinstance(spec, Served) or getattr(spec, "via", "") == "server":
        return "llm"
    return "gpu" if isinstance(spec, Embed | LateInteraction | CrossEncoder) else "cpu"


def model_of(node: Node, settings: Settings) -> str | None:
    """The served model that a stage asks, where it is on this house to start and stop its server."""
    return None if settings.llm_url else server_of(node)
