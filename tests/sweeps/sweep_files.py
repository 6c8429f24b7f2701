"""What the sweeps of these tests are made of: a dataset, sweep files, chunkers of a person's own, scripted models."""

from __future__ import annotations

import json
from pathlib import Path

KINDS = ("chunk", "context", "embed", "index", "retrieve", "rerank", "generate", "score")
CHUNKERS = '''"""Chunkers of a person's own: slow ones, and ones that fail while a file beside this one says so."""
import os, pathlib, signal, time

def paragraphs(text):
    time.sleep(0.05)
    return text.split("\\n\\n")

def faulty(text):
    here = pathlib.Path(__file__).parent
    if (here / "raise").exists():
        raise RuntimeError("no such luck")
    if (here / "die").exists():
        os.kill(os.getpid(), signal.SIGKILL)
    return text.split("\\n\\n")
'''

SWEEP = """
question = "What survives?"
metric = "recall@5"
[base.chunk]
kind = "python"
target = "chunkers:paragraphs"
[base.context]
kind = "situated"
model = "{llm}"
max_tokens = 8
concurrency = 2
[base.embed]
model = "{embed}"
[base.retrieve]
kind = "dense"
k = 8
[base.rerank]
kind = "llm"
model = "{llm}"
depth = 6
k = 5
window = 4
step = 2
concurrency = 2
[base.generate]
model = "{llm}"
k = 3
max_tokens = 16
concurrency = 2
[base.score]
k = [1, 5]
[axes]
{axes}
"""
EVERY_KIND = """
"chunk" = [
    { kind = "python", target = "chunkers:paragraphs" },
    { kind = "recursive", tokens = 30, tokenizer = "words" },
]
"retrieve.kind" = ["dense", "hybrid"]
"""
"""Axes of a sweep with a stage of every kind, each more than once."""
FAKES = {
    "llm": "fake:words?delay=0.05&log=calls.jsonl",
    "embed": "fake:hash-16?delay=0.05&log=texts.jsonl",
}
"""Scripted models that log what they finished, in the folder where the runner was started."""


def write_dataset(folder: Path, documents: int = 6, paragraphs: int = 12) -> None:
    """A dataset of numbered lines, each document's own, with questions whose answer is one of them."""
    folder.mkdir(parents=True)
    words = ("anchor", "basin", "cobalt", "delta", "ember", "fjord", "garnet", "harbor", "island", "jasper", "kernel")
    corpus, queries = [], []
    for d in range(documents):
        lines = [
            f"Line n{d}x{p}: " + " ".join(words[(d * 7 + p * 5 + w * (d + 3)) % len(words)] for w in range(8)) + "."
            for p in range(paragraphs)
        ]
        text, line = "\n\n".join(lines), lines[d + 2]
        corpus.append({"doc_id": f"d{d}", "text": text, "title": f"Document {d}"})
        start = text.index(line)
        evidence = [{"doc_id": f"d{d}", "start": start, "end": start + len(line)}]
        queries.append({"query_id": f"q{d}", "text": f"what does line n{d}x{d + 2} say", "evidence": evidence})
    queries.append({"query_id": "q9", "text": "where is the moon", "evidence": []})
    for name, records in (("corpus", corpus), ("queries", queries)):
        lines = [json.dumps(record) + "\n" for record in records]
        (folder / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")
