"""What every language model must do, whoever runs it: the fake, and the client of a server."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from scripted_llm import Rule, ScriptedServer

from workbench.errors import CallError
from workbench.models.protocols import LanguageModel, Request
from workbench.serving.languages import Languages
from workbench.settings import Settings
from workbench.specs import Answer

Make = Callable[..., LanguageModel]


@pytest.fixture(params=["fake", "served"])
def make(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Make]:
    """Makes a model that answers well, or whose calls fail after the first `fail_after`."""
    with contextlib.ExitStack() as stack:

        def one(concurrency: int = 3, fail_after: int | None = None) -> LanguageModel:
            if request.param == "fake":
                options = "" if fail_after is None else f"?fail_after={fail_after}"
                settings, model = Settings(home=tmp_path), f"fake:words{options}"
            else:
                rules = [] if fail_after is None else [Rule(times=fail_after), Rule(status=400)]
                server = stack.enter_context(ScriptedServer(rules=rules, key=None))
                settings, model = Settings(home=tmp_path, llm_url=server.url), server.model
            languages = Languages(settings, tmp_path / "cache")
            stack.callback(languages.close)
            return languages.model(Answer(model=model, concurrency=concurrency))

        yield one


def chats(count: int) -> list[Request]:
    return [
        Request(
            "chat",
            {"messages": [{"role": "user", "content": f"say the number {i}"}], "max_tokens": 8, "temperature": 0},
        )
        for i in range(count)
    ]


def test_every_request_is_answered_once(make: Make) -> None:
    model = make()
    calls = dict(model.stream(chats(17)))
    assert sorted(calls) == list(range(17))
    for i, call in calls.items():
        assert str(i) in call.text
        assert call.finish_reason in ("stop", "length")
        assert call.prompt_tokens > 0
        assert call.output_tokens >= 1
        assert 0 <= call.ttft_ms <= call.e2e_ms
        assert len(call.itl_ms) <= call.output_tokens
        assert (call.attempts, call.faults) == (1, ())


def test_equal_requests_have_equal_answers(make: Make) -> None:
    model = make()
    request = chats(3)[2]
    texts = {call.text for _, call in model.stream([request] * 5)}
    assert len(texts) == 1


def test_no_requests_are_no_calls(make: Make) -> None:
    assert list(make().stream([])) == []


def test_calls_that_finish_come_before_the_failure(make: Make) -> None:
    model = make(fail_after=5)
    found = []
    with pytest.raises(CallError):
        for index, _ in model.stream(chats(40)):
            found.append(index)
    assert 5 <= len(found) <= 5 + 3, "what was on the way is kept, and nothing more is sent"


def test_a_closed_stream_can_be_followed_by_another(make: Make) -> None:
    model = make()
    stream = model.stream(chats(9))
    next(stream)
    stream.close()
    assert len(list(model.stream(chats(4)))) == 4


def test_a_scored_prompt_gives_one_number_for_each_token_from_the_second_on(make: Make) -> None:
    model = make()
    body = {
        "prompt": "a harbor gate opens . who opens the gate",
        "max_tokens": 1,
        "temperature": 0,
        "prompt_logprobs": 0,
    }
    ((_, call),) = model.stream([Request("completion", body)])
    assert len(call.logprobs) == call.prompt_tokens - 1
    assert all(value < 0 for value in call.logprobs)


def test_the_identity_holds_no_key(make: Make) -> None:
    assert "key" not in str(dict(make().identity)).lower()
