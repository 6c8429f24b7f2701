"""What loading any local model shares: which package is missing, silence, one line for whatever went wrong."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from workbench.errors import ModelError, SpecError
from workbench.models.weights import INSTALL, Family, Weights, hub_error


@contextmanager
def loading(name: str, weights: Weights, expected: str, family: Family) -> Iterator[None]:
    """Import and load inside: nothing is printed, and every failure becomes an error with the next step.

    `expected` completes "expected ..." in the hint for a folder that cannot be loaded.

    Raises:
        ModelError: a package is missing, the files are no such model, or the hub does not give them.
    """
    try:
        with warnings.catch_warnings():
            # In a notebook tqdm wants to be told about widgets; nothing here shows its bars.
            warnings.filterwarnings("ignore", message="IProgress not found")
            import sentence_transformers  # noqa: F401 -- the slow import, and the one whose absence is explained
            import torch  # noqa: F401
    except ImportError as error:
        raise ModelError(
            f"model {name!r} needs package {error.name or 'sentence-transformers'}", hint=INSTALL
        ) from error
    try:
        with _quiet():
            yield
    except (ModelError, SpecError):
        raise
    except Exception as error:  # a foreign model's files can make the loaders raise anything
        if weights.commit is not None:
            raise hub_error(weights.source, weights.commit, error, family=family) from error
        reason = (str(error).strip() or type(error).__name__).partition("\n")[0]
        raise ModelError(
            f"the model cannot be loaded: {reason}", where=weights.source, hint=f"expected {expected}"
        ) from error


def window(name: str, model: Any, own: int | None, wanted: int | None, family: Family) -> int:
    """Tokens that a model reads at once: those wanted, or its own, within the positions it has.

    Raises:
        SpecError: more are wanted than it has positions.
    """
    limit = _positions(model)
    if wanted is not None and limit is not None and wanted > limit:
        raise SpecError(
            f"{name} has {limit} positions, not {wanted}",
            where=f"{family.table}max_tokens",
            hint=f"give at most {limit}, or leave it out for the model's own window",
        )
    # Neither is known for models with relative positions: then nothing is ever cut.
    return int(min((size for size in (wanted or own, limit) if size), default=1_000_000_000))


def _positions(model: Any) -> int | None:
    """How many tokens the position embeddings of the transformer reach; None where they have no end."""
    import torch

    transformer: Any = model[0].auto_model
    for name, part in transformer.named_modules():
        if name.endswith("position_embeddings") and isinstance(part, torch.nn.Embedding):
            # RoBERTa and its kin count positions from behind the padding token's.
            return part.num_embeddings - (0 if part.padding_idx is None else part.padding_idx + 1)
    limit = getattr(transformer.config, "max_position_embeddings", None)
    return limit if isinstance(limit, int) and limit > 0 else None


@contextmanager
def _quiet() -> Iterator[None]:
    """No progress bars and no notes of the two libraries while a model is loaded; then as before."""
    from transformers.utils import logging as transformers_logging

    verbosity, bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    notes = logging.getLogger("sentence_transformers")
    level = notes.level
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    notes.setLevel(logging.ERROR)
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        notes.setLevel(level)
        if bars:
            transformers_logging.enable_progress_bar()
