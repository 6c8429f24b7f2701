"""A notebook-first laboratory for retrieval-augmented generation.

>>> import workbench                                    # doctest: +SKIP
>>> lab = workbench.open()                              # doctest: +SKIP
>>> lab.search("how do I unpack a list?", "python-reference")   # doctest: +SKIP
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from workbench.lab import Lab

__version__ = "0.1.0"
_SPECS = (
    "Answer",
    "Bm25",
    "CrossEncoder",
    "Dense",
    "Embed",
    "Exact",
    "Fixed",
    "Fts",
    "Given",
    "Headings",
    "Hnsw",
    "Hybrid",
    "LateInteraction",
    "Lead",
    "Lexical",
    "LlmRerank",
    "Markdown",
    "Python",
    "QueryLikelihood",
    "Recursive",
    "ScoreSpec",
    "Sentence",
    "Situated",
    "Summary",
    "SweepSpec",
    "Title",
    "TrialSpec",
)
__all__ = ["__version__", "open", *_SPECS]


def open(*, progress: bool = True, **settings: Any) -> Lab:  # noqa: A001 -- as in gzip.open, read as workbench.open
    """A lab over the store that the settings name (`WORKBENCH_*` variables; keyword arguments win).

    Raises:
        SpecError: a setting does not fit.
        DatabaseError: the database is down, too old, too new, or lacks pgvector.
    """
    from workbench.lab import Lab
    from workbench.settings import Settings

    return Lab(Settings.read(**settings), progress=progress)


def __getattr__(name: str) -> Any:
    # Specs need pydantic, which a bare `import workbench` should not pay for.
    if name in _SPECS:
        from workbench import specs

        return getattr(specs, name)
    raise AttributeError(f"module 'workbench' has no attribute {name!r}")
