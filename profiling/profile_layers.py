"""Measure how long training a block takes for each convolution of a network: a table for `pbd-run --costs`.

Speed does not depend on weights or pixels, so networks of keras.applications get random weights, and images are noise.

    python -m profiling.profile_layers --teacher VGG16 --image-size 224 --batch-size 8 --out costs.json

A run accepts the table if its network, block, block initialisation and batch size are the same.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from pbd import command_line
from pbd.command_line import Parser, check_folder, positive
from pbd.config import BLOCK_INITS, BlockConfig, DataConfig
from pbd.run_dir.atomic import write_atomically
from pbd.scheduling.cost_table import CostTable
from pbd.system import backend, devices

BATCHES = 2
"""Different batches of images; more would only need memory."""


def noise(image_shape: tuple[int, int, int], batch_size: int) -> Any:
    """Return a data set of random images, `BATCHES` training batches and one for validation."""
    from pbd.data import Dataset, IndexedSplit
    from pbd.data.images import ArrayImages

    draws = np.random.default_rng(0)

    def split(count: int) -> Any:
        pixels = draws.integers(0, 256, (count, *image_shape), dtype=np.uint8)
        return IndexedSplit.whole(ArrayImages(pixels, image_shape), np.zeros(count, np.int32))

    parts = {"train": split(BATCHES * batch_size), "validation": split(batch_size), "test": split(1)}
    how = {"augment": "none", "preprocess": "unit", "seed": 0}
    return Dataset("noise", **parts, num_classes=None, image_shape=image_shape, batch_size=batch_size, **how)


def measure(settings: argparse.Namespace) -> CostTable:
    """Return the table of costs that the settings ask for.

    Raises:
        PbdError: there is no such teacher, or it has no convolution to replace.
    """
    from experiments.networks import load_teacher
    from pbd import blocks
    from pbd.blockwise.tasks import enumerate_tasks
    from pbd.costs import layer_timing

    teacher = load_teacher(settings.teacher, settings.image_size, settings.classes)
    design = blocks.get(settings.block)
    tasks = enumerate_tasks(teacher, design, include_unprofitable=settings.include_unprofitable)
    replaceable = tuple(task for task in tasks if task.skip_reason is None)
    data = noise(tuple(teacher.inputs[0].shape[1:]), settings.batch_size)
    return layer_timing.calibrate(
        layer_timing.Setup(teacher, replaceable, data, {design.name: design}, settings.block_init)
    )


def as_table(costs: CostTable) -> Table:
    """Return the costs for a terminal."""
    conditions = costs.conditions
    designs = ", ".join(dict.fromkeys(key.design for key in costs.tasks))
    table = Table(
        title=f"{designs}, {conditions.block_init}: milliseconds per batch of {conditions.batch_size}",
        caption=costs.source,
    )
    headings = ("layer", "prefix", "block,\ntraining", "block,\nchecking", "rest of the\nteacher", "once per\nblock, s")
    for heading in (*headings, "once per\ngroup, s"):
        table.add_column(heading, justify="left" if heading == "layer" else "right", no_wrap=heading == "layer")
    for key, times in costs.tasks.items():
        per_batch = (times.prefix_s, times.step_s, times.check_s, times.suffix_s)
        table.add_row(
            key.layer,
            *(f"{1e3 * seconds:.1f}" for seconds in per_batch),
            *(f"{seconds:.2f}" for seconds in (times.block_once_s, times.group_once_s)),
        )
    return table


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Turn command-line arguments into settings.

    Raises:
        UsageError: a flag or a value is wrong; the message is one line.
        MissingInputError: the folder of `--out` does not exist.
    """
    parser = Parser("profiling.profile_layers", __doc__)
    parser.add_argument("--teacher", default="VGG16", help="a model file, or a built-in network (random weights)")
    parser.add_argument("--image-size", type=positive, default=224, help="pixels, where the teacher leaves it free")
    parser.add_argument("--classes", type=positive, default=10, help="of a built-in network")
    parser.add_argument("--batch-size", type=positive, default=DataConfig().batch_size)
    parser.add_argument("--block", default=BlockConfig().designs[0])
    parser.add_argument("--block-init", choices=BLOCK_INITS, default=BlockConfig().block_init)
    parser.add_argument("--include-unprofitable", action="store_true", help="as in pbd-run")
    parser.add_argument("--threads", type=positive, help="CPU threads; by default all cores")
    parser.add_argument("--out", type=Path, help="write the table here, for pbd-run --costs")
    settings = parser.parse_args(argv)
    check_folder("--out", settings.out)
    return settings


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print the table, write it; return the exit code."""

    def command(arguments: Sequence[str]) -> None:
        settings = parse(arguments)
        devices.Share(threads=settings.threads).claim()
        backend.load()
        costs = measure(settings)
        Console().print(as_table(costs))
        if settings.out is not None:
            write_atomically(settings.out, json.dumps(costs.as_json(), indent=2).encode())

    return command_line.run("profile_layers", command, argv)


if __name__ == "__main__":
    sys.exit(main())
