"""What a model is shown stays within its window whatever comes; what is read in its answer stays among the shown."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from numpy.typing import NDArray

from workbench.errors import InputError
from workbench.models.chat import ByteTokenizer
from workbench.models.protocols import Chat, ChatTokenizer
from workbench.records import Query
from workbench.specs import Answer
from workbench.stages.generation import LEAD_IN, REFUSAL, Asked, Parsed, Passage, build, parse
from workbench.stages.prompting import Prompt, load_prompt


class Words:
    """Counts words and signs; like a real template it adds some tokens to each message and one at the end."""

    identity: dict[str, Any] = {"tokenizer": "words"}  # noqa: RUF012

    def spans(self, text: str) -> NDArray[np.int64]:
        return np.array([m.span() for m in re.finditer(r"\w+|[^\w\s]", text)], dtype=np.int64).reshape(-1, 2)

    def chat_ids(self, messages: Chat) -> Sequence[int]:
        return range(1 + sum(3 + len(self.spans(m["content"])) for m in messages))

    def prompt_ids(self, text: str) -> Sequence[int]:
        return range(len(self.spans(text)))


PROMPT = load_prompt("answer-1")
SHORT = Prompt("short", "", "{% for p in passages %}[{{ p.number }}] {{ p.text }}\n{% endfor %}{{ question }}")
TEXT = st.text(st.characters(exclude_categories=["Cs"]) | st.sampled_from("ab é東🙂 \n[1]"), max_size=60)
PASSAGES = st.lists(st.tuples(TEXT, TEXT), max_size=6).map(
    lambda rows: [Passage(100 - i, title, text) for i, (title, text) in enumerate(rows)]
)


def fitted(asked: Asked, spec: Answer, tokenizer: ChatTokenizer, passages: Sequence[Passage], window: int) -> None:
    assert len(tokenizer.chat_ids(asked.messages)) == asked.prompt_tokens
    assert asked.prompt_tokens + spec.max_tokens <= min(window, spec.max_model_len)
    assert list(asked.shown) == [p.chunk_no for p in passages[: len(asked.shown)]]
    assert len(asked.shown) + asked.dropped == len(passages)


@pytest.mark.parametrize("prompt", [PROMPT, SHORT])
@pytest.mark.parametrize("tokenizer", [Words(), ByteTokenizer()])
@given(PASSAGES, TEXT, st.integers(2, 1200), st.integers(1, 100), st.integers(1, 1200))
def test_never_over_the_window(
    prompt: Prompt,
    tokenizer: ChatTokenizer,
    passages: list[Passage],
    question: str,
    length: int,
    answer: int,
    window: int,
) -> None:
    assume(answer < length)
    spec = Answer(max_model_len=length, max_tokens=answer)
    query = Query("q", question)
    try:
        asked = build(spec, prompt, query, passages, tokenizer, window)
    except InputError:
        bare = prompt.messages(passages=[], question=question, refusal=REFUSAL)
        assert len(tokenizer.chat_ids(bare)) + answer > min(window, length)
        return
    fitted(asked, spec, tokenizer, passages, window)
    assert asked.messages[-1]["content"].endswith(question)
    if asked.shown and asked.dropped and len(asked.shown) > 1:  # one more would not have fitted
        more = [{"number": i, "title": p.title, "text": p.text} for i, p in enumerate(passages, 1)]
        fuller = prompt.messages(passages=more[: len(asked.shown) + 1], question=question, refusal=REFUSAL)
        assert len(tokenizer.chat_ids(fuller)) + answer > min(window, length)


def passage(no: int, words: int) -> Passage:
    return Passage(no, "", " ".join(f"w{no}x{i}" for i in range(words)))


def words_shown(asked: Asked) -> list[str]:
    return re.findall(r"w\d+x\d+", asked.messages[-1]["content"])


@pytest.mark.parametrize(
    ("length", "shown", "words"),
    [
        # 4 tokens of template, 1 of question, 4 of answer; 3 for each number and 10 for each passage.
        (9 + 39, (7, 8, 9), 30),
        (9 + 38, (7, 8), 20),
        (9 + 26, (7, 8), 20),
        (9 + 25, (7,), 10),
        (9 + 12, (7,), 9),
        (9 + 4, (7,), 1),
        (9 + 3, (), 0),
        (9, (), 0),
    ],
)
def test_passages_go_from_the_end_and_the_first_is_cut(length: int, shown: tuple[int, ...], words: int) -> None:
    passages = [passage(no, 10) for no in (7, 8, 9)]
    asked = build(Answer(max_model_len=length, max_tokens=4), SHORT, Query("q", "why"), passages, Words())
    assert asked.shown == shown and asked.dropped == 3 - len(shown)
    every = [f"w{p.chunk_no}x{i}" for p in passages for i in range(10)]
    assert words_shown(asked) == every[:words]


def test_a_question_that_does_not_fit_is_named() -> None:
    with pytest.raises(InputError, match=r"query 'long': the question alone makes a prompt of 14 tokens.*room for 12"):
        build(Answer(max_model_len=16, max_tokens=4), SHORT, Query("long", "why " * 10), [passage(1, 3)], Words())
    with pytest.raises(InputError, match="room for 6"):
        build(Answer(), SHORT, Query("q", "why " * 10), [], Words(), window=70)


def test_the_shipped_prompt_puts_what_stays_first_and_the_question_last() -> None:
    two = [Passage(1, "Title", "First."), Passage(2, "", "{{ second }} <b>")]
    chats = [build(Answer(), PROMPT, Query("q", text), two, Words()).messages for text in ("Why?", "How?")]
    assert chats[0][0] == chats[1][0] and chats[0][0]["role"] == "system" and REFUSAL in chats[0][0]["content"]
    assert chats[0][1]["content"] == "[1] Title\nFirst.\n\n[2]\n{{ second }} <b>\n\nQuestion: Why?"


# --- reading answers -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Paris [1].", Parsed((7,), 0, False)),
        ("Paris [2][1][2]", Parsed((8, 7), 0, False)),
        ("Paris [ 3, 1 ; 2 ]", Parsed((9, 7, 8), 0, False)),
        ("Paris [1-3]", Parsed((7, 8, 9), 0, False)),
        ("Paris [3–2]", Parsed((8, 9), 0, False)),
        ("Paris [2-5] [0] [4]", Parsed((8, 9), 3, False)),
        ("In [2019-2021] or [999999999]", Parsed((), 2, False)),
        ("a[x] [1.5] [] [-1] (1) [٣] [1", Parsed((), 0, False)),
        ("[" + "1" * 5000 + "]", Parsed((), 0, False)),
        (REFUSAL, Parsed((), 0, True)),
        (REFUSAL + " [2]", Parsed((8,), 0, True)),
        ('"the passages do not\ncontain the answer"', Parsed((), 0, True)),
        ("I'm sorry, but the passage [1] doesn’t contain an answer to this.", Parsed((7,), 0, True)),
        ("Paris [1]. It is the capital of the whole of France. " + REFUSAL, Parsed((7,), 0, False)),
        ("The passages do contain the answer.", Parsed((), 0, False)),
        ("The compassages do not contain the answer.", Parsed((), 0, False)),
        ("", Parsed((), 0, False)),
    ],
)
def test_reading_an_answer(text: str, expected: Parsed) -> None:
    assert parse(text, (7, 8, 9)) == expected


@given(st.text(st.sampled_from("[]123,-– 0ab")), st.lists(st.integers(0, 50), unique=True, max_size=4))
def test_citations_are_among_the_shown(text: str, shown: list[int]) -> None:
    found = parse(text, shown)
    assert set(found.citations) <= set(shown) and len(set(found.citations)) == len(found.citations)
    assert 0 <= found.uncheckable <= text.count(",") + text.count("]")


@given(st.lists(st.sampled_from(["sorry", "Answer:", "well,"]), max_size=2 * LEAD_IN))
def test_a_refusal_stands_near_the_start(before: list[str]) -> None:
    assert parse(" ".join([*before, REFUSAL]), ()).refused == (len(before) + 1 <= LEAD_IN)
