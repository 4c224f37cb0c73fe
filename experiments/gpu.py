"""What pbd takes on a GPU, on the JAX backend: `phases` of a whole run, grouped `steps`, `groups` that share a device.

    python -m experiments.gpu phases --teacher resnet20.keras --dataset cifar10.npz --csv phases.csv
    python -m experiments.gpu steps --networks resnet20 resnet56 VGG16 ResNet50 ResNet50@224 --csv steps.csv
    python -m experiments.gpu groups --networks resnet20 --groups 1 2 4 --csv groups.csv

A network is a model file, or a name, which gets random weights and may end in @PIXELS, the size of its images (32 by
default). All three run on a CPU as well. The table is written anew after each measurement, so that an interrupted
command keeps what it has measured.
"""

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from experiments.csv_table import write_csv
from pbd import command_line
from pbd.command_line import Parser, check_folder, positive
from pbd.config import AUGMENTATIONS, BlockConfig
from pbd.errors import EnvironmentMismatchError, PbdError
from pbd.system import backend, devices

WIDTH = 150
NETWORKS = ("resnet20", "resnet56", "VGG16", "ResNet50", "ResNet50@224")
MATRIX_SIZE, SMALL_MATRIX_SIZE = 8192, 1024
"""Rows and columns of the matrices whose product gives the rate: of an accelerator, of a CPU."""


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Turn command-line arguments into settings.

    Raises:
        UsageError: a flag or a value is wrong; the message is one line.
        MissingInputError: the folder of the table, or that of the runs, does not exist.
    """
    name, *rest = argv or ["--help"]
    if name not in FLAGS:
        parser = Parser("gpu", __doc__, usage="gpu {phases,steps,groups} ...")
        parser.add_argument("command", choices=FLAGS, help="gpu COMMAND --help lists its flags")
        parser.parse_args([name])
    parser = Parser(f"gpu {name}", FLAGS[name].__doc__ or "")
    FLAGS[name](parser)
    parser.add_argument("--csv", type=Path, help="also write the table here")
    settings = parser.parse_args(rest)
    settings.command = name
    check_folder("--csv", settings.csv)
    if name == "phases":
        check_folder("--runs", settings.runs)
    return settings


def _add_phases(parser: argparse.ArgumentParser) -> None:
    """Seconds, compilations and energy of a whole run, with an empty and with a full compilation cache."""
    parser.add_argument("--teacher", default="digits_cnn", help="a model file or a built-in network, as in pbd-run")
    parser.add_argument("--dataset", default="digits", help="an .npz file or a name, as in pbd-run")
    parser.add_argument("--batch-size", type=positive, default=256)
    parser.add_argument("--augment", choices=AUGMENTATIONS, default="flip_crop")
    parser.add_argument("--epochs", type=positive, default=3, help="for each block")
    parser.add_argument("--fine-tune-epochs", type=positive, default=3)
    parser.add_argument("--block", default=BlockConfig().designs[0])
    parser.add_argument("--caches", nargs="+", choices=("cold", "warm"), default=["cold", "warm"])
    parser.add_argument("--isolate", action="store_true", help="train blocks in a child process, as a run does")
    parser.add_argument("--most-callers", type=positive, default=20, help="functions that compile, to list")
    parser.add_argument("--timeout", type=positive, default=1200, metavar="S", help="of each run")
    parser.add_argument("--runs", type=Path, help="a new folder for run directories, logs and the compilation cache")


def _add_steps(parser: argparse.ArgumentParser) -> None:
    """A grouped training step through pbd, written by hand, block by block, and its floors."""
    _add_measured(parser, NETWORKS)
    parser.add_argument(
        "--one-by-one",
        type=_count,
        default=5,
        metavar="N",
        help="layers of which the blocks are also trained one by one, evenly spaced; the others are interpolated. "
        "all: every layer; 0: none",
    )
    parser.add_argument("--matrix-size", type=positive, help="of the product that gives the device's rate")


def _add_groups(parser: argparse.ArgumentParser) -> None:
    """One group of blocks against the same blocks in several groups that are trained at once on one device."""
    _add_measured(parser, NETWORKS[:1])
    parser.add_argument("--groups", nargs="+", type=positive, default=[1, 2, 4], metavar="N")


def _add_measured(parser: argparse.ArgumentParser, networks: Sequence[str]) -> None:
    parser.add_argument("--networks", nargs="+", default=networks, metavar="NAME[@PIXELS]")
    parser.add_argument("--block", default=BlockConfig().designs[0])
    parser.add_argument("--batch-size", type=positive, default=256)
    parser.add_argument("--steps", type=positive, default=50, help="of an epoch")
    parser.add_argument("--epochs", type=positive, default=5, help="that are timed")
    parser.add_argument("--augment", choices=AUGMENTATIONS, default="none")
    parser.add_argument("--images", type=positive, default=2048, help="on the device")


FLAGS = {"phases": _add_phases, "steps": _add_steps, "groups": _add_groups}
"""What adds the flags of each command."""


def _count(text: str) -> int | None:
    """Return a whole number from 0, or `None` for `all`."""
    if text == "all":
        return None
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"must be a whole number, or all. Received: {text!r}")
    return int(text)


def check_backend() -> None:
    """Refuse other backends than JAX.

    Raises:
        EnvironmentMismatchError: Keras computes, or would compute, with another one.
    """
    if not os.environ.get(backend.VARIABLE) and "keras" not in sys.modules and backend.is_installed("jax"):
        os.environ[backend.VARIABLE] = "jax"
    if backend.name() != "jax":
        raise EnvironmentMismatchError(
            f"this experiment measures the JAX backend. Received: {backend.name()}. Set KERAS_BACKEND=jax."
        )
    if not backend.is_installed("jax"):
        raise EnvironmentMismatchError("this experiment needs JAX. Received: none. Install pbd[jax] or pbd[jax-cuda].")


Save = Callable[[Sequence[Any]], None]
"""Writes the rows measured so far."""


def phases(settings: argparse.Namespace, console: Console, save: Save) -> None:
    """Run the job with each cache; print the table after each."""
    from experiments import gpu_phases

    job = gpu_phases.Job(
        teacher=settings.teacher,
        dataset=settings.dataset,
        batch_size=settings.batch_size,
        augment=settings.augment,
        settings={
            "epochs": settings.epochs,
            "fine_tune_epochs": settings.fine_tune_epochs,
            "block": settings.block,
            "isolate": settings.isolate,
        },
    )
    with tempfile.TemporaryDirectory() as temporary:
        folder, measured = settings.runs or Path(temporary), {}
        folder.mkdir(exist_ok=True)
        for cache in dict.fromkeys(settings.caches):
            measured[cache] = gpu_phases.run(job, cache, folder, settings.timeout)
            console.print(f"{cache}: {measured[cache]['process_s']:.1f} s", highlight=False)
            lines = gpu_phases.rows(measured, settings.most_callers)
            save(lines)
        console.print(gpu_phases.as_table(lines, list(measured), measured[cache]["device"]))


def steps(settings: argparse.Namespace, console: Console, save: Save) -> None:
    """Measure each network; a network that fails is said, and the others are measured."""
    devices.Share().claim()
    backend.load()
    from experiments import gpu_steps, step_floors

    accelerated = devices.has_accelerator()
    rates = step_floors.measure_rates(settings.matrix_size or (MATRIX_SIZE if accelerated else SMALL_MATRIX_SIZE))
    timing, rows = _timing(settings), []
    for text in settings.networks:
        started = time.monotonic()
        try:
            name, teacher = gpu_steps.load(text)
            row = gpu_steps.measure(name, teacher, settings.block, timing, settings.one_by_one, rates)
        except Exception as error:  # of the device's library too: out of memory, for one
            if len(settings.networks) == 1:
                raise
            console.print(f"{text}: {' '.join(str(error).split())[:300]}", highlight=False, markup=False)
            continue
        rows.append(row)
        save([one.figures() for one in rows])
        refused = f"; not by hand: {row.refused}" if row.refused else f"; losses differ by {row.difference:.1e}"
        taken = time.monotonic() - started
        console.print(f"{text}: measured in {taken:.0f} s{refused}", highlight=False, markup=False)
    if not rows:
        raise PbdError("at least one network must be measured. Received: none; the reasons are above.")
    console.print(gpu_steps.as_table(rows, rates, settings.augment))


def groups(settings: argparse.Namespace, console: Console, save: Save) -> None:
    """Measure each network with each number of groups."""
    os.environ.update(devices.Share().settings())  # the processes claim nothing themselves, and inherit it
    backend.load()
    from experiments import gpu_groups, gpu_steps

    timing, rows = _timing(settings), []
    for network in settings.networks:
        count = len(gpu_steps.trained_tasks(gpu_steps.load(network)[1], settings.block))
        for number in sorted({min(number, count) for number in settings.groups}):
            rows.append(gpu_groups.measure(network, settings.block, count, number, timing))
            rate = rows[-1].block_steps_per_s
            console.print(f"{network}, groups: {number}: {rate:.0f} blocks x steps / s", highlight=False)
            rows = gpu_groups.with_ratios(rows)
            save(rows)
    console.print(gpu_groups.as_table(rows, ", ".join(devices.names())))


def _timing(settings: argparse.Namespace) -> Any:
    from experiments.gpu_steps import Timing

    return Timing(settings.batch_size, settings.steps, settings.epochs, settings.augment, settings.images)


COMMANDS = {"phases": phases, "steps": steps, "groups": groups}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code, those of pbd-run."""
    console = Console(width=None if Console().is_terminal else WIDTH)

    def command(arguments: Sequence[str]) -> None:
        settings = parse(arguments)
        check_backend()

        def save(rows: Sequence[Any]) -> None:
            if settings.csv is not None:
                write_csv(rows, settings.csv)

        COMMANDS[settings.command](settings, console, save)

    return command_line.run("gpu", command, argv)


if __name__ == "__main__":
    sys.exit(main())
