"""What to do, as frozen values: one spec a stage, a trial of all stages, a sweep of trials.

A spec is read strictly (unknown kinds and fields are refused with the nearest known name) from TOML,
from Python or from `--set path=value`. `fingerprint` turns a spec and the fingerprints of its inputs
into the identity of a result: SHA-256 of canonical JSON, with fields that equal their default left
out, so that a new field with a default keeps every stored result.
"""

from workbench.parsing import parse
from workbench.specs.base import Spec, canonical_json, digest, fingerprint
from workbench.specs.chunk import ChunkSpec, Fixed, Given, Markdown, Python, Recursive, Sentence
from workbench.specs.models import (
    Answer,
    ContextSpec,
    CrossEncoder,
    GenerateSpec,
    Headings,
    LateInteraction,
    Lead,
    LlmRerank,
    NoContext,
    NoGeneration,
    NoRerank,
    QueryLikelihood,
    RerankSpec,
    Sampled,
    Served,
    Situated,
    Summary,
    Title,
)
from workbench.specs.retrieval import (
    Bm25,
    Dense,
    Embed,
    Exact,
    Fts,
    Hnsw,
    Hybrid,
    IndexSpec,
    Leg,
    Lexical,
    RetrieveSpec,
)
from workbench.specs.sweep import SweepSpec, read_sweep
from workbench.specs.trial import ScoreSpec, TrialSpec, apply_settings, read_trial

__all__ = [
    "Answer",
    "Bm25",
    "ChunkSpec",
    "ContextSpec",
    "CrossEncoder",
    "Dense",
    "Embed",
    "Exact",
    "Fixed",
    "Fts",
    "GenerateSpec",
    "Given",
    "Headings",
    "Hnsw",
    "Hybrid",
    "IndexSpec",
    "LateInteraction",
    "Lead",
    "Leg",
    "Lexical",
    "LlmRerank",
    "Markdown",
    "NoContext",
    "NoGeneration",
    "NoRerank",
    "Python",
    "QueryLikelihood",
    "Recursive",
    "RerankSpec",
    "RetrieveSpec",
    "Sampled",
    "ScoreSpec",
    "Sentence",
    "Served",
    "Situated",
    "Spec",
    "Summary",
    "SweepSpec",
    "Title",
    "TrialSpec",
    "apply_settings",
    "canonical_json",
    "digest",
    "fingerprint",
    "parse",
    "read_sweep",
    "read_trial",
]
