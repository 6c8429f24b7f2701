"""One lab and one sweep over a small hostile dataset for all tests of reports; a browser where there is one."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from workbench.lab import Lab
from workbench.settings import Settings
from workbench.specs import Bm25, Recursive, ScoreSpec, SweepSpec, TrialSpec
from workbench.sweeps.results import SweepResult

HOSTILE = (
    "Notes on markup.\n\n<script>window.__pwned = 1</script></textarea></style></title>"
    '<img src=x onerror="window.__pwned=2">'
    ' and <a href="javascript:window.__pwned=3">a link</a> &amp; &lt;b&gt; {{ 7 * 7 }} {% raw %}\r\n'
    "A carriage return\rstands here, and \ttabs,  two spaces,\n\n\n three line breaks.\n"
    "The harbor gate opens at seven 𝒷𝓎 𝓉𝒽𝑒 𝒸𝓁𝑜𝒸𝓀 👩‍👩‍👧, says the naïve façade e\u0301 \u202eright to left\u202c,"
    ' <b onmouseover="window.__pwned=4">then closes</b>.\n\n'
)
FILLER = "Nothing of note happened on that day at the quay, and the ledger stayed shut. " * 40
WATER = "The water tank holds ninety litres. The water tank holds ninety litres when full, and the tank is blue.\n\n"
SPEC = SweepSpec(
    question="Does <b>chunk size</b> matter?</title><script>window.__pwned = 5</script>",
    base=TrialSpec(chunk=Recursive(tokens=20, tokenizer="words"), retrieve=Bm25(k=30), score=ScoreSpec(k=(1, 5, 10))),
    metric="recall@5",
    baseline={"chunk.tokens": 12, "retrieve.kind": "bm25"},
    axes={"chunk.tokens": (12, 40), "retrieve.kind": ("bm25", "fts")},
)


def write_dataset(folder: Path) -> Path:
    """Documents with markup, astral text, repeated sentences; gold that nests, overlaps and repeats."""
    folder.mkdir(parents=True)
    fruits = ["apple", "pear", "plum", "fig", "quince", "medlar", "cherry", "grape"]
    documents = {
        "evil<i>&\"'": HOSTILE + FILLER,
        "tank": FILLER + WATER + FILLER,
        **{
            f"fruit-{f}": f"# {f}\n\nThe {f} ripens in month {i}.\n\nIts crate is number {i * 7}."
            for i, f in enumerate(fruits)
        },
    }
    evil, tank = documents["evil<i>&\"'"], documents["tank"]

    def gold(doc_id: str, text: str, first: str, last: str) -> dict[str, Any]:
        start = text.index(first)
        return {"doc_id": doc_id, "start": start, "end": text.index(last, start) + len(last)}

    queries = [
        {
            "query_id": "evil",
            "text": "when does the harbor gate open <script>window.__pwned = 6</script>",
            "answer": "at seven <img src=x onerror=window.__pwned=7>",
            "evidence": [
                gold("evil<i>&\"'", evil, "The harbor gate", "then closes</b>."),
                gold("evil<i>&\"'", evil, "<script>", "here, and"),
                gold("evil<i>&\"'", evil, "gate opens", "👩‍👩"),
            ],
        },
        {
            "query_id": "tank",
            "text": "how much water does the tank hold",
            "evidence": [gold("tank", tank, "The water tank holds ninety litres when", "full")],
        },
        {"query_id": "lost", "text": "zebra crossing", "evidence": [gold("tank", tank, "the tank is", "blue")]},
        {"query_id": "nobody", "text": "who painted the gate", "evidence": []},
        *(
            {
                "query_id": f"q-{f}",
                "text": f"when does the {f} ripen",
                "evidence": [gold(f"fruit-{f}", documents[f"fruit-{f}"], "The", "month")],
            }
            for f in fruits
        ),
    ]
    lines = [
        json.dumps({"doc_id": d, "text": t, "title": None if d == "tank" else f"Title of {d}"})
        for d, t in documents.items()
    ]
    (folder / "corpus.jsonl").write_text("\n".join(lines), encoding="utf-8")
    (folder / "queries.jsonl").write_text("\n".join(map(json.dumps, queries)), encoding="utf-8")
    (folder / "dataset.toml").write_text('name = "hostile <u>data</u>"\nlicence = "none"\n', encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def reports_lab(server_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """A lab whose schema is that of the report tests."""
    settings = Settings(home=server_home, db_schema=f"reports_{os.getpid()}")
    with Lab(settings, progress=False) as lab:
        yield lab


@pytest.fixture(scope="session")
def swept(reports_lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> SweepResult:
    """Four trials over the hostile dataset."""
    return reports_lab.sweep(SPEC, write_dataset(tmp_path_factory.mktemp("data") / "hostile"))


@pytest.fixture(scope="session")
def rendered(reports_lab: Lab, swept: SweepResult, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of the sweep, rendered once."""
    return reports_lab.report(swept, tmp_path_factory.mktemp("reports") / "report.html")


@pytest.fixture(scope="session")
def chromium() -> str:
    found = next((p for n in ("chromium", "chromium-browser", "google-chrome") if (p := shutil.which(n))), None)
    if found is None:
        pytest.skip("no chromium on this machine (apt-get install chromium)")
    return found


class Visit:
    """A page opened from a file, with everything it tried to fetch and every line it wrote to the console."""

    def __init__(self, browser: Any, path: Path, width: int, scheme: str) -> None:
        self.requests: list[str] = []
        self.console: list[str] = []
        context = browser.new_context(viewport={"width": width, "height": 844}, color_scheme=scheme)
        self.page = context.new_page()
        self.page.route("**/*", self._route)
        self.page.on("console", lambda message: self.console.append(message.text))
        self.page.on("pageerror", lambda error: self.console.append(str(error)))
        self.page.on("dialog", lambda dialog: self.console.append("a dialog"))
        self.page.goto(path.as_uri(), wait_until="load")
        self.page.wait_for_timeout(150)

    def _route(self, route: Any) -> None:
        url = route.request.url
        if url.startswith("data:") or (url.startswith("file:") and route.request.is_navigation_request()):
            route.continue_()
        else:
            self.requests.append(url)
            route.abort()

    def ask(self, script: str) -> Any:
        return self.page.evaluate(script)


@pytest.fixture(scope="module")
def visit(chromium: str) -> Iterator[Callable[..., Visit]]:
    """Opens files in a real browser."""
    from playwright.sync_api import sync_playwright

    flags = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=chromium, args=[*flags, "--disable-sync", "--no-first-run"]
        )

        def open_one(path: Path, width: int = 1280, scheme: str = "light") -> Visit:
            return Visit(browser, path, width, scheme)

        yield open_one
        browser.close()
