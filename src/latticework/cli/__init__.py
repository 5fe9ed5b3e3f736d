"""The command line: the verbs, thin. Nothing heavy is imported before a verb needs it."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from typing import Any

INTERRUPTED = 130  # typer exits with it, too


def main(arguments: list[str] | None = None) -> None:
    """Run a command; exit status 2 for the user's mistakes, 1 for failures, 130 when interrupted."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in words
    words = [w for w in words if w != "--debug"]
    signal.signal(signal.SIGTERM, _stopped)  # as Ctrl-C: what is finished is kept, and recorded where that was asked
    sys.exit(run(words, debug))


def _interrupted() -> int:
    print("interrupted; what is finished is kept", file=sys.stderr)
    return INTERRUPTED


def _stopped(number: int, frame: object) -> None:
    raise KeyboardInterrupt


def run(words: list[str], debug: bool = False) -> int:
    """The exit status of a command."""
    import click

    from latticework.core.errors import Cancelled, Failure, UserError

    from .verbs import app, expand

    try:
        import typer

        command = typer.main.get_command(app)
        with _warnings_as_notes():
            status = command.main(args=expand(words), prog_name="latticework", standalone_mode=False, obj={"debug": debug})
        if status == INTERRUPTED:
            return _interrupted()
        return status if isinstance(status, int) else 0
    except click.exceptions.Exit as stop:
        return int(stop.exit_code)
    except click.ClickException as error:
        error.show()
        return 2
    except (KeyboardInterrupt, click.Abort, Cancelled):
        return _interrupted()
    except BrokenPipeError:
        return 0
    except UserError as error:
        return _said(error, 2, debug)
    except Failure as error:
        return _said(error, 1, debug)
    except Exception as error:
        if debug:
            traceback.print_exc()
        else:
            print(f"failed: {type(error).__name__}: {error} (--debug shows where)", file=sys.stderr)
        return 1


@contextlib.contextmanager
def _warnings_as_notes() -> Iterator[None]:
    """What the library warns of is a line for the user; other packages' warnings stay as they are."""
    with warnings.catch_warnings():
        before: Callable[..., None] = warnings.showwarning
        shown: set[str] = set()

        def show(message: Any, category: type[Warning], filename: str, *rest: Any) -> None:
            if f"{os.sep}latticework{os.sep}" in filename or category.__module__.startswith("latticework."):
                if str(message) not in shown:
                    print(f"note: {message}", file=sys.stderr)
                shown.add(str(message))
            else:
                before(message, category, filename, *rest)

        warnings.showwarning = show
        yield


def _said(error: Exception, status: int, debug: bool) -> int:
    if debug:
        traceback.print_exc()
    print(f"error: {error}", file=sys.stderr)
    return status
