"""Late interaction: every token of a question looks for the token of the passage that is most like it.

MaxSim (Khattab & Zaharia 2020, "ColBERT", section 3.3): the sum over the question's tokens of the greatest
cosine to a token of the passage. Models trained for it (sentence-transformers' MultiVectorEncoder, PyLate,
Stanford's ColBERT) run as they were saved: projection, markers, query expansion. Any other encoder gives the
last hidden states of its tokens, at unit length; the special tokens around a text are left out on both sides,
for they resemble each other whatever the text says.

A passage beyond the window is read as consecutive windows, and each maximum goes over the tokens of all.
"""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from workbench.errors import ModelError, SpecError
from workbench.models.loading import loading, window
from workbench.models.weights import RERANKER, Weights, locate
from workbench.specs import LateInteraction

if TYPE_CHECKING:
    import tokenizers
    from sentence_transformers import MultiVectorEncoder

Task = Literal["query", "document"]
Vectors = NDArray[np.float32]

_PASSAGES = 128
"""Passages whose token vectors are held at once: about 50 MB at 256 tokens of 384 dimensions."""
_QUESTIONS = 512
"""Questions whose token vectors are kept between calls."""
_CPU_TOKENS, _GPU_TOKENS = 4096, 65_536  # of one batch, padding included


def load_late_interaction(spec: LateInteraction, cache: Path | None = None) -> MaxSim:
    """Load the encoder that a spec names; `cache` keeps digests of weight files.

    Raises:
        ModelError: the model or a package is missing, or the files are no text encoder that can be run.
        SpecError: `max_tokens` beyond the model's positions or without room for text, or a revision of a
            local model.
    """
    return MaxSim(spec, locate(spec.model, spec.revision, cache, family=RERANKER))


class MaxSim:
    """Scores pairs by MaxSim on the best device that torch finds; `score` may be called from several threads."""

    def __init__(self, spec: LateInteraction, weights: Weights) -> None:
        """Load `weights` in `spec.dtype`.

        Raises:
            ModelError, SpecError: as `load_late_interaction`.
        """
        self.name = spec.model
        self.identity: Mapping[str, Any] = dict(weights.identity)
        self._model = _load(spec, weights)
        tokenizer: Any = self._model.tokenizer
        if not hasattr(tokenizer, "backend_tokenizer"):
            raise ModelError(
                f"{type(self._model[0]).__name__} is no transformer with a fast tokenizer",
                where=weights.source,
                hint="use an encoder whose folder has a config.json and a tokenizer.json",
            )
        # A copy that never cuts: the model's own is told to truncate at each call.
        self._tokenizer: tokenizers.Tokenizer = type(tokenizer.backend_tokenizer).from_str(
            tokenizer.backend_tokenizer.to_str()
        )
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        encoder: Any = self._model[0]
        full = window(self.name, self._model, self._model.max_seq_length, spec.max_tokens, RERANKER)
        if spec.max_tokens is not None:
            self._model.max_seq_length, encoder.document_length = full, None
        self._room = {
            "query": self._room_for("query", min(full, encoder.query_length or full)),
            "document": self._room_for("document", min(full, encoder.document_length or full)),
        }
        self._batch = _CPU_TOKENS if self._model.device.type == "cpu" else _GPU_TOKENS
        self._questions: OrderedDict[str, Vectors] = OrderedDict()
        self._lock = threading.Lock()
        try:
            self._encode(["a"], "document")
        except Exception as error:  # whatever a module of a foreign model raises
            raise ModelError(
                f"the model loads but does not run: {error}", where=weights.source, hint="use a text encoder"
            ) from error

    def score(self, pairs: Sequence[tuple[str, str]]) -> NDArray[np.float64]:
        """[n] MaxSim of (question, passage) pairs: a sum of cosines, at most the question's number of tokens.

        Each distinct text is encoded once, and equal pairs have equal digits. A question without tokens scores
        0; a passage without tokens scores -1 for each token of the question, the least there is.

        Raises:
            ModelError: a score is not finite.
        """
        by_passage: dict[str, list[int]] = {}
        for i, (_, passage) in enumerate(pairs):
            by_passage.setdefault(passage, []).append(i)
        # Longest first, so that neighbours need little padding and memory runs out at once or never.
        passages = sorted(by_passage, key=lambda text: (-len(text), text))
        scores = np.empty(len(pairs))
        with self._lock:
            questions = self._of_questions([question for question, _ in pairs])
            for at in range(0, len(passages), _PASSAGES):
                some = passages[at : at + _PASSAGES]
                for passage, vectors in zip(some, self._encode(some, "document"), strict=True):
                    for i in by_passage[passage]:
                        scores[i] = _max_sim(questions[pairs[i][0]], vectors)
        if bad := int(len(scores) - np.isfinite(scores).sum()):
            raise ModelError(
                f"{bad} of {len(scores)} pairs got a score that is not finite",
                where=self.name,
                hint='the weights are damaged, or their dtype is too narrow: try dtype = "float32"',
            )
        return scores

    def _of_questions(self, texts: Sequence[str]) -> dict[str, Vectors]:
        """The token vectors of questions, from the last calls where they were asked before."""
        found = {text: self._questions[text] for text in dict.fromkeys(texts) if text in self._questions}
        missing = [text for text in dict.fromkeys(texts) if text not in found]
        found |= zip(missing, self._encode(missing, "query"), strict=True)
        for text, vectors in found.items():
            self._questions[text] = vectors
            self._questions.move_to_end(text)
        while len(self._questions) > _QUESTIONS:
            self._questions.popitem(last=False)
        return found

    def _encode(self, texts: Sequence[str], task: Task) -> list[Vectors]:
        """[tokens, dimensions] of each text at unit length, its windows behind one another."""
        parts = [self._windows(text, self._room[task]) for text in texts]
        flat = [part for windows in parts for part in windows]
        if not flat:
            return []
        longest = max(len(self._tokenizer.encode(part).ids) for part in flat)
        encode = self._model.encode_query if task == "query" else self._model.encode_document
        found = encode(flat, batch_size=max(1, self._batch // longest), show_progress_bar=False)
        vectors = iter([tensor.float().cpu().numpy() for tensor in found])
        return [np.concatenate([next(vectors) for _ in windows]) for windows in parts]

    def _windows(self, text: str, room: int) -> list[str]:
        """The text in consecutive parts of at most `room` tokens, cut between words where one begins in time."""
        encoded = self._tokenizer.encode(text, add_special_tokens=False)
        words, offsets, total = encoded.word_ids, encoded.offsets, len(encoded.ids)
        cuts, first = [0], 0
        while total - first > room:
            end = first + room
            whole = next((i for i in range(end, first + room // 2, -1) if words[i] != words[i - 1]), end)
            first = whole
            cuts.append(offsets[whole - 1][1])
        return [text[start:end] for start, end in pairwise([*cuts, len(text)])]

    def _room_for(self, task: Task, size: int) -> int:
        """Tokens of text in a window of `size`: without special tokens and the model's own prefix."""
        prefix = self._model.prompts.get(task) or ""
        room = size - len(self._tokenizer.encode(prefix).ids)
        if room < 1:
            raise SpecError(
                f"a window of {size} tokens has no room for text", where="rerank.max_tokens", hint="raise max_tokens"
            )
        return room


def _max_sim(question: Vectors, passage: Vectors) -> float:
    if not len(passage):
        return -float(len(question))
    return float((passage @ question.T).max(axis=0).sum(dtype=np.float64)) if len(question) else 0.0


def _load(spec: LateInteraction, weights: Weights) -> MultiVectorEncoder:
    with loading(
        spec.model, weights, "a folder that save_pretrained or sentence-transformers wrote, with tokenizer", RERANKER
    ):
        import torch
        from sentence_transformers import MultiVectorEncoder, SentenceTransformer
        from sentence_transformers.base.modules import Normalize
        from sentence_transformers.multi_vector_encoder.modules import MultiVectorMask

        dtype: torch.dtype = getattr(torch, spec.dtype)
        options: dict[str, Any] = {
            "revision": weights.commit,
            "local_files_only": weights.commit is None,
            # Given, because the default is the dtype that the weights were stored in.
            "model_kwargs": {"dtype": dtype},
        }
        if _is_trained(weights):
            model = MultiVectorEncoder(weights.source, **options)
        else:
            encoder: Any = SentenceTransformer(weights.source, **options)[0]
            around = encoder.tokenizer.convert_ids_to_tokens(encoder.tokenizer("").input_ids)
            mask = MultiVectorMask(skiplist_words=around, skiplist_tasks=["query", "document"])
            model = MultiVectorEncoder(modules=[encoder, mask, Normalize(module_input_name="token_embeddings")])
        return model.to(dtype).eval()


def _is_trained(weights: Weights) -> bool:
    """Whether a model was saved as a late-interaction model; any other would get a random projection."""
    from sentence_transformers.util import load_file_path

    def config(name: str) -> dict[str, Any]:
        path = load_file_path(weights.source, name, revision=weights.commit, local_files_only=weights.commit is None)
        found: dict[str, Any] = json.loads(Path(path).read_bytes()) if path else {}
        return found

    architecture = (config("config.json").get("architectures") or [""])[0]
    return (
        config("config_sentence_transformers.json").get("model_type") in ("MultiVectorEncoder", "ColBERT")
        or architecture == "HF_ColBERT"
        or architecture.endswith("ForRetrieval")
    )
