"""What an inspection says, and that its marks give back the gold letter for letter."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path

import pytest

from workbench.errors import InputError
from workbench.lab import Lab
from workbench.reports import inspection
from workbench.reports.inspector import inspect
from workbench.sweeps.results import SweepResult


class Marks(HTMLParser):
    """Collects the text of gold marks by evidence, and every tag."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[tuple[str, list[str]]] = []
        self.gold: dict[str, str] = {}
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}
        found = dict(attrs)
        if tag in ("mark", "span"):
            self.open.append((tag, (found.get("data-evidence") or "").split()))

    def handle_endtag(self, tag: str) -> None:
        if tag in ("mark", "span"):
            self.open.pop()

    def handle_data(self, data: str) -> None:
        for _, numbers in self.open:
            for number in numbers:
                self.gold[number] = self.gold.get(number, "") + data


@pytest.mark.parametrize("query_id", ["evil", "tank", "lost", "q-fig"])
@pytest.mark.parametrize("two", [False, True])
def test_marked_text_equals_the_gold_span(swept: SweepResult, query_id: str, two: bool) -> None:
    found = inspect(swept.trials[0], query_id, swept.trials[1] if two else None)
    texts = {d.doc_id: d.text for d in swept.dataset.documents}
    wanted = {str(g.number): texts[g.evidence.doc_id][g.evidence.start : g.evidence.end] for g in found.gold}
    assert wanted
    for page in (found.html(), found._repr_html_()):
        assert Marks(page).gold == wanted


def test_hostile_text_adds_no_element_and_no_handler(swept: SweepResult) -> None:
    marks = Marks(inspect(swept.trials[0], "evil", swept.trials[3]).html())
    assert not marks.tags & {"script", "img", "a", "b", "iframe", "i", "u"} - {"b"}
    assert not any(name.startswith("on") or name in ("href", "src") for name in marks.attributes)


def test_verdict_says_rank_or_missed_as_the_scores_do(swept: SweepResult) -> None:
    for trial in swept.trials:
        for query in swept.dataset.queries:
            found = inspect(trial, query.query_id)
            side = found.sides[0]
            if not query.evidence:
                assert "No evidence" in side.sentence
                assert side.reasons == ("no evidence",)
                continue
            first = min((r for r in side.ranks if r), default=None)
            assert side.metrics["mrr"] == pytest.approx(1 / first if first else 0)
            for k in (1, 5, 10):
                assert side.metrics[f"recall@{k}"] == pytest.approx(
                    sum(r is not None and r <= k for r in side.ranks) / len(side.ranks)
                )
    assert "Missed" in inspect(swept.trials[0], "lost").sides[0].sentence


def test_hits_name_the_gold_they_touch(swept: SweepResult) -> None:
    found = inspect(swept.trials[0], "tank")
    gold = found.gold[0].evidence
    for hit in found.sides[0].hits:
        touches = hit.doc_id == gold.doc_id and hit.start < gold.end and hit.end > gold.start
        assert hit.gold == ((1,) if touches else ())
    assert any(hit.gold for hit in found.sides[0].hits)


def test_json_and_steps_through_the_failures(swept: SweepResult) -> None:
    trial = swept.trials[0]
    failures = trial.failures("recall@5")
    assert "lost" in failures
    found = inspect(trial, "lost")
    at = failures.index("lost")
    assert found.failures == tuple(failures)
    assert found.previous == (failures[at - 1] if at else None)
    assert found.next == (failures[at + 1] if at + 1 < len(failures) else None)
    body = json.loads(json.dumps(found.as_json()))
    assert body["query"]["id"] == "lost"
    assert body["trials"][0]["trial"]["id"] == trial.trial_id
    assert body["gold"][0]["text"] == found.gold[0].text


def test_a_query_between_failures_names_its_neighbours(swept: SweepResult) -> None:
    trial = swept.trials[0]
    order = [q.query_id for q in swept.dataset.queries]
    failures = trial.failures("recall@5")
    fine = next(q for q in reversed(order) if q not in failures)
    before = [q for q in failures if order.index(q) < order.index(fine)]
    assert inspect(trial, fine).previous == (before[-1] if before else None)


def test_unknown_query_and_foreign_trial_are_refused(reports_lab: Lab, swept: SweepResult, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no query 'tonk'.*did you mean 'tank'"):
        inspect(swept.trials[0], "tonk")
    (tmp_path / "a.md").write_text("Another corpus altogether.")
    (tmp_path / "questions.csv").write_text("question,quote\nwhat is it,Another corpus\n")
    other = reports_lab.run(swept.trials[0].trial, tmp_path)
    with pytest.raises(InputError, match="different corpus"):
        inspect(swept.trials[0], "tank", other)


def test_page_is_written_whole_or_not_at_all(
    swept: SweepResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = inspect(swept.trials[0], "tank")
    path = found.write(tmp_path / "deep" / "page.html")
    before = path.read_bytes()
    assert found.write(path).read_bytes() == before
    monkeypatch.setattr(Path, "replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        found.write(path)
    assert path.read_bytes() == before
    assert [p.name for p in path.parent.iterdir()] == ["page.html"]


def test_long_folds_stay_out_of_notebooks_only(swept: SweepResult, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inspection, "LONG_FOLD", 100)
    found = inspect(swept.trials[0], "tank")
    # A mark that begins inside the words may cut one of the 80.
    assert found.html().count("at the quay") >= 79
    assert found._repr_html_().count("at the quay") < 40


def test_lab_inspect_is_the_same(reports_lab: Lab, swept: SweepResult) -> None:
    assert reports_lab.inspect(swept.trials[0], "tank").html() == inspect(swept.trials[0], "tank").html()


def test_a_miss_says_how_much_came_back(swept: SweepResult) -> None:
    for query in swept.dataset.queries:
        found = inspect(swept.trials[0], query.query_id)
        for gold in found.gold:
            e, covered = gold.evidence, set()
            for hit in found.sides[0].hits:
                if hit.doc_id == e.doc_id:
                    covered |= set(range(max(hit.start, e.start), min(hit.end, e.end)))
            assert gold.shares == (pytest.approx(len(covered) / (e.end - e.start)),)
            if gold.ranks == (None,) and covered:
                assert "of its characters came back" in found.html()
    assert inspect(swept.trials[0], "tank").percent(0.9999) == "99.9 %"
