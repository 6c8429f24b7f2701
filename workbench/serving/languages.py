"""From a spec that names a language model to the model that answers: a fake, an external service, or our own server."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import SecretStr

from workbench.errors import ModelError, SpecError
from workbench.settings import Settings
from workbench.specs import Served, canonical_json

if TYPE_CHECKING:
    from workbench.models.llm import Background, Endpoint
    from workbench.models.protocols import ChatTokenizer, LanguageModel
    from workbench.serving.servers import Lease, Servers
    from workbench.serving.spec import ServerSpec

_log = logging.getLogger(__name__)

SERVICE_BLOCK = 16
"""Tokens of a prefix-cache block where nothing else is known: vLLM's on a GPU."""
CPU_BLOCK = 128
"""And on a CPU."""


def required(url: str | None, variable: str, field: str) -> str:
    """The URL of a service that a spec asks for.

    Raises:
        SpecError: it is not set.
    """
    if url is None:
        raise SpecError(f"{variable} is not set", where=f'{field} = "server"', hint="set it to the service's URL")
    return url


class Languages:
    """One process's language models, each made once; `close` lets go of their servers."""

    def __init__(self, settings: Settings, cache: Path) -> None:
        self._settings, self._cache = settings, cache
        self._models: dict[str, LanguageModel] = {}
        self._lock = threading.Lock()
        self._open = ExitStack()
        self._background: Background | None = None

    def identity(self, spec: Served) -> Mapping[str, Any]:
        """What can change an answer: weights or origin, and the settings of the server that are no defaults.

        Raises:
            ModelError: the model is not there.
            SpecError: an argument that no server can be given.
        """
        if spec.model.startswith("fake:"):
            from workbench.models.fake_llm import fake_language_model

            return fake_language_model(spec).identity
        serving = ("dtype", "quantization", "max_model_len", "arguments")
        chosen = {name: value for name, value in spec.identity().items() if name in serving}
        if self._settings.llm_url:
            from workbench.models.services import origin_identity

            return {**origin_identity(self._settings.llm_url, spec.model), **chosen}
        from workbench.models.chat import locate_llm
        from workbench.serving.spec import check_arguments

        check_arguments(spec.arguments)
        return {**locate_llm(spec, self._cache).identity, **chosen}

    def tokenizer_identity(self, spec: Served) -> Mapping[str, Any]:
        """What determines how tokens are counted where the model's identity does not: {} but for a service."""
        if self._settings.llm_url is None or spec.tokenizer is None or spec.model.startswith("fake:"):
            return {}
        return {"tokenizer": dict(self._tokenizer(spec)().identity)}

    def model(self, spec: Served) -> LanguageModel:
        """The model of a spec. Nothing is started before it is asked something."""
        key = canonical_json(
            [dict(self.identity(spec)), spec.model, spec.tokenizer, spec.concurrency, spec.prefix_caching]
        )
        with self._lock:
            if key not in self._models:
                self._models[key] = self._make(spec)
            return self._models[key]

    def _make(self, spec: Served) -> LanguageModel:
        if spec.model.startswith("fake:"):
            from workbench.models.fake_llm import fake_language_model

            return fake_language_model(spec)
        from workbench.models.llm import Background, LlmClient
        from workbench.serving.model import ServedModel

        if self._background is None:
            self._background = Background()
            self._open.callback(self._background.close)
        if self._settings.llm_url:
            connect, block = self._service(self._settings.llm_url), SERVICE_BLOCK
        else:
            connect, block = self._server(spec)
        client = LlmClient(self._background, connect, spec.model, concurrency=spec.concurrency)
        self._open.callback(client.close)
        return ServedModel(client, self.identity(spec), self._tokenizer(spec), window=spec.max_model_len, block=block)

    def _service(self, url: str) -> Callable[[Endpoint | None], Endpoint]:
        from workbench.models.llm import Endpoint

        endpoint = Endpoint(url, self._settings.llm_key)
        return lambda failed: endpoint  # noqa: ARG005 -- there is no other

    def _server(self, spec: Served) -> tuple[Callable[[Endpoint | None], Endpoint], int]:
        """How to reach a server of our own, and its prefix cache's block; it is started when it is first reached."""
        from workbench.models import llm
        from workbench.serving import spec as serving
        from workbench.serving.vllm import Vllm

        servers, settings, cache = own_servers(self._settings), self._settings, self._cache
        started: dict[llm.Endpoint, serving.Endpoint] = {}
        leases: list[Lease] = []
        planned = self.identity(spec)

        def connect(failed: Endpoint | None) -> Endpoint:
            # Calls are kept under the identity that was planned; a server that is started later reads files again.
            if self.identity(spec) != planned:
                raise ModelError(f"the files of model {spec.model!r} changed since this run began", hint="run again")
            if not leases:
                lease = servers.hold(server_spec(spec, settings, cache), Phases(spec.model))
                # Nobody is kept waiting by a graceful end, and no process outlives the last one that used it.
                self._open.callback(lease.close, stop=True)
                leases.append(lease)
            leases[0].touch()
            found = leases[0].endpoint(started.get(failed) if failed else None)
            endpoint = llm.Endpoint(f"{found.url}/v1", SecretStr(found.key))
            started[endpoint] = found
            return endpoint

        chosen = {name.replace("_", "-"): value for name, value in spec.arguments.items()}.get("block-size")
        block = chosen if isinstance(chosen, int) else CPU_BLOCK if Vllm().on_cpu else SERVICE_BLOCK
        return connect, block

    def _tokenizer(self, spec: Served) -> Callable[[], ChatTokenizer]:
        from workbench.models.chat import load_chat_tokenizer

        return lambda: load_chat_tokenizer(spec, self._cache, external=self._settings.llm_url is not None)

    def close(self) -> None:
        """Stop asking, and let go of servers: one that nobody holds stops soon."""
        self._open.close()


class Phases:
    """Says what a starting server does, each phase once."""

    def __init__(self, model: str) -> None:
        self._model, self._last = model, ""

    def __call__(self, phase: str, seconds: float) -> None:
        if phase != self._last:
            self._last = phase
            _log.info("server of %s: %s (%.0f s)", self._model, phase, seconds)


def own_servers(settings: Settings) -> Servers:
    """The servers of this person on this machine."""
    from workbench.serving.servers import Servers

    return Servers(settings.serving_home, idle_seconds=settings.serving_idle_seconds)


def server_spec(spec: Served, settings: Settings, cache: Path) -> ServerSpec:
    """The server that answers for a spec; a model that comes with a package is converted first.

    Raises:
        ModelError: the model is not there.
        SpecError: an argument that cannot be given.
    """
    from workbench.models.chat import prepare_llm
    from workbench.serving.spec import ServerSpec

    weights = prepare_llm(spec, cache)
    return ServerSpec(
        source=weights.source,
        commit=weights.commit,
        served_name=spec.model,
        weights=dict(weights.identity),
        dtype=spec.dtype,
        quantization=spec.quantization,
        max_model_len=spec.max_model_len,
        arguments=spec.arguments,
        prefix_caching=spec.prefix_caching,
        kv_cache_gib=settings.kv_cache_gib,
    )
