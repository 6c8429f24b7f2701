"""Run sweeps and kill what runs them, at drawn moments and in every kind of stage: `python tools/kill_storm.py`.

The nightly form of tests/sweeps/test_kills.py. Each life is one sweep in a home of its own, with PostgreSQL and
Temporal, killed several times and always run again. Prints a line a kill, one a life, and one JSON object at the end.
Exit code 1: a finished row was lost or rewritten, more was repeated than was on the way, a result differs from the
undisturbed run's, a process was left over, or a kind of stage could not be hit.
"""

from __future__ import annotations

import argparse
import itertools
import json
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests" / "sweeps"))

from kill_tools import TARGETS, Kill, Life
from sweep_files import KINDS, write_dataset
from sweep_worlds import Undisturbed, World, wait_until

MOMENTS, AIMS = 3, 3
"""Kills of one life: at moments drawn over an undisturbed run's wall time, and in stages of kinds not hit yet."""
COUNTED = ("runs", "on_the_way", "hit", "given_back", "repeated", "calls_twice")
REAL_MODELS = {"llm": "smollm2-135m", "embed": "minilm"}
REAL_AXES = '"retrieve.kind" = ["dense", "hybrid"]'


@dataclass
class Storm:
    """Lives one after the other until enough was killed."""

    folder: Path
    seed: int
    engines: Sequence[str]
    real: bool = False
    kills: list[Kill] = field(default_factory=list)
    counted: Counter[str] = field(default_factory=Counter)

    def run(self, kills: int) -> dict[str, Any]:
        """Raises AssertionError at the first thing that does not hold; the folder of that life is left."""
        begun = time.monotonic()
        undisturbed = {engine: self._undisturbed(engine) for engine in self.engines}
        untouched = {engine: list(KINDS) for engine in self.engines}
        everywhere = kills >= len(KINDS) * len(self.engines)
        for number, engine in enumerate(itertools.cycle(self.engines)):
            missing = kills - len(self.kills)
            if missing <= 0 and not (everywhere and any(untouched.values())):
                break
            assert number <= kills + len(KINDS), f"never hit: {untouched}"
            aims = untouched[engine][: min(AIMS, missing) if missing > 0 else AIMS]
            moments = max(0, min(MOMENTS, missing - len(aims)))
            life = self._live(number, engine, undisturbed[engine], moments, aims)
            hit = {kind for kill in life.kills for kind in kill.kinds}
            untouched[engine] = [kind for kind in untouched[engine] if kind not in hit]
        self._wait_for_models()
        return {
            "kills": len(self.kills),
            "seed": self.seed,
            "models": "real" if self.real else "scripted",
            "lives": number,
            "by_engine": Counter(kill.engine for kill in self.kills),
            "by_target": Counter(kill.target for kill in self.kills),
            "by_kind": Counter(kind for kill in self.kills for kind in kill.kinds),
            "with_items_on_the_way": sum(kill.on_the_way > 0 for kill in self.kills),
            "never_hit": {engine: kinds for engine, kinds in untouched.items() if kinds},
            **{name: self.counted[name] for name in COUNTED},
            "seconds": round(time.monotonic() - begun, 1),
        }

    def _live(self, number: int, engine: str, undisturbed: Undisturbed, moments: int, aims: Sequence[str]) -> Life:
        draw = Random(f"{self.seed} {number}")
        world = self._world(f"life{number}")
        drawn = [draw.uniform(0, undisturbed.seconds) for _ in range(moments)]
        targets = (*TARGETS[engine], *(["vllm"] if self.real else []))
        life = Life(world, self._sweep(world), engine, draw, drawn, aims, targets, patience=1800.0)
        begun = time.monotonic()
        try:
            life.run()
            counted = life.verify(None if self.real else undisturbed)
        finally:
            world.close()
            self.kills += life.kills
            for kill in life.kills:
                way = f"{kill.on_the_way} items on the way, {kill.hit} of them hit, {kill.kept} rows finished"
                what = f"in {', '.join(kill.kinds) or 'no stage'}"
                say(f"  {kill.second:7.2f} s  {'aimed' if kill.aimed else 'drawn'}  {kill.target:<8}  {what}; {way}")
        self.counted.update(counted)
        repeated = f"{counted['repeated']} items repeated of {counted['hit']} that were hit"
        same = "" if self.real else ", the same results"
        took = f"{len(life.runs)} runs, {time.monotonic() - begun:.1f} s"
        say(f"life {number}, {engine}: {len(life.kills)} kills, {took}, {repeated}; nothing lost{same}")
        shutil.rmtree(world.folder)
        return life

    def _undisturbed(self, engine: str) -> Undisturbed:
        world = self._world(f"undisturbed-{engine}")
        begun = time.monotonic()
        try:
            body = world.sweep(self._sweep(world), engine, patience=1800.0)
            seconds = time.monotonic() - begun
            say(f"undisturbed, {engine}: {seconds:.1f} s, {body['items']['computed']} items")
            with world.opened():
                return Undisturbed(body, world.outputs(), world.logged(), seconds)
        finally:
            world.close()

    def _world(self, name: str) -> World:
        serving = self.folder / "serving"
        settings = {"SERVING_HOME": str(serving), "SERVING_IDLE_SECONDS": "30", "KV_CACHE_GIB": "0.5"}
        environment = {f"WORKBENCH_{name}": value for name, value in settings.items()} if self.real else {}
        world = World(self.folder / name, lease=6.0, environment=environment)
        if self.real:
            write_dataset(world.folder / "data", documents=3, paragraphs=6)
            cache = self.folder / "cache"  # converted models are made once
            cache.mkdir(exist_ok=True)
            world.home.mkdir()
            (world.home / "cache").symlink_to(cache)
        else:
            write_dataset(world.folder / "data")
        return world

    def _sweep(self, world: World) -> Path:
        return world.write_sweep("every", REAL_AXES, **REAL_MODELS) if self.real else world.write_sweep("every")

    def _wait_for_models(self) -> None:
        """The model's server is shared by all lives; nobody owns it any more."""
        last = self._world("last")
        wait_until(lambda: not last.models())


def say(line: str) -> None:
    print(line, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "--kills",
        type=int,
        default=50,
        help="at least so many (default 50); from 8 an engine on in every kind of stage",
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--engine", choices=["local", "temporal", "both"], default="both")
    parser.add_argument("--real", action="store_true", help="SmolLM2 on vLLM and MiniLM; kills vLLM's processes too")
    parser.add_argument("--folder", type=Path, help="where the homes are made (default: a temporary folder)")
    asked = parser.parse_args()
    engines = list(TARGETS) if asked.engine == "both" else [asked.engine]
    folder = Path(tempfile.mkdtemp(prefix="ks-", dir=asked.folder))  # short: sockets lie in it
    storm = Storm(folder, asked.seed, engines, asked.real)
    try:
        summary = storm.run(asked.kills)
    except AssertionError as error:
        say(f"failed, see {folder}: {error}")
        sys.exit(1)
    shutil.rmtree(folder)
    print(json.dumps(summary))


if __name__ == "__main__":
    main()
