"""A language model behind HTTP: an external service, or a vLLM server of our own that is started when it is needed."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from functools import cached_property
from typing import Any

from workbench.models.llm import LlmClient
from workbench.models.protocols import Call, ChatTokenizer, Request


class ServedModel:
    """A client and what is known of the model it talks to; loading the tokenizer waits until somebody counts."""

    def __init__(
        self,
        client: LlmClient,
        identity: Mapping[str, Any],
        tokenizer: Callable[[], ChatTokenizer],
        *,
        window: int,
        block: int,
    ) -> None:
        self._client, self._load = client, tokenizer
        self.identity, self.window, self.block = identity, window, block

    @cached_property
    def tokenizer(self) -> ChatTokenizer:
        return self._load()

    def stream(
        self, requests: Sequence[Request], *, check: Callable[[], None] = lambda: None
    ) -> Generator[tuple[int, Call], None, None]:
        """As `LanguageModel.stream`."""
        calls = self._client.stream(requests, check=check)
        try:
            yield from calls
        finally:
            calls.close()
