"""The report of a sweep: template, executed notebook, one self-contained HTML file."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import workbench
from workbench.errors import InputError, ReportError
from workbench.reports import sections
from workbench.reports.kernel import run_notebook
from workbench.reports.page import POLICY, TEMPLATES, style, style_element, write_atomically
from workbench.settings import Settings
from workbench.sweeps.results import SweepResult

if TYPE_CHECKING:
    from nbformat import NotebookNode

TEMPLATE = TEMPLATES / "sweep.ipynb"
_MARK = re.compile(r'<meta name="workbench-report" content="([0-9a-f]{64})">')


def render_sweep(result: SweepResult, settings: Settings, path: Path | None = None, *, force: bool = False) -> Path:
    """Render a sweep's report from the store; returns the path of the HTML file.

    The executed notebook is kept beside it. A file that was rendered from the same inputs by the same
    code is left as it is, unless `force`.

    Args:
        path: the HTML file, or a folder for it; default is `reports/` in the home of the settings.

    Raises:
        InputError: the path is not one for HTML, or the declared metric was not scored.
        ReportError: the notebook did not run to its end; no file was written.
    """
    sections.check(result)
    target = _target(result, settings, path)
    wanted = sections.fingerprint(result)
    beside = target.with_suffix(".ipynb")
    if not force and beside.exists() and rendered_from(target) == wanted:
        return target
    notebook = run_notebook(TEMPLATE, {"sweep_id": result.sweep_id}, settings)
    check_complete(notebook, wanted)
    tidy(notebook)
    html = to_html(notebook, f"{result.spec.question or result.name} · {result.dataset.name}", wanted)

    import nbformat

    write_atomically(beside, nbformat.writes(notebook) + "\n")
    return write_atomically(target, html)


def _target(result: SweepResult, settings: Settings, path: Path | None) -> Path:
    slug = re.sub(r"[^\w.-]+", "-", result.name).strip("-.") or "sweep"
    name = f"{slug[:80]}-{result.sweep_id}.html"
    if path is None:
        return (settings.home / "reports" / name).expanduser().absolute()
    path = path.expanduser().absolute()
    if path.is_dir():
        return path / name
    if path.suffix.lower() not in (".html", ".htm"):
        raise InputError("a report is an HTML file", where=str(path), hint=f"for example {path.stem}.html, or a folder")
    return path


def rendered_from(path: Path) -> str | None:
    """The fingerprint of the inputs that a report was rendered from; None where there is no whole report."""
    try:
        with path.open(encoding="utf-8") as file:
            found = _MARK.search(file.read(4096))
    except (OSError, UnicodeDecodeError):
        return None
    return found[1] if found else None


def check_complete(notebook: NotebookNode, wanted: str) -> None:
    """Refuse a notebook that did not run to its end, judged by its outputs: its metadata is no evidence.

    Raises:
        ReportError: a cell has an error or did not run, or the last one does not name these inputs.
    """
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    for no, cell in enumerate(cells, 1):
        if any(output.output_type == "error" for output in cell.outputs) or cell.execution_count is None:
            line = cell.source.strip().partition("\n")[0]
            raise ReportError(f"code cell {no} ({line!r}) did not end well", where=TEMPLATE.name)
    marks = [o.data[sections.DONE] for o in (cells[-1].outputs if cells else ()) if sections.DONE in o.get("data", {})]
    if not marks:
        raise ReportError("the notebook stopped before its last cell", where=TEMPLATE.name, hint="run it again")
    if marks[0].get("fingerprint") != wanted:
        raise ReportError("the sweep changed while its report was rendered", hint="run the report again")


def tidy(notebook: NotebookNode) -> None:
    """Take out what differs between two runs of the same notebook: times, folders, random cell ids."""
    for no, cell in enumerate(notebook.cells):
        cell.id = f"cell-{no:02}"
        tags = list(cell.metadata.get("tags", ()))
        cell.metadata = type(cell.metadata)({"tags": tags} if tags else {})
    kept = {name: notebook.metadata[name] for name in ("kernelspec", "language_info") if name in notebook.metadata}
    notebook.metadata = type(notebook.metadata)(kept)


def to_html(notebook: NotebookNode, title: str, fingerprint: str) -> str:
    """The executed notebook as one page, by our own template: nothing is fetched, nothing runs."""
    import copy

    from nbconvert.exporters.templateexporter import TemplateExporter
    from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath

    page = copy.deepcopy(notebook)
    for cell in page.cells:
        for output in cell.get("outputs", ()):
            data: dict[str, Any] = output.get("data", {})
            if "text/html" in data:
                data["text/html"] = "".join(data["text/html"]).replace(style_element(), "")
    # Not HTMLExporter: it passes the page through an HTML parser, which turns &#13; into a line break.
    markdown = MarkdownWithMath(IPythonRenderer(escape=True, exclude_anchor_links=True))
    exporter = TemplateExporter(
        template_name="page",
        template_file="index.html.j2",
        file_extension=".html",
        extra_template_basedirs=[str(TEMPLATES)],
        filters={"markdown2html": markdown.render},
    )
    about = {
        "title": title,
        "fingerprint": fingerprint,
        "policy": POLICY,
        "style": style(),
        "version": workbench.__version__,
    }
    body, _ = exporter.from_notebook_node(page, resources={"report": about})
    return str(body)
