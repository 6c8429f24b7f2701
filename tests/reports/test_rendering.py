"""The report: rendered once, the same bytes again, clear errors, no kernel left behind."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import threading
import time
from pathlib import Path

import nbformat
import pytest
from pydantic import SecretStr
from report_kernels import kernels, no_kernel_left

from workbench.errors import InputError, ReportError
from workbench.lab import Lab
from workbench.reports import kernel, notebooks, sections
from workbench.reports.notebooks import render_sweep, rendered_from
from workbench.settings import Settings
from workbench.sweeps.results import SweepResult

pytestmark = pytest.mark.slow


def test_report_is_one_small_self_contained_file(rendered: Path, swept: SweepResult) -> None:
    html = rendered.read_text(encoding="utf-8")
    assert len(html) < 3_000_000
    assert rendered_from(rendered) == sections.fingerprint(swept)
    assert not re.search(r"<(script|link|iframe|img|object|embed)\b", html)
    assert not re.search(r"""(?:src|href|action)\s*=\s*["']?(?!#)""", re.sub(r"&lt;.*?&gt;", "", html))
    assert not re.search(r"url\((?!data:)", html)
    for words in ("The answer", "The hardest queries", "Where the work went", swept.trials[0].label):
        assert words in html


def test_executed_notebook_lies_beside_it_without_places_and_times(rendered: Path, reports_lab: Lab) -> None:
    notebook = nbformat.read(rendered.with_suffix(".ipynb"), as_version=4)
    nbformat.validate(notebook)
    assert all(c.execution_count for c in notebook.cells if c.cell_type == "code")
    text = rendered.with_suffix(".ipynb").read_text(encoding="utf-8")
    assert str(reports_lab.runtime.settings.home) not in text
    assert "papermill" not in notebook.metadata
    assert "start_time" not in text


def test_unchanged_report_is_not_rendered_again(
    rendered: Path, reports_lab: Lab, swept: SweepResult, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(notebooks, "run_notebook", lambda *_: pytest.fail("rendered again"))
    before = rendered.stat().st_mtime_ns
    started = time.monotonic()
    assert reports_lab.report(swept, rendered) == rendered
    assert time.monotonic() - started < 1
    assert rendered.stat().st_mtime_ns == before


def test_rendered_again_it_has_the_same_bytes(
    rendered: Path, reports_lab: Lab, swept: SweepResult, tmp_path: Path
) -> None:
    again = render_sweep(reports_lab.sweep_result(swept.sweep_id), reports_lab.runtime.settings, tmp_path / "x.html")
    assert again.read_bytes() == rendered.read_bytes()
    assert again.with_suffix(".ipynb").read_bytes() == rendered.with_suffix(".ipynb").read_bytes()
    assert no_kernel_left()


def test_it_renders_inside_a_running_event_loop(reports_lab: Lab, swept: SweepResult, tmp_path: Path) -> None:
    async def cell() -> Path:
        return reports_lab.report(swept, tmp_path)

    path = asyncio.run(cell())
    assert path.parent == tmp_path
    assert path.name == f"sweep-{swept.sweep_id}.html"
    assert no_kernel_left()


def broken(tmp_path: Path, *sources: str) -> Path:
    cells = [nbformat.v4.new_code_cell("sweep_id = 0", metadata={"tags": ["parameters"]})]
    cells += [nbformat.v4.new_code_cell(source) for source in sources]
    path = tmp_path / "broken.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=cells), path)
    return path


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("raise ValueError('no such <thing>')", r"broken\.ipynb, cell .*a cell failed: ValueError: no such <thing>"),
        ("import os, signal\nos.kill(os.getpid(), signal.SIGKILL)", r"did not run to its end"),
        ("print('fine, but not the report')", r"stopped before its last cell"),
        (
            "from workbench.reports import sections\nfrom IPython.display import display\n"
            "display({sections.DONE: {'fingerprint': 'other'}}, raw=True)",
            r"changed while its report was rendered",
        ),
    ],
)
def test_a_notebook_that_fails_leaves_no_file_and_no_kernel(
    reports_lab: Lab,
    swept: SweepResult,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    source: str,
    message: str,
) -> None:
    monkeypatch.setattr(notebooks, "TEMPLATE", broken(tmp_path, source))
    out = tmp_path / "out"
    with pytest.raises(ReportError, match=message):
        render_sweep(swept, reports_lab.runtime.settings, out / "report.html")
    assert not list(out.glob("*")) if out.exists() else True
    assert no_kernel_left()


def test_an_interrupt_leaves_no_file_and_no_kernel(
    reports_lab: Lab, swept: SweepResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(notebooks, "TEMPLATE", broken(tmp_path, "import time\ntime.sleep(60)"))

    def interrupt() -> None:
        end = time.monotonic() + 30
        while not kernels() and time.monotonic() < end:
            time.sleep(0.05)
        time.sleep(2)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt, daemon=True).start()
    with pytest.raises(KeyboardInterrupt):
        render_sweep(swept, reports_lab.runtime.settings, tmp_path / "report.html")
    assert no_kernel_left()
    assert not (tmp_path / "report.html").exists()


def test_wrong_paths_and_unscored_metrics_are_refused(reports_lab: Lab, swept: SweepResult, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"a report is an HTML file"):
        reports_lab.report(swept, tmp_path / "report.pdf")
    from dataclasses import replace

    other = replace(swept, spec=swept.spec.model_copy(update={"metric": "ndcg@5"}))
    with pytest.raises(InputError, match=r"'ndcg@5' was not scored on hostile"):
        render_sweep(other, reports_lab.runtime.settings, tmp_path / "report.html")


def test_settings_reach_the_kernel_by_its_environment_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORKBENCH_DATABASE_URL", "postgresql://stale")
    monkeypatch.chdir(tmp_path)
    settings = Settings(home=Path("here"), db_schema="mine", database_url=None)
    found = kernel.environment(settings, tmp_path)
    assert "WORKBENCH_DATABASE_URL" not in found
    assert found["WORKBENCH_HOME"] == str(tmp_path / "here")
    assert found["WORKBENCH_SCHEMA"] == "mine"
    secret = settings.model_copy(update={"database_url": SecretStr("postgresql://u:secret@h/d")})
    assert kernel.environment(secret, tmp_path)["WORKBENCH_DATABASE_URL"] == "postgresql://u:secret@h/d"
    with monkeypatch.context() as patch:
        for name in list(os.environ):
            if name.startswith("WORKBENCH_"):
                patch.delenv(name)
        for name, value in kernel.environment(secret, tmp_path).items():
            if name.startswith("WORKBENCH_"):
                patch.setenv(name, value)
        assert Settings.read() == secret.model_copy(update={"home": tmp_path / "here"})


def test_the_template_is_clean_and_calls_only() -> None:
    body = json.loads(notebooks.TEMPLATE.read_text(encoding="utf-8"))
    code = [c for c in body["cells"] if c["cell_type"] == "code"]
    assert [c for c in code if "parameters" in c["metadata"].get("tags", ())] == code[:1]
    assert all(not c["outputs"] and c["execution_count"] is None for c in code)
    words = ("for ", "if ", "def ", "while ", "lambda")
    assert not any(word in "".join(c["source"]) for c in code for word in words)
