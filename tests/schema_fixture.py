"""Writes what this version writes, for later versions to read: `python tests/schema_fixture.py` when the schema grows.

`data/schema-N.sql` is the dump of a whole run by the version whose schema had N migrations, `data/schema-N.jsonl` that
version's own export of it. They are never changed afterwards. Schemas 1 and 3 are all that were ever written: 2 and 3
came together, and no version was released before them.
"""

from __future__ import annotations

import sqlite3
import tempfile
from contextlib import closing
from pathlib import Path

import studies_world as world
from countersteer.store import export
from countersteer.studies import runner, spec

DATA = Path(__file__).parent / "data"
SUFFIX = '[arms.self-monitor]\nsuffix = "If you are drifting."\n'
ARMS = "[arms.base]\nstrength = 3.0\n[arms.unsteered]\nstrength = 0\n" + SUFFIX


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        path = world.study(folder, arms=ARMS, latents="count = 3\n")
        small = path.read_text().replace("references = 3", "references = 1").replace("per_latent = 4", "per_latent = 3")
        path.write_text(small)
        with runner.run_study(spec.load(path), folder / "run", tools=lambda _: world.tools(folder / "sae")) as run:
            export(run, folder / "trials.jsonl")
        with closing(sqlite3.connect(folder / "run" / "run.db")) as db:
            version = db.execute("PRAGMA user_version").fetchone()[0]
            text = "\n".join([*db.iterdump(), f"PRAGMA user_version = {version};"]) + "\n"
        (DATA / f"schema-{version}.sql").write_text(text.replace(str(folder), "/runs"))
        (DATA / f"schema-{version}.jsonl").write_text((folder / "trials.jsonl").read_text())


if __name__ == "__main__":
    main()
