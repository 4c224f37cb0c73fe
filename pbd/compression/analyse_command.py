"""`pbd analyse TEACHER STUDENT [STUDENT ...]`: show what compression changed in a network.

For each student: the similarity of its layers with those of the teacher (SVCCA and CKA), and with labels the changes
per class (error rates, CEV, SDE, confusions), flips and calibration. With --population N, the run that wrote the
student is repeated with other seeds on all workers (under mpirun, on all ranks), until there are N students; images
whose most frequent class over them differs from that over the originals are named.
"""

import argparse
import contextlib
import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pbd.command_line import Parser, check_folder, path, positive, print_output
from pbd.config.settings import EXECUTORS
from pbd.deploy import file_commands
from pbd.errors import CannotCreateError, CannotWriteError, MissingInputError, UsageError
from pbd.pipeline import command
from pbd.system import launcher
from pbd.system.permissions import check_readable

if TYPE_CHECKING:
    from pbd.records.analysis_report import AnalysisReport

FILES = 0
"""The value of --population without a number: the students are the files that are given."""
_EXECUTION = ("executor", "workers", "dask_address")


def main(argv: Sequence[str] | None = None, program: str = "pbd analyse") -> int:
    """Run the command line; return the exit code."""

    return command.run(argv, program, parse, _run)


def _run(settings: argparse.Namespace) -> int:
    if settings.population:  # a number of students
        _add_population(settings)
    if launcher.rank() in (None, 0):
        write(measure(settings), settings)
    return 0


def _add_population(settings: argparse.Namespace) -> None:
    """Repeat the run of the student, and add the networks of the repetitions to those that are compared.

    Their progress goes to standard error: standard output may be JSON.
    """
    from pbd.compression import population

    execution = {name: getattr(settings, name) for name in _EXECUTION}
    with contextlib.redirect_stdout(sys.stderr):
        repeated = population.repeat(settings.students[0], settings.population, settings.dataset, execution)
    settings.students = list(repeated.students)
    settings.teachers = [*settings.teachers, *repeated.originals]


def parse(arguments: Sequence[str], program: str) -> argparse.Namespace:
    """Return the parsed command-line arguments.

    Raises:
        SystemExit: help was printed.
        UsageError: a flag or a value is wrong.
        MissingInputError: a model file, or the folder of `--html`, does not exist.
    """
    parser = Parser(program, __doc__ or "")
    parser.add_argument("teacher", metavar="TEACHER", type=path, help="a .keras or .h5 file: the original network")
    parser.add_argument("students", metavar="STUDENT", nargs="+", type=path, help="the compressed network, or several")
    file_commands.add_data_flags(parser)
    parser.add_argument("--split", metavar="NAME", default="test", help="train, validation or test (default: test)")
    parser.add_argument("--limit", metavar="N", type=positive, help="images of the split (default: all)")
    parser.add_argument(
        "--similarity-images",
        metavar="N",
        type=positive,
        help="images that layers are compared on (default: 2000, with --positions fourier 500)",
    )
    parser.add_argument(
        "--layers",
        metavar="NAME",
        nargs="+",
        default=[],
        help="globs over layers of the teacher (default: convolutions and ends of residual blocks)",
    )
    parser.add_argument(
        "--positions",
        metavar="NAME",
        default="average",
        help="average: feature maps are averaged over positions; fourier: compared by frequency (default: average)",
    )
    _add_population_flags(parser)
    parser.add_argument("--html", metavar="FILE", type=path, help="write a self-contained page")
    parser.add_argument("--json", action="store_true", help="print JSON in place of tables")
    settings = parser.parse_args(arguments)
    _check(settings)
    return settings


def _add_population_flags(parser: Parser) -> None:
    parser.add_argument(
        "--population",
        metavar="N",
        nargs="?",
        const=FILES,
        type=positive,
        help="also name images whose most frequent class over the students differs; with a number, the students are "
        "that of the run with STUDENT and those of its repetitions with other seeds",
    )
    parser.add_argument(
        "--teachers", metavar="FILE", nargs="+", type=path, default=[], help="more originals, for --population"
    )
    parser.add_argument("--executor", metavar="NAME", choices=EXECUTORS, help="of --population N, as in pbd distill")
    parser.add_argument("--workers", metavar="N", type=positive, help="as in pbd distill")
    parser.add_argument("--dask-address", metavar="ADDRESS", help="as in pbd distill")


def _check(settings: argparse.Namespace) -> None:
    for name in (settings.teacher, *settings.students, *settings.teachers):
        check_readable("a model file", name)
        if not Path(name).is_file():
            raise MissingInputError(f"a model file must exist. Received: {name!r}. Check the path.")
    if settings.teachers and settings.population is None:
        raise UsageError("--teachers is for a population. Received: no --population. Give it, or leave --teachers out.")
    _check_population(settings)
    check_folder("--html", Path(settings.html) if settings.html else None)


def _check_population(settings: argparse.Namespace) -> None:
    if not settings.population:
        for name in _EXECUTION:
            if getattr(settings, name) is not None:
                flag = f"--{name.replace('_', '-')}"
                raise UsageError(f"{flag} is for --population N, which trains. Received: it alone. Leave it out.")
    elif settings.population < 2:
        raise UsageError("a population has two students or more. Received: --population 1. Give 5, for example.")
    elif len(settings.students) > 1:
        raise UsageError(
            f"--population N repeats the run of one student. Received: {len(settings.students)} students. "
            "Give one of them, or --population without a number."
        )


def measure(settings: argparse.Namespace) -> "AnalysisReport":
    """Load the models and the data, and compare the models.

    Raises:
        UsageError: no data are given, and the first student is not in the folder of a run with data.
    """
    from pbd.system import devices, process  # load NumPy, which --help does not need

    with process.prepared(devices.Share()):
        from pbd.analysis.comparison import analyse
        from pbd.networks import files

        settings.model = settings.students[0]  # the data are those of its run, unless others are given
        data = file_commands.read(settings)
        if data is None:
            raise UsageError("an analysis needs images. Received: none. Give --dataset.")
        names = file_commands.short_names(dict.fromkeys(settings.students))
        report = analyse(
            files.load(settings.teacher),
            {names[name]: files.load(name) for name in names},
            data.data,
            teachers=[files.load(name) for name in settings.teachers],
            population=settings.population is not None,
            layers=settings.layers,
            split=settings.split,
            limit=settings.limit,
            similarity_images=settings.similarity_images,
            positions=settings.positions,
            seed=data.seed,
        )
    return dataclasses.replace(report, teacher=settings.teacher)


def write(report: "AnalysisReport", settings: argparse.Namespace) -> None:
    """Print the report, and write the page if one is asked for.

    Raises:
        CannotCreateError: the page cannot be written there.
        CannotWriteError: the disk is full, read-only or defective.
    """
    from pbd.progress import LastingConsole
    from pbd.report import analysis, analysis_page
    from pbd.report.files import json_safe
    from pbd.run_dir.atomic import write_atomically

    if settings.json:
        print_output(json.dumps(json_safe(dataclasses.asdict(report)), indent=2))
    else:
        LastingConsole().print(analysis.summary(report))
    if not settings.html:
        return
    try:
        write_atomically(Path(settings.html), analysis_page.render(report).encode())
    except CannotWriteError:
        raise
    except OSError as error:
        raise CannotCreateError(f"cannot write {settings.html}: {error.strerror}. Give another file.") from error
