"""A run as one Parquet table: a row per trial, attempts as a list of structs. The columns are documented beside it.

Written in groups of rows, so memory stays flat. Needs pyarrow.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from countersteer.core.errors import InputError
from countersteer.store.errors import one_line
from countersteer.store.reading import RunReader
from countersteer.store.rows import Trial

COLUMNS: tuple[tuple[str, str, str], ...] = (
    ("key", "string", "trial key: hash of everything that decides the response"),
    ("arm", "string", "arm, level included"),
    ("ordinal", "int64", "number of the trial in its arm; equal ordinals of two arms are paired"),
    ("latent", "int64", "steering latent"),
    ("label", "string", "its label, null if it has none"),
    ("strength", "float64", "strength used, null if uncalibrated"),
    ("prompt", "string", "the question"),
    ("user", "string", "the user turn as sent"),
    ("system", "string", "system prompt or null"),
    ("prefix", "string", "given beginning of the answer or null"),
    ("seed", "int64", "sampling seed"),
    (
        "status",
        "string",
        "ok, or why the trial is missing: error, no-attempt, unparsed, no-op, uncalibrated, pending, ...",
    ),
    ("reason", "string", "reason in words, null if there is none"),
    ("text", "string", "the response, null if there is none"),
    ("tokens", "int64", "generated tokens"),
    ("attempts", "attempts", "list of {start, end, score, restart}: character offsets, score 0-100"),
    ("attempt_count", "int64", "scored attempts"),
    ("first_score", "float64", "score of the first attempt, null unless the trial is valid"),
    ("last_score", "float64", "score of the last attempt, null unless the trial is valid"),
    ("flags", "strings", "the judge's flags, such as degraded"),
    ("judge", "string", "the judge's name, null if there is no grade"),
    ("tokens_seen", "int64", "positions inside the spans, all edited layers together; null without a receipt"),
    ("tokens_changed", "int64", "positions that came out different"),
    ("receipt", "string", "the whole receipt as JSON, or null"),
)
"""Name, type and meaning of every column."""
_GROUP = 2_000


def schema_text() -> str:
    """The columns as a Markdown table."""
    rows = [f"| `{name}` | {kind} | {meaning} |" for name, kind, meaning in COLUMNS]
    return "\n".join(["| column | type | meaning |", "|---|---|---|", *rows])


def row(trial: Trial) -> dict[str, Any]:
    """One trial as a row."""
    plan, grade, receipt = trial.plan, trial.grade or {}, trial.receipt
    valid = trial.scores if trial.status == "ok" else []
    layers = (receipt or {}).get("layers", ())
    return {
        **{k: getattr(plan, k) for k in ("key", "arm", "ordinal", "latent", "label", "strength", "prompt", "user")},
        **{k: getattr(plan, k) for k in ("system", "prefix", "seed")},
        "status": trial.status,
        "reason": trial.reason,
        "text": None if trial.text is None else trial.text.encode("utf-8", "replace").decode(),
        "tokens": trial.tokens,
        "attempts": [{k: a[k] for k in ("start", "end", "score", "restart")} for a in grade.get("attempts", ())],
        "attempt_count": len(valid),
        "first_score": valid[0] if valid else None,
        "last_score": valid[-1] if valid else None,
        "flags": list(grade.get("flags", ())),
        "judge": grade.get("judge"),
        "tokens_seen": None if receipt is None else sum(layer["tokens_seen"] for layer in layers),
        "tokens_changed": None if receipt is None else sum(layer["tokens_changed"] for layer in layers),
        "receipt": None if receipt is None else json.dumps(receipt, allow_nan=False),
    }


def export_parquet(
    run: RunReader, out: str | os.PathLike[str], *, progress: Callable[[int, int], None] | None = None
) -> int:
    """Write a run's trials to `out`, whole or not at all; returns how many. Raises InputError, StoreError."""
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        raise InputError("the parquet format needs pyarrow; pip install pyarrow") from None
    attempt = pa.struct([("start", pa.int64()), ("end", pa.int64()), ("score", pa.float64()), ("restart", pa.string())])
    kinds = {"string": pa.string(), "int64": pa.int64(), "float64": pa.float64(), "strings": pa.list_(pa.string())}
    fields = [
        pa.field(name, pa.list_(attempt) if kind == "attempts" else kinds[kind], metadata={"meaning": meaning})
        for name, kind, meaning in COLUMNS
    ]
    header = run.header
    facts = {
        "countersteer": json.dumps(
            {"format": header.get("format"), "version": header.get("countersteer"), "judge": run.fact("judge")}
        ),
        "study": run.study,
    }
    schema = pa.schema(fields, metadata=facts)
    target = Path(out)
    temporary = target.with_name(target.name + ".part")
    count, total = 0, sum(run.trial_counts().values())
    with one_line(target, "write"):
        try:
            with pq.ParquetWriter(str(temporary), schema, compression="zstd") as writer:
                rows = (row(trial) for trial in _sorted(run))
                while group := list(islice(rows, _GROUP)):
                    writer.write_table(pa.Table.from_pylist(group, schema=schema))
                    count += len(group)
                    if progress is not None:
                        progress(count, total)
            os.replace(temporary, target)
        finally:
            temporary.unlink(missing_ok=True)
    return count


def _sorted(run: RunReader) -> Iterator[Trial]:
    """Trials by (arm, key), as in every export."""
    judge = run.judge
    for arm in sorted(run.trial_counts()):
        for plan in sorted(run.planned(arm), key=lambda p: (p.key, p.ordinal)):
            yield run.trial(plan, judge=judge)
