"""An OpenAI-compatible server that answers by script, over real sockets: it streams, fails, hangs and counts.

In a test's own process it is a context manager; as a process of its own it can be shared by others, and killed:

    with ScriptedServer(rules=[Rule(times=2, status=503)]) as server: ...
    python tests/scripted_llm.py --port-file F --log F [--rules FILE] ...

What no rule speaks of is answered well: deterministic text made from the prompt, or JSON that fits the
schema asked for. A token is a word with the blanks before it. Each request writes two JSON lines to the log,
when it was received and when it ended.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import math
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

from aiohttp import web

Fault = Literal["hang", "drop", "error_event", "malformed", "no_finish", "no_usage", "abort"]


@dataclass(frozen=True)
class Rule:
    """What happens to requests whose prompt holds `match`, the first `times` of them (None: all).

    `status` other than 200 answers with `message` as an error, after `first_ms`. A `fault` comes after `after`
    tokens: "hang" goes silent, "drop" resets the connection, "error_event" is an error inside the stream and
    [DONE], "malformed" a line that is no JSON, "no_finish" and "no_usage" an end without what is named, "abort"
    a finish reason. An answer that is not streamed has its fault in the place of its body.
    """

    match: str = ""
    times: int | None = None
    text: str | None = None
    first_ms: float | None = None
    token_ms: float | None = None
    status: int = 200
    message: str = "scripted"
    retry_after: str | None = None
    fault: Fault | None = None
    after: int = 0
    error_code: int = 500
    cached_tokens: int | None = None


class Dropped(Exception):
    """The script resets the connection here."""


class ScriptedServer:
    """Serves on a free loopback port, from a thread of its own, between `__enter__` and `__exit__`.

    `rules` is tried in order, the first with a match and times left applies; a callable is asked with each
    body instead and may return None. `key` None asks for no key. With `cache_block` the usage says how many
    prompt tokens lie in whole blocks that an earlier prompt of the same `cache_salt` began with. `speed`:
    milliseconds to the first token and between tokens, where a rule says nothing.
    """

    def __init__(
        self,
        rules: Sequence[Rule] | Callable[[Mapping[str, Any]], Rule | None] = (),
        *,
        model: str = "scripted",
        key: str | None = "scripted-key",
        window: int = 4096,
        cache_block: int = 0,
        speed: tuple[float, float] = (0.0, 0.0),
        log: Path | None = None,
        port: int = 0,
    ) -> None:
        self.model, self.key, self.window = model, key, window
        self.port = port
        self.log: list[dict[str, Any]] = []
        self.bodies: list[dict[str, Any]] = []
        self._rules, self._speed, self._path = rules, speed, log
        self._used: Counter[int] = Counter()
        self._block, self._blocks = cache_block, set[tuple[str, ...]]()
        self._changed = threading.Condition()
        self._running, self._peak = 0, 0
        self._thread: threading.Thread | None = None

    # --- for tests -------------------------------------------------------------------------------

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    @property
    def counts(self) -> Counter[str]:
        """How many requests were received, and how each that is over ended ("ok", "503", "drop", "disconnected")."""
        return Counter(line.get("outcome", "received") for line in self.log)

    @property
    def peak(self) -> int:
        """The largest number of requests that were being answered at once."""
        return self._peak

    def wait(self, ready: Callable[[Counter[str]], bool], seconds: float = 20.0) -> None:
        """Until `ready(counts)`; a test that waits in vain fails with the counts."""
        with self._changed:
            assert self._changed.wait_for(lambda: ready(self.counts), seconds), dict(self.counts)

    def __enter__(self) -> ScriptedServer:
        started = threading.Event()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_until_complete, args=(self.serve(started.set),))
        self._thread.start()
        assert started.wait(20)
        return self

    def __exit__(self, *_: object) -> None:
        assert self._thread is not None
        self._loop.call_soon_threadsafe(self.stop)
        self._thread.join(20)
        self._loop.close()

    # --- the server ------------------------------------------------------------------------------

    async def serve(self, started: Callable[[], object]) -> None:
        """Serve until `stop`; `started` is called when the port is open. Connections still open are reset."""
        self._stop = asyncio.Event()
        app = web.Application(client_max_size=1 << 28)
        for path, answer in (("embeddings", embeddings), ("score", score), ("rerank", rerank)):
            for prefix in ("/v1", ""):
                app.router.add_post(f"{prefix}/{path}", self._simple(answer))
        app.router.add_post("/v1/chat/completions", self._generate)
        app.router.add_post("/v1/completions", self._generate)
        app.router.add_get("/v1/models", self._models)
        app.router.add_get("/health", self._health)
        # A handler is cancelled when its client goes away: that is how vLLM learns of it too.
        runner = web.AppRunner(app, handler_cancellation=True, access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", self.port)
        await site.start()
        self.port = runner.addresses[0][1]
        started()
        await self._stop.wait()
        await runner.cleanup()

    def stop(self) -> None:
        self._stop.set()

    async def _health(self, _: web.Request) -> web.Response:
        return web.Response()

    async def _models(self, request: web.Request) -> web.Response:
        if refusal := self._refusal(request, {"model": self.model}):
            return refusal
        return web.json_response({"object": "list", "data": [{"id": self.model, "object": "model"}]})

    def _simple(self, answer: Callable[[Mapping[str, Any]], Any]) -> Callable[[web.Request], Awaitable[web.Response]]:
        async def handle(request: web.Request) -> web.Response:
            body = await request.json()
            number = self._received(request, body, json.dumps(body))
            found = self._refusal(request, body) or web.json_response({"model": self.model, **answer(body)})
            self._ended(number, "ok" if found.status == 200 else str(found.status))
            return found

        return handle

    async def _generate(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        prompt = prompt_of(body)
        number = self._received(request, body, prompt)
        outcome, written = "disconnected", [0]
        try:
            if refusal := self._refusal(request, body) or self._too_long(body, prompt):
                outcome = str(refusal.status)
                return refusal
            rule = self._rule(body, prompt)
            first, between = self._speed
            await asyncio.sleep((first if rule.first_ms is None else rule.first_ms) / 1000)
            if rule.status != 200:
                outcome = str(rule.status)
                headers = {"Retry-After": rule.retry_after} if rule.retry_after is not None else {}
                return web.json_response(_error(rule.message, rule.status), status=rule.status, headers=headers)
            usage = self._usage(rule, body, prompt)
            reply = self._stream if body.get("stream") else self._whole
            response = await reply(
                request, body, rule, usage, between if rule.token_ms is None else rule.token_ms, written
            )
            outcome = rule.fault or "ok"
            return response
        except Dropped:
            outcome = "drop"
            assert request.transport is not None
            request.transport.abort()
            raise asyncio.CancelledError from None
        except ConnectionError:  # the client went away between two tokens
            raise asyncio.CancelledError from None
        finally:
            self._ended(number, outcome, tokens=written[0])

    async def _stream(
        self,
        request: web.Request,
        body: Mapping[str, Any],
        rule: Rule,
        usage: dict[str, Any],
        between: float,
        written: list[int],
    ) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream; charset=utf-8"})
        await response.prepare(request)
        chat = "messages" in body
        head = {"id": "scripted", "object": "chat.completion.chunk" if chat else "text_completion", "model": self.model}

        async def send(choices: list[Any], **more: Any) -> None:
            event = json.dumps({**head, "choices": choices, **more}, ensure_ascii=False)
            await response.write(f"data: {event}\n\n".encode())

        def piece(text: str) -> dict[str, Any]:
            return {"delta": {"content": text}} if chat else {"text": text}

        if chat:
            await send([{"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}])
        tokens, reason = answer_of(body, rule)
        for at, token in enumerate([*tokens, None]):
            if rule.fault and at == min(rule.after, len(tokens)):
                if rule.fault == "hang":
                    await asyncio.sleep(3600)
                elif rule.fault == "drop":
                    raise Dropped
                elif rule.fault == "error_event":
                    event = json.dumps(_error(rule.message, rule.error_code))
                    await response.write(f"data: {event}\n\ndata: [DONE]\n\n".encode())
                    return response
                elif rule.fault == "malformed":
                    await response.write(b'data: {"choices": [{"delta"\n\n')
            if token is None:
                break
            await asyncio.sleep(between / 1000 if at else 0)
            await send([{"index": 0, **piece(token), "finish_reason": None}])
            written[0] += 1
        if rule.fault != "no_finish":
            end = "abort" if rule.fault == "abort" else reason
            await send([{"index": 0, **piece(""), "finish_reason": end}])
            if rule.fault != "no_usage" and (body.get("stream_options") or {}).get("include_usage"):
                usage["completion_tokens"] = len(tokens)
                await send([], usage=usage)
        await response.write(b"data: [DONE]\n\n")
        return response

    async def _whole(
        self,
        request: web.Request,
        body: Mapping[str, Any],
        rule: Rule,
        usage: dict[str, Any],
        between: float,
        written: list[int],
    ) -> web.StreamResponse:
        tokens, reason = answer_of(body, rule)
        if rule.fault == "hang":
            await asyncio.sleep(3600)
        if rule.fault == "drop":
            raise Dropped
        if rule.fault == "malformed":
            return web.Response(text='{"choices": [', content_type="application/json")
        await asyncio.sleep(between / 1000 * len(tokens))
        written[0], usage["completion_tokens"] = len(tokens), len(tokens)
        text = "".join(tokens)
        choice: dict[str, Any] = {"message": {"content": text}} if "messages" in body else {"text": text}
        choice |= {"index": 0, "finish_reason": "abort" if rule.fault == "abort" else reason}
        if body.get("prompt_logprobs") is not None:
            choice["prompt_logprobs"] = prompt_logprobs(prompt_of(body), body["prompt_logprobs"])
        whole = {"model": self.model, "choices": [choice], "usage": usage}
        if rule.fault == "no_usage":
            del whole["usage"]
        return web.json_response(whole)

    def _rule(self, body: Mapping[str, Any], prompt: str) -> Rule:
        if callable(self._rules):
            return self._rules(body) or Rule()
        for at, rule in enumerate(self._rules):
            if rule.match in prompt and (rule.times is None or self._used[at] < rule.times):
                self._used[at] += 1
                return rule
        return Rule()

    def _refusal(self, request: web.Request, body: Mapping[str, Any]) -> web.Response | None:
        if self.key is not None and request.headers.get("Authorization") != f"Bearer {self.key}":
            return web.json_response({"error": "Unauthorized"}, status=401)
        if body.get("model") != self.model:
            return web.json_response(_error(f"no model {body.get('model')!r} here", 404), status=404)
        return None

    def _too_long(self, body: Mapping[str, Any], prompt: str) -> web.Response | None:
        count, wanted = len(tokens_of(prompt)), int(body.get("max_tokens", 16))
        if count + wanted <= self.window:
            return None
        said = f"{count} prompt tokens and {wanted} to write exceed the context length of {self.window} tokens"
        return web.json_response(_error(said, 400, param="input_tokens"), status=400)

    def _usage(self, rule: Rule, body: Mapping[str, Any], prompt: str) -> dict[str, Any]:
        tokens = tokens_of(prompt)
        usage: dict[str, Any] = {"prompt_tokens": len(tokens), "completion_tokens": 0}
        cached = rule.cached_tokens
        if cached is None and self._block:
            salted = [str(body.get("cache_salt", "")), *tokens]
            # The last token is always computed: without it there is nothing to predict from.
            ends = range(self._block, len(tokens), self._block)
            known = [tuple(salted[: end + 1]) in self._blocks for end in ends]
            cached = self._block * (known.index(False) if False in known else len(known))
            self._blocks |= {tuple(salted[: end + 1]) for end in range(self._block, len(tokens) + 1, self._block)}
        if cached is not None:
            usage["prompt_tokens_details"] = {"cached_tokens": cached}
        return usage

    def _received(self, request: web.Request, body: dict[str, Any], prompt: str) -> int:
        self.bodies.append(body)
        digest = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
        number = len(self.bodies)
        self._running += 1
        self._peak = max(self._peak, self._running)
        self._write({"number": number, "path": request.path, "digest": digest, "end_of_prompt": prompt[-200:]})
        return number

    def _ended(self, number: int, outcome: str, **more: Any) -> None:
        self._running -= 1
        self._write({"number": number, "outcome": outcome, **more})

    def _write(self, line: dict[str, Any]) -> None:
        line["at"] = time.time()
        with self._changed:
            self.log.append(line)
            self._changed.notify_all()
        if self._path:
            with self._path.open("ab", buffering=0) as file:
                file.write(json.dumps(line).encode() + b"\n")


# --- answers -------------------------------------------------------------------------------------


def tokens_of(text: str) -> list[str]:
    """Words, each with the blanks before it; together they are the text."""
    return re.findall(r"\s*\S+|\s+\Z", text)


def prompt_of(body: Mapping[str, Any]) -> str:
    """The prompt as one text; the content of a message may be a list of text parts."""
    if "messages" not in body:
        return str(body["prompt"])
    contents = [message["content"] for message in body["messages"]]
    return "\n".join(c if isinstance(c, str) else "".join(part["text"] for part in c) for c in contents)


def answer_of(body: Mapping[str, Any], rule: Rule) -> tuple[list[str], str]:
    """The tokens of an answer, cut at max_tokens, and the reason of its end.

    The rule's text; or JSON that fits the schema; or one of the choices, by the prompt's hash; or the last line
    of the prompt again.
    """
    prompt = prompt_of(body)
    structured = body.get("structured_outputs") or {}
    wanted = (body.get("response_format") or {}).get("json_schema") or {}
    schema = wanted.get("schema") or structured.get("json")
    if rule.text is not None:
        text = rule.text
    elif schema:
        text = json.dumps(fitting(schema, schema))
    elif choices := structured.get("choice"):
        text = choices[hashlib.sha256(prompt.encode()).digest()[0] % len(choices)]
    else:
        text = prompt.rstrip().rpartition("\n")[2]
    tokens, limit = tokens_of(text), int(body.get("max_tokens", 16))
    return tokens[:limit], "length" if len(tokens) > limit else "stop"


def fitting(schema: Mapping[str, Any], root: Mapping[str, Any]) -> Any:
    """The plainest value that fits a JSON Schema, with every property."""
    if "$ref" in schema:
        return fitting(root["$defs"][schema["$ref"].rpartition("/")[2]], root)
    if "const" in schema:
        return schema["const"]
    if "enum" in schema:
        return schema["enum"][0]
    for union in ("anyOf", "oneOf"):
        if union in schema:
            return fitting(schema[union][0], root)
    kind = schema.get("type", "object")
    if kind == "object":
        return {name: fitting(of, root) for name, of in schema.get("properties", {}).items()}
    if kind == "array":
        return [fitting(schema.get("items", {"type": "string"}), root)] * max(1, schema.get("minItems", 1))
    if kind == "string":
        return "scripted text".ljust(schema.get("minLength", 0), ".")[: schema.get("maxLength")]
    if kind in ("integer", "number"):
        least = schema.get("minimum", schema.get("exclusiveMinimum", 0) + ("exclusiveMinimum" in schema))
        return min(least, schema.get("maximum", least))
    return True if kind == "boolean" else None


def prompt_logprobs(prompt: str, others: int) -> list[dict[str, Any] | None]:
    """As vLLM tells them: null, then for each token first the real one, then the `others` likeliest.

    A word that stood before is likelier, so that a passage with the question's words scores higher.
    """
    seen: set[str] = set()
    found: list[dict[str, Any] | None] = []
    for token in tokens_of(prompt):
        word = token.strip().lower()
        entry = {_token_id(token): {"logprob": -0.5 if word in seen else -4.0, "rank": 9, "decoded_token": token}}
        for rank in range(1, others + 1):
            entry[str(-rank)] = {"logprob": -0.25 * rank, "rank": rank, "decoded_token": "?"}
        found.append(entry if found else None)
        seen.add(word)
    return found


def embeddings(body: Mapping[str, Any]) -> dict[str, Any]:
    """Unit vectors of 16 dimensions: hashed bags of words."""
    texts = [body["input"]] if isinstance(body["input"], str) else body["input"]
    data = []
    for at, text in enumerate(texts):
        vector = [0.0] * 16
        for word in ["", *text.lower().split()]:
            vector[int(_token_id(word)) % 16] += 1
        length = math.sqrt(sum(x * x for x in vector))
        data.append({"object": "embedding", "index": at, "embedding": [x / length for x in vector]})
    count = sum(len(tokens_of(text)) for text in texts)
    return {"object": "list", "data": data, "usage": {"prompt_tokens": count, "total_tokens": count}}


def score(body: Mapping[str, Any]) -> dict[str, Any]:
    """The share of the question's words that a passage holds; the question may be one for all passages."""
    questions = body.get("queries", body.get("text_1"))
    passages = body.get("documents", body.get("text_2"))
    passages = [passages] if isinstance(passages, str) else passages
    questions = [questions] * len(passages) if isinstance(questions, str) else questions
    pairs = zip(questions, passages, strict=True)
    return {"data": [{"index": i, "object": "score", "score": _overlap(*pair)} for i, pair in enumerate(pairs)]}


def rerank(body: Mapping[str, Any]) -> dict[str, Any]:
    """The same scores, best first, at most `top_n`."""
    scores = [(_overlap(body["query"], text), i) for i, text in enumerate(body["documents"])]
    best = sorted(scores, key=lambda pair: (-pair[0], pair[1]))[: body.get("top_n") or None]
    return {
        "results": [
            {"index": i, "relevance_score": value, "document": {"text": body["documents"][i]}} for value, i in best
        ]
    }


def _overlap(question: str, passage: str) -> float:
    words, there = set(question.lower().split()), set(passage.lower().split())
    return len(words & there) / max(1, len(words))


def _token_id(token: str) -> str:
    return str(int.from_bytes(hashlib.sha256(token.encode()).digest()[:4], "big"))


def _error(message: str, code: int, **more: Any) -> dict[str, Any]:
    return {"error": {"message": message, "type": "Scripted", "param": None, "code": code, **more}}


# --- as a process --------------------------------------------------------------------------------


@contextmanager
def scripted_process(
    folder: Path, *options: str, rules: Sequence[Mapping[str, Any]] = ()
) -> Iterator[tuple[str, Path]]:
    """(URL, log) of a server in a process of its own, which is killed at the end; its files are in `folder`."""
    port, log = folder / "port", folder / "log.jsonl"
    (folder / "rules.json").write_text(json.dumps(list(rules)))
    given = ["--port-file", str(port), "--log", str(log), "--rules", str(folder / "rules.json"), *options]
    process = subprocess.Popen([sys.executable, __file__, *given])
    try:
        while not port.exists():
            assert process.poll() is None, "the scripted server did not start"
            time.sleep(0.02)
        yield f"http://127.0.0.1:{port.read_text()}/v1", log
    finally:
        process.kill()
        process.wait()


async def _main(server: ScriptedServer, port_file: Path) -> None:
    def tell() -> None:
        written = port_file.with_name(port_file.name + ".new")
        written.write_text(str(server.port))
        written.replace(port_file)

    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, server.stop)
    await server.serve(tell)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--port-file", type=Path, required=True, help="gets the port once it is open")
    parser.add_argument("--log", type=Path, help="gets two JSON lines a request")
    parser.add_argument("--rules", type=Path, help=f"a JSON list of rules: {', '.join(f.name for f in fields(Rule))}")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--model", default="scripted")
    parser.add_argument("--key", default="scripted-key", help="empty: none is asked for")
    parser.add_argument("--window", type=int, default=4096)
    parser.add_argument("--cache-block", type=int, default=0)
    parser.add_argument("--first-ms", type=float, default=0.0)
    parser.add_argument("--token-ms", type=float, default=0.0)
    asked = parser.parse_args()
    server = ScriptedServer(
        [Rule(**rule) for rule in json.loads(asked.rules.read_text())] if asked.rules else (),
        model=asked.model,
        key=asked.key or None,
        window=asked.window,
        cache_block=asked.cache_block,
        speed=(asked.first_ms, asked.token_ms),
        log=asked.log,
        port=asked.port,
    )
    asyncio.run(_main(server, asked.port_file))


if __name__ == "__main__":
    main()
