"""One embedded server a test process; each test has a schema of its own in it."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import hypothesis
import pytest

from workbench.datasets import Dataset
from workbench.lab import Lab
from workbench.records import Document, Evidence, Query
from workbench.settings import Settings
from workbench.specs import Bm25, Dense, Embed, Recursive, ScoreSpec, TrialSpec

os.environ.setdefault("HF_HUB_OFFLINE", "1")

# A busy machine is no failure; and a check that must pass again looks at the same examples each time.
hypothesis.settings.register_profile("local", deadline=None)
hypothesis.settings.register_profile("ci", deadline=None, derandomize=True)
hypothesis.settings.load_profile("ci" if os.environ.get("CI") else "local")

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
_numbers = itertools.count()


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Benchmark data that lies beside a checkout where it is available."""
    if not SHARED.is_dir():
        pytest.skip("the shared benchmark data is not here")
    return SHARED


@pytest.fixture(scope="session")
def server_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The home of a running embedded server that stops at the end of the test session."""
    from workbench.store.embedded import start

    home = tmp_path_factory.mktemp("home")
    with start(home):
        yield home


@pytest.fixture(scope="session")
def model_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache folder for converted models, shared by the processes of a test run."""
    base = tmp_path_factory.getbasetemp()
    cache = (base.parent if os.environ.get("PYTEST_XDIST_WORKER") else base) / "model-cache"
    cache.mkdir(exist_ok=True)
    return cache


@pytest.fixture
def settings(server_home: Path) -> Settings:
    """Settings with a fresh schema and a short lease."""
    return Settings(home=server_home, db_schema=f"t{os.getpid()}_{next(_numbers)}", lease_seconds=15)


@pytest.fixture
def open_lab(settings: Settings) -> Iterator[Callable[..., Lab]]:
    """Opens labs over the test's schema and closes them."""
    labs: list[Lab] = []

    def open_one(**changes: object) -> Lab:
        labs.append(Lab(settings.model_copy(update=changes), progress=False))
        return labs[-1]

    yield open_one
    for lab in labs:
        lab.close()


@pytest.fixture
def lab(open_lab: Callable[..., Lab]) -> Lab:
    return open_lab()


WORDS = [
    "anchor",
    "basin",
    "cobalt",
    "delta",
    "ember",
    "fjord",
    "garnet",
    "harbor",
    "island",
    "jasper",
    "kernel",
    "lagoon",
    "meadow",
    "nickel",
    "orchard",
    "prairie",
    "quartz",
    "river",
    "summit",
    "tundra",
    "umber",
    "valley",
    "willow",
    "xenon",
    "yarrow",
    "zephyr",
]


def text_of(seed: int, sentences: int = 12) -> str:
    """Deterministic sentences whose words depend on the seed."""
    lines = []
    for i in range(sentences):
        words = [WORDS[(seed * 7 + i * 5 + j * (seed + 3)) % len(WORDS)] for j in range(8)]
        lines.append(f"Line n{seed}x{i}: " + " ".join(words) + ".")
    return "\n\n".join(lines)


@pytest.fixture
def tiny() -> Dataset:
    """Six documents of twelve paragraphs, five questions with one gold paragraph each, one unanswerable."""
    documents = tuple(Document(f"d{i}", text_of(i), title=f"Document {i}") for i in range(6))
    queries = []
    for i in range(5):
        text = documents[i].text
        start = text.index(f"Line n{i}x{i + 2}:")
        end = text.index("\n\n", start)
        queries.append(Query(f"q{i}", f"what does line n{i}x{i + 2} say", (Evidence(f"d{i}", start, end),)))
    queries.append(Query("q9", "where is the moon"))
    return Dataset("tiny", documents, tuple(queries))


@pytest.fixture
def words_trial() -> TrialSpec:
    """A dense trial on fakes: no package beyond the core, milliseconds."""
    return TrialSpec(
        chunk=Recursive(tokens=15, tokenizer="words"),
        embed=Embed(model="fake:hash-64"),
        retrieve=Dense(k=10),
        score=ScoreSpec(k=(1, 5)),
    )


@pytest.fixture
def bm25_trial(words_trial: TrialSpec) -> TrialSpec:
    return words_trial.model_copy(update={"retrieve": Bm25(k=10)})
