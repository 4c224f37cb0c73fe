"""Measure how fast a student runs beside its teacher: one thread of the CPU, in ONNX Runtime, LiteRT and TensorFlow.

Each network is exported and must agree with Keras before its time counts. Networks take turns, burst by burst, so
that whatever else the machine does falls on all of them. Speed does not depend on weights: without a student, every
profitable convolution of the teacher is replaced by an untrained block.

    python -m experiments.latency --teacher teacher.keras --block decoupled_r2 two_layer --csv latency.csv
"""

import argparse
import functools
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from experiments.csv_table import write_csv
from experiments.runtimes import RUNTIMES, check_agreement, make_runner
from pbd import command_line
from pbd.command_line import Parser, check_folder, positive
from pbd.config import BlockConfig
from pbd.errors import EnvironmentMismatchError, MissingInputError
from pbd.system import backend, devices


@dataclass(frozen=True)
class Row:
    """One student in one runtime; `times_as_fast` is the median over rounds of teacher's time over student's."""

    runtime: str
    batch: int
    student: str
    teacher_ms: float
    student_ms: float
    student_q1_ms: float
    student_q3_ms: float
    times_as_fast: float
    difference: float
    """The larger of the two networks' relative differences from Keras."""


def measure(networks: Mapping[str, Any], runtime: str, batches: Sequence[int], rounds: int) -> Iterator[Row]:
    """Yield, for each batch size, a row for each student: its time beside the teacher's in one runtime.

    Args:
        networks: flat functional models, the teacher first.
        runtime: a key of `RUNTIMES`, installed.
        batches: images in a forward pass.
        rounds: turns of each network.
    """
    from pbd.deploy.latency import alternate  # loads the backend

    teacher, *students = networks
    inputs = networks[teacher].inputs[0]
    runners = {name: make_runner(name, model, runtime) for name, model in networks.items()}
    for batch in batches:
        images = np.random.default_rng(0).uniform(0, 255, (batch, *inputs.shape[1:])).astype(inputs.dtype)
        differences = {
            name: check_agreement(f"{name} in {runtime}", networks[name], runners[name], images) for name in networks
        }
        times = {name: 1e3 * taken for name, taken in alternate(runners, images, rounds).items()}
        for name in students:
            quartiles = np.quantile(times[name], (0.25, 0.75))
            figures = (
                np.median(times[teacher]),
                np.median(times[name]),
                *quartiles,
                np.median(times[teacher] / times[name]),
            )
            difference = max(differences[teacher], differences[name])
            yield Row(runtime, batch, name, *map(float, figures), difference)


def make_students(teacher: Any, block_names: Sequence[str]) -> dict[str, Any]:
    """Return, by block, the teacher with every profitable convolution replaced.

    Raises:
        PbdError: a block is unknown, or there is nothing to replace.
    """
    from pbd import blocks
    from pbd.blockwise.tasks import enumerate_tasks
    from pbd.networks import graph

    designs = [blocks.get(name) for name in block_names]
    students = {}
    for design in designs:
        tasks = [task for task in enumerate_tasks(teacher, design) if task.skip_reason is None]
        builders = {task.layer.name: functools.partial(design.build, layer=task.layer, seed=0) for task in tasks}
        students[design.name] = graph.swap(teacher, builders)
    return students


def as_table(rows: list[Row]) -> Table:
    """Return the rows as a table."""
    table = Table(
        title="One forward pass, one thread",
        caption=f"Largest difference from Keras: {max(row.difference for row in rows):.1e} of the largest output.",
    )
    for heading in ("runtime", "batch", "student", "teacher, ms", "student, ms (quartiles)", "times as fast"):
        table.add_column(heading, justify="left" if heading in ("runtime", "student") else "right", no_wrap=True)
    for row in rows:
        student_ms = f"{row.student_ms:.2f} ({row.student_q1_ms:.2f}-{row.student_q3_ms:.2f})"
        figures = (f"{row.teacher_ms:.2f}", student_ms, f"{row.times_as_fast:.2f}")
        table.add_row(row.runtime, str(row.batch), row.student, *figures)
    return table


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Turn command-line arguments into settings.

    Raises:
        UsageError: a flag or a value is wrong; the message is one line.
        MissingInputError: the student's file or the table's folder does not exist.
    """
    parser = Parser("latency", __doc__)
    parser.add_argument(
        "--teacher", default="VGG16", help="a model file, or a keras.applications name (random weights)"
    )
    parser.add_argument("--student", help="a model file; without it, students are made with --block")
    parser.add_argument(
        "--block", nargs="+", default=[BlockConfig().block], metavar="NAME", help="as in pbd-run; one or more"
    )
    parser.add_argument("--runtimes", nargs="+", default=list(RUNTIMES), choices=list(RUNTIMES))
    parser.add_argument("--batches", nargs="+", type=positive, default=[1, 32], metavar="N")
    parser.add_argument("--rounds", type=positive, default=15, help="turns of each network, ten passes each")
    parser.add_argument("--image-size", type=positive, default=32, help="pixels, where the teacher leaves it free")
    parser.add_argument("--csv", type=Path, help="also write the figures to this file")
    settings = parser.parse_args(argv)
    if settings.student is not None and not Path(settings.student).is_file():
        raise MissingInputError(f"--student must be a model file. Received: {settings.student!r}, no such file.")
    check_folder("--csv", settings.csv)
    return settings


def installed(runtimes: Sequence[str], console: Console) -> list[str]:
    """Return those of the runtimes that are installed; say which are left out, and how to get them.

    Raises:
        EnvironmentMismatchError: none is installed.
    """
    present = []
    for name in runtimes:
        missing = RUNTIMES[name].missing_packages()
        if missing:
            remedy = f"pip install 'pbd[{RUNTIMES[name].extra}]'"
            console.print(f"{name} is left out: it needs {', '.join(missing)}. Get it with {remedy}", markup=False)
        else:
            present.append(name)
    if not present:
        raise EnvironmentMismatchError("a runtime must be installed. Received: none of those asked for.")
    return present


def run(settings: argparse.Namespace, console: Console) -> list[Row]:
    """Measure what the settings ask for, folded for inference, in every runtime that is installed, and print it.

    Raises:
        PbdError: a network cannot be used, or none of the runtimes is installed.
    """
    present = installed(settings.runtimes, console)
    backend.load()
    from experiments.networks import load_teacher
    from pbd.deploy import inference_form
    from pbd.networks import files, graph

    teacher = load_teacher(settings.teacher, settings.image_size)
    networks = {"the teacher": teacher}
    if settings.student is None:
        networks |= make_students(teacher, settings.block)
    else:
        student = files.load(settings.student)
        networks[Path(settings.student).stem] = graph.flatten(student, tuple(teacher.inputs[0].shape[1:]))
    folded = {name: inference_form.fold(model) for name, model in networks.items()}
    rows = [row for runtime in present for row in measure(folded, runtime, settings.batches, settings.rounds)]
    console.print(as_table(rows))
    return rows


def use_one_thread() -> None:
    """Have TensorFlow use one thread and no GPU, unless it is loaded already."""
    if "tensorflow" not in sys.modules:
        os.environ["CUDA_VISIBLE_DEVICES"] = "-1"
        devices.Share(threads=1).claim()


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code, those of pbd-run."""

    def command(arguments: Sequence[str]) -> None:
        settings = parse(arguments)
        use_one_thread()
        rows = run(settings, Console(width=None if Console().is_terminal else 120))
        if settings.csv is not None:
            write_csv(rows, settings.csv)

    return command_line.run("latency", command, argv)


if __name__ == "__main__":
    sys.exit(main())
