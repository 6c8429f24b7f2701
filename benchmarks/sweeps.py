"""What do sweeps bring, and what do they cost: shared stages, overhead, speed-up, recovery, history?

    python benchmarks/sweeps.py [grid] [overhead] [speedup] [resume] [history]
                                [--rounds 3] [--calls 320] [--delay 0.5] [--stages 200] [--seed 0] [--json]

grid      72 trials of `handbook` as one sweep, against the same trials each from an empty store. Of each chunk size and
          kind of retrieval two trials are drawn and run so; their mean is taken for all 72. How much is saved is set
          by how many trials share the costly stage, here the embeddings of chunks: both counts are shown.
overhead  seconds that a runner adds to each item of a stage of calls that take no time, over the stage's calls with
          nothing stored; and seconds a stage of a sweep of `--stages` stages with next to no work in them.
speedup   one stage of `--calls` calls of `--delay` seconds to a scripted server, 4 at once, shared by 1, 2 and 4
          workers; from the first start to the last end of its attempts, all workers being up before.
resume    kill -9 in the middle of such a stage: of the local runner, which is then started again at once, of the one
          worker of a sweep, and of one of two. Seconds to the first new row of anybody else, and to the first and last
          of the calls that the dead one had claimed and not finished, which come last: what nobody has claimed is
          done first. Neighbours on a machine see that a process is gone; on another its lease (15 s) is waited for.
history   events and bytes of a workflow's history, scaled to 1,000 stages.

Everything runs in a new home, with its own PostgreSQL and Temporal server, which are up before any clock starts; each
run has a new database schema. `WORKBENCH_*` and `TEMPORAL_*` variables are ignored. Figures are medians with the
range of all rounds; ratios are of runs that are neighbours in time.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import json
import math
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from machine import describe_machine
from pydantic import SecretStr

from workbench import datasets
from workbench.datasets import Dataset
from workbench.lab import Lab
from workbench.pipeline.graph import Node
from workbench.pipeline.job import Job
from workbench.pipeline.work import prepare
from workbench.processes import children, command
from workbench.settings import Settings, child_environment
from workbench.specs import Bm25, Embed, Fixed, Hybrid, Situated, SweepSpec, TrialSpec
from workbench.store import embedded
from workbench.sweeps.plan import Plan
from workbench.sweeps.temporal import server
from workbench.sweeps.temporal.connection import connect
from workbench.sweeps.temporal.crew import Crew
from workbench.sweeps.temporal.worker import queue_prefix

sys.path.append(str(Path(__file__).parents[1] / "tests"))
from scripted_llm import scripted_process  # type: ignore[import-not-found]

Found = dict[str, Any]
CONCURRENCY = 4
CHUNK_WORDS, CHUNKS_A_DOCUMENT = 20, 10
PATIENCE = 120.0
"""Seconds for what must come."""
EMBED_SECONDS = 0.5
"""Of a call of the grid's embedder, for at most 128 texts."""
DRAWN = 2
"""Trials of each cell of the grid that run alone in a round."""
KILL_AFTER = 40
"""Finished calls."""

_numbers = itertools.count()


# --- what is run ---------------------------------------------------------------------------------


def grid_sweep() -> SweepSpec:
    """72 trials: two chunk sizes, three contexts and three kinds of retrieval at four depths."""
    return SweepSpec(
        base=TrialSpec(embed=Embed(model=f"fake:hash-64?delay={EMBED_SECONDS}"), retrieve=Hybrid()),
        axes={
            "chunk.tokens": (100, 200),
            "retrieve.kind": ("dense", "bm25", "hybrid"),
            "context.kind": ("none", "title", "lead"),
            "retrieve.k": (10, 20, 50, 100),
        },
    )


def grid_cell(point: Mapping[str, Any]) -> tuple[Any, ...]:
    """What most of a trial's time depends on."""
    return point["chunk.tokens"], point["retrieve.kind"]


def situating(model: str) -> SweepSpec:
    """One trial, most of whose work is a call for each chunk."""
    trial = TrialSpec(
        chunk=Fixed(tokens=CHUNK_WORDS, tokenizer="words"),
        context=Situated(model=model, max_tokens=16, concurrency=CONCURRENCY),
        retrieve=Bm25(k=5),
    )
    return SweepSpec(base=trial, axes={"retrieve.k": (5,)})


def tiny_stages(count: int) -> SweepSpec:
    """A chunk stage, and about `count` stages of one query that retrieve and score."""
    trial = TrialSpec(chunk=Fixed(tokens=CHUNK_WORDS, tokenizer="words"), retrieve=Bm25(k=5))
    return SweepSpec(base=trial, axes={"retrieve.k": tuple(range(5, 5 + count // 2))})


def write_dataset(folder: Path, chunks: int) -> Dataset:
    """A dataset of so many chunks of the sweeps above, no two alike, and one question."""
    folder.mkdir()
    corpus = []
    for start in range(0, chunks, CHUNKS_A_DOCUMENT):
        numbers = range(start, min(start + CHUNKS_A_DOCUMENT, chunks))
        text = " ".join(f"c{number}w{word}" for number in numbers for word in range(CHUNK_WORDS))
        corpus.append({"doc_id": f"d{start}", "text": text})
    evidence = {"doc_id": "d0", "start": 0, "end": len("c0w0 c0w1")}
    query = {"query_id": "q", "text": "where is c0w0 c0w1", "evidence": [evidence]}
    for name, records in (("corpus", corpus), ("queries", [query])):
        lines = [json.dumps(record) + "\n" for record in records]
        (folder / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")
    return datasets.load(folder)


@contextlib.contextmanager
def new_lab(home: Path, **settings: Any) -> Iterator[Lab]:
    """A laboratory with a new, empty schema in the database of a home."""
    with Lab(Settings(home=home, db_schema=f"s{next(_numbers)}", **settings), progress=False) as lab:
        yield lab


def rows(lab: Lab, query: str, *given: Any) -> list[tuple[Any, ...]]:
    with lab.runtime.database.transaction() as connection:
        return connection.execute(query.encode(), given).fetchall()


def number(lab: Lab, query: str, *given: Any) -> float:
    return float(rows(lab, query, *given)[0][0])


def wait_until(ready: Callable[[], bool]) -> None:
    until = time.monotonic() + PATIENCE
    while not ready():
        if time.monotonic() > until:
            raise SystemExit("what must come did not come")
        time.sleep(0.02)


def spread(values: Sequence[float]) -> Found:
    return {"median": statistics.median(values), "min": min(values), "max": max(values), "n": len(values)}


# --- grid ----------------------------------------------------------------------------------------


def grid(home: Path, given: argparse.Namespace) -> Found:
    """Stages and seconds of a sweep, against each of its trials alone."""
    data, sweep = datasets.load("handbook"), grid_sweep()
    cells: dict[tuple[Any, ...], list[TrialSpec]] = {}
    for point, trial in sweep.trials():
        cells.setdefault(grid_cell(point), []).append(trial)
    trials = sum(map(len, cells.values()))
    draw = random.Random(given.seed)
    alone(home, data, sweep.base)  # what is imported once is on nobody's account
    together, apart, ratios, ran = [], [], [], []
    for _ in range(given.rounds):
        with new_lab(home) as lab:
            lab.runtime.tokenizer("wordpiece")
            begun = time.perf_counter()
            plan = lab.plan(sweep, data)
            run = lab.run_sweep(plan)
            together.append(time.perf_counter() - begun)
            ran.append(run.status.run_computed)
        drawn = [alone(home, data, trial) for cell in cells.values() for trial in draw.sample(cell, DRAWN)]
        apart.append(statistics.mean(drawn) * trials)
        ratios.append(apart[-1] / together[-1])
    return {
        "trials": trials,
        "stages of a loop": plan.stages_of_a_loop,
        "stages that ran": max(ran),
        "loop / sweep, stages": plan.stages_of_a_loop / max(ran),
        "embeddings of chunks, loop": sum(len(chunk_embeddings(trial.graph.score.walk())) for trial in plan.trials),
        "embeddings of chunks, sweep": len(chunk_embeddings(plan.nodes)),
        "sweep seconds": spread(together),
        f"loop seconds, from {DRAWN * len(cells)} trials a round": spread(apart),
        "loop / sweep, seconds": spread(ratios),
    }


def chunk_embeddings(nodes: Iterable[Node]) -> list[Node]:
    return [node for node in nodes if node.kind == "embed" and isinstance(node.inputs["texts"], Node)]


def alone(home: Path, data: Dataset, trial: TrialSpec) -> float:
    """Seconds of one trial from an empty store; its home is new too, as terms are cached on disk."""
    with (
        tempfile.TemporaryDirectory() as folder,
        embedded.start(home) as postgres,
        new_lab(Path(folder), database_url=SecretStr(postgres.url)) as lab,
    ):
        lab.runtime.tokenizer("wordpiece")
        begun = time.perf_counter()
        lab.run(trial, data)
        return time.perf_counter() - begun


# --- overhead ------------------------------------------------------------------------------------

STAGE_SECONDS = "SELECT extract(epoch FROM max(ended_at) - min(started_at)) FROM attempt WHERE kind = 'context'"
SWEEP_SECONDS = (
    "SELECT extract(epoch FROM max(ended_at) - min(started_at)), sum(extract(epoch FROM ended_at - started_at)),"
    " count(*) FROM attempt"
)


def overhead(home: Path, given: argparse.Namespace) -> Found:
    """What runners add to an item and to a stage."""
    calls = write_dataset(home / "calls", given.calls)
    tiny = write_dataset(home / "tiny", 1)
    sweep, small = situating("fake:words"), tiny_stages(given.stages)
    found: dict[str, list[float]] = {}

    def note(name: str, value: float) -> None:
        found.setdefault(name, []).append(value * 1000)

    with server.start(home):
        for _ in range(given.rounds):
            with new_lab(home) as lab:
                plan = lab.plan(sweep, calls)
                lab.run_sweep(plan)
                local = number(lab, STAGE_SECONDS)
                pure = calls_alone(lab, plan)
            with new_lab(home) as lab:
                lab.run_sweep(sweep, calls, engine="temporal")
                temporal = number(lab, STAGE_SECONDS)
            note("pure work, ms an item", pure / given.calls)
            note("local adds, ms an item", (local - pure) / given.calls)
            note("temporal adds, ms an item", (temporal - pure) / given.calls)
            for engine in ("local", "temporal"):
                with new_lab(home) as lab:
                    lab.run_sweep(small, tiny, engine=engine)
                    ((whole, inside, stages),) = rows(lab, SWEEP_SECONDS)
                note(f"{engine}, ms a tiny stage", float(whole) / stages)
                note(f"{engine}, of which between stages", float(whole - inside) / stages)
    return {"items": given.calls, "stages": stages, **{name: spread(values) for name, values in found.items()}}


def calls_alone(lab: Lab, plan: Plan) -> float:
    """Seconds of the items of a finished context stage, computed again with nothing stored."""
    job = Job(lab.runtime, plan.dataset)
    job.done.update(lab.runtime.ledger.done([node.fingerprint for node in plan.nodes]))
    begun = time.perf_counter()
    work = prepare(next(node for node in plan.nodes if node.kind == "context"), job)
    for phase in work.phases:
        assert phase.stream is not None
        assert len(list(phase.stream(range(len(phase.keys))))) == work.items
    return time.perf_counter() - begun


# --- speedup -------------------------------------------------------------------------------------


def speedup(home: Path, given: argparse.Namespace) -> Found:
    """Seconds of one stage that 1, 2 and 4 workers share."""
    data, counts = write_dataset(home / "calls", given.calls), (1, 2, 4)
    seconds: dict[int, list[float]] = {workers: [] for workers in counts}
    with (
        server.start(home),
        scripted_process(home, "--first-ms", str(given.delay * 1000)) as (url, _),
    ):
        for turn in range(given.rounds):
            for workers in counts[:: -1 if turn % 2 else 1]:
                seconds[workers].append(shared_stage(home, data, url, workers, given.calls))
    found: Found = {"calls": given.calls, "seconds a call": given.delay, "concurrency a worker": CONCURRENCY}
    for workers in counts:
        found[f"{workers} workers, seconds"] = spread(seconds[workers])
        found[f"{workers} workers, least possible"] = math.ceil(given.calls / CONCURRENCY / workers) * given.delay
    for workers in counts[1:]:
        times = [one / many for one, many in zip(seconds[1], seconds[workers], strict=True)]
        found[f"{workers} workers, speed-up"] = spread(times)
        found[f"{workers} workers, share of linear"] = spread([t / workers for t in times])
    return found


def shared_stage(home: Path, data: Dataset, url: str, workers: int, calls: int) -> float:
    """Seconds of a stage's attempts; the workers are up and ask for work before the sweep begins."""
    with (
        new_lab(home, llm_url=url, llm_key=SecretStr("scripted-key")) as lab,
        Crew(lab.runtime.settings, workers) as crew,
    ):
        up = workers_ready(home)
        crew.tend()
        wait_until(lambda: workers_ready(home) == up + workers)
        run = lab.run_sweep(situating("scripted"), data, engine="temporal", workers=0)
        if run.state != "done" or number(lab, "SELECT count(*) FROM memo_call") != calls:
            raise SystemExit(f"the sweep is {run.state}: {dict(run.errors)}")
        return number(lab, STAGE_SECONDS)


def workers_ready(home: Path) -> int:
    return sum(log.read_text().count("working on queues") for log in home.glob("temporal/worker-*.log"))


# --- resume --------------------------------------------------------------------------------------

CLAIMED_BY = (
    "SELECT k FROM claim c JOIN worker w USING (worker_id), unnest(c.keys) k"
    " WHERE w.pid = %s AND c.memo = 'memo_call' AND c.outcome IS DISTINCT FROM 'done'"
    " AND NOT EXISTS (SELECT FROM memo_call m WHERE m.key = k AND m.claim_id = c.claim_id)"
)
BY_OTHERS = (
    "SELECT extract(epoch FROM m.finished_at), m.key FROM memo_call m JOIN claim USING (claim_id)"
    " JOIN worker w USING (worker_id) WHERE w.pid <> %s AND m.finished_at > to_timestamp(%s) ORDER BY m.finished_at"
)


def resume(home: Path, given: argparse.Namespace) -> Found:
    """Seconds from a kill to new results."""
    write_dataset(home / "calls", given.calls)
    model = "fake:words?delay=0.2"
    file = home / "situate.toml"
    file.write_text(
        f'metric = "recall@5"\n[base.chunk]\nkind = "fixed"\ntokens = {CHUNK_WORDS}\ntokenizer = "words"\n'
        f'[base.context]\nkind = "situated"\nmodel = "{model}"\nmax_tokens = 16\nconcurrency = {CONCURRENCY}\n'
        '[base.retrieve]\nkind = "bm25"\nk = 5\n[axes]\n"retrieve.k" = [5]\n',
        encoding="utf-8",
    )
    cases = {"local runner": ("local", 1), "the only worker": ("temporal", 1), "one of two workers": ("temporal", 2)}
    found: dict[str, list[float]] = {}
    with server.start(home):
        for _ in range(given.rounds):
            for name, (engine, workers) in cases.items():
                with new_lab(home) as lab:
                    lost, seconds = one_kill(lab, file, engine, workers)
                found.setdefault(f"{name}: calls it had claimed", []).append(lost)
                for what, value in zip(("first new row", "first of these", "last of these"), seconds, strict=True):
                    found.setdefault(f"{name}: {what}, seconds", []).append(value)
    return {"calls": given.calls, **{name: spread(values) for name, values in found.items()}}


def one_kill(lab: Lab, file: Path, engine: str, workers: int) -> tuple[int, tuple[float, float, float]]:
    """How many calls a killed process had claimed, and seconds to the first new row and the first and last of these.

    They count from the kill of a worker, and from the start of the process that follows the local runner.
    """
    with contextlib.ExitStack() as stack:
        runner = stack.enter_context(sweeping(lab, file, engine, workers))
        wait_until(lambda: number(lab, "SELECT count(*) FROM memo_call") >= KILL_AFTER)
        pids = [runner.pid] if engine == "local" else [p for p in children(runner.pid) if "worker" in command(p)]
        wait_until(lambda: claimed(lab, busiest(lab, pids)) >= CONCURRENCY)
        victim = busiest(lab, pids)
        killed = time.time()
        os.kill(victim, signal.SIGKILL)
        if engine == "local":
            runner.wait()
        lost = {bytes(key) for (key,) in rows(lab, CLAIMED_BY, victim)}
        if engine == "local":
            killed = time.time()
            stack.enter_context(sweeping(lab, file, engine, workers))
        new: dict[bytes, float] = {}

        def taken_over() -> bool:
            new.update({bytes(key): float(at) - killed for at, key in rows(lab, BY_OTHERS, victim, killed)})
            return bool(lost) and lost <= new.keys()

        wait_until(taken_over)
        again = [new[key] for key in lost]
        return len(lost), (min(new.values()), min(again), max(again))


def claimed(lab: Lab, pid: int) -> int:
    """Calls that a process has claimed and not finished."""
    return len(rows(lab, CLAIMED_BY, pid))


def busiest(lab: Lab, pids: Sequence[int]) -> int:
    return max(pids, key=lambda pid: claimed(lab, pid))


@contextlib.contextmanager
def sweeping(lab: Lab, file: Path, engine: str, workers: int) -> Iterator[subprocess.Popen[bytes]]:
    """A sweep in a process of its own, interrupted at the end."""
    given = ["--dataset", str(file.parent / "calls"), "--engine", engine, "--workers", str(workers), "--json"]
    process = subprocess.Popen(
        [sys.executable, "-m", "workbench.cli", "sweep", str(file), *given],
        env=child_environment(lab.runtime.settings),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield process
    finally:
        process.send_signal(signal.SIGINT)
        process.wait()


# --- history -------------------------------------------------------------------------------------


def history(home: Path, given: argparse.Namespace) -> Found:
    """Events and bytes of the workflow of a sweep of tiny stages."""
    data = write_dataset(home / "tiny", 1)
    with server.start(home), new_lab(home) as lab:
        run = lab.run_sweep(tiny_stages(given.stages), data, engine="temporal")
        stages = sum(run.status.stages.values())
        sizes = asyncio.run(event_sizes(home, f"{queue_prefix(lab.runtime.database)}-sweep-{run.sweep_id}"))
    return {
        "stages": stages,
        "runs of the workflow": len(sizes),
        "events per 1,000 stages": round(sum(map(len, sizes)) / stages * 1000),
        "KiB per 1,000 stages": round(sum(map(sum, sizes)) / stages * 1000 / 1024),
        "events of the longest history": max(map(len, sizes)),
    }


async def event_sizes(home: Path, workflow_id: str) -> list[list[int]]:
    """Bytes of each event of each run of a workflow, the last run first."""
    client, run_id, found = await connect(home), "", []
    while True:
        events = (await client.get_workflow_handle(workflow_id, run_id=run_id or None).fetch_history()).events
        found.append([event.ByteSize() for event in events])
        run_id = events[0].workflow_execution_started_event_attributes.continued_execution_run_id
        if not run_id:
            return found


# --- all -----------------------------------------------------------------------------------------

PARTS: Mapping[str, Callable[[Path, argparse.Namespace], Found]] = {
    part.__name__: part for part in (grid, overhead, speedup, resume, history)
}


def shown(value: Any) -> str:
    match value:
        case {"median": middle, "min": low, "max": high, "n": n}:
            return f"{middle:.3g} ({low:.3g} to {high:.3g}, n {n})"
        case float():
            return f"{value:.3g}"
    return str(value)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)} (default: all)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--calls", type=int, default=320, help="of overhead, speedup and resume")
    parser.add_argument("--delay", type=float, default=0.5, help="seconds of a call of speedup")
    parser.add_argument("--stages", type=int, default=200, help="of overhead and history")
    parser.add_argument("--seed", type=int, default=0, help="of the trials that grid draws")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    given = parser.parse_args()
    if unknown := set(given.parts) - PARTS.keys():
        parser.error(f"no part {sorted(unknown)[0]!r}; there are {', '.join(PARTS)}")
    if given.rounds < 1 or given.calls < 4 * KILL_AFTER or given.stages < 4 or given.delay <= 0:
        parser.error(f"at least 1 round, {4 * KILL_AFTER} calls, 4 stages and a delay above 0")
    for name in [name for name in os.environ if name.startswith(("WORKBENCH_", "TEMPORAL_"))]:
        del os.environ[name]
    found: Found = {"machine": describe_machine("temporalio", "psycopg")}
    if not given.json:
        print(found["machine"], flush=True)
    for part in given.parts or PARTS:
        with tempfile.TemporaryDirectory() as folder, embedded.start(Path(folder)):
            found[part] = PARTS[part](Path(folder), given)
        if not given.json:
            print(
                f"{part}:", *(f"  {name}: {shown(value)}" for name, value in found[part].items()), sep="\n", flush=True
            )
    if given.json:
        print(json.dumps(found))


if __name__ == "__main__":
    main()
