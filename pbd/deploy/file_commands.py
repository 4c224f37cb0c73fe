"""Flags and data of the commands on model files; without `--dataset`, the data are those of the model's run."""

import argparse
import contextlib
import dataclasses
import json
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pbd import command_line
from pbd.command_line import Parser, check_folder, path, positive
from pbd.config.settings import VALIDATION_SOURCES
from pbd.errors import MissingInputError, UsageError

if TYPE_CHECKING:
    from pbd.data import Data

_SETTINGS = (
    "preprocess",
    "image_size",
    "labels",
    "validation_fraction",
    "train_limit",
    "batch_size",
    "split_seed",
    "validation_from",
)
"""Settings of the data of a run; reports of earlier versions lack some."""
_OF_THE_IMAGES = ("labels", "train_limit")
"""Settings that a run chose for its own images, not for those of `--dataset`."""
_WRITES_A_FOLDER = "saved_model"


@dataclass(frozen=True)
class SeededData:
    """Data, and the seed with which missing splits are cut from the training images."""

    data: "Data"
    seed: int


def run(
    parse: Callable[[Sequence[str], str], argparse.Namespace],
    write: Callable[[argparse.Namespace], Iterable[Any]],
    as_text: Callable[[Iterable[Any]], Any],
    program: str,
    argv: Sequence[str] | None,
) -> int:
    """Run a command that writes files, and print what it wrote; return the exit code.

    Args:
        parse: returns the settings; `json` of them chooses JSON in place of a table.
        write: returns a record of each file, a dataclass with a `path`.
        as_text: returns the table of the records.
        program: the command as the user typed it.
        argv: the arguments; by default those of this process.
    """

    def command(arguments: Sequence[str]) -> None:
        settings = parse(arguments, program)
        files = write(settings)
        if settings.json:
            rows = [dataclasses.asdict(file) | {"path": str(file.path)} for file in files]
            command_line.print_output(json.dumps(rows, indent=2))
        else:
            from pbd.progress import LastingConsole  # loads NumPy, which --help does not need

            LastingConsole().print(as_text(files))

    return command_line.run(program, command, argv)


def add_flags(parser: Parser, targets: str) -> None:
    """Add the flags that both commands have: the model, the targets, the new file, and those that describe data.

    Args:
        parser: the parser of the command.
        targets: help for `--target`.
    """
    parser.add_argument("model", metavar="MODEL", type=path, help="a .keras or .h5 file")
    parser.add_argument("--target", metavar="NAME", nargs="+", required=True, help=targets)
    parser.add_argument("--output", metavar="FILE", type=path, help="the new file, with one target")
    parser.add_argument("--json", action="store_true", help="print JSON in place of a table")
    add_data_flags(parser)


def add_data_flags(parser: Parser) -> None:
    """Add the flags that describe data (see `read`)."""
    parser.add_argument(
        "--dataset",
        metavar="DATA",
        type=path,
        help="as in pbd distill; by default that of the run whose folder holds the model",
    )
    parser.add_argument("--preprocess", metavar="NAME", help="as in pbd distill; by default that of the run, else none")
    parser.add_argument("--image-size", metavar="N", type=positive, help="likewise")
    parser.add_argument("--validation-from", choices=VALIDATION_SOURCES, help="likewise; without a run train")
    parser.add_argument(
        "--no-labels", dest="labels", action="store_false", default=None, help="do not use the labels of the data"
    )


def read(settings: argparse.Namespace) -> SeededData | None:
    """Return the data that the flags describe, or else those of the run that wrote the model; `None` if there are none.

    Settings without a flag are those of the run, but for the labels and the number of training images of other data.

    Args:
        settings: `model`, the path of a model, and the flags of `add_data_flags`.

    Raises:
        PbdError: a setting is out of its range.
    """
    from pbd.data import Data

    flags = {name: getattr(settings, name) for name in ("preprocess", "image_size", "validation_from", "labels")}
    chosen = {name: value for name, value in flags.items() if value is not None}
    run = _config_of_run(Path(settings.model).absolute().parent) or {}
    source = settings.dataset or run.get("dataset", "arrays")
    if source == "arrays":  # those of a Python program are gone with it
        return None
    of_run = {name: run[name] for name in _SETTINGS if name in run}
    if settings.dataset is not None:
        of_run = {"preprocess": "none"} | {name: of_run[name] for name in of_run if name not in _OF_THE_IMAGES}
    return SeededData(Data.load(source, **{**of_run, **chosen}), run.get("seed", 0))


def check_flags(settings: argparse.Namespace) -> None:
    """Check the model and the new file.

    Raises:
        MissingInputError: the model or the folder of the new file does not exist.
        CannotCreateError: the new file belongs to a run.
        UsageError: there is one new file for several targets.
    """
    if not Path(settings.model).is_file():
        raise MissingInputError(f"a model file must exist. Received: {settings.model!r}. Check the path.")
    if settings.output is not None and len(settings.target) > 1:
        raise UsageError(f"--output names one file. Received: {len(settings.target)} targets. Leave it out.")
    if settings.target != [_WRITES_A_FOLDER]:  # which `exporting.replaced` checks
        check_folder("--output", Path(settings.output) if settings.output else None)
    if settings.output is not None:
        from pbd.run_dir import manifest  # loads NumPy, which --help does not need

        manifest.check_output(Path(settings.output))


def short_names(paths: Collection[str]) -> dict[str, str]:
    """Return a short name for each path: the file's name without its suffix, if no two are the same."""
    stems = {path: Path(path).stem for path in paths}
    return stems if len(set(stems.values())) == len(paths) else {path: path for path in paths}


def _config_of_run(folder: Path) -> dict[str, Any] | None:
    """Return the settings of the run or recipe with this folder, `None` if it is no run directory."""
    for name in ("report.json", "recipe.json"):
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            return json.loads((folder / name).read_text(encoding="utf-8"))["config"]
    return None
