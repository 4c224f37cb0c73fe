"""`pbd report RUN_DIR ...`: write the page of a run or recipe again, or one page that compares several runs."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from pbd import command_line
from pbd.command_line import Parser, check_folder, path
from pbd.errors import CannotCreateError, UsageError
from pbd.records import RunReport
from pbd.records.recipe_report import RecipeReport
from pbd.report import files, page, recipe_files
from pbd.run_dir import lock, manifest
from pbd.run_dir.atomic import write_atomically
from pbd.run_dir.journal import Journal

PROGRAM = "pbd-report"
COMPARISON = "comparison.html"


def main(argv: Sequence[str] | None = None, program: str = PROGRAM) -> int:
    """Run the command line; return the exit code."""

    def command(arguments: Sequence[str]) -> None:
        parser = Parser(program, __doc__ or "")
        parser.add_argument("run_dirs", metavar="RUN_DIR", nargs="+", type=path, help="one run, or several to compare")
        parser.add_argument(
            "--output",
            metavar="FILE",
            type=path,
            help=f"the file to write (default: {files.PAGE} in the run directory; for several runs {COMPARISON} here)",
        )
        settings = parser.parse_args(arguments)
        command_line.print_output(str(_write_page(list(dict.fromkeys(settings.run_dirs)), settings.output)))

    return command_line.run(program, command, argv)


def _write_page(run_dirs: list[str], output: str | None) -> Path:
    """Write the page of one run, or the comparison of several, and return its path."""
    first = Journal(Path(run_dirs[0]))
    if any(map(_is_recipe, run_dirs)):
        if len(run_dirs) > 1:
            raise UsageError("recipes are shown one by one. Received: several run directories. Give one of them.")
        name, html = recipe_files.PAGE, page.of_recipe(_read_recipe(first))
    else:
        reports = {run_dir: _read(Journal(Path(run_dir))) for run_dir in run_dirs}
        name = files.PAGE
        html = page.of_run(*reports.values()) if len(reports) == 1 else page.of_runs(reports)
    if len(run_dirs) == 1 and (output is None or os.path.realpath(output) == os.path.realpath(first.file(name))):
        return _rewrite(first, name, html)
    target = Path(output or COMPARISON)
    check_folder("--output", target)
    manifest.check_output(target)
    try:
        return write_atomically(target, html.encode())
    except OSError as error:
        raise CannotCreateError(f"cannot write {target}: {error.strerror}. Give another --output.") from error


def _is_recipe(run_dir: str) -> bool:
    path = Journal(Path(run_dir)).file(recipe_files.REPORT)
    return os.path.isfile(path)  # false in a folder that may not be searched


def _read(journal: Journal) -> RunReport:
    report = files.read(journal)
    if "report.json" in (manifest.damaged(journal) or ()):
        raise files.damaged(journal)
    return report


def _read_recipe(journal: Journal) -> RecipeReport:
    report = recipe_files.read(journal)
    if recipe_files.REPORT in (manifest.damaged(journal) or ()):
        raise recipe_files.damaged(journal)
    return report


def _rewrite(journal: Journal, name: str, html: str) -> Path:
    """Write the page `name` of a run or recipe; if nothing else was damaged, record the result as complete again."""
    try:
        with lock.held(journal.path):
            intact = manifest.damaged(journal) in ([], [name])
            recorded = manifest.names(journal.path)
            written = journal.write_bytes(name, html.encode())
            if intact:
                manifest.record(journal, sorted(recorded | {name}))
    except OSError as error:
        raise CannotCreateError(f"cannot write to {journal.path}: {error.strerror}. Give --output FILE.") from error
    return written


if __name__ == "__main__":
    sys.exit(main())
