"""One report of the `filings` dataset: a pure function of seed, company and period.

The draws come from `random.Random(seed).random()` alone, the one sequence that Python promises to keep.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Callable, Sequence
from functools import cache
from random import Random
from typing import NamedTuple, TypeVar

from workbench.datasets import filings_grammar as grammar

PERIODS = 8
"""Periods of a company: quarters from the first of `FIRST_YEAR` on, in years to come."""
FIRST_YEAR = 2031
SENTENCES = 6
"""Sentences of a section: 100 to 200 wordpieces, so that a chunk of 200 holds one section."""
PLAIN = 2
"""Sections of a report that nothing is asked about."""
SUBJECTS = len(grammar.ASKED)
"""Sections that each report has, with a fact of each kind."""
SECTIONS = SUBJECTS + PLAIN

Draw = Callable[[], float]
_T = TypeVar("_T")


class Fact(NamedTuple):
    """A sentence that stands once in its report, the figure it states, and the question that asks for it."""

    subject: str
    question: str
    sentence: str
    figure: str


class Report(NamedTuple):
    """A text with its facts by subject: asked for by company and period, or by an invented name in the text."""

    company: str
    period: str
    text: str
    stated: Sequence[Fact]
    marked: Sequence[Fact]

    @property
    def title(self) -> str:
        return f"{self.company}, {self.period} report"


class Template(NamedTuple):
    """A sentence with `%s` for its slots, and the words that may stand in each."""

    text: str
    choices: tuple[tuple[str, ...], ...]


class Section(NamedTuple):
    """A section of the grammar with its sentences as templates."""

    heading: str
    question: str
    figures: tuple[str, ...]
    keys: tuple[Template, ...]
    marked: tuple[tuple[Template, str], ...]
    fillers: tuple[Template, ...]


def drawing(*what: object) -> Draw:
    """A source of numbers in [0, 1) that is named by `what`."""
    seed = hashlib.blake2b("/".join(map(str, what)).encode(), digest_size=8).digest()
    return Random(int.from_bytes(seed)).random  # noqa: S311 -- no secret


def company_name(seed: int, company: int) -> str:
    """The name of a company, unlike that of any other of this seed."""
    number = scattered(company, _stems(), seed, "company")
    form = int(drawing("form", seed, company)() * len(grammar.FORMS))
    return f"{_stem(number)} {grammar.FORMS[form]}"


def compose(seed: int, company: int, period: int) -> Report:
    """The report of a company (from 0) on a period (from 0)."""
    draw = drawing("report", seed, company, period)
    name = company_name(seed, company)
    quarter = f"Q{period % 4 + 1} {FIRST_YEAR + period // 4}"
    asked, plain = _sections()
    stated: list[Fact] = []
    marked: list[Fact] = []
    parts: list[str] = []
    for number, section in enumerate(asked):
        figure = _any(section.figures, draw)
        key = _filled(_any(section.keys, draw), draw).replace("{figure}", figure)
        question = section.question.format(company=name, period=quarter)
        stated.append(Fact(section.heading, question, key, figure))

        mark = _mark(seed, (company * PERIODS + period) * len(asked) + number)
        template, question = _any(section.marked, draw)
        figure = _any(section.figures, draw)
        other = _filled(template, draw).replace("{mark}", mark).replace("{figure}", figure)
        marked.append(Fact(section.heading, question.replace("{mark}", mark), other, figure))

        sentences = _walk(section.fillers, SENTENCES - 2, draw)
        sentences.insert(int(draw() * (SENTENCES - 1)), key)
        sentences.insert(int(draw() * SENTENCES), other)
        parts.append(f"{section.heading}\n{' '.join(sentences)}")
    first = int(draw() * len(plain))
    for i in range(PLAIN):
        section = plain[(first + i) % len(plain)]
        parts.append(f"{section.heading}\n{' '.join(_walk(section.fillers, SENTENCES, draw))}")
    return Report(name, quarter, "\n\n".join(parts), stated, marked)


def _any(items: Sequence[_T], draw: Draw) -> _T:
    return items[int(draw() * len(items))]


def _filled(template: Template, draw: Draw) -> str:
    text, choices = template
    return text % tuple([words[int(draw() * len(words))] for words in choices])


def _walk(templates: Sequence[Template], count: int, draw: Draw) -> list[str]:
    """`count` different sentences: any stride visits all of a prime number of templates."""
    prime = len(templates)
    at, stride = int(draw() * prime), 1 + int(draw() * (prime - 1))
    return [_filled(templates[(at + i * stride) % prime], draw) for i in range(count)]


@cache
def _sections() -> tuple[tuple[Section, ...], tuple[Section, ...]]:
    """The asked and the plain sections."""
    return tuple(map(_compiled, grammar.ASKED)), tuple(map(_compiled, grammar.PLAIN))


def _compiled(section: grammar.Section) -> Section:
    return Section(
        section.heading,
        section.question,
        grammar.SLOTS[section.unit] if section.unit else (),
        tuple(map(_template, section.keys)),
        tuple((_template(sentence), question) for sentence, question in section.marked),
        tuple(map(_template, section.fillers)),
    )


def _template(text: str) -> Template:
    slot = re.compile(r"\{(" + "|".join(grammar.SLOTS) + r")\}")
    return Template(slot.sub("%s", text.replace("%", "%%")), tuple(grammar.SLOTS[name] for name in slot.findall(text)))


# --- invented names ------------------------------------------------------------------------------


def _mark(seed: int, number: int) -> str:
    tints, creatures, things = grammar.MARKS
    number = scattered(number, len(tints) * len(creatures) * len(things), seed, "mark")
    number, thing = divmod(number, len(things))
    tint, creature = divmod(number, len(creatures))
    return f"{tints[tint]} {creatures[creature]} {things[thing]}"


def _stems() -> int:
    return len(grammar.STARTS) * len(grammar.MIDDLES) * len(grammar.ENDS)


def _stem(number: int) -> str:
    number, end = divmod(number, len(grammar.ENDS))
    start, middle = divmod(number, len(grammar.MIDDLES))
    return f"{grammar.STARTS[start]}{grammar.MIDDLES[middle]}{grammar.ENDS[end]}".capitalize()


def scattered(number: int, size: int, seed: int, what: str) -> int:
    """Where a permutation of range(size), one for each seed and `what`, puts a number."""
    factor, offset = _scatter(size, seed, what)
    return (number * factor + offset) % size


@cache
def _scatter(size: int, seed: int, what: str) -> tuple[int, int]:
    """Factor and offset of a permutation: the factor shares no divisor with the size."""
    draw = drawing(what, seed)
    factor = next(f for f in range(int((0.25 + draw() / 2) * size) + 1, size) if math.gcd(f, size) == 1)
    return factor, int(draw() * size)
