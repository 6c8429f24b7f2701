"""Homes of servers that are looked at for leftovers when a test ends."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from fake_server import Fake
from serving_tools import is_clean, processes_of, until

from workbench.serving.servers import Servers


@pytest.fixture
def home() -> Iterator[Path]:
    """A private folder with a short path, as vLLM's sockets need it."""
    with tempfile.TemporaryDirectory(prefix="wb-") as folder:
        place = Path(folder) / "s"
        yield place
        for process in processes_of(place):
            with suppress(psutil.NoSuchProcess):
                process.kill()


@pytest.fixture
def fake(tmp_path: Path) -> Fake:
    return Fake(tmp_path / "starts")


@pytest.fixture
def make(home: Path, fake: Fake) -> Iterator[Callable[..., Servers]]:
    """Makes pools of fake servers that end soon; whatever still runs at the end is stopped and leaves nothing."""

    def one(**options: object) -> Servers:
        return Servers(
            home, program=fake, **{"grace_seconds": 0.3, "start_seconds": 20.0, "room_seconds": 0.2} | options
        )

    yield one
    if home.is_dir():
        one().stop()
        until(lambda: is_clean(home))


@pytest.fixture
def servers(make: Callable[..., Servers]) -> Servers:
    return make()
