"""Rankings from scores and from what a model says: permutations of the candidates, whatever it says."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from workbench.errors import CallError, InputError, SpecError, StageError
from workbench.models.chat import ByteTokenizer
from workbench.models.fake_llm import WordTokenizer
from workbench.models.protocols import Call, ChatTokenizer
from workbench.specs import LlmRerank, QueryLikelihood
from workbench.stages.prompting import load_prompt
from workbench.stages.reranking import (
    CODE_VERSIONS,
    UNPARSABLE,
    Listwise,
    ask_pair,
    order,
    parse_grade,
    parse_order,
    window_spans,
)

LIKELIHOOD, RERANK = load_prompt("query-likelihood-1"), load_prompt("rerank-1")
WORDS = st.lists(st.sampled_from(["red", "house", "by", "42", "東京", "🙂", "naïve", ","]), min_size=1).map(" ".join)
CALL = Call("", "length", 1, None, 1, 1.0, (), 1.0, 1)


def answer(text: str = "", logprobs: Sequence[float] = ()) -> Call:
    return replace(CALL, text=text, logprobs=tuple(logprobs))


# --- order ---------------------------------------------------------------------------------------


def test_the_best_first_and_ties_as_they_were() -> None:
    assert order([7, 5, 9, 2], [0.5, 2.0, 0.5, 2.0], 3) == ([5, 2, 7], [2.0, 2.0, 0.5], [2, 4, 1])
    assert order([], [], 3) == ([], [], [])


@given(st.lists(st.floats(-3, 3).map(round)), st.integers(1, 20))
def test_a_ranking_is_a_permutation_of_its_candidates(scores: list[float], k: int) -> None:
    chunk_nos = [100 - i for i in range(len(scores))]
    found = order(chunk_nos, scores, k)
    assert len(found.chunk_nos) == min(k, len(scores)) == len(set(found.chunk_nos))
    for rank, (chunk_no, score, before) in enumerate(zip(*found, strict=True)):
        assert chunk_nos[before - 1] == chunk_no
        assert scores[before - 1] == score
        if rank:
            assert (-found.scores[rank - 1], found.ranks_before[rank - 1]) < (-score, before)
    left = set(chunk_nos) - set(found.chunk_nos)
    assert all(scores[chunk_nos.index(c)] <= found.scores[-1] for c in left)


def test_scores_that_have_no_order() -> None:
    for scores in ([1.0, math.nan], [math.inf, 1.0]):
        with pytest.raises(StageError, match="1 of 2 scores are not finite"):
            order([1, 2], scores, 1)
    with pytest.raises(StageError, match="1 scores for 2 candidates"):
        order([1, 2], [1.0], 1)


def test_every_kind_has_a_code_version() -> None:
    assert set(CODE_VERSIONS) == {"late_interaction", "cross_encoder", "query_likelihood", "llm"}


# --- query likelihood ----------------------------------------------------------------------------


def test_the_score_is_the_mean_over_the_questions_tokens() -> None:
    tokenizer = WordTokenizer()
    asked = ask_pair(QueryLikelihood(), LIKELIHOOD, " where is the house\n", "The house is by the river.", tokenizer)
    assert asked.request.endpoint == "completion"
    body = asked.request.body
    assert body == {"prompt": body["prompt"], "max_tokens": 1, "temperature": 0, "prompt_logprobs": 0}
    assert body["prompt"].endswith(":\nwhere is the house")
    assert "The house is by the river.\n" in body["prompt"]
    total = len(tokenizer.prompt_ids(body["prompt"]))
    assert asked.read(answer(logprobs=[-9.0] * (total - 5) + [-1.0, -2.0, -3.0, -6.0])) == -3.0


def test_log_probabilities_of_other_tokens_are_refused() -> None:
    asked = ask_pair(QueryLikelihood(), LIKELIHOOD, "where", "here", WordTokenizer())
    total = len(WordTokenizer().prompt_ids(asked.request.body["prompt"]))
    for wrong in ((), [-1.0] * total, [-1.0] * (total - 2)):
        with pytest.raises(CallError, match=r"one for each token.*rerank\.tokenizer"):
            asked.read(answer(logprobs=wrong))
    blank = ask_pair(QueryLikelihood(), LIKELIHOOD, " ", "here", WordTokenizer())
    total = len(WordTokenizer().prompt_ids(blank.request.body["prompt"]))
    with pytest.raises(CallError, match="with 0 of the question"):
        blank.read(answer(logprobs=[-1.0] * (total - 1)))


def test_the_question_must_stand_last(tmp_path: Path) -> None:
    (tmp_path / "own.toml").write_text('user = "{{ question }} {{ passage }}"')
    with pytest.raises(SpecError, match="must end with the question"):
        ask_pair(QueryLikelihood(), load_prompt(str(tmp_path / "own.toml")), "q", "p", WordTokenizer())


def test_a_passage_is_cut_after_a_token() -> None:
    passage = "one two three four five six"
    for tokens, shown in ((6, passage), (4, "one two three four"), (1, "one")):
        body = ask_pair(
            QueryLikelihood(passage_tokens=tokens), LIKELIHOOD, "where", passage, WordTokenizer()
        ).request.body
        assert f"Passage:\n{shown}\n\n" in body["prompt"]


TOKENIZERS: list[ChatTokenizer] = [WordTokenizer(), ByteTokenizer()]


@given(WORDS, st.lists(WORDS, min_size=1, max_size=12), st.integers(1, 400), st.sampled_from(TOKENIZERS), st.data())
def test_no_prompt_exceeds_the_window(
    question: str, passages: list[str], room: int, tokenizer: ChatTokenizer, data: st.DataObject
) -> None:
    max_tokens = data.draw(st.integers(1, 30))
    kinds: list[Callable[[], tuple[Any, int]]] = [
        lambda: (
            ask_pair(QueryLikelihood(max_model_len=room), LIKELIHOOD, question, passages[0], tokenizer).request,
            1,
        ),
        lambda: (ask_pair(llm("pointwise"), RERANK, question, passages[0], tokenizer).request, max_tokens),
        lambda: (
            next(
                iter(
                    Listwise(
                        llm("listwise"), RERANK, [question], [range(len(passages))], passages, tokenizer
                    ).requests()
                )
            ),
            max_tokens,
        ),
    ]

    def llm(mode: Any) -> LlmRerank:
        return LlmRerank(mode=mode, max_model_len=room + max_tokens, max_tokens=max_tokens)

    kind = data.draw(st.sampled_from(kinds[: 3 if len(passages) > 1 else 2]))
    limit = room if kind is kinds[0] else room + max_tokens
    try:
        request, answer_tokens = kind()
    except InputError as error:
        assert "the question alone" in str(error)
        return
    ids = (
        tokenizer.chat_ids(request.body["messages"])
        if request.endpoint == "chat"
        else tokenizer.prompt_ids(request.body["prompt"])
    )
    assert request.body["max_tokens"] >= answer_tokens
    assert len(ids) + request.body["max_tokens"] <= limit


def test_a_passage_is_no_shorter_than_it_must_be() -> None:
    """One token less of room, one word less of the passage: nothing is left unused."""
    passage, tokenizer = " ".join(f"w{i}" for i in range(100)), WordTokenizer()
    bare = len(tokenizer.prompt_ids(LIKELIHOOD.messages(passage="", question="where")[-1]["content"]))
    for room in (0, 1, 7, 50, 99, 100, 120):
        spec = QueryLikelihood(max_model_len=bare + 1 + room)
        body = ask_pair(spec, LIKELIHOOD, "where", passage, tokenizer).request.body
        assert len(tokenizer.prompt_ids(body["prompt"])) == bare + min(room, 100)
    with pytest.raises(InputError, match=rf"makes a prompt of {bare} tokens, and there is room for {bare - 1}"):
        ask_pair(QueryLikelihood(max_model_len=bare), LIKELIHOOD, "where", passage, tokenizer)


@pytest.mark.slow
def test_a_real_tokenizer_takes_the_question_apart(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Of a byte-level vocabulary, whose tokens begin with blanks: the question's tokens spell the question."""
    from workbench.models.chat import load_chat_tokenizer

    tokenizer: Any = load_chat_tokenizer(QueryLikelihood(), tmp_path_factory.mktemp("cache"))

    @settings(max_examples=200, deadline=None)
    @given(st.text(min_size=1, max_size=60), st.text(max_size=80))
    def check(question: str, passage: str) -> None:
        own = len(tokenizer.prompt_ids(question.strip()))
        assume(own)  # the vocabulary lacks some bytes, of control characters for example
        asked = ask_pair(QueryLikelihood(), LIKELIHOOD, question, passage, tokenizer)
        ids = tokenizer.prompt_ids(asked.request.body["prompt"])
        # Each token has its own log-probability, so the mean tells which were taken.
        logprobs = [-float(2**20 + i * i) for i in range(1, len(ids))]
        assert asked.read(answer(logprobs=logprobs)) == pytest.approx(sum(logprobs[-own:]) / own, abs=1e-6)
        offsets = tokenizer._backend.encode(asked.request.body["prompt"]).offsets
        begins = len(asked.request.body["prompt"]) - len(question.strip())
        assert offsets[-own - 1][1] <= begins <= offsets[-own][0]

    check()


# --- pointwise -----------------------------------------------------------------------------------


def test_a_grade_is_asked_for_with_a_schema() -> None:
    spec = LlmRerank(mode="pointwise", max_tokens=20)
    asked = ask_pair(spec, RERANK, "where is it", "by the river", WordTokenizer())
    schema = asked.request.body["response_format"]["json_schema"]["schema"]
    assert schema["properties"]["grade"] == {"type": "integer", "enum": [0, 1, 2, 3]}
    assert asked.request.body["max_tokens"] == 20
    user = asked.request.body["messages"][-1]["content"]
    assert "where is it" in user
    assert "Passage:\nby the river\n" in user
    assert "JSON" in user
    assert "[1]" not in user
    assert asked.read(answer('{"grade": 2}')) == 2.0
    assert asked.read(answer("two")) is None


def test_pairs_of_a_question_share_the_beginning_of_their_prompts() -> None:
    first, second = (
        ask_pair(LlmRerank(mode="pointwise"), RERANK, "where is it", passage, WordTokenizer()).request.body["messages"]
        for passage in ("one", "two")
    )
    assert first[0] == second[0]
    assert first[1]["content"].split("one")[0] == second[1]["content"].split("two")[0]
    assert "where is it" in first[1]["content"].split("one")[0]


@pytest.mark.parametrize(
    ("text", "grade"),
    [
        ('{"grade": 3}', 3.0),
        (' {"grade":\n0} ', 0.0),
        ('```json\n{"grade": 1}\n```', 1.0),
        ('{"grade": 4}', None),
        ('{"grade": -1}', None),
        ('{"grade": true}', None),
        ('{"grade": 1.0}', None),
        ('{"grade": "2"}', None),
        ('{"grade": [2]}', None),
        ('{"mark": 2}', None),
        ("{2}", None),
        ("3", None),
        ("", None),
        ("}{", None),
        ('{"grade": 2', None),
        ('{"grade":' * 100_000 + "}", None),
    ],
)
def test_reading_a_grade(text: str, grade: float | None) -> None:
    assert parse_grade(text) == grade


@given(st.text())
def test_any_text_is_a_grade_or_none(text: str) -> None:
    assert parse_grade(text) in (None, 0.0, 1.0, 2.0, 3.0)
    assert UNPARSABLE == 0.0


# --- listwise ------------------------------------------------------------------------------------


def test_windows_move_from_the_back_to_the_front() -> None:
    assert window_spans(20, 10, 5) == [(10, 20), (5, 15), (0, 10)]
    assert window_spans(23, 10, 5) == [(13, 23), (8, 18), (3, 13), (0, 10)]
    assert window_spans(8, 10, 5) == [(0, 8)]
    assert window_spans(1, 10, 5) == window_spans(0, 10, 5) == []


@given(st.integers(2, 60), st.integers(2, 20), st.data())
def test_windows_cover_the_ranking_and_overlap(candidates: int, window: int, data: st.DataObject) -> None:
    step = data.draw(st.integers(1, window))
    spans = window_spans(candidates, window, step)
    assert spans[0][1] == candidates
    assert spans[-1][0] == 0
    assert {end - start for start, end in spans} == {min(window, candidates)}
    for (start, _), (after, end) in pairwise(spans):
        assert after < start <= end
        assert start - after <= step


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ('{"order": [3, 1, 2]}', [2, 0, 1]),
        ('{"order": [2]}', [1, 0, 2]),
        ('{"order": [2, 2, 9, 0, -1, 3]}', [1, 2, 0]),
        ('{"order":[3,1', [2, 0, 1]),
        ('{"order": [3, 2', [2, 0, 1]),
        ("[3] > [1] > [2]", [2, 0, 1]),
        ('{"order": [1.5, 3]}', [2, 0, 1]),
        ('{"order": []}', None),
        ('{"order": [0, 4, 17]}', None),
        ('{"order": [3', None),
        ("passage 3 is best", None),
        ("", None),
    ],
)
def test_reading_an_order(text: str, found: list[int] | None) -> None:
    assert parse_order(text, 3) == found


@given(st.text(alphabet=st.sampled_from('0123456789[], .-"order:{}x')), st.integers(1, 12))
def test_any_text_is_a_permutation_or_none(text: str, size: int) -> None:
    found = parse_order(text, size)
    assert found is None or sorted(found) == list(range(size))


def listwise(spec: LlmRerank, sizes: Sequence[int]) -> Listwise:
    candidates = [[1000 * query + i for i in range(size)] for query, size in enumerate(sizes)]
    passages = {c: f"passage {c}" for chunk_nos in candidates for c in chunk_nos}
    questions = [f"question {query}" for query in range(len(sizes))]
    return Listwise(spec, RERANK, questions, candidates, passages, WordTokenizer())


def shown(request: Any) -> list[int]:
    """The chunk numbers of the passages in a request, in the order of their numbers there."""
    lines = request.body["messages"][-1]["content"].splitlines()
    return [int(lines[i + 1].split()[1]) for i, line in enumerate(lines) if line.startswith("[")]


def test_a_good_passage_rises_from_the_back_to_the_front() -> None:
    """A model that knows the best order of each window sorts the head of the whole ranking."""
    spec = LlmRerank(depth=20, k=5, window=10, step=5)
    rounds = listwise(spec, [23, 1, 7])
    assert rounds.expected == 3 + 0 + 1
    asked = []
    while not rounds.done:
        requests = rounds.requests()
        assert requests == rounds.requests()
        asked.append(len(requests))
        orders = []
        for request in requests:
            chunk_nos = shown(request)
            best = sorted(range(len(chunk_nos)), key=lambda i: -chunk_nos[i])
            orders.append(json.dumps({"order": [i + 1 for i in best]}))
        rounds.advance(orders)
    assert asked == [2, 1, 1]
    long, single, short = rounds.rankings()
    assert long.chunk_nos == [19, 18, 17, 16, 15], "of the first 20: candidates beyond the depth are not looked at"
    assert long.ranks_before == [20, 19, 18, 17, 16]
    assert long.scores == [1, 1 / 2, 1 / 3, 1 / 4, 1 / 5]
    assert single == ([1000], [1.0], [1])
    assert short.chunk_nos == [2006, 2005, 2004, 2003, 2002]
    assert rounds.unparsable == 0


def test_a_window_is_asked_about_as_it_stands() -> None:
    rounds = listwise(LlmRerank(depth=6, k=6, window=4, step=2), [6])
    (request,) = rounds.requests()
    assert shown(request) == [2, 3, 4, 5]
    rounds.advance(['{"order": [4, 3, 2, 1]}'])
    (request,) = rounds.requests()
    assert shown(request) == [0, 1, 5, 4]
    items = request.body["response_format"]["json_schema"]["schema"]["properties"]["order"]
    assert items == {
        "type": "array",
        "items": {"type": "integer", "enum": [1, 2, 3, 4]},
        "minItems": 4,
        "maxItems": 4,
    }
    assert "question 0" in request.body["messages"][-1]["content"]
    rounds.advance(["[3]"])
    assert rounds.done
    assert rounds.rankings()[0].chunk_nos == [5, 0, 1, 4, 3, 2]


def test_the_answer_has_room_for_every_number() -> None:
    rounds = listwise(LlmRerank(depth=40, window=40, step=20, max_tokens=8), [40])
    (request,) = rounds.requests()
    longest = json.dumps({"order": list(range(1, 41))})
    assert request.body["max_tokens"] >= len(longest.replace(", ", ","))
    kept = listwise(LlmRerank(max_tokens=500, window=2, step=1), [2]).requests()[0]
    assert kept.body["max_tokens"] == 500


@given(st.lists(st.integers(0, 15), max_size=4), st.integers(2, 6), st.data())
def test_no_answer_loses_or_invents_a_candidate(sizes: list[int], window: int, data: st.DataObject) -> None:
    depth = data.draw(st.integers(1, 15))
    spec = LlmRerank(depth=depth, k=depth, window=window, step=data.draw(st.integers(1, window)))
    rounds = listwise(spec, sizes)
    answers = st.one_of(
        st.text(alphabet='[0123456789, ]"x', max_size=30),
        st.lists(st.integers(-3, 20)).map(lambda n: str({"order": n})),
    )
    asked = bad = 0
    while not rounds.done:
        requests = rounds.requests()
        given_back = [data.draw(answers) for _ in requests]
        bad += sum(parse_order(text, len(shown(r))) is None for text, r in zip(given_back, requests, strict=True))
        asked += len(requests)
        rounds.advance(given_back)
    assert asked == rounds.expected
    assert rounds.unparsable == bad
    for query, (size, found) in enumerate(zip(sizes, rounds.rankings(), strict=True)):
        assert sorted(found.chunk_nos) == [1000 * query + i for i in range(min(size, depth))]
        assert [1000 * query + before - 1 for before in found.ranks_before] == found.chunk_nos


@given(st.lists(st.integers(0, 15), max_size=4))
def test_unparsable_answers_change_nothing_and_are_counted(sizes: list[int]) -> None:
    rounds = listwise(LlmRerank(depth=15, k=15, window=4, step=2), sizes)
    while not rounds.done:
        rounds.advance(["I cannot say."] * len(rounds.requests()))
    assert rounds.unparsable == rounds.expected
    for size, found in zip(sizes, rounds.rankings(), strict=True):
        assert list(found.ranks_before) == list(range(1, size + 1))


def test_as_many_answers_as_requests() -> None:
    with pytest.raises(ValueError, match="zip"):
        listwise(LlmRerank(), [3]).advance([])
