"""The `narrows` command: files, the local cloud and, with a URL, any deployment."""

from __future__ import annotations

import os
import select
import sys
from collections.abc import Sequence

from narrows import __version__
from narrows.cli import (
    compare,
    demo,
    doctor,
    evaluate,
    features,
    freshness,
    import_data,
    recommend,
    skew,
    train,
    up,
)
from narrows.cli.console import CommandFailed, CommandParser, Console, UsageError
from narrows.cli.places import find_places
from narrows.errors import NarrowsError

COMMANDS = (demo, up, import_data, train, evaluate, compare, recommend, features, freshness, skew, doctor)
EPILOG = "Start with `narrows demo`. Each command explains itself: narrows <command> --help."


READER_GONE = 128 + 13
"""What a shell tells of a program that SIGPIPE ended."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; 0 only on success, 2 with a message that explains the mistake, else 1.

    Where nobody reads what it prints any more, as behind `| head`, it ends without a word.
    """
    try:
        try:
            return _run(list(sys.argv[1:] if argv is None else argv))
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        if not _reader_is_gone():
            raise
        return READER_GONE


def _reader_is_gone() -> bool:
    """Whether an output is a pipe that nobody reads; what is still to be written into such is dropped."""
    poll = select.poll()
    for stream in (sys.stdout, sys.stderr):
        poll.register(stream.fileno(), 0)  # asks for nothing, and is told of hang-ups all the same
    unread = [descriptor for descriptor, _ in poll.poll(0)]
    for descriptor in unread:
        os.dup2(os.open(os.devnull, os.O_WRONLY), descriptor)
    return bool(unread)


def _run(arguments: Sequence[str]) -> int:
    console = Console(json="--json" in arguments)
    places = find_places(os.environ)
    try:
        options = _parser().parse_args(arguments)
        result = options.run(options, places, console)
    except UsageError as error:
        print(error.usage, file=sys.stderr)
        return console.fail(error, 2)
    except NarrowsError as error:
        return console.fail(error, 2)
    except OSError as error:
        if not places.holds(error.filename):
            raise
        remedy = "set NARROWS_HOME to a folder that can be written"
        return console.fail(CommandFailed(f"{error.filename}: {error.strerror}; {remedy}"), 2)
    except KeyboardInterrupt:
        return console.fail(NarrowsError("stopped by Ctrl-C"), 130)
    return console.finish(result)


def _parser() -> CommandParser:
    parser = CommandParser(prog="narrows", description=__doc__, epilog=EPILOG)
    parser.add_argument("--version", action="version", version=f"narrows {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="<command>")
    for command in COMMANDS:
        command.add(commands)
    return parser
