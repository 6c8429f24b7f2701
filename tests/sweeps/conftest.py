"""Sweeps in processes of their own: one home a module where it can be shared, and what an undisturbed sweep gives."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from sweep_files import write_dataset
from sweep_worlds import Undisturbed, World

_numbers = itertools.count()


@pytest.fixture(scope="module")
def sweep_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A home whose PostgreSQL and Temporal run for the module; each world in it has a database schema of its own."""
    from workbench.store import embedded
    from workbench.sweeps.temporal import server

    home = tmp_path_factory.mktemp("sweeps") / "home"
    with embedded.start(home), server.start(home):
        yield home


@pytest.fixture
def new_world(tmp_path: Path) -> Iterator[Callable[..., World]]:
    """Makes worlds over the tiny dataset; what still runs in them at the end is killed."""
    worlds: list[World] = []

    def make(home: Path | None = None, *, documents: int = 6, **given: Any) -> World:
        number = next(_numbers)
        schema = "workbench" if home is None else f"s{number}"
        worlds.append(World(tmp_path / f"w{number}", home=home, schema=schema, **given))
        write_dataset(worlds[-1].folder / "data", documents)
        return worlds[-1]

    yield make
    for world in worlds:
        world.close()


@pytest.fixture(scope="module")
def undisturbed(sweep_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    world = World(tmp_path_factory.mktemp("undisturbed"), home=sweep_home, schema="undisturbed")
    write_dataset(world.folder / "data")
    begun = time.monotonic()
    try:
        body = world.sweep(world.write_sweep("every"), "local")
        return Undisturbed(body, world.outputs(), world.logged(), time.monotonic() - begun)
    finally:
        world.close()
