"""Shared by the command-line interfaces: one-line errors, exit codes, and flags generated from dataclasses."""

import argparse
import ast
import contextlib
import dataclasses
import difflib
import inspect
import itertools
import os
import re
import sys
import tomllib
import traceback
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from types import NoneType
from typing import Any, NoReturn, get_args, get_origin, get_type_hints

from pbd import stop_signals
from pbd.errors import CannotCreateError, CannotWriteError, MissingInputError, PbdError, StoppedError, UsageError
from pbd.streams import discard, lasting_output


class Parser(argparse.ArgumentParser):
    """An argument parser that raises a `UsageError` of one line, and names the flag nearest to an unknown one."""

    def __init__(self, program: str, description: str, **options: Any) -> None:
        options.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        super().__init__(prog=program, description=description, allow_abbrev=False, **options)

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{' '.join(message.split())}. See --help.")

    def parse_args(self, args: Iterable[str] | None = None, namespace: Any = None) -> Any:
        """Return the arguments by name.

        Raises:
            UsageError: a flag is unknown, or a value is missing or wrong.
        """
        settings, unknown = self.parse_known_args(None if args is None else list(args), namespace)
        if unknown:
            flags = re.findall(r"--[\w-]+", self.format_usage())
            near = difflib.get_close_matches(unknown[0].partition("=")[0], flags, n=1)
            hint = f"Did you mean {near[0]!r}? " if near else ""
            raise UsageError(f"unrecognized arguments: {' '.join(unknown)}. {hint}See --help.")
        return settings


def positive(text: str) -> int:
    """Return the text as a whole number above 0."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number above 0. Received: {text!r}")
    return int(text)


def whole(text: str) -> int:
    """Return the text as a whole number, 0 or above."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"must be a whole number, 0 or above. Received: {text!r}")
    return int(text)


def path(text: str) -> str:
    """Return the text as a path, with the home folder for a leading `~`: shells leave it in `--flag=~/file`."""
    return os.path.expanduser(text)


def check_folder(flag: str, path: Path | None) -> None:
    """Check that the folder of an output file exists, before anything is computed for the file.

    Raises:
        MissingInputError: the folder does not exist.
        CannotCreateError: the file is a folder.
    """
    if path is not None and path.is_dir():
        raise CannotCreateError(f"{flag} must be a file. Received: {str(path)!r}, a folder. Name a file in it.")
    if path is not None and not path.absolute().parent.is_dir():
        raise MissingInputError(f"{flag} must lie in a folder that exists. Received: {str(path)!r}. Create the folder.")


def run(program: str, command: Callable[[Sequence[str]], int | None], argv: Sequence[str] | None) -> int:
    """Call a command of one process with its arguments, and turn errors into lines on standard error.

    A `PbdError` and a signal are one line, an unexpected error is a traceback.

    Args:
        program: the command as the user typed it; the line begins with it.
        command: returns its exit code; `None` means 0.
        argv: the arguments; by default those of this process.

    Returns:
        The exit code of the command or of the error.
    """
    with lasting_output(), stop_signals.raised():
        try:
            code = command(sys.argv[1:] if argv is None else argv) or 0
            print_output()
            return code
        except PbdError as error:
            print_error(f"{program}: {error}\n")
            return error.exit_code
        except KeyboardInterrupt:
            print_error(f"{program}: {StoppedError('stopped by a signal. Give the command again.')}\n")
            return StoppedError.exit_code
        except Exception:
            print_error(traceback.format_exc())
            return PbdError.exit_code


def print_output(*lines: str) -> None:
    """Print lines and whatever was printed before, unless the reader has gone, as in `... | head -1`.

    Raises:
        CannotWriteError: they cannot be written for another reason.
    """
    try:
        print(*lines, sep="\n", end="\n" if lines else "", flush=True)
    except BrokenPipeError:
        discard(sys.stdout)
    except OSError as error:
        raise CannotWriteError(f"standard output must be writable. Received: {error.strerror}. Repair it.") from error


def print_error(text: str) -> None:
    """Write text to standard error, unless it is closed, or its terminal or disk is gone."""
    if sys.stderr is not None:
        with contextlib.suppress(OSError, ValueError):
            sys.stderr.write(text)


def add_settings(parser: argparse.ArgumentParser, config: Any) -> None:
    """Add a flag for each setting: `fine_tune_epochs` becomes `--fine-tune-epochs`, a boolean gets `--no-...` as well.

    Args:
        parser: a parser with `argument_default=argparse.SUPPRESS`, so that only the flags given are in its result.
        config: a dataclass with the default settings. A field that is a dataclass is a group of flags, whose title
            is its docstring; the docstring under a field is the help of its flag.
    """
    _add_flags(parser, config)
    for part in dataclasses.fields(config):
        section = getattr(config, part.name)
        if dataclasses.is_dataclass(section):
            title = inspect.cleandoc(section.__doc__ or "").rstrip(".")
            _add_flags(parser.add_argument_group(title), section)


def _add_flags(group: Any, section: Any) -> None:
    """Add a flag for each field of a section that has a docstring."""
    kinds = get_type_hints(type(section))
    for name, doc in _field_docs(type(section)).items():
        default = getattr(section, name)
        value = {True: "on", False: "off"}[default] if isinstance(default, bool) else default
        shown = "" if value in (None, ()) else f" (default: {value})"
        text = (doc + shown).replace("%", "%%")  # argparse formats help with the % operator
        group.add_argument(f"--{name.replace('_', '-')}", help=text, **_options(kinds[name], default))


def _options(kind: Any, default: Any) -> dict[str, Any]:
    """Return what `add_argument` needs to read values of a type: bool, str, int, float, any of them or None, tuple."""
    if bool in (kind, *get_args(kind)):
        return {"action": argparse.BooleanOptionalAction}
    if get_origin(kind) is tuple:
        return {"nargs": "*", "action": "extend", "metavar": "NAME"}
    scalar = next(option for option in (*get_args(kind), kind) if option is not NoneType)
    return {"type": scalar, "metavar": scalar.__name__.upper()}


def _field_docs(section: type) -> dict[str, str]:
    """Return each field's docstring, parsed from the source (Python discards it)."""
    (definition,) = ast.parse(inspect.getsource(section)).body
    assert isinstance(definition, ast.ClassDef)
    docs = {}
    for field, doc in itertools.pairwise(definition.body):
        match field, doc:
            case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
                docs[name] = inspect.cleandoc(text)
    return docs


def read_settings(path: str, remedy: str = "Check --config.") -> dict[str, Any]:
    """Return the settings in a TOML file by name, with `_` for `-`.

    Args:
        path: the path of the file.
        remedy: what to do if it cannot be read.

    Raises:
        MissingInputError: the file cannot be read.
        UsageError: it is not TOML.
    """
    try:
        with open(path, "rb") as file:
            settings = tomllib.load(file)
    except OSError as error:
        raise MissingInputError(
            f"the settings file must be readable. Received: {path!r}: {error.strerror}. {remedy}"
        ) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UsageError(
            f"the settings file must be TOML, such as epochs = 3. Received: {path!r}: {error}. Correct it."
        ) from error
    return {name.replace("-", "_"): value for name, value in settings.items()}
