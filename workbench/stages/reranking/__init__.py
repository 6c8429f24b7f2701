"""The reranking stage: what a model is asked about candidates, and the ranking that its answers make.

ranking.py puts scores into an order; pairs.py asks about one passage at a time; listwise.py asks for an order
of several; fitting.py cuts passages to the window. Late interaction and cross-encoders are `PairScorer`s.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from workbench.stages.reranking.listwise import Listwise, parse_order, window_spans
from workbench.stages.reranking.pairs import UNPARSABLE, Asked, ask_pair, parse_grade
from workbench.stages.reranking.ranking import Reranked, order

__all__ = [
    "CODE_VERSIONS",
    "UNPARSABLE",
    "Asked",
    "Listwise",
    "Reranked",
    "ask_pair",
    "order",
    "parse_grade",
    "parse_order",
    "window_spans",
]

CODE_VERSIONS: Mapping[str, int] = MappingProxyType(
    {"late_interaction": 1, "cross_encoder": 1, "query_likelihood": 1, "llm": 1}
)
"""The code version of each kind, part of its fingerprint: raised whenever its output changes."""
