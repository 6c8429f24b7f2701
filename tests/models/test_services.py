"""Models over HTTP against a scripted server: what is sent, what is tried again, and what every fault says."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
import pytest
from pydantic import SecretStr

from workbench.errors import ModelError
from workbench.models.retrying import RetryPolicy
from workbench.models.services import EmbeddingService, RerankService, origin_identity
from workbench.specs import CrossEncoder, Embed

KEY = SecretStr("secret-key-0123")


@dataclass
class Reply:
    body: Any = None
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    drop: bool = False
    """Close the connection without a word."""


Script = Callable[[str, dict[str, Any]], Reply]


@dataclass
class Server:
    """Answers by a function of path and body; keeps what it was asked."""

    url: str = ""
    script: Script = lambda path, body: Reply({})
    seen: list[tuple[str, dict[str, Any], str | None]] = field(default_factory=list)


@pytest.fixture
def server() -> Iterator[Server]:
    state = Server()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            state.seen.append((self.path, body, self.headers.get("Authorization")))
            reply = state.script(self.path, body)
            if reply.drop:
                self.close_connection = True
                return
            data = reply.body if isinstance(reply.body, bytes) else json.dumps(reply.body).encode()
            self.send_response(reply.status)
            for name, value in {"Content-Length": str(len(data)), **reply.headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *args: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        state.url = f"http://127.0.0.1:{http.server_address[1]}"
        thread = threading.Thread(target=http.serve_forever, args=(0.01,))
        thread.start()
        yield state
        http.shutdown()
        thread.join()


@pytest.fixture
def made() -> Iterator[list[Any]]:
    """Services to close."""
    services: list[Any] = []
    yield services
    for service in services:
        service.close()


@pytest.fixture
def embedder(server: Server, made: list[Any]) -> Callable[..., EmbeddingService]:
    def make(url: str = server.url, policy: RetryPolicy | None = None, **fields: Any) -> EmbeddingService:
        service = EmbeddingService(Embed(model="m", via="server", **fields), url, KEY, policy=policy)
        service._sleep = waits(service).append
        made.append(service)
        return service

    return make


@pytest.fixture
def reranker(server: Server, made: list[Any]) -> Callable[..., RerankService]:
    def make(url: str = server.url, **fields: Any) -> RerankService:
        service = RerankService(CrossEncoder(model="m", via="server", **fields), url, KEY)
        service._sleep = waits(service).append
        made.append(service)
        return service

    return make


def waits(service: Any) -> list[float]:
    """The pauses that a service made, in seconds: here it does not sleep."""
    found: list[float] = service.__dict__.setdefault("waited", [])
    return found


def vector(text: str) -> list[float]:
    return [len(text) + 1.0, text.count("a") * 2.0, -3.0]


def embed_reply(body: dict[str, Any]) -> Reply:
    data = [{"index": i, "embedding": vector(text)} for i, text in enumerate(body["input"])]
    return Reply({"data": data[::-1], "usage": {"prompt_tokens": 3 * len(data)}})


def words_shared(question: str, passage: str) -> float:
    return len(set(question.split()) & set(passage.split())) / 10


def rerank_reply(body: dict[str, Any]) -> Reply:
    found = [(words_shared(body["query"], text), i) for i, text in enumerate(body["documents"])]
    return Reply({"results": [{"index": i, "relevance_score": s} for s, i in sorted(found, reverse=True)]})


def score_reply(body: dict[str, Any]) -> Reply:
    return Reply(
        {"data": [{"index": i, "score": words_shared(body["text_1"], t)} for i, t in enumerate(body["text_2"])]}
    )


# --- identity ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "origin"),
    [
        ("http://127.0.0.1:8000", "http://127.0.0.1:8000"),
        ("http://127.0.0.1:8000/", "http://127.0.0.1:8000"),
        ("https://user:pass@API.example.org:443/v1/?key=abc#x", "https://api.example.org/v1"),
        ("http://[::1]:80/a/b", "http://[::1]/a/b"),
    ],
)
def test_identity_is_the_origin_without_credentials(url: str, origin: str) -> None:
    assert origin_identity(url, "m") == {"origin": origin, "model": "m"}


@pytest.mark.parametrize("url", ["", "localhost:8000", "ftp://host", "http://", "http://user:hush@"])
def test_urls_that_are_none(url: str) -> None:
    with pytest.raises(ModelError, match="for example http://127") as caught:
        origin_identity(url, "m")
    assert "hush" not in str(caught.value)


# --- embeddings ----------------------------------------------------------------------------------


def test_embeddings_are_sent_once_in_batches_and_normalised(server: Server, embedder: Any) -> None:
    server.script = lambda path, body: embed_reply(body)
    service = embedder(passage_prefix="passage: ")
    texts = [f"text {i} " + "a" * (i % 5) for i in range(70)] * 2
    found = service.embed(texts, "passage")
    sent = [body["input"] for _, body, _ in server.seen]
    assert [len(batch) for batch in sent] == [64, 6]
    assert [text for batch in sent for text in batch] == ["passage: " + text for text in texts[:70]]
    expected = np.array([vector("passage: " + text) for text in texts])
    np.testing.assert_allclose(found.vectors, expected / np.linalg.norm(expected, axis=1)[:, None], atol=1e-6)
    assert found.vectors.dtype == np.float32
    assert found.tokens[:70].sum() == 3 * 70, "what the service counted"
    assert (found.tokens > 0).all()
    assert [a.dtype for a in (found.tokens, found.windows, found.truncated)] == [np.int32, np.int32, np.bool_]
    assert not found.truncated.any()
    assert (found.windows == 1).all()
    assert {path for path, _, _ in server.seen} == {"/v1/embeddings"}
    assert {key for _, _, key in server.seen} == {"Bearer secret-key-0123"}
    assert all(body["model"] == "m" and "truncate_prompt_tokens" not in body for _, body, _ in server.seen)
    assert service.dimensions == 3
    assert len(server.seen) == 2, "the dimensions are known by now"


def test_dimensions_are_asked_for_where_nothing_was_embedded(server: Server, embedder: Any) -> None:
    server.script = lambda path, body: embed_reply(body)
    found = embedder(query_prefix="query: ").embed([], "query")
    assert found.vectors.shape == (0, 3)
    assert len(found.tokens) == len(found.windows) == len(found.truncated) == 0
    assert [body["input"] for _, body, _ in server.seen] == [["query: a"]]


def test_a_url_may_end_with_its_version_and_truncation_is_asked_for(server: Server, embedder: Any) -> None:
    server.script = lambda path, body: embed_reply(body)
    embedder(url=server.url + "/v1/", long="truncate").embed(["a"], "query")
    embedder(url=server.url + "/api", long="truncate", max_tokens=77).embed(["a"], "query")
    assert [(path, body["truncate_prompt_tokens"]) for path, body, _ in server.seen] == [
        ("/v1/embeddings", -1),
        ("/api/v1/embeddings", 77),
    ]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([], "vector for each of 2"),
        ([{"index": 0, "embedding": [1.0]}], "1 entries"),
        ([{"index": 0, "embedding": [1.0]}, {"index": 0, "embedding": [1.0]}], "1 indices"),
        ([{"index": 0, "embedding": [1.0]}, {"index": 1, "embedding": [1.0, 2.0]}], "vector for each"),
        ([{"index": 0, "embedding": []}, {"index": 1, "embedding": []}], "empty"),
        ([{"index": 0, "embedding": "AAAA"}, {"index": 1, "embedding": "AAAA"}], "vector for each"),
        ([{"index": 0}, {"index": 1}], "vector for each"),
        ("nonsense", "vector for each"),
        (None, "vector for each"),
        (
            [{"index": 0, "embedding": [float("nan")]}, {"index": 1, "embedding": [1.0]}],
            "1 of 2 vectors are not finite",
        ),
        ([{"index": 0, "embedding": [0.0]}, {"index": 1, "embedding": [1.0]}], "no direction"),
    ],
)
def test_answers_that_are_no_vectors(server: Server, embedder: Any, data: Any, message: str) -> None:
    server.script = lambda path, body: Reply({"data": data})
    with pytest.raises(ModelError, match=message) as caught:
        embedder().embed(["a", "b"], "query")
    assert caught.value.hint
    assert caught.value.where == f"{server.url}/v1/embeddings"


def test_a_model_that_changes_its_dimensions(server: Server, embedder: Any) -> None:
    service = embedder()
    server.script = lambda path, body: embed_reply(body)
    service.embed(["a"], "query")
    server.script = lambda path, body: Reply({"data": [{"index": 0, "embedding": [1.0, 1.0]}]})
    with pytest.raises(ModelError, match="2 dimensions, those before had 3"):
        service.embed(["b"], "query")


# --- pairs ---------------------------------------------------------------------------------------

PAIRS = [("red house", "a red house"), ("blue", "the sea"), ("red house", "the sea"), ("red house", "a red house")]
EXPECTED = [0.2, 0.0, 0.0, 0.2]


def test_pairs_go_out_by_question_and_each_once(server: Server, reranker: Any) -> None:
    server.script = lambda path, body: rerank_reply(body)
    service = reranker()
    assert service.score(PAIRS).tolist() == EXPECTED
    assert service.score([]).shape == (0,)
    assert [(path, body["query"], body["documents"]) for path, body, _ in server.seen] == [
        ("/rerank", "red house", ["a red house", "the sea"]),
        ("/rerank", "blue", ["the sea"]),
    ]


def test_score_where_there_is_no_rerank(server: Server, reranker: Any) -> None:
    server.script = lambda path, body: score_reply(body) if path == "/score" else Reply({"detail": "Not Found"}, 404)
    service = reranker(max_tokens=99)
    assert service.score(PAIRS).tolist() == EXPECTED
    assert [path for path, _, _ in server.seen] == ["/rerank", "/score", "/score"], "found out once"
    assert all(body["truncate_prompt_tokens"] == 99 for _, body, _ in server.seen)


def test_an_unknown_model_is_what_rerank_said(server: Server, reranker: Any) -> None:
    error = {"error": {"message": "The model `m` does not exist.", "code": 404}}
    server.script = lambda path, body: Reply(error, 404)
    with pytest.raises(ModelError, match="404: The model `m` does not exist") as caught:
        reranker().score(PAIRS)
    assert caught.value.where == f"{server.url}/rerank"
    assert "'m' a model of this service" in str(caught.value)


@pytest.mark.parametrize(
    ("results", "message"),
    [
        ([{"index": 0, "relevance_score": 0.5}], "score for each of 2"),
        ([{"index": 0, "relevance_score": 0.5}, {"index": 2, "relevance_score": 0.5}], "score for each"),
        ([{"index": 0, "relevance_score": "high"}, {"index": 1, "relevance_score": 1}], "score for each"),
        ([{"index": 0, "relevance_score": None}, {"index": 1, "relevance_score": 1}], "1 of 2 scores are not finite"),
        ([{"index": 0, "relevance_score": float("inf")}, {"index": 1, "relevance_score": 1}], "not finite"),
        ({}, "score for each"),
    ],
)
def test_answers_that_are_no_scores(server: Server, reranker: Any, results: Any, message: str) -> None:
    server.script = lambda path, body: Reply({"results": results})
    with pytest.raises(ModelError, match=message):
        reranker().score([("q", "a"), ("q", "b")])


# --- faults --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fault",
    [Reply({}, 503), Reply({}, 500), Reply({}, 429), Reply({}, 408), Reply(drop=True)],
    ids=["503", "500", "429", "408", "dropped"],
)
def test_passing_faults_are_tried_again(server: Server, embedder: Any, fault: Reply) -> None:
    server.script = lambda path, body: fault if len(server.seen) < 3 else embed_reply(body)
    service = embedder()
    assert service.embed(["a"], "query").vectors.shape == (1, 3)
    assert len(server.seen) == 3
    assert len(waits(service)) == 2


def test_the_service_says_how_long_to_wait(server: Server, embedder: Any) -> None:
    soon = format_datetime(datetime.now(UTC) + timedelta(seconds=60), usegmt=True)
    asked = ["40", "100000", soon]
    server.script = lambda path, body: (
        Reply({}, 429, {"Retry-After": asked[len(server.seen) - 1]}) if len(server.seen) < 4 else embed_reply(body)
    )
    service = embedder()
    service.embed(["a"], "query")
    first, second, third = waits(service)
    assert (first, second) == (40, RetryPolicy().longest_wait)
    assert 50 < third <= 60


def test_attempts_come_to_an_end(server: Server, embedder: Any) -> None:
    server.script = lambda path, body: Reply({"error": {"message": "out of memory"}}, 500)
    with pytest.raises(ModelError, match=r"said 500: out of memory \(attempt 4\).*run again"):
        embedder(policy=RetryPolicy(attempts=4)).embed(["a"], "query")
    assert len(server.seen) == 4
    with pytest.raises(ModelError, match="said 500"):
        embedder(policy=RetryPolicy(deadline=0)).embed(["a"], "query")
    assert len(server.seen) == 5


def test_nobody_listens(embedder: Any, made: list[Any]) -> None:
    service = embedder(url="http://127.0.0.1:1", policy=RetryPolicy(attempts=2))
    with pytest.raises(ModelError, match="connection failed") as caught:
        service.embed(["a"], "query")
    assert caught.value.where == "http://127.0.0.1:1/v1/embeddings"
    assert len(waits(service)) == 1


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        (Reply({"error": "Unauthorized"}, 401), "401: Unauthorized.*WORKBENCH_EMBED_KEY"),
        (Reply({"detail": "no"}, 403), "403: no.*WORKBENCH_EMBED_KEY"),
        (Reply({"error": {"message": "maximum context length is 256"}}, 400), 'embed.long = "truncate"'),
        (Reply({"error": {"message": "bad field"}}, 400), "400: bad field.*check the model"),
        (Reply(b"<html>no such page</html>", 404), "404: <html>no such page.*URL end where the API begins"),
        (Reply(b"<html>welcome</html>", 200), "not in JSON"),
        (Reply({}, 302, {"Location": "/elsewhere"}), "said 302"),
    ],
)
def test_final_faults_are_not_tried_again(server: Server, embedder: Any, reply: Reply, message: str) -> None:
    server.script = lambda path, body: reply
    with pytest.raises(ModelError, match=message):
        embedder().embed(["a"], "query")
    assert len(server.seen) == 1


@pytest.mark.parametrize("padding", [0, 464, 470])
def test_a_key_is_never_shown(server: Server, embedder: Any, padding: int) -> None:
    """Not even where a service repeats it and a long message is cut in its middle."""
    server.script = lambda path, body: Reply({"error": {"message": f"{'x' * padding}{KEY.get_secret_value()}"}}, 401)
    with pytest.raises(ModelError) as caught:
        embedder().embed(["a"], "query")
    chain: BaseException | None = caught.value
    while chain is not None:
        assert "secret" not in str(chain) + repr(chain)
        chain = chain.__context__
