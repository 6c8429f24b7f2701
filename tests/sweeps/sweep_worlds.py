"""Sweeps as a person runs them, in processes of their own, observed from outside.

`World` is a folder with a home (so its own PostgreSQL and Temporal), a dataset and sweep files. Its processes are
observed by SQL over a connection to their database, by the logs of their models and by /proc, never from inside.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import psycopg
from psycopg import sql
from sweep_files import CHUNKERS, EVERY_KIND, FAKES, SWEEP

import workbench
from workbench.processes import command, identity, pids
from workbench.store import embedded, embedded_watch
from workbench.store.embedded_cluster import USER
from workbench.sweeps.temporal import watch

PATIENCE = 120.0
"""Seconds for what must come; a busy machine is no failure."""
MEMOS = ("memo_spans", "memo_embedding", "memo_ranking", "memo_pair", "memo_call")
DONE, INTERRUPTED = 0, 130


class World:
    """A folder in which sweeps run as processes, over a home and a schema; `close` ends what still runs.

    `home` is by default a new one inside `folder`. `environment` is added to that of every process.
    """

    def __init__(
        self,
        folder: Path,
        *,
        home: Path | None = None,
        schema: str = "workbench",
        lease: float = 2.0,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.folder, self.home, self.schema = folder.resolve(), (home or folder / "home").resolve(), schema
        root = Path(workbench.__file__).parents[1]
        kept = {n: v for n, v in os.environ.items() if not n.startswith(("WORKBENCH_", "TEMPORAL_"))}
        self.environment = kept | {
            "WORKBENCH_HOME": str(self.home),
            "WORKBENCH_SCHEMA": schema,
            "WORKBENCH_LEASE_SECONDS": str(lease),
            "PYTHONPATH": os.pathsep.join([str(root), str(self.folder)]),
            **(environment or {}),
        }
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "chunkers.py").write_text(CHUNKERS, encoding="utf-8")
        self._started: list[subprocess.Popen[str]] = []
        self._connection: psycopg.Connection[Any] | None = None

    def write_sweep(self, name: str, axes: str = EVERY_KIND, text: str = SWEEP, **models: str) -> Path:
        """A sweep file; models default to the fakes."""
        file = self.folder / f"{name}.toml"
        file.write_text(text.format(axes=axes, **(FAKES | models)), encoding="utf-8")
        return file

    # --- processes -------------------------------------------------------------------------------

    def start(self, *words: str | Path) -> subprocess.Popen[str]:
        """A workbench command as a process; what it says goes to files beside the sweep."""
        number = len(self._started)
        with (self.folder / f"{number}.out").open("wb") as out, (self.folder / f"{number}.err").open("wb") as err:
            process = subprocess.Popen(
                [sys.executable, "-m", "workbench.cli", *map(str, words), "--json"],
                cwd=self.folder,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                text=True,
            )
        self._started.append(process)
        return process

    def start_sweep(self, file: Path, engine: str, workers: int = 2) -> subprocess.Popen[str]:
        given = ["--engine", engine, "--workers", str(workers)]
        return self.start("sweep", file, "--dataset", self.folder / "data", *given)

    def finish(self, process: subprocess.Popen[str], *codes: int, patience: float = PATIENCE) -> dict[str, Any]:
        """The JSON object of a process that ends with one of these exit codes (none: 0); {} if it said nothing."""
        code = process.wait(patience)
        assert code in (codes or (DONE,)), f"exit code {code}:\n{self.said(process)}"
        return self.body(process)

    def body(self, process: subprocess.Popen[str]) -> dict[str, Any]:
        """What an ended process printed: one JSON object and nothing else, or nothing when it was killed."""
        text = (self.folder / f"{self._started.index(process)}.out").read_text(encoding="utf-8")
        found: dict[str, Any] = json.loads(text) if text else {}
        return found

    def said(self, process: subprocess.Popen[str]) -> str:
        """What a process said, on both streams, and its workers' last words."""
        number = self._started.index(process)
        files = [self.folder / f"{number}.out", self.folder / f"{number}.err", *self.home.glob("temporal/worker-*.log")]
        return "\n".join(file.read_text(errors="replace")[-2000:] for file in files if file.exists())

    def run(self, *words: str | Path, codes: Sequence[int] = ()) -> dict[str, Any]:
        return self.finish(self.start(*words), *codes)

    def sweep(self, file: Path, engine: str, *codes: int, patience: float = PATIENCE) -> dict[str, Any]:
        """Run a sweep to its end; its JSON object."""
        return self.finish(self.start_sweep(file, engine), *codes, patience=patience)

    def close(self) -> None:
        """Kill what was started and still runs, and let go of the database."""
        self._drop()
        for process in self._started:
            process.kill()
            process.wait()

    # --- what the database says ------------------------------------------------------------------

    def rows(self, query: str | sql.Composable, given: Mapping[str, Any] | None = None) -> list[tuple[Any, ...]]:
        """Rows of a query; the observer owns nothing, so a server that nobody needs still stops.

        Raises:
            psycopg.OperationalError: the database is down.
        """
        statement: Any = query.encode() if isinstance(query, str) else query
        with contextlib.suppress(psycopg.OperationalError):  # to a server that has ended since
            if self._connection is not None:
                return self._connection.execute(statement, given).fetchall()
        self._drop()
        self._connection = psycopg.connect(
            host=str(embedded_watch.socket_folder(self.home / "postgres")),
            port=embedded_watch.PORT,
            dbname=embedded.DATABASE,
            user=USER,
            options=f"-csearch_path={self.schema},public",
            autocommit=True,
            connect_timeout=10,
        )
        return self._connection.execute(statement, given).fetchall()

    def count(self, query: str) -> int:
        ((number,),) = self.rows(query)
        return int(number)

    def wait_for(self, condition: str, while_running: subprocess.Popen[str] | None = None) -> None:
        """Until an SQL condition holds; a database or tables that are not there yet are waited for."""
        until = time.monotonic() + PATIENCE
        while True:
            with contextlib.suppress(psycopg.OperationalError, psycopg.errors.UndefinedTable):
                if self.count(f"SELECT coalesce(({condition})::int, 0)"):
                    return
            assert time.monotonic() < until, f"in vain: {condition}"
            if while_running is not None:
                assert while_running.poll() is None, self.said(while_running)
            time.sleep(0.01)

    def _drop(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    @contextlib.contextmanager
    def opened(self) -> Iterator[None]:
        """Own the database for a while: it is started if nobody else does."""
        with embedded.start(self.home):
            yield
            self._drop()

    def finished_rows(self) -> set[tuple[str, str, str, str]]:
        """Every row that nothing may touch any more, with its physical place: unchanged means not even rewritten."""
        changing = ["dataset", "worker", "claim", "attempt", "sweep", "sweep_stage", "sweep_trial", "stage"]
        tables = self.rows(
            "SELECT relname FROM pg_class WHERE relnamespace = %(schema)s::regnamespace AND relkind = 'r'"
            " AND relname <> ALL(%(changing)s) ORDER BY relname",
            {"schema": self.schema, "changing": changing},
        )
        part = "SELECT {name}, t.ctid::text, t.xmin::text, md5(t::text) FROM {table} t"
        parts: list[sql.Composable] = [
            sql.SQL(part).format(name=sql.Literal(name), table=sql.Identifier(name)) for (name,) in tables
        ]
        parts.append(sql.SQL("SELECT 'stage', ctid::text, xmin::text, md5(t::text) FROM stage t WHERE state = 'done'"))
        return set(self.rows(sql.SQL(" UNION ALL ").join(parts)))

    def unfinished(self, processes: Iterable[str]) -> int:
        """Items that these processes have claimed and not finished."""
        written = " UNION ALL ".join(f"SELECT claim_id FROM {memo}" for memo in MEMOS)
        ((items,),) = self.rows(
            f"WITH v AS ({written})"
            " SELECT coalesce(sum(c.items - (SELECT count(*) FROM v WHERE v.claim_id = c.claim_id)), 0)"
            " FROM claim c JOIN worker w USING (worker_id) WHERE c.closed_at IS NULL AND w.process = ANY(%(who)s)",
            {"who": list(processes)},
        )
        return int(items)

    def given_back(self) -> int:
        """Items of claims that were released in order before they were finished: a stopped process asked again."""
        written = " UNION ALL ".join(f"SELECT claim_id FROM {memo}" for memo in MEMOS)
        return self.count(
            f"WITH v AS ({written})"
            " SELECT coalesce(sum(items - (SELECT count(*) FROM v WHERE v.claim_id = c.claim_id)), 0)"
            " FROM claim c WHERE outcome = 'released'"
        )

    def kinds_at_work(self, processes: Iterable[str]) -> list[str]:
        """The kinds of the stages that these processes are at."""
        rows = self.rows(
            "SELECT DISTINCT kind FROM attempt JOIN worker USING (worker_id)"
            " WHERE attempt.ended_at IS NULL AND process = ANY(%(who)s) ORDER BY kind",
            {"who": list(processes)},
        )
        return [kind for (kind,) in rows]

    def outputs(self) -> dict[str, Counter[str]]:
        """All results by table, without what differs from day to day: numbers of rows, claims and times."""
        found = {}
        for table in ("chunk", "context", "stage_keys", "hit", "score", "answer"):
            rows = self.rows(
                sql.SQL(
                    "SELECT (to_jsonb(t) - 'stage_id')::text || encode(fingerprint, 'hex') FROM {} t JOIN stage s"
                    " USING (stage_id) WHERE s.state = 'done'"
                ).format(sql.Identifier(table))
            )
            found[table] = Counter(row for (row,) in rows)
        daily = "{claim_id,attempts,faults,ttft_ms,itl_ms,e2e_ms,waited_ms,cached_tokens,finished_at}"
        for memo in MEMOS:
            query = sql.SQL("SELECT (to_jsonb(t) - {}::text[])::text FROM {} t")
            found[memo] = Counter(row for (row,) in self.rows(query.format(sql.Literal(daily), sql.Identifier(memo))))
        indexes = self.rows("SELECT encode(fingerprint, 'hex'), details->>'table' FROM stage WHERE kind = 'index'")
        for fingerprint, table in indexes:
            rows = self.rows(sql.SQL("SELECT t::text FROM {} t").format(sql.Identifier(table)))
            found[f"index {fingerprint}"] = Counter(row for (row,) in rows)
        return found

    # --- what the models' logs say ---------------------------------------------------------------

    def logged(self) -> Counter[str]:
        """How often the scripted models finished each call, from files that they wrote themselves."""
        found: Counter[str] = Counter()
        for name in ("calls.jsonl", "texts.jsonl"):
            if (file := self.folder / name).exists():
                found.update(json.dumps(json.loads(line)[1:]) for line in file.read_text().splitlines())
        return found

    # --- what /proc says -------------------------------------------------------------------------

    def living(self) -> dict[int, str]:
        """Every process of this home: by its environment, its words or its working folder; pid -> words."""
        found = {}
        home = str(self.home)
        for pid in pids():
            with contextlib.suppress(psutil.Error):
                process = psutil.Process(pid)
                words = command(pid)
                mine = any(home in word for word in words) or process.environ().get("WORKBENCH_HOME") == home
                if words and (mine or process.cwd().startswith(home)):
                    found[pid] = " ".join(words)
        return found

    def wait_until_gone(self) -> None:
        """Until no process of this home is left, and nothing listens where its servers did."""
        self._drop()
        until = time.monotonic() + PATIENCE
        models = set(self.models())  # shared with other homes; they end by themselves when nobody asks them
        while left := {pid: words for pid, words in self.living().items() if pid not in models}:
            assert time.monotonic() < until, f"orphans: {left}"
            time.sleep(0.1)
        if (state := watch.read_state(self.home / "temporal")) is not None:
            with socket.socket() as probe:
                assert probe.connect_ex(("127.0.0.1", state.port)) != 0
        assert not (embedded_watch.socket_folder(self.home / "postgres") / f".s.PGSQL.{embedded_watch.PORT}").exists()

    def postmaster(self) -> int | None:
        return embedded_watch.postmaster(self.home)

    def temporal(self) -> int | None:
        """The pid of the Temporal server."""
        pid = watch.read_program(self.home / "temporal").partition("-")[0]
        return int(pid) if pid and identity(int(pid)) else None

    def models(self) -> list[int]:
        """Supervisor, API and engine of the language model's server, where there is one."""
        from workbench.serving.servers import Servers

        folder = Path(self.environment.get("WORKBENCH_SERVING_HOME", self.home / "none"))
        found = []
        for status in Servers(folder).status() if folder.exists() else ():
            if status.pid:
                family = [status.pid, *(child.pid for child in psutil.Process(status.pid).children(recursive=True))]
                found += family
        return found


@dataclass(frozen=True)
class Undisturbed:
    """What a sweep of every stage kind gives on the local runner when nothing goes wrong."""

    body: dict[str, Any]
    outputs: dict[str, Counter[str]]
    logged: Counter[str]
    seconds: float
    """From the start of its process to the end."""


def wait_until(ready: Callable[[], bool]) -> None:
    """Returns when it is so; a test that waits in vain fails."""
    until = time.monotonic() + PATIENCE
    while not ready():
        assert time.monotonic() < until, "waited in vain"
        time.sleep(0.002)


def metrics_of(body: Mapping[str, Any]) -> dict[str, Any]:
    """The metrics of each trial of a sweep's JSON object, by its label."""
    return {result["trial"]["label"]: result["metrics"] for result in body["results"]}
