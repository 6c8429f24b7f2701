"""Running nodes: what is done is found again, what someone else does is waited for, the rest is computed."""

from __future__ import annotations

import contextlib
import importlib.util
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from workbench.errors import CallError, LeaseLost, ModelError, StageError, WorkbenchError
from workbench.pipeline.graph import Node
from workbench.pipeline.job import Job, Work
from workbench.pipeline.work import prepare
from workbench.settings import Settings
from workbench.specs import CrossEncoder, Embed, LateInteraction, Served
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
    require_models((node for node in nodes if node.fingerprint not in found), job.runtime.settings)
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
        if isinstance(error, CallError):
            error.where = f"{node.kind} {node.label}, {error.where}"
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
    counts = Counts()
    if progress:
        progress(node, 0, work.items)
    for phase in work.phases:
        before = counts.items

        def tell(done: int, of: int, before: int = before) -> None:
            if progress:
                progress(node, before + done, max(before + of, work.items))

        counts += job.runtime.memo.fill(
            phase.memo,
            phase.keys,
            phase.compute,
            stream=phase.stream,
            stage_id=begun.stage_id,
            batch=phase.batch,
            claim_size=phase.claim_size or 4 * phase.batch,
            progress=tell,
            check=check,
        )
    if not counts.items:
        counts = Counts(items=work.items, computed=work.items)
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
