"""Every `workbench ...` command line in the documentation parses: the command, its options and their values exist."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.main

from workbench import cli

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "experiments").glob("*.toml"))]
_IN_BACKTICKS = re.compile(r"`((?:\.venv/bin/)?workbench [^`\n]+)`")
_ON_A_LINE = re.compile(r"^\s*(?:\$ |! ?)?((?:\.venv/bin/)?workbench (?!=).+?)\s*$", re.MULTILINE)
_BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def command_lines(text: str) -> Iterator[list[str]]:
    """The arguments of each command: in backticks anywhere, on a line of its own in a block of shell."""
    found = [match[1] for match in _IN_BACKTICKS.finditer(text)]
    for language, block in _BLOCK.findall(text):
        if language in ("", "sh", "bash", "shell", "console"):
            found += [match[1] for match in _ON_A_LINE.finditer(block.replace("\\\n", " "))]
    for line in found:
        words = shlex.split(line, comments=True)[1:]
        ends = [i for i, word in enumerate(words) if word in ("|", ">", "&&", "...", "…")]
        words = words[: ends[0]] if ends else words
        if words:
            # In prose a number has a name: `workbench report SWEEP`.
            yield ["1" if word in ("SWEEP", "N", "ID") else word for word in words]


def parse(words: list[str]) -> None:
    """Parse a command line without running it."""
    command: Any = typer.main.get_command(cli.app)
    context = command.make_context("workbench", [words[0]])
    while hasattr(command, "commands"):
        name, *words = words
        if name.startswith("-"):
            return
        assert name in command.commands, f"no command {name!r}"
        command = command.commands[name]
        if not words and (hasattr(command, "commands") or command.params):
            return  # a command named in prose, without its arguments
        if not hasattr(command, "commands"):
            context = command.make_context(name, words, parent=context)


LINES = [(page, words) for page in PAGES if page.exists() for words in command_lines(page.read_text(encoding="utf-8"))]


@pytest.mark.parametrize(("page", "words"), LINES, ids=[f"{p.name}: {' '.join(w)[:60]}" for p, w in LINES])
def test_a_documented_command_parses(page: Path, words: list[str]) -> None:
    try:
        parse(words)
    except Exception as error:
        if not hasattr(error, "format_message"):
            raise
        pytest.fail(f"{page.name}: workbench {' '.join(words)}: {error.format_message()}")


def test_commands_are_found() -> None:
    assert {page.parent.name for page, _ in LINES} >= {"experiments"}
    assert list(
        command_lines("run `workbench report SWEEP -o a.html`.\n```sh\nworkbench demo --lexical  # quick\n```")
    ) == [
        ["report", "1", "-o", "a.html"],
        ["demo", "--lexical"],
    ]


@pytest.mark.parametrize("line", ["rnu", "run --dataste d", "run a.toml -d d --limit many", "data list"])
def test_a_wrong_command_would_be_noticed(line: str) -> None:
    with pytest.raises(Exception, match=r".") as raised:
        parse(line.split())
    assert isinstance(raised.value, AssertionError) or hasattr(raised.value, "format_message")


@pytest.mark.parametrize("page", [p for p in PAGES if p.suffix == ".toml"], ids=lambda p: p.name)
def test_every_experiment_says_what_question_it_answers(page: Path) -> None:
    assert page.read_text(encoding="utf-8").startswith("# ")
