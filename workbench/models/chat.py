"""Where a language model's files are, what identifies it, and how it counts tokens."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from workbench.errors import ModelError, SpecError
from workbench.models import smollm2
from workbench.models.protocols import Chat, ChatTokenizer
from workbench.models.weights import INSTALL, LLM, TOKENIZER, Family, Weights, hub_error, locate
from workbench.specs import Served


def locate_llm(spec: Served, cache: Path) -> Weights:
    """A language model's place and identity, quickly: nothing is loaded, and nothing is converted.

    "smollm2-135m" lies in a folder below `cache`, which `prepare_llm` makes where it is not there yet.
    Otherwise as `weights.locate`, with the chat template (*.jinja) among the files that identify a folder.

    Raises:
        ModelError: nothing of that name, a folder without weights, or a hub that cannot be asked.
        SpecError: a revision of a model that is no hub name.
    """
    return _locate(spec.model, spec.revision, cache, LLM)


def prepare_llm(spec: Served, cache: Path) -> Weights:
    """As `locate_llm`, with the files in place: `source` and `commit` can be given to a server.

    Raises:
        ModelError: also where the packaged model cannot be converted.
    """
    weights = locate_llm(spec, cache)
    if spec.model == smollm2.NAME:
        smollm2.convert(cache)
    return weights


def load_chat_tokenizer(spec: Served, cache: Path, *, external: bool = False) -> ChatTokenizer:
    """How the model of a spec counts tokens; of an `external` service, as the tokenizer that the spec names.

    A service whose tokenizer is not named gets a `ByteTokenizer`.

    Raises:
        ModelError, SpecError: as `locate_llm`, or the files are no tokenizer.
    """
    if not external:
        return ModelTokenizer(spec.model, prepare_llm(spec, cache))
    if spec.tokenizer is None:
        return ByteTokenizer()
    if spec.tokenizer == smollm2.NAME:
        smollm2.convert(cache)
    return ModelTokenizer(spec.tokenizer, _locate(spec.tokenizer, None, cache, TOKENIZER))


def _locate(model: str, revision: str | None, cache: Path, family: Family) -> Weights:
    if model != smollm2.NAME:
        return locate(model, revision, cache, family=family)
    if revision is not None:
        raise SpecError(f"{model!r} comes with a package: it has no revisions", where="revision", hint="leave it out")
    return Weights(str(smollm2.folder(cache)), None, smollm2.identity(cache))


class ModelTokenizer:
    """A model's own tokenizer and chat template, as transformers runs them; may be used from several threads."""

    def __init__(self, name: str, weights: Weights) -> None:
        """Load the tokenizer of `weights`, without torch where its folder allows.

        Raises:
            ModelError: a package or the files are missing, or they are no fast tokenizer.
        """
        self.name = name
        self.identity: Mapping[str, Any] = {"tokenizer": dict(weights.identity)}
        self._tokenizer = _load(name, weights)
        if not hasattr(self._tokenizer, "backend_tokenizer"):
            raise ModelError(
                f"{type(self._tokenizer).__name__} is no fast tokenizer",
                where=weights.source,
                hint="use a model that has a tokenizer.json",
            )
        self._backend = self._tokenizer.backend_tokenizer
        self._backend.no_truncation()
        self._backend.no_padding()

    def spans(self, text: str) -> NDArray[np.int64]:
        """[n, 2] code-point offsets of the tokens that stand for at least one character; starts never go back.

        Tokens that share a character (its bytes were taken apart) all have its span.
        """
        encoded = self._backend.encode(text, add_special_tokens=False)
        flat = np.fromiter(chain.from_iterable(encoded.offsets), np.int64, 2 * len(encoded))
        # Some normalizers give offsets that step back or over the end.
        spans = np.maximum.accumulate(np.clip(flat.reshape(-1, 2), 0, len(text)), axis=0)
        kept: NDArray[np.int64] = spans[spans[:, 0] < spans[:, 1]]
        return kept

    def chat_ids(self, messages: Chat) -> Sequence[int]:
        """Token ids of the chat in the model's template, with the opening of the turn to answer.

        Raises:
            ModelError: the model has no chat template, or its template refuses the messages.
        """
        try:
            prompt = self._tokenizer.apply_chat_template(
                [dict(message) for message in messages], add_generation_prompt=True, tokenize=False
            )
        except Exception as error:  # a template can raise whatever it likes, beside what Jinja raises
            raise ModelError(
                f"the chat template of {self.name!r} cannot be used: {error}",
                hint="use a model that was trained for chat, and roles that its template knows",
            ) from error
        ids: list[int] = self._backend.encode(prompt, add_special_tokens=False).ids
        return ids

    def prompt_ids(self, text: str) -> Sequence[int]:
        """Token ids of a completion's prompt, with the special tokens that the tokenizer puts around a text."""
        ids: list[int] = self._backend.encode(text, add_special_tokens=True).ids
        return ids


class ByteTokenizer:
    """Counts for a service that we have no files of: never too few tokens, and several times too many.

    A token of a byte-level or byte-fallback vocabulary stands for at least one byte of UTF-8. What a chat
    template adds is not known: `PER_MESSAGE` and `PER_CHAT` tokens are set aside for it.
    """

    PER_MESSAGE = 16
    """Role, turn marks and line breaks of one message."""
    PER_CHAT = 128
    """The turn to answer, and the system text that some templates put in by themselves."""

    @property
    def identity(self) -> Mapping[str, Any]:
        return {"tokenizer": "bytes", "per_message": self.PER_MESSAGE, "per_chat": self.PER_CHAT}

    def spans(self, text: str) -> NDArray[np.int64]:
        """[bytes, 2] offsets: each code point as often as it has bytes."""
        points = np.frombuffer(text.encode("utf-32-le"), dtype=np.uint32)
        size = 1 + (points > 0x7F).astype(np.int64) + (points > 0x7FF) + (points > 0xFFFF)
        starts = np.repeat(np.arange(len(text), dtype=np.int64), size)
        return np.stack([starts, starts + 1], axis=1)

    def chat_ids(self, messages: Chat) -> Sequence[int]:
        """The bytes of all contents, and one 0 for each token that is set aside."""
        return b"".join(m["content"].encode() for m in messages) + bytes(
            self.PER_CHAT + self.PER_MESSAGE * len(messages)
        )

    def prompt_ids(self, text: str) -> Sequence[int]:
        """The bytes of the text, and one 0 for each special token that may stand around it."""
        return text.encode() + bytes(self.PER_MESSAGE)


def _load(name: str, weights: Weights) -> Any:
    loader: Any
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="IProgress not found")
            # AutoTokenizer would take the same class for these folders, after importing torch.
            if _is_plain(Path(weights.source)):
                from transformers import PreTrainedTokenizerFast

                loader = PreTrainedTokenizerFast
            else:
                from transformers import AutoTokenizer

                loader = AutoTokenizer
    except ImportError as error:
        raise ModelError(f"the tokenizer of {name!r} needs package transformers", hint=INSTALL) from error
    try:
        return loader.from_pretrained(weights.source, revision=weights.commit, local_files_only=weights.commit is None)
    except Exception as error:  # a foreign model's files can make the loaders raise anything
        if weights.commit is not None:
            raise hub_error(weights.source, weights.commit, error, family=TOKENIZER) from error
        reason = (str(error).strip() or type(error).__name__).partition("\n")[0]
        raise ModelError(
            f"the tokenizer of {name!r} cannot be loaded: {reason}",
            where=weights.source,
            hint="expected a folder with tokenizer.json and tokenizer_config.json",
        ) from error


def _is_plain(folder: Path) -> bool:
    """Whether a folder's tokenizer is its tokenizer.json and nothing else, by its own word."""
    with suppress(OSError, ValueError, AttributeError):
        config = json.loads((folder / "tokenizer_config.json").read_bytes())
        return config.get("tokenizer_class") == "TokenizersBackend" and "auto_map" not in config
    return False
