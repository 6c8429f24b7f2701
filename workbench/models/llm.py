"""A client of OpenAI-compatible servers that streams, measures and tries again.

Its face is synchronous and works inside a running event loop (Jupyter): all requests of a process run on one
`Background` loop. Every attempt is ours, so that the ledger of calls sees each fault.
"""

from __future__ import annotations

import asyncio
import ipaddress
import queue
import random
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Generator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

from pydantic import SecretStr

from workbench.errors import CallError, ModelError
from workbench.models.background import Background, cancelled, in_thread
from workbench.models.protocols import Call, Request
from workbench.models.retrying import Fault, RetryPolicy, status_fault, transport_fault
from workbench.models.streaming import Reading

if TYPE_CHECKING:
    from openai import AsyncOpenAI, AsyncStream

T = TypeVar("T")

__all__ = ["Background", "Endpoint", "LlmClient", "RetryPolicy"]

INSTALL = 'pip install "rag-workbench[serve]"'
_PATHS = {"chat": "/chat/completions", "completion": "/completions"}
_TICK = 0.2
"""Seconds within which an interrupt is noticed."""
_SHOWN = 60
"""Characters of a prompt in an error."""
_SAID = 500
"""Characters of a server's words that are shown at most."""


@dataclass(frozen=True, repr=False)
class Endpoint:
    """Where a server's API begins ("http://127.0.0.1:8000/v1") and the key it asks for.

    Raises:
        ModelError: no http or https URL.
    """

    url: str
    key: SecretStr | None = None

    def __post_init__(self) -> None:
        if urlsplit(self.url).scheme not in ("http", "https") or not urlsplit(self.url).hostname:
            raise ModelError(f"{str(self)!r} is no URL of a server", hint="such as http://127.0.0.1:8000/v1")

    def __str__(self) -> str:
        """The URL without credentials, as it may be shown."""
        head, at, host = self.url.rpartition("@")
        return f"{head.partition('//')[0]}//{host}" if at else self.url

    def __repr__(self) -> str:
        return f"Endpoint({str(self)!r}, key={self.key!r})"

    def mask(self, text: str) -> str:
        """A text without the key: servers like to repeat it."""
        secret = self.key.get_secret_value() if self.key else ""
        return text.replace(secret, str(self.key)) if secret else text


class _Link:
    """An endpoint in use, entered by each attempt. It is closed once it is retired and nobody uses it:
    where one connection failed, others may still stream."""

    def __init__(self, endpoint: Endpoint, client: AsyncOpenAI) -> None:
        self.endpoint, self.client = endpoint, client
        self._users, self._retired = 0, False

    async def __aenter__(self) -> None:
        self._users += 1

    async def __aexit__(self, *_: object) -> None:
        self._users -= 1
        if self._retired and not self._users:
            await self.client.close()

    async def retire(self) -> None:
        self._retired = True
        if not self._users:
            await self.client.close()


class LlmClient:
    """Sends requests for one model to one server, `concurrency` at a time over all threads that stream.

    `connect(None)` gives the endpoint; `connect(failed)` the one to go on with after that one's connection
    failed: it may restart a server. It may block, is called in a thread of its own, and once for all the calls
    that one failure hits; what it raises ends the stream.
    """

    def __init__(
        self,
        background: Background,
        connect: Callable[[Endpoint | None], Endpoint],
        model: str,
        *,
        concurrency: int = 8,
        policy: RetryPolicy | None = None,
        draw: Callable[[], float] = random.random,
        sleep: Callable[[float], Coroutine[Any, Any, object]] = asyncio.sleep,
    ) -> None:
        """`draw` gives the backoff's uniform numbers in [0, 1), `sleep` waits; both for tests.

        Raises:
            ModelError: package openai, or aiohttp, is missing.
        """
        try:
            import aiohttp  # noqa: F401  package openai needs it for the transport that is used here
            import openai
        except ImportError as error:
            raise ModelError(f"package {error.name} is not installed", hint=INSTALL) from error
        self._openai = openai
        self._background, self._connect, self._model = background, connect, model
        background.at_end(self._close)
        self._concurrency, self._policy = concurrency, policy or RetryPolicy()
        self._draw, self._sleep = draw, sleep
        self._slots = asyncio.Semaphore(concurrency)
        self._link: _Link | None = None
        self._opening: asyncio.Task[_Link] | None = None
        self._streams: set[asyncio.Task[None]] = set()
        self._closed = False

    def stream(
        self, requests: Sequence[Request], *, check: Callable[[], None] = lambda: None
    ) -> Generator[tuple[int, Call], None, None]:
        """(position, call) of each request as it finishes; they are sent in order, at the first `next`.

        Closing the iterator, or an interrupt while it waits, or an error from `check`, which is called several
        times a second, cancels what is on the way.

        Raises:
            CallError: a request failed for good; no further one is sent, and those on the way are awaited and
                yielded before it is raised.
            ModelError: no server to send to, or the client was closed.
        """
        if self._closed:
            raise ModelError("the client is closed", hint="open the workbench again")
        finished: queue.SimpleQueue[tuple[int, Call] | None] = queue.SimpleQueue()
        task = self._background.start(self._answer(requests, finished.put), lambda: finished.put(None))
        try:
            while (one := _next(finished, check)) is not None:
                yield one
            if task.cancelled():
                raise ModelError("the client was closed while calls were on the way", hint="run again")
            task.result()
        finally:
            self._background.cancel(task)

    def close(self) -> None:
        """Cancel the streams that run and close the connections; closing twice is fine."""
        if not self._closed:
            self._closed = True
            self._background.run(self._close())

    # --- on the loop -----------------------------------------------------------------------------

    async def _answer(self, requests: Sequence[Request], put: Callable[[tuple[int, Call]], None]) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._streams.add(task)
        task.add_done_callback(self._streams.discard)
        todo = iter(enumerate(requests))
        failures: list[Exception] = []

        async def work() -> None:
            while not failures:
                async with self._slots:
                    if failures or (one := next(todo, None)) is None:
                        return
                    try:
                        call = await self._call(*one)
                    except Exception as error:
                        failures.append(error)
                        return
                put((one[0], call))

        async with asyncio.TaskGroup() as group:
            for _ in range(min(self._concurrency, len(requests))):
                group.create_task(work())
        if failures:
            raise failures[0]

    async def _call(self, position: int, request: Request) -> Call:
        """One call with all its attempts."""
        policy, faults, waited = self._policy, list[Fault](), 0.0
        link = await self._reach(None)
        deadline = asyncio.get_running_loop().time() + policy.deadline
        while True:
            try:
                async with asyncio.timeout_at(deadline) as limit, link:
                    reading = await self._attempt(link, request)
                return reading.call([fault.word for fault in faults], waited)
            except Fault as fault:
                faults.append(fault)
            except TimeoutError:
                if not limit.expired():
                    raise
                said = f"no whole answer within {policy.deadline:g} s"
                faults.append(Fault("deadline", said, retry=False, hint="lower max_tokens or the concurrency"))
            last = faults[-1]
            pause = policy.pause(len(faults), last.after, self._draw())
            late = asyncio.get_running_loop().time() + pause >= deadline
            if not last.retry or late or len(faults) >= policy.attempts:
                # Without a cause: what it says is not masked, and a traceback would show it.
                raise await self._failure(link, position, request, faults) from None
            await self._sleep(pause)
            waited += pause
            link = await self._reach(link if last.broken else None)

    async def _attempt(self, link: _Link, request: Request) -> Reading:
        """Send a request once and read its answer.

        Raises:
            Fault: it failed.
        """
        from openai import AsyncStream

        # A stream holds no log-probabilities of the prompt.
        whole = request.endpoint == "completion" and request.body.get("prompt_logprobs") is not None
        how = {"stream": False} if whole else {"stream": True, "stream_options": {"include_usage": True}}
        reading = Reading(time.perf_counter(), logprobs=whole)
        try:
            stream = await link.client.post(
                _PATHS[request.endpoint],
                body={**request.body, "model": self._model, **how},
                cast_to=object,
                stream=True,
                stream_cls=AsyncStream[object],
            )
        except self._openai.APIStatusError as error:
            raise status_fault(error.status_code, error.body, error.response.headers, time.time()) from None
        except self._openai.APIConnectionError as error:
            raise transport_fault(error) from None
        async with stream:
            body = b""
            async for data in _pieces(stream):
                if whole:
                    body += data
                else:
                    reading.feed(data, time.perf_counter())
            if whole:
                reading.take(body, time.perf_counter())
            else:
                reading.feed(b"\n", time.perf_counter())  # the last line may lack its end
        return reading

    async def _failure(self, link: _Link, position: int, request: Request, faults: Sequence[Fault]) -> CallError:
        """What a person needs to know about a call that failed for good."""
        last = faults[-1]
        hint = await self._names(link) if last.word == "404" else last.hint
        tries = f" after {len(faults)} attempts ({', '.join(f.word for f in faults)})" if len(faults) > 1 else ""
        return CallError(
            f"{link.endpoint.mask(last.said)[:_SAID]}{tries}; the prompt begins {_beginning(request)!r}",
            where=f"request {position} to {self._model} at {link.endpoint}",
            hint=hint,
        )

    async def _names(self, link: _Link) -> str:
        try:
            found: Any = await link.client.get("/models", cast_to=object, options={"timeout": self._policy.connect})
            names = sorted(str(model["id"]) for model in found["data"])
        except (self._openai.OpenAIError, LookupError, TypeError):
            return "no OpenAI-compatible API answers there: most URLs end in /v1"
        return f"the server has {', '.join(names[:20])}"

    async def _reach(self, failed: _Link | None) -> _Link:
        """The link in use, or the next one when that is the one that failed; who asks meanwhile shares it."""
        opening = self._opening
        if opening is None or (
            opening.done() and (opening.cancelled() or opening.exception() is not None or opening.result() is failed)
        ):
            opening = self._opening = asyncio.create_task(self._open())
        # A stream that is closed while it waits takes nothing from the others.
        return await asyncio.shield(opening)

    async def _open(self) -> _Link:
        old = self._link
        endpoint = await in_thread(self._connect, old.endpoint if old else None)
        if old:
            await old.retire()
        client = self._openai.AsyncOpenAI(
            base_url=endpoint.url,
            api_key=endpoint.key.get_secret_value() if endpoint.key else "none",
            max_retries=0,
            timeout=self._openai.Timeout(self._policy.silence, connect=self._policy.connect),
            # Per token it costs less than half of the default transport. Its pool holds 1,000 connections.
            # A proxy of the environment is for the world outside, and must see neither these calls nor their key.
            http_client=self._openai.DefaultAioHttpClient(trust_env=not _is_loopback(endpoint.url)),
        )
        # From environment variables that are meant for another service.
        client.organization = client.project = None
        self._link = _Link(endpoint, client)
        return self._link

    async def _close(self) -> None:
        await cancelled([*self._streams, *([self._opening] if self._opening else [])])
        link, self._link = self._link, None
        if link:
            await link.retire()


def _is_loopback(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    with suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost" or host.endswith(".localhost")


def _next(finished: queue.SimpleQueue[T], check: Callable[[], None]) -> T:
    while True:
        check()
        # Where polars is imported, a signal does not interrupt a wait: it asks for interrupted calls to be resumed.
        with suppress(queue.Empty):
            return finished.get(timeout=_TICK)


async def _pieces(stream: AsyncStream[object]) -> AsyncIterator[bytes]:
    """The bytes of an answer as they come.

    Raises:
        Fault: they stop coming.
    """
    try:
        async for data in stream.response.aiter_bytes():
            yield data
    except Exception as error:  # each transport has its own
        raise transport_fault(error) from None


def _beginning(request: Request) -> str:
    """The first characters of the prompt, where there is one of the user's, for system prompts are all alike."""
    body = request.body
    if request.endpoint == "completion":
        return str(body.get("prompt"))[:_SHOWN]
    messages = body.get("messages") or [{}]
    asked = next((message for message in messages if message.get("role") == "user"), messages[0])
    return str(asked.get("content"))[:_SHOWN]
