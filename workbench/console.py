"""Stdout and stderr of the commands: paragraphs, tables and one JSON object there, errors here."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from workbench.errors import InputError, WorkbenchError

INTERRUPTED = 130
_PIPE = 10_000
_SHOWN = 300
"""Characters of a passage that a list shows."""

# Text from documents and files must not move a terminal's cursor or change its title.
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


# --- streams -------------------------------------------------------------------------------------


def prepare() -> None:
    """Let no character of a result fail on a terminal that cannot show it."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace" if stream is sys.stdout else "backslashreplace")


def say(text: str = "", style: str = "", *, whole: bool = False) -> None:
    """A paragraph on stdout, wrapped at words in a terminal; `whole` keeps a line with a path in one piece."""
    console().print(Text(CONTROL.sub("�", text), style=style), soft_wrap=whole)


def print_json(value: Any) -> None:
    """One JSON object on a line of its own."""
    unicode = (sys.stdout.encoding or "").lower().replace("-", "") == "utf8"
    sys.stdout.write(json.dumps(value, ensure_ascii=not unicode, allow_nan=False, default=str) + "\n")


def complain(error: BaseException, *, as_json: bool) -> None:
    """An expected error: what, where and the next step on stderr; with `as_json` an object on stdout too."""
    if isinstance(error, OSError):
        place = f"{error.filename}: " if error.filename else ""
        text = place + (error.strerror or str(error))
        body = {"what": error.strerror or str(error), "where": error.filename, "hint": None, "faults": []}
    elif isinstance(error, WorkbenchError):
        text = str(error)
        faults = list(getattr(error, "faults", ()))
        body = {"what": error.what, "where": error.where, "hint": error.hint, "faults": faults}
    else:
        text = str(error) or type(error).__name__
        body = {"what": text, "where": None, "hint": None, "faults": []}
    print(f"error: {CONTROL.sub('�', text)}", file=sys.stderr)  # noqa: T201
    if as_json:
        print_json({"error": {"kind": type(error).__name__, **body}})


def run(app: Callable[..., Any], arguments: Sequence[str]) -> NoReturn:
    """Run a Typer application: an expected error is one message (with `--json` an object too) and an exit code."""
    as_json = "--json" in arguments
    prepare()
    try:
        code = app(
            args=list(arguments), prog_name="workbench", standalone_mode=False
        )  # the code of a command that raised typer.Exit
        sys.stdout.flush()
        if code == INTERRUPTED:  # which is what newer Typers make of Ctrl-C, without a word
            raise KeyboardInterrupt
    except (typer.Abort, KeyboardInterrupt):
        stopped = WorkbenchError("interrupted", hint="finished work is kept, run the same command again to go on")
        complain(stopped, as_json=as_json)
        sys.exit(INTERRUPTED)
    except BrokenPipeError:  # `workbench ... | head`: nobody reads on, and the flush at exit must not complain
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except (WorkbenchError, OSError) as error:
        complain(error, as_json=as_json)
        sys.exit(error.exit_code if isinstance(error, WorkbenchError) else 2)
    except Exception as error:
        if hasattr(error, "format_message"):
            _complain_of_usage(error, as_json=as_json)
        if as_json:
            print_json({"error": {"kind": type(error).__name__, "what": str(error)}})
        raise
    sys.exit(code if isinstance(code, int) else 0)


def _complain_of_usage(error: Any, *, as_json: bool) -> NoReturn:
    """Typer's own errors (an unknown option, a missing argument), said as ours are."""
    message = error.format_message().strip()
    if message:  # without one the help was printed
        param, context = getattr(error, "param", None), getattr(error, "ctx", None)
        hints = []
        if message.startswith("Missing") and param is not None and param.help:
            hints.append(param.help.removesuffix("."))
        if context is not None:
            hints.append(f"see `{context.command_path} --help`")
        complain(InputError(message.removesuffix("."), hint="; ".join(hints) or None), as_json=as_json)
    sys.exit(error.exit_code)


def piped() -> bool:
    """Whether stdout is no terminal, and nobody said how wide to write."""
    return not sys.stdout.isatty() and "COLUMNS" not in os.environ


def console() -> Console:
    """Stdout as it is now. In a pipe nothing is wrapped: what reads it is a program or a file."""
    return Console(width=_PIPE if piped() else None, markup=False, emoji=False, highlight=False)


def show(table: Table) -> None:
    """A table on stdout."""
    out = console()
    with out.capture() as captured:
        out.print(table)
    # The cells of the last column are padded to its width, which in a pipe may be long.
    sys.stdout.write("".join(f"{line.rstrip()}\n" for line in captured.get().splitlines()))


def table(*columns: str, left: Sequence[str]) -> Table:
    """A bare table; words wrap in the left-aligned columns, figures never."""
    table = Table(box=None, pad_edge=False, header_style="dim")
    for name in columns:
        words = name in left
        table.add_column(
            name, justify="left" if words else "right", no_wrap=not words, overflow="fold", ratio=1 if words else None
        )
    return table


def cell(text: str) -> Text:
    """Words from documents or files, safe for a terminal."""
    return Text(CONTROL.sub("�", text))


def figure(value: float | None) -> str:
    """A score."""
    return "–" if value is None else f"{value:.3f}"


def interval(summary: Mapping[str, Any]) -> str:
    """The interval of a metric's summary."""
    return "–" if summary["low"] is None else f"{figure(summary['low'])} to {figure(summary['high'])}"


def count(number: int, noun: str) -> str:
    """A number of things, in words."""
    plural = f"{noun[:-1]}ies" if noun.endswith("y") else f"{noun}s"
    return f"{number:,} {noun if number == 1 else plural}"


def one_line(text: str) -> str:
    """The beginning of a passage, without its line breaks."""
    text = " ".join(text.split())
    return text if len(text) <= _SHOWN else text[: _SHOWN - 1] + "…"
