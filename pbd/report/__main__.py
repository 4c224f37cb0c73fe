"""`python -m pbd.report RUN_DIR …`: make a run's report.html again, or one page that compares several runs."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro

from pbd.errors import CannotCreateError, CorruptStateError, PbdError, UsageError
from pbd.records import RunReport
from pbd.report import files, page
from pbd.run_dir import lock, manifest
from pbd.run_dir.journal import Journal, write_atomically

COMPARISON = "comparison.html"


@dataclass(frozen=True)
class _CommandLine:
    run_dirs: tyro.conf.Positional[tuple[str, ...]]
    """What --run-dir was; of several runs, one page is made that compares them."""
    output: str | None = None
    """The file to write (default: report.html in the run directory, or comparison.html here for several runs)."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    line = tyro.cli(_CommandLine, args=argv, prog="pbd-report", description=(__doc__ or "").partition(": ")[2])
    try:
        print(_make(list(dict.fromkeys(line.run_dirs)), line.output))
    except PbdError as error:
        print(f"pbd-report: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def _make(run_dirs: list[str], output: str | None) -> Path:
    """Write the page that was asked for, and return its path."""
    if not run_dirs:
        raise UsageError("a report is made of one run directory or more. Received: none. See --help.")
    reports = {name: _read(Journal(Path(name))) for name in run_dirs}
    if len(reports) == 1 and output is None:
        return _make_again(Journal(Path(run_dirs[0])), reports[run_dirs[0]])
    made = page.of_run(*reports.values()) if len(reports) == 1 else page.of_runs(reports)
    path = Path(output or COMPARISON)
    if not path.absolute().parent.is_dir():
        raise CannotCreateError(f"the page must lie in a folder that exists. Received: {str(path)!r}.")
    try:
        return write_atomically(path, made.encode())
    except OSError as error:
        raise CannotCreateError(f"cannot write {path}: {error.strerror}. Give another --output.") from error


def _read(journal: Journal) -> RunReport:
    if "report.json" in (manifest.damaged(journal) or ()):
        raise CorruptStateError(f"{journal.file('report.json')} is damaged. Make the run whole with pbd-run --resume.")
    return files.read(journal)


def _make_again(journal: Journal, report: RunReport) -> Path:
    """Write the run's own page; a run that was whole but for it is recorded as complete with the new one."""
    try:
        with lock.held(journal.path):
            whole = manifest.damaged(journal) in ([], [files.PAGE])
            path = journal.write_bytes(files.PAGE, page.of_run(report).encode())
            if whole:
                manifest.write(journal)
    except OSError as error:
        raise CannotCreateError(f"cannot write to {journal.path}: {error.strerror}. Give --output FILE.") from error
    return path


if __name__ == "__main__":
    sys.exit(main())
