"""The command line: thin. Parse, call, print; every import beyond the parser's waits until its command runs.

Exit codes: 0 done, 1 failed, 2 bad input, 130 interrupted (safe to resume). An error is one line on stderr.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Any

INTERRUPTED = 130


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point of `countersteer`. Exits the process."""
    code = call(argv)
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    raise SystemExit(code)


def call(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; errors that are expected are printed in one line."""
    import typer

    from countersteer.cli.app import app
    from countersteer.core.errors import CountersteerError

    click = _click()
    command = typer.main.get_command(app)
    given = None if argv is None else list(argv)
    try:
        result = command.main(args=given, prog_name="countersteer", standalone_mode=False)
        if result == INTERRUPTED:  # how typer passes on a KeyboardInterrupt
            raise KeyboardInterrupt
        return result if isinstance(result, int) else 0
    except CountersteerError as error:
        return _fail(str(error), error.exit_code)
    except click.exceptions.NoArgsIsHelpError as error:
        sys.stderr.write(error.format_message() + "\n")
        return 2
    except click.exceptions.UsageError as error:
        return _fail(_usage(error), 2)
    except click.exceptions.ClickException as error:
        return _fail(error.format_message(), 2)
    except typer.Exit as error:
        return error.exit_code
    except (KeyboardInterrupt, typer.Abort):
        return _fail("interrupted; what was finished is kept, run the same command again to go on", INTERRUPTED)
    except BrokenPipeError:
        return 0
    except OSError as error:
        where = f" {error.filename}" if error.filename else ""
        return _fail(f"cannot use{where}: {error.strerror or error}; check the path and its rights", 2)


def _click() -> Any:
    """The command-line library under typer: newer versions carry their own copy of click."""
    try:
        from typer import _click as click
    except ImportError:
        import click  # type: ignore[no-redef]
    return click


def _usage(error: Any) -> str:
    """A usage error in one line, with where to read on."""
    message = " ".join(error.format_message().split())
    path = error.ctx.command_path if error.ctx else "countersteer"
    return f"{message.rstrip('.')}; see `{path} --help`"


def _fail(message: str, code: int) -> int:
    """Say what failed, in one line, whatever an engine, a server or a provider put into it."""
    from countersteer.judging.llm_redact import Redactor

    sys.stderr.write(f"error: {Redactor.of().line(message, limit=4_000)}\n")
    return code
