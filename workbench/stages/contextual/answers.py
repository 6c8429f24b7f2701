"""A model's answer made fit to be a context: one paragraph, without what a model says around what was asked for."""

from __future__ import annotations

import re

_THOUGHTS = re.compile(r"<think>.*?(?:</think>|\Z)", re.DOTALL)
_TAGS = re.compile(r"</?(?:context|document|chunk|passage|summary|answer)>", re.IGNORECASE)
_PREAMBLES = re.compile(
    r"(?:sure|certainly|of course|okay|ok)\s*[,.!:;]+\s*"
    r"|(?:here(?:'s|’s| is| are)|the following is|below is)\b[^.:!?]{0,120}:\s*"
    r"|(?:the |short |succinct |brief |one-sentence )*(?:context|summary|answer|sentence|output)\s*:\s*",
    re.IGNORECASE,
)
_QUOTES = (('"', '"'), ("'", "'"), ("“", "”"), ("‘", "’"), ("«", "»"), ("**", "**"), ("*", "*"), ("`", "`"))


def clean(text: str) -> str:
    """The answer on one line, without tags, preambles ("Here is ...:") and quotes around the whole of it.

    Empty where no letter or digit is left. Cleaning twice is cleaning once.
    """
    text = " ".join(_TAGS.sub(" ", _THOUGHTS.sub(" ", text)).split())
    before = None
    while text != before:
        before = text
        text = _unquoted(text[found.end() :] if (found := _PREAMBLES.match(text)) else text).strip()
    return text if any(map(str.isalnum, text)) else ""


def _unquoted(text: str) -> str:
    for opening, closing in _QUOTES:
        inside = text[len(opening) : -len(closing)]
        if text == f"{opening}{inside}{closing}" and opening not in inside and closing not in inside:
            return inside
    return text
