"""Measure how fast students of a teacher are where they are deployed, in float32 and in 8-bit integers, on one thread.

Speed does not depend on weights: without a student, every profitable convolution of the teacher is replaced by an
untrained block. For model files, `pbd latency` does the same.

    python -m experiments.latency --teacher teacher.keras --block decoupled_r2 two_layer --csv latency.csv
"""

import argparse
import functools
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from experiments.csv_table import write_csv
from pbd import command_line
from pbd.command_line import Parser, check_folder, positive
from pbd.config import BlockConfig
from pbd.errors import MissingInputError
from pbd.system import backend, devices

if TYPE_CHECKING:
    from pbd.deploy.latency import ModelLatency

TARGETS = ("openvino", "openvino-int8", "onnx", "onnx-int8", "litert", "litert-int8", "keras")


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


def add_measurement_arguments(parser: Parser) -> None:
    """Add where networks are measured, with how many images in a pass, and the file for the figures."""
    parser.add_argument(
        "--target", nargs="+", metavar="NAME", help="as in pbd latency (default: all that are installed)"
    )
    parser.add_argument(
        "--batch-sizes", nargs="+", type=positive, default=[1, 32], metavar="N", help="images in a pass"
    )
    parser.add_argument("--csv", type=Path, help="also write the figures to this file; times in seconds")


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
        "--block", nargs="+", default=BlockConfig().designs, metavar="NAME", help="as in pbd-run; one or more"
    )
    parser.add_argument("--image-size", type=positive, default=32, help="pixels, where the teacher leaves it free")
    add_measurement_arguments(parser)
    settings = parser.parse_args(argv)
    if settings.student is not None and not Path(settings.student).is_file():
        raise MissingInputError(f"--student must be a model file. Received: {settings.student!r}, no such file.")
    check_folder("--csv", settings.csv)
    return settings


def installed(console: Console) -> list[str]:
    """Return the targets that are installed; print which are left out, and how to install them."""
    from pbd.deploy import targets

    obstacles = {name: targets.TARGETS[name].obstacle() for name in TARGETS}
    for obstacle in filter(None, obstacles.values()):
        console.print(f"left out: {obstacle}", markup=False)
    return [name for name in TARGETS if obstacles[name] is None]


def run(settings: argparse.Namespace, console: Console) -> "tuple[ModelLatency, ...]":
    """Measure what the settings ask for, and print it.

    Raises:
        PbdError: a network cannot be used, or a target is not installed.
    """
    backend.load()
    from experiments.networks import load_teacher
    from pbd.deploy.latency import measure_latency
    from pbd.deploy.latency_command import as_table
    from pbd.networks import files, graph

    targets = settings.target or installed(console)
    teacher = load_teacher(settings.teacher, settings.image_size)
    networks = {"teacher": teacher}
    if settings.student is None:
        networks |= make_students(teacher, settings.block)
    else:
        student = files.load(settings.student)
        networks["student"] = graph.flatten(student, tuple(teacher.inputs[0].shape[1:]))
    rows = measure_latency(networks, settings.batch_sizes, targets)
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
