"""A piece of HTML that stands in a notebook or in a page, with the one style sheet of all reports."""

from __future__ import annotations

import functools
import secrets
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

if TYPE_CHECKING:
    from jinja2 import Environment

TEMPLATES = Path(str(resources.files("workbench.reports"))) / "templates"

POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"
"""Content security policy of every page: a second wall behind escaping. No script, no request."""


@functools.cache
def style() -> str:
    """The style sheet. Its rules are scoped to `.wb` (pieces) and `.wb-page` (whole pages)."""
    return (TEMPLATES / "report.css").read_text(encoding="utf-8")


@functools.cache
def style_element() -> str:
    """The style sheet as an element; a page that has it already takes it out of the pieces it holds."""
    return f"<style>{style()}</style>"


@dataclass(frozen=True)
class Fragment:
    """Escaped HTML that a notebook shows; `text` stands in where HTML cannot."""

    body: str
    text: str

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, str]:  # noqa: ARG002
        return {"text/html": f'{style_element()}<div class="wb">{self.body}</div>', "text/plain": self.text}

    def _repr_html_(self) -> str:
        return self._repr_mimebundle_()["text/html"]

    def __repr__(self) -> str:
        return self.text


@functools.cache
def environment() -> Environment:
    """The Jinja environment of our pages: everything is escaped, and an unknown name is an error."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    return Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def exact(text: str) -> Markup:
    """Text that a browser gives back letter for letter: a parser turns a bare carriage return into a line feed."""
    return Markup(str(Markup.escape(text)).replace("\r", "&#13;"))  # noqa: S704 -- escaped on this very line


def number(value: float | None, digits: int = 3) -> str:
    """A score for people: "–" where there is none."""
    return "–" if value is None else f"{value:.{digits}f}"


def write_atomically(path: Path, text: str) -> Path:
    """Write a file whole or not at all; returns its absolute path."""
    path = path.expanduser().absolute()
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        # "x" gives the file the permissions of any new file: a report is to be passed on.
        with temporary.open("x", encoding="utf-8", newline="") as file:
            file.write(text)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    return path
