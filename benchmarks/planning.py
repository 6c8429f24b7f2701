"""How long does planning thousands of trials take, and how much memory, beside building each trial alone?

    python benchmarks/planning.py [--values 10] [--sample 50] [--json]

The sweep has four axes of `--values` values over a hybrid pipeline with an HNSW index: chunk size, chunk overlap,
ef_search and the constant of rank fusion. `plan` is all of it: points, trials, their graphs, the order of the unique
stages and the warnings; `estimate` looks them up in an empty store. The naive loop varies and builds the first
`--sample` trials one by one, each on its own, and is extrapolated to all of them. Memory is what tracemalloc counts
at the peak of a second plan and what the plan keeps; times are of runs without it, of this process's processor, so
that neighbours on the machine do not count; `wall` is what a person waits.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
import tracemalloc
from pathlib import Path
from typing import Any

from machine import describe_machine

from workbench import datasets
from workbench.pipeline import graph
from workbench.runtime import Runtime
from workbench.settings import Settings
from workbench.specs import Hnsw, Hybrid, SweepSpec, TrialSpec
from workbench.sweeps.estimate import estimate
from workbench.sweeps.plan import Plan, plan

DATASET = "handbook"


def sweep_of(values: int) -> SweepSpec:
    """Four axes of so many values each."""
    return SweepSpec(
        base=TrialSpec(index=Hnsw(), retrieve=Hybrid()),
        axes={
            "chunk.tokens": tuple(range(100, 100 + values)),
            "chunk.overlap": tuple(range(values)),
            "retrieve.ef_search": tuple(range(100, 100 + values)),
            "retrieve.rrf_k": tuple(range(50, 50 + values)),
        },
    )


def planned(sweep: SweepSpec, data: datasets.Dataset, runtime: Runtime) -> Plan:
    """A plan with everything of it worked out."""
    made = plan(sweep, data, runtime)
    assert made.nodes
    assert made.stages_of_a_loop
    assert not made.warnings
    return made


def measure(values: int, sample: int) -> dict[str, Any]:
    """Trials, stages, seconds and MiB of one sweep."""
    sweep, data = sweep_of(values), datasets.load(DATASET)
    with tempfile.TemporaryDirectory() as folder, Runtime(Settings(home=Path(folder) / "home")) as runtime:
        graph.build(sweep.base, data, runtime)  # digests of weights are kept from here on
        waiting, began = time.perf_counter(), time.process_time()
        made = planned(sweep, data, runtime)
        seconds, wall = time.process_time() - began, time.perf_counter() - waiting
        began = time.perf_counter()
        estimate(made, runtime)
        estimating = time.perf_counter() - began
        points = sweep.points()[:sample]
        began = time.process_time()
        for point in points:
            trial = sweep.base
            for path, value in point.items():
                trial = trial.vary(path, value)
            assert list(graph.build(trial, data, runtime).score.walk())
        naive = (time.process_time() - began) / len(points) * len(made.trials)
        tracemalloc.start()
        again = planned(sweep, data, runtime)
        kept, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    return {
        "trials": len(again.trials),
        "unique stages": len(again.nodes),
        "stages of a loop": again.stages_of_a_loop,
        "plan seconds": round(seconds, 2),
        "plan wall seconds": round(wall, 2),
        "estimate wall seconds": round(estimating, 2),
        f"naive loop seconds (from {len(points)} trials)": round(naive, 1),
        "naive / plan": round(naive / seconds, 1),
        "plan keeps MiB": round(kept / 2**20, 1),
        "plan peak MiB": round(peak / 2**20, 1),
        "KiB a trial": round(kept / 1024 / len(again.trials), 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--values", type=int, default=10, help="values on each of four axes (default 10)")
    parser.add_argument("--sample", type=int, default=50, help="trials that the naive loop builds (default 50)")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of lines")
    options = parser.parse_args()
    if not 1 <= options.values <= 17 or options.sample < 1:
        parser.error("--values must be from 1 to 17 and --sample at least 1")
    found = {"machine": describe_machine("pydantic"), "dataset": DATASET, **measure(options.values, options.sample)}
    if options.json:
        print(json.dumps(found))
    else:
        print("\n".join(f"{key}: {value}" for key, value in found.items()))


if __name__ == "__main__":
    main()
