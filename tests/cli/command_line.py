"""What the tests of the command line share: files to run, and what a command left."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

TRIAL = """
[chunk]
kind = "recursive"
tokens = 15
tokenizer = "words"

[embed]
model = "fake:hash-64"

[retrieve]
kind = "{kind}"
k = 10

[score]
k = [1, 5]
"""

SWEEP = """
question = "Do chunks of fifteen words help?"
metric = "recall@5"
baseline = { "chunk.tokens" = 15 }
base = "bm25.toml"

[axes]
"chunk.tokens" = [15, 40]
"""


@dataclass(frozen=True)
class Outcome:
    """What a command left: its exit code and what it printed."""

    code: int
    out: str
    err: str

    @property
    def body(self) -> Any:
        """The one JSON object on stdout."""
        assert self.out.endswith("}\n"), self.out
        assert self.out.count("\n") == 1, "more than one line"
        return json.loads(self.out)


Cli = Callable[..., Outcome]
