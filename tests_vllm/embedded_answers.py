"""What the embedded engine answers to the requests of `worlds`, as JSON. Runs in the embedded engine's environment.

python embedded_answers.py MODEL_FOLDER
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "tests"), str(HERE.parent / "src")]

import countersteer as cs  # noqa: E402
import worlds  # noqa: E402


def main(folder: Path) -> None:
    cases = worlds.cases(worlds.load(folder))
    reads = worlds.readouts()
    with cs.load_engine(str(folder), dtype="float32", places=8) as engine:
        out = engine.run([c.request.with_(readouts=reads) for c in cases], errors="return")
        fingerprint = engine.model_fingerprint
    answers = []
    for case, done in zip(cases, out, strict=True):
        done = done.completion if isinstance(done, cs.NoOpError) else done
        if isinstance(done, Exception):
            raise done
        answers.append(
            {
                "name": case.name,
                "tokens": list(done.tokens),
                "finish": done.finish,
                "receipt": done.receipt.to_dict()["layers"],
                "readouts": done.readouts.tolist(),
            }
        )
    json.dump({"fingerprint": fingerprint, "answers": answers}, sys.stdout)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
