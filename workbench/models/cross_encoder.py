"""Cross-encoders: a model that reads question and passage together and says how well they go together.

Run by sentence-transformers (Nogueira & Cho 2019, arXiv:1901.04085, for the method). Scores are the model's
logits: an activation that a model card puts behind them (a sigmoid) keeps their order, but rounds good
passages to 1 and makes them tie.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from workbench.errors import ModelError
from workbench.models.loading import loading, window
from workbench.models.weights import CROSS_ENCODER, Weights, locate
from workbench.specs import CrossEncoder

if TYPE_CHECKING:
    import sentence_transformers

_CPU_BATCH, _GPU_BATCH = 16, 128
"""Pairs of one batch: larger ones leave a CPU's cache."""
_HEADS = ("ForSequenceClassification", "ForCausalLM", "ForConditionalGeneration")


def load_cross_encoder(spec: CrossEncoder, cache: Path | None = None) -> LocalCrossEncoder:
    """Load the model that a spec names, a folder or a hub name; `cache` keeps digests of weight files.

    Raises:
        ModelError: the model or a package is missing, or the files are no cross-encoder with one score.
        SpecError: `max_tokens` beyond the model's positions, or a revision of a local model.
    """
    return LocalCrossEncoder(spec, locate(spec.model, spec.revision, cache, family=CROSS_ENCODER))


class LocalCrossEncoder:
    """A cross-encoder on the best device that torch finds; `score` may be called from several threads."""

    def __init__(self, spec: CrossEncoder, weights: Weights) -> None:
        """Load `weights` in `spec.dtype`.

        Raises:
            ModelError, SpecError: as `load_cross_encoder`.
        """
        self.name, self._dtype = spec.model, spec.dtype
        self.identity: Mapping[str, Any] = dict(weights.identity)
        self._model = _load(spec, weights)
        self._model.max_seq_length = window(
            self.name, self._model, self._model.max_seq_length, spec.max_tokens, CROSS_ENCODER
        )
        self._batch = _CPU_BATCH if self._model.device.type == "cpu" else _GPU_BATCH
        self._lock = threading.Lock()
        try:
            self._predict([("a", "a")])
        except Exception as error:  # whatever a module of a foreign model raises
            raise ModelError(
                f"the model loads but does not run: {error}", where=weights.source, hint="use a text cross-encoder"
            ) from error

    def score(self, pairs: Sequence[tuple[str, str]]) -> NDArray[np.float64]:
        """[n] logits; of a pair beyond the window the longer text loses its end, as in training.

        Each distinct pair is read once, so equal pairs have equal digits.

        Raises:
            ModelError: a score is not finite.
        """
        place = {pair: i for i, pair in enumerate(dict.fromkeys(pairs))}
        if not place:
            return np.empty(0)
        with self._lock:
            scores = self._predict(list(place))
        if bad := int(len(scores) - np.isfinite(scores).sum()):
            raise ModelError(
                f"{bad} of {len(scores)} pairs got a score that is not finite",
                where=f"{self.name} in {self._dtype}",
                hint="the weights are damaged" if self._dtype == "float32" else 'try dtype = "float32"',
            )
        return scores[[place[pair] for pair in pairs]]

    def _predict(self, pairs: Sequence[tuple[str, str]]) -> NDArray[np.float64]:
        # Longest first is the library's doing.
        found = self._model.predict(list(pairs), batch_size=self._batch, show_progress_bar=False)
        return np.asarray(found, dtype=np.float64).reshape(len(pairs))


def _load(spec: CrossEncoder, weights: Weights) -> sentence_transformers.CrossEncoder:
    expected = "a folder that CrossEncoder.save or save_pretrained wrote, with its tokenizer"
    with loading(spec.model, weights, expected, CROSS_ENCODER):
        import sentence_transformers
        import torch

        dtype: torch.dtype = getattr(torch, spec.dtype)
        model: sentence_transformers.CrossEncoder = sentence_transformers.CrossEncoder(
            weights.source,
            revision=weights.commit,
            local_files_only=weights.commit is None,
            # Given, because the default is the dtype that the weights were stored in.
            model_kwargs={"dtype": dtype},
            activation_fn=torch.nn.Identity(),
        )
    if model.num_labels != 1:
        raise ModelError(
            f"the model gives {model.num_labels} scores for a pair, not one",
            where=weights.source,
            hint="use a reranker, such as cross-encoder/ms-marco-MiniLM-L6-v2, not a classifier",
        )
    architecture = (getattr(model.config, "architectures", None) or [""])[0]
    if len(model) == 1 and not architecture.endswith(_HEADS):
        raise ModelError(
            f"{architecture or 'this model'} has no trained head that scores pairs",
            where=weights.source,
            hint='use a cross-encoder; a plain encoder can rerank with kind = "late_interaction"',
        )
    model.to(dtype).eval()
    return model
