"""Running nodes: what is done is found again, what someone else does is waited for, the rest is computed."""

from __future__ import annotations

import contextlib
import importlib.util
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from workbench.errors import LeaseLost, ModelError, StageError, WorkbenchError
from workbench.pipeline.graph import Node
from workbench.pipeline.job import Job
from workbench.pipeline.work import Work, prepare
from workbench.store.ledger import Begun, Busy, StageRow
from workbench.store.memo import Counts

Progress = Callable[[Node, int, int], None]
"""Called with a node, its finished items and all its items."""


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
    check: Callable[[], None] = lambda: None,
    poll_seconds: float = 0.1,
) -> list[StageRun]:
    """Bring nodes (inputs before what needs them) to done, each computed once ever in this database.

    `check` is called between items and may raise to stop. A node that another process holds is waited
    for, until it is done or the holder's lease ends.

    Raises:
        WorkbenchError: a stage failed; its finished items are kept.
    """
    found = job.runtime.ledger.done([node.fingerprint for node in nodes])
    job.done.update(found)
    require_models(node for node in nodes if node.fingerprint not in found)
    runs = []
    for node in nodes:
        if node.fingerprint in found:
            runs.append(StageRun(node, found[node.fingerprint], "reused", Counts()))
            continue
        run = None
        while run is None:
            check()
            run = _attempt(node, job, progress, check)
            if run is None:
                time.sleep(poll_seconds)
        job.done[node.fingerprint] = run.row
        runs.append(run)
    return runs


def require_models(nodes: Iterable[Node]) -> None:
    """Refuse, before any work, stages whose model needs a package that is missing.

    Raises:
        ModelError: with the package and how to get it.
    """
    models = sorted(node.config[0].model for node in nodes if node.kind == "embed")
    real = [name for name in models if not name.startswith("fake:")]
    missing = [p for p in ("torch", "sentence_transformers") if importlib.util.find_spec(p) is None]
    if real and missing:
        raise ModelError(
            f"model {real[0]!r} needs package {missing[0]}",
            hint='pip install "rag-workbench[models]"; `workbench demo --lexical` needs no model',
        )


def _attempt(node: Node, job: Job, progress: Progress | None, check: Callable[[], None]) -> StageRun | None:
    """One try at a node; None where another process holds it."""
    ledger = job.runtime.ledger
    begun = ledger.begin(node.fingerprint, node.kind, node.code, node.identity, node.input_fingerprints)
    if isinstance(begun, StageRow):
        return StageRun(node, begun, "reused", Counts())
    if isinstance(begun, Busy):
        return None
    try:
        return _compute(node, job, begun, progress, check)
    except LeaseLost:
        return None  # another process took it over while this one stood still
    except BaseException as error:
        with contextlib.suppress(WorkbenchError):  # the first error counts; the lease frees the stage anyway
            ledger.give_up(begun, f"{type(error).__name__}: {error}")
        if isinstance(error, WorkbenchError) or not isinstance(error, Exception):
            raise
        raise StageError(
            f"{type(error).__name__}: {error}",
            where=f"stage {node.kind} ({node.label}) {node.fingerprint[:12]}",
            hint="finished items are kept; run again to go on",
        ) from error
    finally:
        ledger.release(begun)


def _compute(node: Node, job: Job, begun: Begun, progress: Progress | None, check: Callable[[], None]) -> StageRun:
    started = time.monotonic()
    work: Work = prepare(node, job)
    counts = Counts(items=work.items, computed=work.items)
    if progress:
        progress(node, 0, len(work.keys) or work.items)
    if work.memo is not None and work.compute is not None:
        counts = job.runtime.memo.fill(
            work.memo,
            work.keys,
            work.compute,
            stage_id=begun.stage_id,
            batch=work.batch,
            claim_size=4 * work.batch,
            progress=(lambda done, of: progress(node, done, of)) if progress else None,
            check=check,
        )
    row = job.runtime.ledger.finish(
        begun,
        work.finish(),
        items=counts.items,
        computed=counts.computed,
        seconds=lambda: time.monotonic() - started,
    )
    if progress:
        progress(node, counts.items, counts.items)
    return StageRun(node, row, "computed", counts)
