"""Sentence embeddings by a local transformer: any sentence-transformers or transformers encoder.

`identity_of` is for plans: it loads nothing. `load_embedder` loads the model with
sentence-transformers, so that its own pooling, projection and normalisation modules are what runs
(Reimers & Gurevych 2019, arXiv:1908.10084); texts are tokenised and batched here, which is faster.

A text beyond the window is either cut ("truncate") or embedded as consecutive windows, each with the
special tokens and the role's prefix, whose unit vectors are averaged and normalised again ("pool").
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from workbench.errors import ModelError, SpecError
from workbench.models.loading import loading, window
from workbench.models.protocols import Embedder, Embeddings, Role
from workbench.models.weights import ENCODER, Weights, dimensions, locate
from workbench.specs import Embed

if TYPE_CHECKING:
    import tokenizers
    from sentence_transformers import SentenceTransformer

# Padded tokens of one batch. On a CPU 1,024 to 4,096 are equally fast in every dtype and larger batches
# leave its cache; the largest of these has the fewest points where all threads wait for a shared core.
_CPU_BATCH, _GPU_BATCH = 4096, 65_536


def identity_of(spec: Embed, cache: Path | None = None) -> Mapping[str, Any]:
    """What determines the vectors beside the spec, without loading the model: {"weights": ..., "pooling": ...}.

    `cache` is a folder that keeps digests of weight files. Equal to `load_embedder(spec).identity`.

    Raises:
        ModelError: the model is not there (see `weights.locate`).
        SpecError: a revision of a local model.
    """
    if spec.model.startswith("fake:"):
        from workbench.models.fakes import fake_embedder

        return fake_embedder(spec).identity
    return locate(spec.model, spec.revision, cache).identity


def dimensions_of(spec: Embed) -> int | None:
    """The length of a model's vectors without loading it; None where only loading it tells."""
    if spec.model.startswith("fake:"):
        from workbench.models.fakes import fake_embedder

        return fake_embedder(spec).dimensions
    return dimensions(spec.model)


def load_embedder(spec: Embed, cache: Path | None = None) -> Embedder:
    """Load the model that a spec names: "minilm" (offline), a folder, or a hub name at `spec.revision`.

    Only the spec's prefixes precede a text: prompts stored with a model are not applied. Names that
    begin with "fake:" give the fakes of `models/fakes.py`, for tests.

    Raises:
        ModelError: the model or a package is missing, or the files are no encoder that can be run.
        SpecError: `max_tokens` beyond the model's positions, a prefix that fills the window, or a
            revision of a local model.
    """
    if spec.model.startswith("fake:"):
        from workbench.models.fakes import fake_embedder

        return fake_embedder(spec)
    return TransformerEmbedder(spec, locate(spec.model, spec.revision, cache))


class TransformerEmbedder:
    """An encoder on the best device that torch finds; `embed` may be called from several threads."""

    def __init__(self, spec: Embed, weights: Weights) -> None:
        """Load `weights` in `spec.dtype`.

        Raises:
            ModelError, SpecError: as `load_embedder`.
        """
        self.spec = spec
        self.name = spec.model
        self.identity: Mapping[str, Any] = dict(weights.identity)
        self._model = _load(spec, weights)
        tokenizer = self._model.tokenizer
        if not hasattr(tokenizer, "backend_tokenizer") or not hasattr(self._model[0], "auto_model"):
            raise ModelError(
                f"{type(self._model[0]).__name__} is no transformer with a fast tokenizer",
                where=weights.source,
                hint="use an encoder whose folder has a config.json and a tokenizer.json",
            )
        # The model is ours alone, so is its tokenizer: whole texts are tokenised and cut here.
        self._tokenizer: tokenizers.Tokenizer = tokenizer.backend_tokenizer
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._before, self._after = _special_tokens(self._tokenizer)
        self._pad = tokenizer.pad_token_id or 0
        self._pads_left = tokenizer.padding_side == "left"
        self._token_types = "token_type_ids" in tokenizer.model_input_names
        self._prompt_pooled = all(getattr(module, "include_prompt", True) for module in self._model)
        own = self._model.max_seq_length
        self.window = window(self.name, self._model, own, spec.max_tokens, ENCODER)
        self._room = self.window - len(self._before) - len(self._after)
        self._prefixes: Mapping[Role, str] = {"query": spec.query_prefix, "passage": spec.passage_prefix}
        self._prefix_tokens = {role: len(self._ids(prefix)) for role, prefix in self._prefixes.items()}
        for role, count in self._prefix_tokens.items():
            if count >= self._room:
                raise SpecError(
                    f"a window of {self.window} tokens has no room for text: {count} tokens of prefix and "
                    f"{self.window - self._room} special tokens",
                    where="embed.max_tokens" if not count else f"embed.{role}_prefix",
                    hint="raise max_tokens or shorten the prefix",
                )
        # One small batch proves that the modules fit together and says how wide a vector is.
        try:
            self.dimensions = int(self._forward([self._special([])], 0).shape[1])
        except Exception as error:  # whatever a module of a foreign model raises
            raise ModelError(
                f"the model loads but does not run: {error}", where=weights.source, hint="use a text encoder"
            ) from error

    def embed(self, texts: Sequence[str], role: Role) -> Embeddings:
        """Embed texts with the role's prefix; order is kept, a blank text is its special tokens.

        Equal texts are embedded once, so their vectors are equal to the last digit. In float32 a text's
        vector does not depend on its neighbours beyond 1e-6; lower dtypes round.

        Raises:
            ModelError: a vector is not finite or has no direction.
        """
        place = {text: i for i, text in enumerate(dict.fromkeys(texts))}
        windows: list[list[int]] = []
        tokens, counts, truncated = [], [], []
        for text in place:
            total, parts = self._cut(text, role)
            tokens.append(total)
            counts.append(len(parts))
            truncated.append(self.spec.long == "truncate" and total > self.window)
            windows += parts
        prompt = len(self._before) + self._prefix_tokens[role] if self._prefixes[role] else 0
        vectors = self._forward(windows, prompt) if windows else np.empty((0, self.dimensions), dtype=np.float32)
        firsts = np.cumsum([0, *counts[:-1]])
        self._normalise(vectors, firsts)
        if len(windows) > len(place):
            vectors = np.add.reduceat(vectors, firsts, axis=0)
            self._normalise(vectors, np.arange(len(place)))
        rows = np.array([place[text] for text in texts], dtype=np.int64)
        return Embeddings(
            vectors=vectors if len(place) == len(texts) else vectors[rows],
            tokens=np.array(tokens, dtype=np.int32)[rows],
            windows=np.array(counts, dtype=np.int32)[rows],
            truncated=np.array(truncated, dtype=np.bool_)[rows],
        )

    def _ids(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    def _special(self, ids: list[int]) -> list[int]:
        # A tokenizer without special tokens has none for a blank text either: it gets a padding token.
        return [*self._before, *ids, *self._after] or [self._pad]

    def _cut(self, text: str, role: Role) -> tuple[int, list[list[int]]]:
        """The number of tokens of a text, all included, and the token ids of its windows."""
        prefix = self._prefixes[role]
        # One text at a time: the tokenizer's own batches start threads, about which it warns on each
        # later fork unless an environment variable is set. It is 1 % of the time on a CPU.
        encoded = self._tokenizer.encode(prefix + text, add_special_tokens=False)
        ids: list[int] = encoded.ids
        total = max(1, len(ids) + self.window - self._room)
        if len(ids) <= self._room or self.spec.long == "truncate":
            return total, [self._special(ids[: self._room])]
        # The prefix was tokenised together with the text, as in training: a token may begin with the
        # blank that ends the prefix, and then it belongs to the text.
        head = next((i for i, (_, end) in enumerate(encoded.offsets) if end > len(prefix)), 0)
        head = min(head, self._room - 1) if prefix else 0
        step = self._room - head
        return total, [self._special(ids[:head] + ids[i : i + step]) for i in range(head, len(ids), step)]

    def _forward(self, windows: Sequence[Sequence[int]], prompt: int) -> NDArray[np.float32]:
        """[n, dimensions] raw vectors of token windows, in their order.

        Longest first, so that neighbours need little padding and memory runs out at once or never.
        `prompt` is the number of leading tokens that some models leave out of their pooling.
        """
        import torch

        device = self._model.device
        budget = _CPU_BATCH if device.type == "cpu" else _GPU_BATCH
        lengths = np.array([len(w) for w in windows])
        starts = np.cumsum(lengths) - lengths
        flat = np.fromiter(chain.from_iterable(windows), np.int64, int(lengths.sum()))
        order = np.argsort(-lengths, kind="stable")
        outputs = []
        with torch.inference_mode():
            at = 0
            while at < len(order):
                width = lengths[order[at]]
                rows = order[at : at + max(1, budget // width)]
                at += len(rows)
                columns = np.arange(width) - (width - lengths[rows, None] if self._pads_left else 0)
                mask = (columns >= 0) & (columns < lengths[rows, None])
                ids = np.where(mask, flat[np.where(mask, starts[rows, None] + columns, 0)], self._pad)
                features: dict[str, Any] = {
                    "input_ids": torch.from_numpy(ids).to(device),
                    "attention_mask": torch.from_numpy(mask.astype(np.int64)).to(device),
                }
                if self._token_types:
                    features["token_type_ids"] = torch.zeros_like(features["input_ids"])
                if prompt and not self._prompt_pooled:
                    features["prompt_length"] = prompt
                outputs.append(self._model(features)["sentence_embedding"])
            found = torch.cat(outputs).float().cpu().numpy()
        vectors: NDArray[np.float32] = np.empty_like(found)
        vectors[order] = found
        return vectors

    def _normalise(self, vectors: NDArray[np.float32], firsts: NDArray[np.int64]) -> None:
        """Divide each row by its length, in place; `firsts` are the first rows of the texts."""
        lengths = np.sqrt(np.einsum("ij,ij->i", vectors, vectors, dtype=np.float64))
        bad = np.flatnonzero(~(np.isfinite(lengths) & (lengths > 0)))
        if len(bad):
            texts = np.unique(np.searchsorted(firsts, bad, side="right") - 1)
            raise ModelError(
                f"{len(texts)} of {len(firsts)} texts got a vector that is not finite or has no direction "
                f"(the first is number {texts[0]} of the batch, counted from 0, repeated texts left out)",
                where=f"{self.name} in {self.spec.dtype}",
                hint="the weights are damaged" if self.spec.dtype == "float32" else 'try dtype = "float32"',
            )
        vectors /= lengths[:, None].astype(np.float32)


def _load(spec: Embed, weights: Weights) -> SentenceTransformer:
    expected = "a folder that SentenceTransformer.save or save_pretrained wrote, with its tokenizer"
    with loading(spec.model, weights, expected, ENCODER):
        import torch
        from sentence_transformers import SentenceTransformer

        dtype: torch.dtype = getattr(torch, spec.dtype)
        model = SentenceTransformer(
            weights.source,
            revision=weights.commit,
            local_files_only=weights.commit is None,
            # Given, because the default is the dtype that the weights were stored in.
            model_kwargs={"dtype": dtype},
        )
    # Modules behind the transformer (a projection) are loaded in float32 whatever it is in.
    return model.to(dtype).eval()


def _special_tokens(tokenizer: Any) -> tuple[list[int], list[int]]:
    """Ids that the tokenizer puts before and after a text, read off an encoded letter."""
    encoded = tokenizer.encode("a")
    own = [i for i, special in enumerate(encoded.special_tokens_mask) if not special]
    first, last = (own[0], own[-1] + 1) if own else (len(encoded.ids), len(encoded.ids))
    return encoded.ids[:first], encoded.ids[last:]
