"""A notebook that takes parameters: the names and defaults in its parameters cell, and values held against them.

papermill only warns of an unknown parameter and takes a value of any type; here both are errors before any work.
"""

from __future__ import annotations

import ast
import tomllib
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workbench.errors import InputError, did_you_mean
from workbench.specs import canonical_json, digest

if TYPE_CHECKING:
    from nbformat import NotebookNode

REQUIRED = ("dataset", "trial")
"""Without these a notebook cannot know which trial it is for."""
OF_THE_SWEEP: Mapping[str, str] = {
    "dataset": "--dataset",
    "trial": "the sweep's axes",
    "label": "the sweep's axes",
    "metric": "the sweep's metric",
    "limit": "--limit",
}
"""Parameters that a batch sets, and what they follow from."""
_HOW = (
    'tag a code cell "parameters" and assign dataset = "" and trial = {} in it; a later cell runs'
    " lab.run(dataset=dataset, **trial)"
)
_WORDS: Mapping[type, str] = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text",
    list: "a list",
    dict: "a table",
}


@dataclass(frozen=True)
class Template:
    """A notebook as it was read. `defaults` are its parameters; None also stands for what no literal gives."""

    path: Path
    notebook: NotebookNode
    defaults: Mapping[str, Any]

    @property
    def digest(self) -> str:
        """Identity of what it does: its cells and their tags, not its outputs or how often it was saved."""
        return digest([[c.cell_type, c.source, list(c.metadata.get("tags", ()))] for c in self.notebook.cells])

    def require(self, name: str) -> None:
        """Refuse a parameter that the notebook does not have.

        Raises:
            InputError: with the nearest one.
        """
        if name not in self.defaults:
            hint = did_you_mean(name, self.defaults)
            raise InputError(f"the notebook has no parameter {name!r}", where=str(self.path), hint=hint)

    def check(self, name: str, value: Any) -> None:
        """Refuse a value that does not have the type of the parameter's default.

        Raises:
            InputError: no such parameter, another type, or nothing that a cell could hold.
        """
        self.require(name)
        try:
            canonical_json(value)
        except (TypeError, ValueError):
            hint = "finite numbers, text, true, false, lists and tables can be given"
            raise InputError(f"{name} = {value!r} cannot be written into a cell", where="-p", hint=hint) from None
        default = self.defaults[name]
        kind = list if isinstance(default, tuple) else type(default)
        fitting = (float, int) if kind is float else (kind,)
        if default is not None and type(value) not in fitting:
            what = f"{name} is {_WORDS.get(kind, kind.__name__)} (by default {default!r}), not {value!r}"
            raise InputError(what, where="-p", hint=f"the default stands in {self.path.name}")


def read_template(path: Path) -> Template:
    """A notebook with its parameters.

    Raises:
        InputError: there is none, it is not for Python, or it has no parameters cell with `dataset` and `trial`.
    """
    notebook = _read(path)
    language = notebook.metadata.get("kernelspec", {}).get("language", "python")
    if language != "python":
        raise InputError(f"this notebook is written in {language}", where=str(path), hint="give one in Python")
    cells = [c for c in notebook.cells if c.cell_type == "code" and "parameters" in c.metadata.get("tags", ())]
    if not cells:
        raise InputError("this notebook has no parameters cell", where=str(path), hint=_HOW)
    try:
        defaults = _assigned(cells[0].source)
    except SyntaxError as error:
        place = f"{path}, parameters cell, line {error.lineno}"
        raise InputError(f"not Python: {error.msg}", where=place, hint="plain assignments only") from None
    if missing := [name for name in REQUIRED if name not in defaults]:
        raise InputError(f"its parameters cell does not assign {' and '.join(missing)}", where=str(path), hint=_HOW)
    return Template(path, notebook, defaults)


def _read(path: Path) -> NotebookNode:
    import nbformat
    from nbformat.warnings import DuplicateCellId, MissingIDFieldWarning

    if not path.is_file():
        near = [p.name for p in path.parent.glob("*.ipynb")] or ["no notebook there"]
        raise InputError("no such notebook", where=str(path), hint=did_you_mean(path.name, near))
    try:
        with warnings.catch_warnings():  # reading mends both
            warnings.simplefilter("ignore", MissingIDFieldWarning)
            warnings.simplefilter("ignore", DuplicateCellId)
            notebook: NotebookNode = nbformat.reads(path.read_text(encoding="utf-8"), as_version=4)
            nbformat.validate(notebook)
    except (ValueError, TypeError, AttributeError, KeyError, nbformat.ValidationError) as error:
        reason = str(error).strip().partition("\n")[0][:200]
        raise InputError(f"not a notebook: {reason}", where=str(path), hint="save it in Jupyter once more") from None
    return notebook


def _assigned(source: str) -> dict[str, Any]:
    """Names that a cell assigns, with the values of literals; None for the others."""
    found: dict[str, Any] = {}
    for statement in ast.parse(source).body:
        if isinstance(statement, ast.Assign):
            targets, value = statement.targets, statement.value
        elif isinstance(statement, ast.AnnAssign) and statement.value is not None:
            targets, value = [statement.target], statement.value
        else:
            continue
        try:
            literal = ast.literal_eval(value)
        except (ValueError, TypeError):
            literal = None
        found |= {target.id: literal for target in targets if isinstance(target, ast.Name)}
    return found


def parse_parameters(texts: Sequence[str], template: Template) -> dict[str, Any]:
    """`-p name=value` settings: a value is read as TOML, or else as text; text stays as it is where text is expected.

    Raises:
        InputError: no `=`, a parameter that the notebook does not have or that the sweep sets, a wrong type.
    """
    found = {}
    for text in texts:
        name, equals, raw = (part.strip() for part in text.partition("="))
        if not equals or not name:
            raise InputError(f"{text!r} is not name=value", where="-p", hint="for example -p tokens=200")
        if name in OF_THE_SWEEP:
            raise InputError(f"{name} is set by the batch: it follows from {OF_THE_SWEEP[name]}", where="-p")
        template.require(name)
        try:
            value = tomllib.loads(f"value = {raw}")["value"]
        except tomllib.TOMLDecodeError:
            value = raw
        if isinstance(template.defaults[name], str) and not isinstance(value, str):
            value = raw
        template.check(name, value)
        found[name] = value
    return found
