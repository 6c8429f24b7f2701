"""What loading any local model shares: which package is missing, silence, one line for whatever went wrong."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from workbench.errors import ModelError, SpecError
from workbench.models.embedding import _positions, _quiet
from workbench.models.weights import INSTALL, Weights, hub_error


@contextmanager
def loading(name: str, weights: Weights, expected: str) -> Iterator[None]:
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
            raise hub_error(weights.source, weights.commit, error) from error
        reason = (str(error).strip() or type(error).__name__).partition("\n")[0]
        raise ModelError(
            f"the model cannot be loaded: {reason}", where=weights.source, hint=f"expected {expected}"
        ) from error


def window(name: str, model: object, own: int | None, wanted: int | None) -> int:
    """Tokens that a model reads at once: those wanted, or its own, within the positions it has.

    Raises:
        SpecError: more are wanted than it has positions.
    """
    limit = _positions(model)  # type: ignore[arg-type]
    if wanted is not None and limit is not None and wanted > limit:
        raise SpecError(
            f"{name} has {limit} positions, not {wanted}",
            where="rerank.max_tokens",
            hint=f"give at most {limit}, or leave it out for the model's own window",
        )
    # Neither is known for models with relative positions: then nothing is ever cut.
    return int(min((size for size in (wanted or own, limit) if size), default=1_000_000_000))
