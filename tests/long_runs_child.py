"""What the crash tests run in a process of its own: the scripted world's study, slowly enough to be killed inside."""

from __future__ import annotations

import sys
from pathlib import Path

import studies_world as world
from countersteer.core.errors import CountersteerError
from countersteer.studies import runner, spec

if __name__ == "__main__":
    study, out, delay = Path(sys.argv[1]), Path(sys.argv[2]), float(sys.argv[3])
    try:
        with runner.run_study(
            spec.load(study), out, tools=lambda _: world.tools(study.parent / "sae", delay=delay), in_flight=32
        ) as run:
            print("finished" if run.finished else "unfinished", flush=True)
    except CountersteerError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        raise SystemExit(error.exit_code) from None
