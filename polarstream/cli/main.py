"""The entry point: from arguments to an exit code, with every error of a user in one line."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Sequence
from typing import Any

import typer

from streams.errors import PolarstreamError

#: Ctrl-C, as shells count it
INTERRUPTED = 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command that `argv` (default: the process's arguments) names; returns the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in _before_separator(arguments)
    if debug:
        arguments.remove("--debug")
        os.environ["POLARSTREAM_DEBUG"] = "1"  # for the processes that we start
    else:
        # clients log what they will try again; what they give up reaches us as an error
        logging.getLogger("aiokafka").setLevel(logging.CRITICAL)
    try:
        code = _run(arguments)
        sys.stdout.flush()
        return code
    except PolarstreamError as error:
        if debug:
            raise
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        # the reader of our output has gone (`| head`); nothing may be written at exit any more
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        if debug:
            raise
        print(
            f"error: {type(error).__name__}: {error} "
            "(a fault of polarstream: the same command with --debug shows the traceback)",
            file=sys.stderr,
        )
        return 1


def _run(arguments: list[str]) -> int:
    from polarstream.cli.app import app

    command: Any = typer.main.get_command(app)
    try:
        result = command.main(args=arguments, prog_name="polarstream", standalone_mode=False)
    except typer.Abort:
        return INTERRUPTED
    except typer.Exit as stop:
        return int(stop.exit_code)
    except _click_exception() as error:
        message = error.format_message()
        context = getattr(error, "ctx", None)
        if type(error).__name__ == "NoArgsIsHelpError":  # a group without a command shows its help
            print(message if message else context.get_help() if context else "")
            return 2
        print(f"error: {message}", file=sys.stderr)
        if context is not None:
            print(f"see {context.command_path} --help", file=sys.stderr)
        return int(error.exit_code)
    return result if isinstance(result, int) else 0


def _click_exception() -> Any:
    """Click's base exception; newer Typers carry a Click of their own."""
    return next(c for c in typer.BadParameter.__mro__ if c.__name__ == "ClickException")


def _before_separator(arguments: list[str]) -> list[str]:
    return arguments[: arguments.index("--")] if "--" in arguments else arguments
