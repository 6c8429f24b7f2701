"""A sweep as executed notebooks: parameters checked before any work, files that agree with the store, nothing left."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import nbformat
import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st
from report_kernels import no_kernel_left

from workbench import cli_notebooks, console
from workbench.errors import InputError, SpecError
from workbench.lab import Lab
from workbench.parsing import parse
from workbench.reports import batches, executing
from workbench.reports.batches import Batch, Outcome
from workbench.reports.parameters import Template, parse_parameters, read_template
from workbench.settings import Settings
from workbench.specs import Bm25, Dense, Fixed, Fts, LlmRerank, Recursive, ScoreSpec, Situated, SweepSpec, TrialSpec

ROOT = Path(__file__).resolve().parents[2]
TRIAL = ROOT / "notebooks" / "trial.ipynb"
PARAMETERS = """dataset = ""          # a name=, or a folder
trial = {}
label = ""
limit: int | None = None
metric = "recall@5"
mode = "run"
only = ""
depth = 3
share = 0.5
deep = False
words = ["a", "b"]
"""
MODES = """import os, signal, sys, time
import workbench
act = mode if label.startswith(only) and not os.path.exists("go") else "run"
lab = workbench.open()
if act == "error":
    raise ValueError("no <such> thing")
if act == "kill":
    os.kill(os.getpid(), signal.SIGKILL)
if act == "sleep":
    time.sleep(300)
if act == "stubborn":
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    while True:
        time.sleep(1)
print("here", os.getcwd(), sys.path[-1])"""
SWEEP = """question = "How large?"
[base.chunk]
tokenizer = "words"
[base.retrieve]
kind = "bm25"
k = 5
[base.score]
k = [1, 5]
[axes]
"chunk.tokens" = [20, 40]
"""
SPEC = SweepSpec(
    base=TrialSpec(chunk=Recursive(tokenizer="words"), retrieve=Bm25(k=5), score=ScoreSpec(k=(1, 5))),
    axes={"chunk.tokens": (20, 40)},
)


def write_notebook(
    path: Path, parameters: str = PARAMETERS, *cells: str, tags: Sequence[str] = ("parameters",)
) -> Path:
    made = [nbformat.v4.new_code_cell(parameters, metadata={"tags": list(tags)})]
    made += [nbformat.v4.new_code_cell(source) for source in cells]
    nbformat.write(nbformat.v4.new_notebook(cells=made), path)
    return path


def modes(path: Path) -> Path:
    """A notebook that does what `mode` says in trials whose label begins with `only`, while there is no file `go`."""
    run = 'if act != "none":\n    result = lab.run(dataset=dataset, label=label, limit=limit, **trial)'
    return write_notebook(path, PARAMETERS, MODES, run, "lab.close()")


@pytest.fixture
def template(tmp_path: Path) -> Template:
    return read_template(write_notebook(tmp_path / "given.ipynb"))


@pytest.fixture
def place(tmp_path: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a dataset `data`, a sweep `s.toml` and the notebook `modes.ipynb`."""
    folder = tmp_path / "at {work}"  # papermill fills braces in paths
    (folder / "data").mkdir(parents=True)
    monkeypatch.chdir(folder)
    for name in [n for n in os.environ if n.startswith("WORKBENCH_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("WORKBENCH_HOME", str(settings.home))
    monkeypatch.setenv("WORKBENCH_SCHEMA", settings.db_schema)
    for word in ("anchor", "basin", "cobalt"):
        Path(f"data/{word}.md").write_text(f"The {word} is blue.\n\nThe {word} costs seven.\n")
    Path("data/questions.csv").write_text("question,quote\nwhat does the anchor cost,The anchor costs seven.\n")
    Path("s.toml").write_text(SWEEP)
    modes(Path("modes.ipynb"))
    return folder


@pytest.fixture
def notebooks(place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Runs `workbench notebooks run modes.ipynb -s s.toml -d data`; returns exit code, stdout and stderr."""
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)  # Typer puts its own there

    def run(*arguments: str, notebook: str = "modes.ipynb") -> tuple[int, str, str]:
        capsys.readouterr()
        with pytest.raises(SystemExit) as stopped:
            console.run(cli_notebooks.app, ["run", notebook, "-s", "s.toml", "-d", "data", *arguments])
        assert isinstance(stopped.value.code, int)
        return stopped.value.code, *capsys.readouterr()

    return run


def arranged(lab: Lab, place: Path, template: Template, **options: Any) -> Batch:
    return batches.arrange(lab.plan(SPEC, "data"), template, place / "out", dataset=str(place / "data"), **options)


# --- the parameters cell -------------------------------------------------------------------------


def test_parameters_are_read_from_the_cell(template: Template) -> None:
    """Also those whose comment has an equals sign, which papermill's own inspection leaves out."""
    assert template.defaults == {
        "dataset": "",
        "trial": {},
        "label": "",
        "limit": None,
        "metric": "recall@5",
        "mode": "run",
        "only": "",
        "depth": 3,
        "share": 0.5,
        "deep": False,
        "words": ["a", "b"],
    }


@pytest.mark.parametrize(
    ("parameters", "tags", "message"),
    [
        (PARAMETERS, (), r"no parameters cell .*tag a code cell"),
        ('dataset = ""', ("parameters",), r"does not assign trial \(tag a code cell"),
        ("a, b = 1, 2", ("parameters",), r"does not assign dataset and trial"),
        ("trial = {", ("parameters",), r"parameters cell, line 1: not Python"),
    ],
)
def test_a_notebook_that_cannot_know_its_trial_is_refused(
    tmp_path: Path, parameters: str, tags: tuple[str, ...], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        read_template(write_notebook(tmp_path / "n.ipynb", parameters, tags=tags))


def test_files_that_are_no_notebooks_are_refused(tmp_path: Path) -> None:
    write_notebook(tmp_path / "trial.ipynb")
    with pytest.raises(InputError, match=r"no such notebook \(did you mean 'trial\.ipynb'"):
        read_template(tmp_path / "trail.ipynb")
    for text in ("", "[]", "{}", '{"cells": 3, "nbformat": 4, "nbformat_minor": 5, "metadata": {}}', "\x00"):
        (tmp_path / "n.ipynb").write_text(text)
        with pytest.raises(InputError, match="not a notebook"):
            read_template(tmp_path / "n.ipynb")
    other = nbformat.v4.new_notebook(metadata={"kernelspec": {"name": "ir", "language": "R", "display_name": "R"}})
    nbformat.write(other, tmp_path / "n.ipynb")
    with pytest.raises(InputError, match="written in R"):
        read_template(tmp_path / "n.ipynb")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("depth=5", 5),
        ("share=1", 1),
        ("share = 0.25", 0.25),
        ("deep=true", True),
        ("mode=error", "error"),
        ('mode="error"', "error"),
        ("mode=7", "7"),
        ("mode=true", "true"),
        ("mode=a=b", "a=b"),
        ("mode=", ""),
        ('words=["x"]', ["x"]),
    ],
)
def test_a_value_has_the_type_of_its_default(template: Template, text: str, value: object) -> None:
    found = parse_parameters([text], template)[text.partition("=")[0].strip()]
    assert (found, type(found)) == (value, type(value))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("depth", r"'depth' is not name=value"),
        ("=3", r"is not name=value"),
        ("dept=3", r"no parameter 'dept' \(did you mean 'depth'"),
        ("depth=3.5", r"depth is a whole number \(by default 3\), not 3\.5"),
        ("depth=true", r"depth is a whole number"),
        ("depth=many", r"depth is a whole number .* not 'many'"),
        ("deep=1", r"deep is true or false"),
        ("share=true", r"share is a number"),
        ("share=nan", r"cannot be written into a cell"),
        ("words=a", r"words is a list"),
        ("words=[1979-05-27]", r"cannot be written into a cell"),
        ("trial={}", r"trial is set by the batch"),
        ("limit=5", r"limit is set by the batch: it follows from --limit"),
    ],
)
def test_a_parameter_that_does_not_fit_is_refused(template: Template, text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        parse_parameters([text], template)


VALUES = st.integers(-(2**60), 2**60) | st.floats(allow_nan=False, allow_infinity=False) | st.booleans()
VALUES |= st.lists(st.integers(0, 9) | st.text(st.characters(codec="ascii", exclude_characters="\x7f")))


@given(VALUES, VALUES)
def test_a_value_is_taken_as_it_is_or_refused(default: Any, value: Any) -> None:
    template = Template(Path("n.ipynb"), nbformat.v4.new_notebook(), {"x": default})
    fits = type(value) is type(default) or (type(default), type(value)) == (float, int)
    try:
        found = parse_parameters([f"x={json.dumps(value)}"], template)
    except InputError:
        assert not fits
    else:
        assert fits
        assert found == {"x": value}


def test_outputs_do_not_change_what_a_notebook_is(tmp_path: Path) -> None:
    path = write_notebook(tmp_path / "n.ipynb", PARAMETERS, "1 + 1")
    first = read_template(path).digest
    notebook = nbformat.read(path, as_version=4)
    notebook.cells[1].outputs = [nbformat.v4.new_output("stream", text="2")]
    notebook.cells[1].execution_count = 4
    nbformat.write(notebook, path)
    assert read_template(path).digest == first
    notebook.cells[1].source = "1 + 2"
    nbformat.write(notebook, path)
    assert read_template(path).digest != first


# --- the batch -----------------------------------------------------------------------------------

TRIALS = st.builds(
    TrialSpec,
    chunk=st.builds(Fixed, tokens=st.integers(100, 300), overlap=st.integers(0, 9)) | st.builds(Recursive),
    retrieve=st.builds(Dense, k=st.integers(1, 99)) | st.builds(Bm25) | st.builds(Fts, match=st.just("any")),
    context=st.builds(
        Situated, window=st.integers(100, 900), stop=st.lists(st.text(min_size=1), max_size=2).map(tuple)
    ),
    rerank=st.builds(LlmRerank, depth=st.integers(20, 40), k=st.integers(1, 20)),
    score=st.builds(ScoreSpec, k=st.lists(st.integers(1, 99), min_size=1).map(tuple)),
)


@given(TRIALS)
def test_the_tables_of_a_trial_are_read_back_as_the_same_trial(trial: TrialSpec) -> None:
    tables = batches.tables(trial)
    assert parse(TrialSpec, json.loads(json.dumps(tables))) == trial


def test_a_function_of_this_process_is_refused() -> None:
    with pytest.raises(SpecError, match="a function cannot be passed on"):
        batches.tables(parse(TrialSpec, {"chunk": lambda text: [text]}))


def test_each_trial_has_its_file_and_a_fingerprint_of_what_determines_it(lab: Lab, place: Path) -> None:
    template = read_template(Path("modes.ipynb"))
    batch = arranged(lab, place, template)
    assert [entry.file.name for entry in batch.entries] == ["001-20.ipynb", "002-40.ipynb"]
    assert [entry.label for entry in batch.entries] == ["20", "40"]
    given = batch.entries[0].parameters
    assert (given["dataset"], given["label"], given["metric"]) == (str(place / "data"), "20", "recall@5")
    assert "mode" not in given
    prints = [entry.fingerprint for entry in batch.entries]
    assert [entry.fingerprint for entry in arranged(lab, place, template).entries] == prints
    others = [arranged(lab, place, template, parameters={"mode": "error"}), arranged(lab, place, template, limit=1)]
    write_notebook(Path("modes.ipynb"), PARAMETERS, "pass")
    others.append(arranged(lab, place, read_template(Path("modes.ipynb"))))
    Path("data/anchor.md").write_text("The anchor is red.\n\nThe anchor costs seven.\n")
    others.append(arranged(lab, place, template))
    found = [*prints, *(entry.fingerprint for other in others for entry in other.entries)]
    assert len(set(found)) == len(found)


def test_only_what_the_notebook_takes_is_given(lab: Lab, place: Path) -> None:
    template = read_template(write_notebook(Path("n.ipynb"), 'dataset = ""\ntrial = {}'))
    assert set(arranged(lab, place, template).entries[0].parameters) == {"dataset", "trial"}
    with pytest.raises(InputError, match="no parameter 'limit'"):
        arranged(lab, place, template, limit=3)
    with pytest.raises(InputError, match="trial is a list"):
        arranged(lab, place, read_template(write_notebook(Path("n.ipynb"), 'dataset = ""\ntrial = []')))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("-p", "dept=3"), "did you mean 'depth'"),
        (("-p", "depth=x"), "depth is a whole number"),
        (("--limit", "0"), "--limit"),
        (("-o", "s.toml"), "no folder can be made there"),
    ],
)
def test_wrong_input_is_one_line_before_any_work(
    notebooks: Callable[..., Any], arguments: tuple[str, ...], message: str
) -> None:
    code, out, err = notebooks(*arguments, "--json")
    assert code == 2
    assert message in err
    assert err.count("error:") == 1 == out.count("\n")
    assert not Path("runs").exists()


# --- with kernels --------------------------------------------------------------------------------


def files(folder: str | Path = "runs/s") -> list[str]:
    return sorted(path.name for path in Path(folder).iterdir())


@pytest.mark.slow
def test_done_then_reused_then_executed_again_when_something_changes(notebooks: Callable[..., Any]) -> None:
    code, out, err = notebooks("--json", "--jobs", "2")
    body = json.loads(out)
    assert (code, err, body["state"], body["done"], body["trials"]) == (0, "", "done", 2, 2)
    assert [r["mean"] for r in body["results"]] == [1.0, 1.0]
    assert files() == ["001-20.ipynb", "002-40.ipynb"]
    notebook = nbformat.read("runs/s/001-20.ipynb", as_version=4)
    nbformat.validate(notebook)
    printed = notebook.cells[2].outputs[0].text
    assert printed == f"here {Path.cwd()} {Path.cwd()}\n", "paths mean the same as at the command line"
    before = [Path("runs/s", name).read_bytes() for name in files()]
    code, out, _ = notebooks("--json")
    body = json.loads(out)
    assert (code, body["reused"], [r["seconds"] for r in body["results"]]) == (0, 2, [0.0, 0.0])
    assert [Path("runs/s", name).read_bytes() for name in files()] == before
    shutil.copy("runs/s/001-20.ipynb", "runs/s/002-40.ipynb")  # not this trial's
    assert json.loads(notebooks("--json")[1])["done"] == 1
    assert json.loads(notebooks("--json", "-p", "depth=4")[1])["done"] == 2
    Path("data/basin.md").write_text("The basin is green.\n")
    assert json.loads(notebooks("--json", "-p", "depth=4")[1])["done"] == 2
    assert no_kernel_left()


@pytest.mark.slow
def test_a_notebook_without_its_trial_in_the_store_is_executed_again(
    notebooks: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, settings: Settings
) -> None:
    assert notebooks()[0] == 0
    monkeypatch.setenv("WORKBENCH_SCHEMA", f"{settings.db_schema}_other")
    assert json.loads(notebooks("--json")[1])["done"] == 2


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mode", "options", "error"),
    [
        ("error", (), "ValueError: no <such> thing"),
        ("kill", (), "Kernel died"),
        ("none", (), "the notebook ended without its trial"),
        ("sleep", ("--timeout", "3"), "A cell timed out"),
    ],
)
def test_a_failed_notebook_is_kept_with_its_error_until_it_succeeds(
    notebooks: Callable[..., Any], mode: str, options: tuple[str, ...], error: str
) -> None:
    code, out, err = notebooks("-p", f"mode={mode}", "-p", "only=20", *options)
    assert code == 1
    assert files() == ["001-20.failed.ipynb", "002-40.ipynb"]
    assert f"failed: 20: {error}" in out
    assert "002-40.ipynb: done" in err and "001-20.failed.ipynb: failed" in err
    kept = nbformat.read("runs/s/001-20.failed.ipynb", as_version=4)
    assert kept.metadata.workbench.error.startswith(error)
    shown = [c.source for c in kept.cells] + [
        o.evalue for c in kept.cells for o in c.get("outputs", ()) if "evalue" in o
    ]
    assert any("This notebook failed" in s or s == "no <such> thing" for s in shown)
    assert no_kernel_left()
    code, out, _ = notebooks("--json")
    assert (code, files()) == (0, ["001-20.ipynb", "002-40.ipynb"])


class Ended(executing.Progress):
    """Cells and outcomes as they were told."""

    def __init__(self) -> None:
        self.cells: list[tuple[str, int, int]] = []
        self.outcomes: list[Outcome] = []

    def cell(self, entry: batches.Entry, done: int, of: int) -> None:
        self.cells.append((entry.label, done, of))

    def ended(self, outcome: Outcome) -> None:
        self.outcomes.append(outcome)


@pytest.mark.slow
def test_the_notebook_that_ships_runs_any_trial(lab: Lab, place: Path) -> None:
    told = Ended()
    batch = arranged(lab, place, read_template(TRIAL), limit=1)
    outcomes = executing.run(batch, lab.runtime, progress=told)
    assert told.outcomes == outcomes
    assert [(o.state, o.mean, o.error) for o in outcomes] == [("done", 1.0, None)] * 2
    cells = len(batch.template.notebook.cells) + 1
    assert told.cells == [(label, i, cells) for label in ("20", "40") for i in range(cells)]


RUN = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell without job control ignores it for its children
from workbench import cli_notebooks, console
console.run(cli_notebooks.app, ["run", "modes.ipynb", "-s", "s.toml", "-d", "data", "-j", "2", *sys.argv[1:]])
"""


def kernels_of(runner: psutil.Process) -> list[psutil.Process]:
    return [child for child in runner.children() if "ipykernel" in " ".join(child.cmdline())]


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["sleep", "stubborn"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_an_interrupted_batch_leaves_no_process_and_goes_on(
    notebooks: Callable[..., Any], place: Path, mode: str, number: signal.Signals
) -> None:
    Path("s.toml").write_text(SWEEP.replace("[20, 40]", "[20, 40, 60, 80]"))
    command = [sys.executable, "-c", RUN, "-p", f"mode={mode}", "-p", "only=6", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            deadline = time.monotonic() + 120
            at_work = Path("runs/s/004-80.ipynb")  # the others are done, or cannot be before this one
            while not at_work.exists():
                assert time.monotonic() < deadline and process.poll() is None, process.communicate()
                time.sleep(0.1)
            kernels = kernels_of(psutil.Process(process.pid))
            assert kernels
            process.send_signal(number)
            out, err = process.communicate(timeout=60)
        finally:
            process.kill()  # where a check failed before its end
    _, alive = psutil.wait_procs(kernels, timeout=20)
    assert not alive
    done = ["001-20.ipynb", "002-40.ipynb", "004-80.ipynb"]
    if number == signal.SIGINT:
        assert process.returncode == 130
        assert err == "error: interrupted (finished work is kept, run the same command again to go on)\n"
        assert json.loads(out)["error"]["what"] == "interrupted"
        assert files() == done, "an interrupted notebook is no failed one"
    else:
        assert [name for name in files() if not name.startswith(".")] == done
    Path("go").touch()
    code, out, _ = notebooks("--json", "-p", f"mode={mode}", "-p", "only=6")
    assert (code, files()) == (0, sorted([*done, "003-60.ipynb"]))
    assert [r["state"] for r in json.loads(out)["results"]] == ["reused", "reused", "done", "reused"]
