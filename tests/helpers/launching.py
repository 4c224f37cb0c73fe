"""For the tests of launch scripts: small runs, and what must hold after them."""

from pathlib import Path

from tests.helpers.cluster import Process, environment, report_of

QUICK = ["--epochs", "1", "--no-isolate", "--run-dir", "my run"]
LONGER = ["--epochs", "3", "--no-group", "--no-isolate"]
"""A played run that can be stopped in the middle: the blocks one by one, about a second each."""
SMALL = ["--teacher-epochs", "1", "--train-limit", "256", "--epochs", "1", "--fine-tune-epochs", "0"]
SMALL += ["--target", "keras", "--block", "decoupled_r2"]
THREE_LAYERS = ["--layers", "conv1_2", "conv2_1", "conv2_2", "--no-group"]
DIGITS = [*SMALL, *THREE_LAYERS, "--costs", "macs", "--no-isolate", "--allow-weak-teacher"]
"""A real run that is as short as can be: three blocks of the built-in network."""


def run_to_its_end(folder: Path, *command: str | Path, **changes: str) -> Process:
    """Run a command in the folder; whatever happens, nothing of it is left."""
    process = Process(command, folder / "output.txt", environment(**changes), cwd=folder)
    try:
        process.wait()
    finally:
        process.end()
    return process


def assert_done(process: Process, run_dir: Path, workers: int) -> None:
    """Check that a process ended with 0 and wrote the report of a run with all blocks."""
    assert process.wait() == 0, process.said()
    assert_complete(run_dir, workers)


def assert_complete(run_dir: Path, workers: int) -> None:
    """Check that a run has a report, with all blocks and this number of workers."""
    report = report_of(run_dir)
    assert {row["status"] for row in report["blocks"]} <= {"accepted", "skipped"}
    assert len(report["workers"]) == workers


def finished_blocks(run_dir: Path) -> list[Path]:
    return list((run_dir / "blocks").glob("*.npz"))
