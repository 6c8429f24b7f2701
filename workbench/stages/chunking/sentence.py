"""Whole sentences, found by rules."""

from __future__ import annotations

import re

import numpy as np

from workbench.models.protocols import Tokenizer
from workbench.models.tokenizers import BLANK, code_point_kinds
from workbench.records import Document
from workbench.specs import Sentence
from workbench.stages.chunking._spans import Level, Packer, Positions, Ruler, Spans, after_each, trimmed

# Starting with one set of characters lets `re` leap to the next candidate; possessive quantifiers and the
# look-behinds keep the search linear on long runs of stops or blanks.
_STOP = ".!?…"
_WIDE = "。！？｡।॥؟۔።։"
_CLOSERS = "\"'”’»›)\\]}*_`」』）】〉》〕］"
_ENDS = re.compile(
    rf"""
    [{_STOP}{_WIDE}．\n]
    (?: (?<=[{_STOP}]) (?<![{_STOP}][{_STOP}]) (?P<more> [{_STOP}]*+ ) [{_CLOSERS}]*+ (?P<after> \s++ )  # then a blank
      | (?<=[{_WIDE}．]) (?: (?<!．) | (?!\d) ) (?: [{_WIDE}] | ．(?!\d) )*+ [{_CLOSERS}]*+ \s*+  # no blank needed
      | (?<=\n) [^\S\n]*+ \n \s*+                                                     # an empty line
      | (?<=\n) (?= [ \t]* (?: [-*+•‣◦–] | \(?\d{{1,3}}[.)] | \(?[a-zA-Z][.)] | \#{{1,6}} ) [ \t] )  # item, heading
    )
    """,
    re.VERBOSE,
)
_LONGEST_WORD = 24
_MARKER = re.compile(r"\s*\(?\d{1,3}\Z")
_OPENERS = "\"'“‘«„([{「『（【《〈¿¡"
_INITIALS = re.compile(r"(?:[^\W\d_]\.)*[^\W\d_]\Z")
_NAMED = (
    "adm al approx art brig ca capt cf ch cmdr col cpl dept dr ed eds eq eqs fig figs gen gov hon lt maj messrs "
    "mlle mme mr mrs ms mt nr op pres prof rep rev sec sen sgt st supt univ viz vs"
)
_NUMBERED = "apr aug dec feb jan jul jun mar no nos nov oct p pp pt sep sept tab ver vol vols"
_BEFORE_NAMES, _BEFORE_NUMBERS = frozenset(_NAMED.split()), frozenset(_NUMBERED.split())


def sentence_ends(text: str) -> Positions:
    """Offsets where one sentence ends and the next begins, blanks between them going to the first.

    Rules of our own: `.`, `!`, `?`, `…` with any closing quotes and brackets, then a blank, end a sentence
    unless a lower-case letter follows; a single full stop does not end one after an initial (`J.`, `U.S.`),
    a title or an abbreviation (`Dr.`, `Fig.`, `No. 5`) or a list marker (`2.`), and dots (`...`) only do
    before an upper-case letter or an opening mark. Stops of scripts that leave no blank (。！？ and others)
    always end one. So do an empty line and a line end before a list item or heading; other line ends do not.
    In doubt two sentences stay one: packing would mostly join them again.
    """
    found = [match.end() for match in _ENDS.finditer(text) if _is_end(text, match)]
    return np.array(found, dtype=np.int64)


def _is_end(text: str, match: re.Match[str]) -> bool:
    after = match["after"]
    if after is None or match.end() == len(text) or after.count("\n") > 1:
        return True
    follows = text[match.end()]
    if follows.islower():
        return False
    start = match.start()
    stop = text[start] + match["more"]
    if "!" in stop or "?" in stop:
        return True
    if stop != ".":
        return follows.isalpha() or follows in _OPENERS
    near = max(0, start - _LONGEST_WORD)
    words = text[near:start].split()
    if not words or text[start - 1].isspace():
        return False
    word = words[-1].lstrip(_OPENERS)
    line_start = text.rfind("\n", near, start) + 1
    if _INITIALS.match(word) or ((line_start or near == 0) and _MARKER.match(text, line_start, start)):
        return False
    lower = word.lower()
    return lower not in _BEFORE_NAMES and not (lower in _BEFORE_NUMBERS and follows.isdigit())


def blank_ends(text: str) -> Positions:
    """Offsets after each run of blanks."""
    blank = code_point_kinds(text) == BLANK
    return np.flatnonzero(blank[:-1] & ~blank[1:]) + 1


def line_ends(text: str) -> Positions:
    """Offsets after each line feed."""
    return after_each(text, "\n")


LEVELS: tuple[Level, ...] = (sentence_ends, line_ends, blank_ends)


def sentences(spec: Sentence, tokenizer: Tokenizer, document: Document) -> Spans:
    """Whole sentences packed up to `spec.tokens`; up to `spec.overlap` tokens of whole sentences are repeated.

    A sentence that is too long is cut at line ends, then at blanks, then at the start of a token.
    """
    ruler = Ruler(document.text, tokenizer)
    return trimmed(document.text, Packer(ruler, LEVELS, spec.tokens, spec.overlap).pack())
