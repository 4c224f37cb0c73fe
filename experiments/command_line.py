"""What the commands here and in `profiling` share: notes in one line, checks of what is given, tables as CSV."""

import argparse
import csv
import dataclasses
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from pbd.errors import MissingInputError, PbdError, UsageError


class Parser(argparse.ArgumentParser):
    """Raises what is wrong as a `UsageError` of one line; prints the description as it is written."""

    def __init__(self, prog: str, description: str) -> None:
        super().__init__(prog=prog, description=description, formatter_class=argparse.RawDescriptionHelpFormatter)

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}. See --help.")


def positive(text: str) -> int:
    """Return the text as a whole number above 0."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number above 0. Received: {text!r}")
    return int(text)


def check_folder(flag: str, path: Path | None) -> None:
    """Refuse a file for which there is no folder, before anything is measured for it.

    Raises:
        MissingInputError: the folder does not exist.
    """
    if path is not None and not path.absolute().parent.is_dir():
        raise MissingInputError(f"{flag} must lie in a folder that exists. Received: {str(path)!r}.")


def write_csv(rows: Iterable[Any], path: Path) -> None:
    """Write a table, a line per row; rows are dictionaries with the same keys, or dataclasses of one kind.

    Raises:
        MissingInputError: the file cannot be written.
    """
    lines = [dataclasses.asdict(row) if dataclasses.is_dataclass(row) else row for row in rows]
    try:
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(lines[0]))
            writer.writeheader()
            writer.writerows(lines)
    except OSError as error:
        raise MissingInputError(f"the table must be writable. Received: {str(path)!r}: {error.strerror}.") from error


def run(program: str, command: Callable[[Sequence[str]], None], argv: Sequence[str] | None) -> int:
    """Run a command on its arguments, the process' own where there are none; return the exit code, those of pbd-run."""
    try:
        command(sys.argv[1:] if argv is None else argv)
    except PbdError as error:
        print(f"{program}: {error}", file=sys.stderr)
        return error.exit_code
    return 0
