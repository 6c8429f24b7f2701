"""The streaming client against a scripted server over real sockets, and its parts against any input."""

from __future__ import annotations

import asyncio
import email.utils
import gc
import itertools
import json
import math
import signal
import subprocess
import sys
import textwrap
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr
from scripted_llm import Rule, ScriptedServer, scripted_process

from workbench.errors import CallError, ModelError
from workbench.models.llm import Background, Endpoint, LlmClient, RetryPolicy
from workbench.models.protocols import Call, Request
from workbench.models.retrying import Fault, retry_after, status_fault
from workbench.models.streaming import Reading

KEY = SecretStr("scripted-key")
Open = Callable[..., LlmClient]


def chat(text: str, **more: Any) -> Request:
    return Request("chat", {"messages": [{"role": "user", "content": text}], "max_tokens": 20, **more})


def completion(text: str, **more: Any) -> Request:
    return Request("completion", {"prompt": text, "max_tokens": 20, **more})


def likelihood(text: str) -> Request:
    return completion(text, prompt_logprobs=0)


@pytest.fixture
def background() -> Iterator[Background]:
    loop = Background()
    yield loop
    loop.close()


@pytest.fixture
def waits() -> list[float]:
    """What the clients of `client` would have slept between attempts."""
    return []


@pytest.fixture
def client(background: Background, waits: list[float]) -> Iterator[Open]:
    """Opens clients of a server; they do not sleep between attempts, and draw 0.5."""
    opened: list[LlmClient] = []

    async def sleep(seconds: float) -> None:
        waits.append(seconds)

    def open_one(server: ScriptedServer, **options: Any) -> LlmClient:
        def connect(_: Endpoint | None) -> Endpoint:
            return Endpoint(server.url, KEY)

        settings: dict[str, Any] = {"connect": connect, "model": "scripted", "draw": lambda: 0.5, "sleep": sleep}
        opened.append(LlmClient(background, **(settings | options)))
        return opened[-1]

    yield open_one
    for one in opened:
        one.close()


def only(client: LlmClient, request: Request) -> Call:
    ((position, call),) = client.stream([request])
    assert position == 0
    return call


# --- what a call says ----------------------------------------------------------------------------


def test_a_chat_is_streamed_and_measured(client: Open) -> None:
    with ScriptedServer([Rule(text="one two three four", first_ms=30, token_ms=20)]) as server:
        call = only(client(server), chat("count"))
    assert (call.text, call.finish_reason) == ("one two three four", "stop")
    assert (call.prompt_tokens, call.output_tokens, call.cached_tokens) == (1, 4, None)
    assert (call.attempts, call.faults, call.logprobs) == (1, (), ())
    assert len(call.itl_ms) == 3
    # Lower bounds alone: the server waited at least that long.
    assert call.ttft_ms >= 25
    assert sum(call.itl_ms) >= 50
    assert call.ttft_ms + sum(call.itl_ms) <= call.e2e_ms + 1e-6


def test_a_completion_is_streamed(client: Open) -> None:
    with ScriptedServer() as server:
        call = only(client(server), completion("a line\nthe last line", max_tokens=2))
        assert server.log[0]["path"] == "/v1/completions"
    assert (call.text, call.finish_reason, len(call.itl_ms)) == ("the last", "length", 1)


@pytest.mark.parametrize("others", [0, 2])
def test_log_probabilities_of_the_real_tokens(client: Open, others: int) -> None:
    with ScriptedServer() as server:
        call = only(client(server), completion("red red blue red", max_tokens=1, prompt_logprobs=others))
        assert server.bodies[0]["stream"] is False
    assert call.logprobs == (-0.5, -4.0, -0.5)
    assert call.ttft_ms == call.e2e_ms > 0
    assert call.itl_ms == ()


def test_a_whole_answer_without_log_probabilities_is_refused(client: Open) -> None:
    with ScriptedServer(lambda body: body.pop("prompt_logprobs") and None) as server:
        with pytest.raises(CallError, match=r"no prompt_logprobs.*use vLLM"):
            only(client(server), completion("two words", prompt_logprobs=1))
        assert server.counts["received"] == 1


def test_the_body_travels_as_it_is(client: Open) -> None:
    body = {
        "messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "line\u2028separator é \x85 🦉"}],
        "max_tokens": 20,
        "structured_outputs": {"choice": ["yes", "no"]},
        "cache_salt": "pepper",
        "chat_template_kwargs": {"enable_thinking": False},
        "temperature": 0.0,
    }
    with ScriptedServer() as server:
        call = only(client(server), Request("chat", body))
        sent = server.bodies[0]
    assert sent == {**body, "model": "scripted", "stream": True, "stream_options": {"include_usage": True}}
    assert call.text in ("yes", "no")


def test_separators_of_other_alphabets_end_no_line(client: Open) -> None:
    with ScriptedServer([Rule(text="a\u2028b c\x85d e\rf g\x0bh")]) as server:
        assert only(client(server), chat("x")).text == "a\u2028b c\x85d e\rf g\x0bh"


def test_an_answer_that_fits_a_schema(client: Open) -> None:
    schema = {
        "type": "object",
        "properties": {"verdict": {"enum": [1, 0]}, "why": {"$ref": "#/$defs/w"}},
        "$defs": {"w": {"type": "array", "minItems": 2, "items": {"type": "string", "maxLength": 4}}},
    }
    asked = {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}
    with ScriptedServer() as server:
        text = only(client(server), chat("judge", response_format=asked)).text
    assert json.loads(text) == {"verdict": 1, "why": ["scri", "scri"]}


def test_cached_tokens_are_whole_blocks_of_the_same_salt(client: Open) -> None:
    with ScriptedServer(cache_block=4) as server:
        one = client(server, concurrency=1)
        texts = ["a b c d e f g h i", "a b c d e f g h j", "a b c d x f g h i"]
        cached = [only(one, chat(text)).cached_tokens for text in texts]
        cached.append(only(one, chat(texts[0], cache_salt="other")).cached_tokens)
    with ScriptedServer([Rule(cached_tokens=3)]) as server:
        cached.append(only(client(server), chat("x")).cached_tokens)
    assert cached == [0, 8, 4, 0, 3]


def test_a_server_without_a_key(client: Open) -> None:
    with ScriptedServer(key=None) as server:
        assert only(client(server, connect=lambda _: Endpoint(server.url)), chat("hello")).text == "hello"


def test_an_answer_without_text(client: Open) -> None:
    with ScriptedServer([Rule(text="")]) as server:
        call = only(client(server), chat("x"))
    assert (call.text, call.output_tokens, call.itl_ms) == ("", 0, ())
    assert 0 < call.ttft_ms <= call.e2e_ms


def test_nothing_to_ask(client: Open) -> None:
    with ScriptedServer() as server:
        assert list(client(server).stream([])) == []


# --- order, concurrency, memory ------------------------------------------------------------------


def test_requests_go_out_in_order_and_never_too_many_at_once(client: Open) -> None:
    with ScriptedServer(speed=(5, 0)) as server:
        found = dict(client(server, concurrency=4).stream([chat(f"number {i}") for i in range(40)]))
        sent = [line["end_of_prompt"] for line in server.log if "digest" in line]
        assert server.peak == 4
    assert {i: call.text for i, call in found.items()} == {i: f"number {i}" for i in range(40)}
    # Connections of one moment may be served in any order.
    places = [int(text.split()[1]) for text in sent]
    assert all(abs(place - at) < 4 for at, place in enumerate(places))


def test_one_at_a_time_keeps_the_order(client: Open) -> None:
    with ScriptedServer() as server:
        found = [i for i, _ in client(server, concurrency=1).stream([chat(f"{i}") for i in range(20)])]
        assert [line["end_of_prompt"] for line in server.log if "digest" in line] == [str(i) for i in range(20)]
    assert found == list(range(20))


def test_each_is_yielded_as_it_finishes(client: Open) -> None:
    with ScriptedServer([Rule("slow", text="a b", token_ms=300)]) as server:
        assert [i for i, _ in client(server).stream([chat("slow"), chat("fast")])] == [1, 0]


def test_what_was_yielded_is_forgotten(client: Open) -> None:
    with ScriptedServer() as server:
        alive = 0
        for i, call in client(server, concurrency=2).stream([chat("x")] * 60):
            del call
            if i == 55:
                alive = sum(type(found) is Call for found in gc.get_objects())
    # Those that wait to be taken are at most the ones that finished meanwhile.
    assert alive <= 6


def test_many_threads_share_the_bound(client: Open) -> None:
    wrong: list[object] = []
    with ScriptedServer(speed=(2, 0)) as server:
        one = client(server, concurrency=5)

        def ask(thread: int) -> None:
            requests = [chat(f"{thread} {i}") for i in range(10)]
            found = {i: call.text for i, call in one.stream(requests)}
            if found != {i: f"{thread} {i}" for i in range(10)}:
                wrong.append(found)

        threads = [threading.Thread(target=ask, args=(i,)) for i in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not wrong
        assert (server.counts["ok"], server.peak) == (80, 5)


def test_inside_a_running_loop(client: Open) -> None:
    async def cell(server: ScriptedServer) -> list[str]:
        return [call.text for _, call in client(server).stream([chat("hello")])]

    with ScriptedServer() as server:
        assert asyncio.run(cell(server)) == ["hello"]


# --- faults that heal ----------------------------------------------------------------------------

HEALING: list[tuple[str, dict[str, Any]]] = [
    ("503", {"status": 503}),
    ("500", {"status": 500}),
    ("408", {"status": 408}),
    ("409", {"status": 409}),
    ("429", {"status": 429}),
    ("disconnected", {"fault": "drop"}),
    ("disconnected", {"fault": "drop", "after": 2}),
    ("malformed", {"fault": "malformed", "after": 1}),
    ("aborted", {"fault": "abort"}),
    ("error event", {"fault": "error_event", "after": 2}),
    ("error event", {"fault": "error_event", "error_code": 503}),
    ("cut short", {"fault": "no_finish", "after": 1}),
]
SILENT: list[tuple[str, dict[str, Any]]] = [
    ("timeout", {"fault": "hang", "after": 1}),
    ("timeout", {"first_ms": 60_000}),
]


@pytest.mark.parametrize("ask", [chat, completion, likelihood], ids=lambda ask: ask.__name__)
@pytest.mark.parametrize("cases", [HEALING, SILENT], ids=["answers", "silence"])
def test_a_fault_that_passes_is_tried_again(client: Open, cases: list[tuple[str, dict[str, Any]]], ask: Any) -> None:
    cases = [(word, how) for word, how in cases if ask is not likelihood or word not in ("error event", "cut short")]
    rules = [Rule(f"case{i}.", times=2, **how) for i, (_, how) in enumerate(cases)]
    with ScriptedServer(rules) as server:
        one = client(server, policy=RetryPolicy(silence=0.4 if cases[0] in SILENT else 60))
        calls = dict(one.stream([ask(f"one two case{i}.") for i in range(len(cases))]))
        assert server.counts["received"] == 3 * len(cases)
    for i, (word, how) in enumerate(cases):
        assert calls[i].text == f"one two case{i}.", how
        assert (calls[i].attempts, calls[i].faults) == (3, (word, word)), how
        assert calls[i].output_tokens == 3
        assert len(calls[i].itl_ms) == (0 if ask is likelihood else 2)


def test_times_are_those_of_the_attempt_that_succeeded(client: Open) -> None:
    with ScriptedServer([Rule(times=1, status=503, first_ms=300)]) as server:
        start = time.perf_counter()
        call = only(client(server), chat("x"))
        whole = (time.perf_counter() - start) * 1000
    assert 0 < call.ttft_ms <= call.e2e_ms <= whole - 290


def test_the_backoff_doubles_and_retry_after_is_honoured(client: Open, waits: list[float]) -> None:
    date = email.utils.formatdate(time.time() + 50, usegmt=True)
    rules = [
        Rule(times=2, status=503),
        Rule(times=1, status=429, retry_after="7"),
        Rule(times=1, status=503, retry_after=date),
        Rule(times=1, status=503, retry_after="100000"),
    ]
    with ScriptedServer(rules) as server:
        only(client(server, policy=RetryPolicy(base=1, longest_wait=60)), chat("x"))
    assert waits[:3] == [0.5, 1.0, 7.0]
    assert 30 < waits[3] <= 50
    assert waits[4] == 60


def test_a_server_that_died_is_replaced_once_for_all(client: Open) -> None:
    with ScriptedServer([Rule(fault="drop", after=1)]) as old, ScriptedServer(key="new") as new:
        asked: list[Endpoint | None] = []

        def connect(failed: Endpoint | None) -> Endpoint:
            asked.append(failed)
            return Endpoint(new.url, SecretStr("new")) if failed else Endpoint(old.url, KEY)

        found = dict(client(old, connect=connect).stream([chat(f"number {i}") for i in range(30)]))
        assert (old.counts["received"], new.counts["ok"]) == (8, 30)
    assert [found[i].text for i in range(30)] == [f"number {i}" for i in range(30)]
    assert asked == [None, Endpoint(old.url, KEY)]
    assert [found[i].faults for i in range(30)] == [("disconnected",)] * 8 + [()] * 22


def test_the_same_endpoint_may_be_the_next_one(client: Open) -> None:
    with ScriptedServer([Rule(fault="drop", times=8)]) as server:
        asked: list[Endpoint | None] = []

        def connect(failed: Endpoint | None) -> Endpoint:
            asked.append(failed)
            return Endpoint(server.url, KEY)

        found = list(client(server, connect=connect).stream([chat("x")] * 20))
    assert len(found) == 20
    assert len(asked) == 2


def test_a_port_where_nobody_listens(client: Open) -> None:
    with ScriptedServer() as gone:
        url = gone.url
    with ScriptedServer() as server:
        one = client(server, connect=lambda failed: Endpoint(server.url if failed else url, KEY))
        assert only(one, chat("x")).faults == ("refused",)


# --- faults that stay ----------------------------------------------------------------------------


@pytest.mark.parametrize("status", [400, 401, 403, 404, 413, 422])
def test_a_refusal_is_final(client: Open, status: int, waits: list[float]) -> None:
    rule = Rule("bad", status=status, message="because of that")
    with ScriptedServer([rule]) as server:
        with pytest.raises(CallError) as failed:
            only(client(server), chat("bad prompt, this one"))
        assert server.counts["received"] == 1
        where = f"request 0 to scripted at {server.url}"
    assert failed.value.where == where
    assert f"the server said {status}: because of that" in failed.value.what
    assert "'bad prompt, this one'" in failed.value.what
    assert failed.value.hint
    assert waits == []


def test_an_error_event_may_be_final(client: Open) -> None:
    with ScriptedServer([Rule(fault="error_event", error_code=400, message="no such schema")]) as server:
        with pytest.raises(CallError, match="400: no such schema"):
            only(client(server), chat("x"))
        assert server.counts["received"] == 1


def test_a_wrong_key_is_explained_and_never_shown(client: Open) -> None:
    secret = SecretStr("sk-secret")
    with ScriptedServer() as server, pytest.raises(CallError, match=r"401: Unauthorized.*WORKBENCH_LLM_KEY"):
        only(client(server, connect=lambda _: Endpoint(server.url, secret)), chat("x"))
    with (
        ScriptedServer([Rule(status=403, message="sk-secret is out of money")], key="sk-secret") as server,
        pytest.raises(CallError, match=r"\*\*\*\* is out of money") as failed,
    ):
        only(client(server, connect=lambda _: Endpoint(server.url, secret)), chat("x"))
    assert "sk-secret" not in f"{failed.value} {failed.value!r} {Endpoint('http://u:sk-secret@h/v1', secret)!r}"


def test_a_wrong_model_is_told_which_there_are(client: Open) -> None:
    with ScriptedServer(model="the-one") as server:
        with pytest.raises(CallError, match=r"no model 'scripted' here.*the server has the-one"):
            only(client(server), chat("x"))
        elsewhere = client(server, connect=lambda _: Endpoint(server.url.removesuffix("/v1"), KEY))
        with pytest.raises(CallError, match="most URLs end in /v1"):
            only(elsewhere, chat("x"))


def test_a_prompt_that_is_too_long_says_the_numbers(client: Open) -> None:
    with ScriptedServer(window=30) as server, pytest.raises(CallError) as failed:
        only(client(server), chat("word " * 25))
    assert "do not fit in the model's window" in failed.value.what
    assert "26 prompt tokens and 20 to write" in failed.value.what
    assert "30 tokens" in failed.value.what
    assert "max_model_len" in str(failed.value.hint)


def test_attempts_end(client: Open, waits: list[float]) -> None:
    with ScriptedServer([Rule(status=503, message="busy")]) as server:
        with pytest.raises(CallError, match=r"503: busy after 3 attempts \(503, 503, 503\)"):
            only(client(server, policy=RetryPolicy(attempts=3)), chat("x"))
        assert server.counts["received"] == 3
    assert len(waits) == 2


def test_the_deadline_ends_an_attempt_and_the_waiting(client: Open, waits: list[float]) -> None:
    with ScriptedServer([Rule(fault="hang", after=1)]) as server:
        with pytest.raises(CallError, match=r"no whole answer within 0\.2 s"):
            only(client(server, policy=RetryPolicy(deadline=0.2)), chat("one two"))
        server.wait(lambda counts: counts["disconnected"] == 1)
    with ScriptedServer([Rule(status=503, retry_after="50")]) as server:
        with pytest.raises(CallError, match="503"):
            only(client(server, policy=RetryPolicy(deadline=40)), chat("x"))
        assert server.counts["received"] == 1
    assert waits == []


def test_a_server_that_counts_nothing_is_refused(client: Open) -> None:
    with ScriptedServer([Rule(fault="no_usage")]) as server:
        with pytest.raises(CallError, match="no usage"):
            only(client(server), chat("x"))
        assert server.counts["received"] == 1


def test_a_page_that_is_no_answer_is_shown(client: Open) -> None:
    """As of a proxy's login page, answered with 200."""
    with pytest.raises(Fault) as fault:
        Reading(0.0).feed(b"<html>\n<p>please log in</p>\n", 1.0)
    assert "<html>" in fault.value.said


def test_after_a_failure_nothing_is_sent_and_what_is_on_the_way_is_kept(client: Open) -> None:
    rules = [Rule("bad", status=400, first_ms=50), Rule(text="a b c", token_ms=60, first_ms=60)]
    with ScriptedServer(rules) as server:
        requests = [chat(f"good {i}") for i in range(10)]
        requests[1] = chat("bad")
        found: list[int] = []
        with pytest.raises(CallError, match="request 1 "):
            for i, call in client(server, concurrency=3).stream(requests):
                assert call.text == "a b c"
                found.append(i)
        assert sorted(found) == [0, 2]
        assert server.counts == {"received": 3, "400": 1, "ok": 2}


def test_no_server_to_connect_to(client: Open) -> None:
    def connect(_: Endpoint | None) -> Endpoint:
        raise ModelError("the model's files are gone")

    with ScriptedServer() as server, pytest.raises(ModelError, match="files are gone"):
        only(client(server, connect=connect), chat("x"))


@pytest.mark.parametrize("url", ["", "localhost:8000/v1", "ftp://host/v1", "http://", "//host/v1"])
def test_an_endpoint_is_a_url(url: str) -> None:
    with pytest.raises(ModelError, match="no URL of a server"):
        Endpoint(url)


# --- cancelling and closing ----------------------------------------------------------------------


def test_closing_the_iterator_cancels_what_is_on_the_way(client: Open) -> None:
    with ScriptedServer([Rule("slow", fault="hang", after=1)]) as server:
        one = client(server, concurrency=4)
        calls = one.stream([chat("quick"), *[chat("slow and long")] * 20])
        assert next(calls)[0] == 0
        server.wait(lambda counts: counts["received"] == 5)
        calls.close()
        server.wait(lambda counts: counts["disconnected"] == 4)
        assert server.counts["received"] == 5
        assert only(one, chat("and on it goes")).text == "and on it goes"


def test_an_interrupt_cancels_what_is_on_the_way(client: Open) -> None:
    main = threading.main_thread().ident
    assert main is not None
    with ScriptedServer([Rule(fault="hang", after=1)]) as server:

        def interrupt() -> None:
            server.wait(lambda counts: counts["received"] == 2)
            signal.pthread_kill(main, signal.SIGINT)

        thread = threading.Thread(target=interrupt)
        thread.start()
        with pytest.raises(KeyboardInterrupt):
            list(client(server).stream([chat("a b")] * 2))
        thread.join()
        server.wait(lambda counts: counts["disconnected"] == 2)


@pytest.mark.parametrize("what", ["client", "background"])
def test_closing_ends_a_stream_that_waits(background: Background, what: str) -> None:
    with ScriptedServer([Rule(fault="hang")]) as server:
        client = LlmClient(background, lambda _: Endpoint(server.url, KEY), "scripted")

        def close() -> None:
            server.wait(lambda counts: counts["received"] == 1)
            client.close()
            if what == "background":
                background.close()

        thread = threading.Thread(target=close)
        thread.start()
        with pytest.raises(ModelError, match="closed while calls were on the way"):
            only(client, chat("x"))
        thread.join()
        server.wait(lambda counts: counts["disconnected"] == 1)
        for _ in range(2):
            client.close()
            with pytest.raises(ModelError, match="closed"):
                only(client, chat("x"))


def test_closing_does_not_wait_for_a_server_that_starts(background: Background) -> None:
    began, release = threading.Event(), threading.Event()

    def connect(_: Endpoint | None) -> Endpoint:
        began.set()
        release.wait(20)
        return Endpoint("http://127.0.0.1:1/v1")

    client = LlmClient(background, connect, "scripted")
    thread = threading.Thread(target=lambda: (began.wait(20), client.close()))
    thread.start()
    with pytest.raises(ModelError, match="closed while"):
        only(client, chat("x"))
    thread.join()
    release.set()


def test_an_unused_background_has_no_thread() -> None:
    before = threading.active_count()
    background = Background()
    assert threading.active_count() == before
    background.close()
    background.close()
    with pytest.raises(ModelError, match="closed"):
        background.run(asyncio.sleep(0))


@pytest.mark.slow
def test_a_process_ends_with_a_stream_half_read() -> None:
    """Its finaliser runs when threads are gone; nothing is left on the way, and nothing is said."""
    script = """
    import sys
    from pydantic import SecretStr
    from workbench.models.llm import Background, Endpoint, LlmClient
    from workbench.models.protocols import Request
    client = LlmClient(Background(), lambda _: Endpoint(sys.argv[1], SecretStr("scripted-key")), "scripted")
    body = {"messages": [{"role": "user", "content": "a b c"}], "max_tokens": 9}
    calls = client.stream([Request("chat", body)] * 50)
    print(next(calls)[0])
    """
    with ScriptedServer([Rule(times=1), Rule(fault="hang", after=1)]) as server:
        command = [sys.executable, "-W", "ignore", "-c", textwrap.dedent(script), server.url]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        server.wait(lambda counts: counts["ok"] + counts["disconnected"] == counts["received"])
    assert (done.returncode, done.stdout) == (0, "0\n"), done.stderr


def test_the_scripted_server_as_a_process(background: Background, tmp_path: Path) -> None:
    rules: list[Mapping[str, Any]] = [{"match": "again", "times": 1, "status": 503}]
    with scripted_process(tmp_path, "--model", "m", "--key", "k", rules=rules) as (url, log):
        client = LlmClient(background, lambda _: Endpoint(url, SecretStr("k")), "m", policy=RetryPolicy(base=0))
        assert only(client, chat("say it again")).faults == ("503",)
        client.close()
        lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert [line.get("outcome") for line in lines] == [None, "503", None, "ok"]


# --- any input -----------------------------------------------------------------------------------


def events(text: str, pieces: int) -> bytes:
    step = max(1, math.ceil(len(text) / pieces))
    parts = [text[i : i + step] for i in range(0, len(text), step)]
    said: list[Any] = [{"choices": [{"delta": {"role": "assistant", "content": ""}}]}]
    said += [{"choices": [{"delta": {"content": part}}]} for part in parts]
    said.append({"choices": [{"delta": {}, "finish_reason": "stop"}]})
    said.append({"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": len(parts)}})
    lines = [": ping", *(json.dumps(event, ensure_ascii=False) for event in said)]
    text = "".join(line + "\n" if line[0] == ":" else f"data: {line}\r\n\r\n" for line in lines)
    return (text + "data: [DONE]\n\n").encode("utf-8", "surrogatepass")


@given(st.text(st.characters(exclude_categories=["Cs"])), st.integers(1, 9), st.lists(st.integers(0, 2000)))
def test_a_stream_may_be_cut_anywhere(text: str, pieces: int, cuts: list[int]) -> None:
    data = events(text, pieces)
    places = sorted({0, len(data), *(cut % len(data) for cut in cuts)})
    reading = Reading(0.0)
    for now, (start, end) in enumerate(itertools.pairwise(places), start=1):
        reading.feed(data[start:end], float(now))
    call = reading.call(())
    assert call.text == text.replace("\0", "\ufffd"), "PostgreSQL holds no U+0000"
    assert call.finish_reason == "stop"
    assert len(call.itl_ms) == max(0, call.output_tokens - 1)
    assert 0 < call.ttft_ms <= call.e2e_ms
    assert call.ttft_ms + sum(call.itl_ms) <= call.e2e_ms


@given(st.text(), st.integers(1, 9), st.data())
def test_a_stream_that_stops_early_is_no_answer(text: str, pieces: int, data: st.DataObject) -> None:
    text = text.encode("utf-8", "ignore").decode()
    whole = events(text, pieces)
    usage = whole.index(b'"usage"')
    reading = Reading(0.0)
    with pytest.raises(Fault, match="cut short"):
        reading.feed(whole[: data.draw(st.integers(0, usage))], 1.0)
        reading.call(())


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(["choices", "usage", "error", "x"]), inner),
    max_leaves=8,
)


@given(st.binary() | JSON.map(lambda value: b"data: " + json.dumps(value).encode() + b"\n"), st.booleans())
def test_any_bytes_are_a_fault_at_worst(data: bytes, whole: bool) -> None:
    reading = Reading(0.0, logprobs=whole)
    with pytest.raises(Fault):
        (reading.take if whole else reading.feed)(data, 1.0)
        reading.call(())


@given(st.integers(1, 10_000), st.none() | st.floats(0, 1e9), st.floats(0, 1, exclude_max=True))
def test_a_pause_is_bounded(failures: int, asked: float | None, draw: float) -> None:
    policy = RetryPolicy()
    pause = policy.pause(failures, asked, draw)
    assert 0 <= pause <= max(policy.cap, policy.longest_wait)
    assert pause >= min(asked or 0, policy.longest_wait)


@given(st.text(), st.floats(0, 2e9))
def test_any_retry_after_is_seconds_or_nothing(value: str, now: float) -> None:
    seconds = retry_after(value, now)
    assert seconds is None or seconds >= 0


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("3", 3),
        ("0.5", 0.5),
        ("-3", 0),
        ("nan", None),
        ("soon", None),
        (None, None),
        ("Thu, 01 Jan 1970 00:02:00 GMT", 20),
        ("Thu, 01 Jan 1970 00:00:00 GMT", 0),
    ],
)
def test_retry_after(value: str | None, seconds: float | None) -> None:
    assert retry_after(value, 100.0) == seconds


@given(st.integers(400, 599), JSON)
def test_any_error_body_is_said(status: int, body: object) -> None:
    fault = status_fault(status, body, {}, 0.0)
    assert fault.said
    assert fault.hint
    assert fault.retry == (status in (408, 409, 429) or status >= 500)


# --- what must never get out, and what must always come in ---------------------------------------


def test_a_key_stands_in_no_traceback(client: Open) -> None:
    secret = "sk-" + "abcdefgh" * 8
    for padding in (0, 480):  # also where a limit on the length of messages would cut it
        rule = Rule(status=400, message="x" * padding + f"bad key {secret}")
        with ScriptedServer(rules=[rule], key=secret) as server:
            endpoint = Endpoint(server.url, SecretStr(secret))
            with pytest.raises(CallError) as failure:
                only(client(server, connect=lambda _, found=endpoint: found), chat("hello"))
            shown = "".join(traceback.format_exception(failure.value))
            assert secret not in shown
            assert secret[:20] not in shown
            del failure


def test_a_proxy_of_the_environment_sees_no_call_to_this_machine(client: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    with ScriptedServer() as server:
        assert only(client(server), chat("hello")).attempts == 1


@pytest.mark.parametrize("said", ["a\0b", "lone \ud83d here", "fine \U0001f600"])
def test_every_answer_can_be_stored(said: str) -> None:
    reading = Reading(0.0)
    choice = {"delta": {"content": said}, "finish_reason": "stop"}
    usage = {"prompt_tokens": 1, "completion_tokens": 1}
    reading.take(json.dumps({"choices": [choice], "usage": usage}).encode(), 1.0)
    text = reading.call([]).text
    assert "\0" not in text
    text.encode()
    assert len(text) == len(said)
