"""Definitions in source code of many languages, found without a parser.

Comments, strings and directives are blanked out first, by one regular expression a family of languages.
Then braces are matched, or, where a language has none, lines are compared by their indentation. Any text
is accepted, code that does not compile included: what is not understood gives no definition. Time is
linear in the length of the text.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from workbench.stages.contextual._parts import Part


@dataclass(frozen=True)
class Language:
    """How a family of languages writes what is no code, and what tells its definitions."""

    comment: str
    """A pattern of comments and directives."""
    string: str
    """A pattern of strings and characters."""
    braces: bool = True
    """Whether braces enclose a definition; else indentation does."""
    bare: bool = False
    """Whether a function needs no keyword: `int main(void) {`."""


_STRING = r'"(?:\\.|[^"\\\n])*+"?'
_QUOTED = r"'(?:\\.|[^'\\\n])*+'?"
_CHARACTER = r"'(?:\\[^\n]{1,10}?|[^'\\\n])'"  # no lifetime of Rust, no digit separator of C++
_TEMPLATE = r"`(?:\\.|[^\\`])*+`?"
_TRIPLE = r'"""(?:\\.|[^\\])*?(?:"""|\Z)'
_TRIPLES = rf"{_TRIPLE}|'''(?:\\.|[^\\])*?(?:'''|\Z)"
_RAW_C = r'\b(?:u8|[uUL])?R"(?P<mark>[^()\\\s]{0,16})\(.*?(?:\)(?P=mark)"|\Z)'
_RAW_RUST = r'\b(?:br?|r)(?P<mark>#*)".*?(?:"(?P=mark)|\Z)'
_SLASHES = r"//[^\n]*|/\*.*?(?:\*/|\Z)"
_DIRECTIVE = r"^[ \t]*#(?:\\\n|[^\n])*+"
_ATTRIBUTE = r"#!?\[(?:[^\[\]]|\[[^\[\]]*+\]){0,400}+\]"

_FAMILIES = {
    "c h cc cpp cxx hh hpp hxx inl ipp cu cuh m mm ino": Language(
        rf"{_SLASHES}|{_DIRECTIVE}", rf"{_RAW_C}|{_STRING}|{_CHARACTER}", bare=True
    ),
    "java cs groovy": Language(rf"{_SLASHES}|{_DIRECTIVE}", rf"{_TRIPLE}|{_STRING}|{_CHARACTER}", bare=True),
    "js jsx mjs cjs ts tsx mts cts dart": Language(_SLASHES, rf"{_TRIPLES}|{_STRING}|{_QUOTED}|{_TEMPLATE}", bare=True),
    "kt kts swift scala proto zig": Language(rf"{_SLASHES}|{_DIRECTIVE}", rf"{_TRIPLE}|{_STRING}|{_CHARACTER}"),
    "rs": Language(rf"{_SLASHES}|{_ATTRIBUTE}", rf"{_RAW_RUST}|{_STRING}|{_CHARACTER}"),
    "go": Language(_SLASHES, rf"{_STRING}|{_CHARACTER}|{_TEMPLATE}"),
    "php pl pm ps1": Language(rf"#[^\n]*|{_SLASHES}", rf"{_STRING}|{_QUOTED}"),
    "sh bash zsh r": Language(r"(?<!\S)#[^\n]*", rf"{_STRING}|'[^']*+'?", bare=True),
    "py pyi pyx rb ex exs jl nim cr": Language(r"#[^\n]*", rf"{_TRIPLES}|{_STRING}|{_QUOTED}", braces=False),
    "lua": Language(r"--\[\[.*?(?:\]\]|\Z)|--[^\n]*", rf"{_STRING}|{_QUOTED}", braces=False),
}
LANGUAGES: Mapping[str, Language] = {ending: family for names, family in _FAMILIES.items() for ending in names.split()}
"""The languages by the ending of a file's name."""


def definitions(text: str, language: Language) -> list[Part]:
    """The definitions of a text, each from its header on; two of them are nested or apart."""
    hidden = re.compile(f"(?P<comment>{language.comment})|{language.string}", re.DOTALL | re.MULTILINE)
    code = hidden.sub(_hide, text)
    return _Braces(code, language.bare).found if language.braces else list(_by_indentation(code))


def _hide(hidden: re.Match[str]) -> str:
    """Blanks of the same length. A string becomes a pair of parentheses: its lines are then no lines of code."""
    piece = hidden[0]
    blanks = "\n".join(" " * len(line) for line in piece.split("\n"))
    return blanks if hidden["comment"] or len(piece) < 2 else f"({blanks[1:-1]})"


# --- headers -------------------------------------------------------------------------------------

_WORD = r"[^\W\d][\w$]*"
_TYPES = (
    "class|struct|interface|enum|trait|namespace|module|mod|union|record|object|protocol|extension|contract|actor"
    "|service|message|mixin|library|macro_rules!"
)
_KEYED = re.compile(
    rf"^[ \t]*(?:[\w()-]+[ \t]+){{0,6}}?(?P<kind>(?P<function>fn|func|function|fun|def|sub|proc)|{_TYPES})"
    rf"(?:[ \t]+(?:class|struct)\b)?\*?[ \t]+(?:\(\s*(?:{_WORD}\s+)?\*?(?P<receiver>{_WORD})[^()\n]*\)[ \t]*)?"
    r"(?:[A-Z][A-Z0-9_]*(?:\([^()\n]*\))?[ \t]+(?=[^\W\d])(?!(?:extends|implements|permits|final|with|for|is)\b))?"
    rf"(?P<name>{_WORD}(?:(?:::|\.){_WORD})*)",
    re.MULTILINE,
)
"""A keyword, an export macro, a name; the receiver of a method in Go stands between them."""
_TYPE = re.compile(rf"^[ \t]*(?:export[ \t]+)?(?P<kind>type)[ \t]+(?P<name>{_WORD})", re.MULTILINE)
_IMPL = re.compile(r"^[ \t]*(?:unsafe[ \t]+)?impl\b(?P<rest>.*?)(?:\bwhere\b|\Z)", re.MULTILINE | re.DOTALL)
_BARE = re.compile(
    rf"^[ \t]*(?:[\w:<>,*&.?$\[\]]+[ \t]+[*&]*)*?"
    rf"(?P<name>(?:{_WORD}(?:<[^<>\n]*>)?::)*(?:~?{_WORD}|operator[ \t]*[^\s\w]{{1,3}}))[ \t]*(?P<open>\()",
    re.MULTILINE,
)
_BARE_TAIL = re.compile(
    r"\s*(?:\Z|(?:const|volatile|noexcept|override|final|throws?|where|async|try|mutable)\b|->|&|:(?!:))"
)
_ASSIGNED = re.compile(
    rf"^[ \t]*(?:[\w$]+[ \t.]+)*?(?P<name>{_WORD})[ \t]*(?:[=:]|<-)[ \t]*(?:async[ \t]*)?(?:function\b|[^=\n]*=>\s*\Z)",
    re.MULTILINE,
)
_NOT_HEADER = re.compile(
    r"@\w[\w.]*(?:[ \t]*\([^()]*\))?|^[ \t]*template[ \t]*<[^;{}\n]*>(?=\s*\w)|^[ \t]*[\w ]+:(?!:)(?=\s*$)",
    re.MULTILINE,
)
"""Annotations, parameters of templates, and labels such as `public:`."""
_CONTROL = re.compile(
    r"\s*(?:if|else|for|foreach|while|do|switch|case|catch|try|finally|return|match|when|with|using|lock|synchronized"
    r"|new|throw|await|yield|let|unless|until|elif|in|and|or|not|loop|guard|repeat|defer|go|select|print|assert|delete"
    r"|sizeof|decltype|alignas|typeof|goto|super|this|extern|import|from|static_assert)\b"
)
"""What begins a statement, or stands before parentheses, and defines nothing."""
_ANGLES = re.compile(r"<[^<>]*>")
_HEADER = 600
"""Characters before a brace that are looked at; what is longer is no header."""


class _Header(NamedTuple):
    start: int
    """Of the line, or of what stands before the header in it."""
    name: str
    function: bool
    """A function without a keyword has no other one inside."""


def _header(text: str, bare: bool) -> _Header | None:
    """The definition that ends at a brace, from the text between the last statement and the brace."""
    text = _NOT_HEADER.sub(lambda noise: re.sub(r"[^\n]", " ", noise[0]), text)
    if found := _IMPL.search(text):
        return _Header(found.start(), f"impl {_plain(found['rest'])}", False)
    if found := _TYPE.search(text):
        return _Header(found.start(), f"type {found['name']}", False)
    if text.rstrip().endswith("="):
        return None
    keyed = next((k for k in reversed(list(_KEYED.finditer(text))) if not _CONTROL.match(k[0])), None)
    if bare and (function := _function(text, keyed)):
        return function
    if keyed:
        receiver = f"{keyed['receiver']}." if keyed["receiver"] else ""
        return _Header(keyed.start(), f"{keyed['kind']} {receiver}{keyed['name']}", keyed["function"] is not None)
    return None


def _function(text: str, keyed: re.Match[str] | None) -> _Header | None:
    """A function without a keyword, if there is one; a keyword before the same name goes first."""
    for found in _BARE.finditer(text):
        if keyed and found.end("name") <= keyed.end("name"):
            continue
        if _CONTROL.match(found[0]) or _CONTROL.fullmatch(found["name"]):
            continue
        close = _closing(text, found.start("open"))
        if close is not None and _BARE_TAIL.match(text, close):
            # The name of a macro says little without its arguments: TEST(Suite, Case).
            shown = text[found.start("name") : close] if found["name"].isupper() else found["name"]
            return _Header(found.start(), " ".join(shown.split()), True)
    if assigned := _ASSIGNED.search(text):
        return _Header(assigned.start(), f"function {assigned['name']}", True)
    return None


def _plain(text: str) -> str:
    """Without type parameters, on one line."""
    shorter = _ANGLES.sub("", text)
    while shorter != text:
        text, shorter = shorter, _ANGLES.sub("", shorter)
    return " ".join(text.split())


def _closing(text: str, at: int) -> int | None:
    """The offset after the parenthesis that closes the one at an offset; None where the text ends first."""
    depth = 0
    for mark in re.compile(r"[()]").finditer(text, at):
        depth += 1 if mark[0] == "(" else -1
        if not depth:
            return mark.end()
    return None


# --- braces --------------------------------------------------------------------------------------

_MARKS = re.compile(r"[{}()\[\];]")


class _Block(NamedTuple):
    """An open brace."""

    start: int
    column: int | None
    """Indentation of the header's line; None where the header does not begin a line."""
    header: _Header | None
    """None where no definition began."""
    depth: int
    """Parentheses that were open around it."""


class _Braces:
    """One pass over the braces of a text; `found` are the definitions that have ended."""

    def __init__(self, code: str, bare: bool) -> None:
        self._code, self._bare = code, bare
        self._opened: list[_Block] = []
        self._named: list[int] = []  # positions in `_opened` of the definitions
        self.found: list[Part] = []
        depth = boundary = 0
        for mark in _MARKS.finditer(code):
            at, character = mark.start(), mark[0]
            if character in "([":
                depth += 1
            elif character in ")]":
                depth = max(0, depth - 1)
            elif character == ";":
                boundary = boundary if depth else at + 1
            elif character == "{":
                self._open(boundary, at, depth)
                depth, boundary = 0, at + 1
            else:
                depth = self._close(at + 1) if self._opened else 0
                boundary = at + 1
        while self._opened:
            self._close(len(code))

    def _open(self, boundary: int, brace: int, depth: int) -> None:
        first = max(boundary, brace - _HEADER)
        header = _header(self._code[first:brace], self._bare)
        if header is None:
            self._opened.append(_Block(brace, None, None, depth))
            return
        line = first + header.start
        start = brace - len(self._code[line:brace].lstrip())
        column = start - line if not line or self._code[line - 1] == "\n" else None
        # A function no deeper than the one around it: a brace was lost, as in two branches of an #if.
        while header.function and column is not None and self._named:
            outer = self._opened[self._named[-1]]
            if not (outer.header and outer.header.function) or outer.column is None or outer.column < column:
                break
            for _ in range(len(self._opened) - self._named[-1]):
                depth = self._close(start)
        self._named.append(len(self._opened))
        self._opened.append(_Block(start, column, header, depth))

    def _close(self, end: int) -> int:
        """End the innermost block; returns the parentheses open around it."""
        block = self._opened.pop()
        if block.header:
            self._named.pop()
            self.found.append(Part(block.start, end, block.header.name))
        return block.depth


# --- indentation ---------------------------------------------------------------------------------

_BEGINS = re.compile(
    r"(?:(?:async|local|cdef|cpdef|inline|mutable)[ \t]+)?"
    r"(?P<kind>class|def|defp|defmodule|defmacro|module|function|struct|macro|proc|func)[ \t]+"
    rf"(?P<name>{_WORD}(?:(?:::|[.:]){_WORD})*[?!]?)"
)
_DECORATOR = re.compile("@")
_END = re.compile(r"end\b|[)}\]]")
_BRACKETS = re.compile(r"[()\[\]{}]")


def _by_indentation(code: str) -> Iterator[Part]:
    """A definition reaches to the last line before one that is indented no deeper; an `end` is its own."""
    opened: list[tuple[int, int, str]] = []  # indentation, start, name
    at = depth = last = 0  # last: where the code before this line ends
    continued = False
    decorated: int | None = None
    for line in code.splitlines(keepends=True):
        bare = line.strip()
        start, at = at + len(line) - len(line.lstrip()), at + len(line)
        if not bare:
            continue
        begins = _BEGINS.match(bare)
        if begins or not (depth or continued):
            depth = 0  # no definition begins inside brackets: one was never closed
            indent = start - (at - len(line))
            while opened and indent <= opened[-1][0]:
                own = indent == opened[-1][0] and _END.match(bare)
                yield Part(opened[-1][1], start + len(bare) if own else last, opened.pop()[2])
            if begins:
                first = start if decorated is None else decorated
                opened.append((indent, first, f"{begins['kind']} {begins['name']}"))
            decorated = (start if decorated is None else decorated) if _DECORATOR.match(bare) else None
        for bracket in _BRACKETS.findall(bare):
            depth = depth + 1 if bracket in "([{" else max(0, depth - 1)
        continued = bare.endswith("\\")
        last = start + len(bare)
    for _, start, name in reversed(opened):
        yield Part(start, last, name)
