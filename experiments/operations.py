"""Every operation of a grouped training step, measured alone, beside the step: how near the step is to its limit.

The step is pbd's own: one forward of the frozen teacher feeds every block, and each is trained on its layer's output.
Operations that are alike in kind and shape are measured once and counted as often as a step has them. They take turns
with the step, round by round, so that whatever else the machine does falls on all of them.

    python -m experiments.operations --teacher resnet56 --block decoupled_r2 --csv operations.csv
"""

import argparse
import dataclasses
import functools
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from experiments.block_phase import take_cores
from experiments.csv_table import write_csv
from pbd import command_line
from pbd.command_line import Parser, check_folder, positive
from pbd.config import BlockConfig, DataConfig, TrainingConfig
from pbd.records import BlockKey
from pbd.system import backend, devices

if TYPE_CHECKING:
    from experiments.step_operations import Operation

COPIES = 4
"""An operation runs so often in one call: a call costs as much as a small operation."""
WARM_UP = 3
WIDTH = 110


@dataclass(frozen=True)
class Row:
    """Operations of one kind and shape."""

    kind: str
    shapes: str
    count: int
    """In a step."""
    one_ms: float

    @property
    def step_ms(self) -> float:
        """What a step has of it."""
        return self.count * self.one_ms


@functools.cache
def _numbers(shape: tuple[int, ...], which: int) -> Any:
    import tensorflow as tf

    return tf.random.stateless_normal(shape, (which, 0))


def timed(function: Callable[..., Any], shapes: Sequence[tuple[int, ...]]) -> Callable[[], float]:
    """Return what runs the function `COPIES` times as a graph, on tensors of these shapes, and returns the seconds.

    Copies run one after another, which also keeps them apart: what is computed from the same would be computed once.
    They see the same tensors, as warm as they are in a step. Of each result a single number is kept: what nothing
    depends on is not computed.
    """
    import tensorflow as tf

    inputs = [_numbers(shape, at) for at, shape in enumerate(shapes)]

    @tf.function(jit_compile=devices.compiles_with_xla())
    def graph(tensors: list[Any]) -> list[Any]:
        kept: list[Any] = []
        for _ in range(COPIES):
            with tf.control_dependencies(kept[-1:]):
                results = [result for result in tf.nest.flatten(function(*tensors)) if result is not None]
                kept += [tf.reshape(result, [-1])[0] for result in results]
        return kept

    def run() -> float:
        started = time.perf_counter()
        graph(inputs)
        tf.test.experimental.sync_devices()
        return time.perf_counter() - started

    return run


def take_turns(runs: Sequence[Callable[[], float]], rounds: int) -> list[float]:
    """Run each in turn and return its median seconds."""
    for run in runs:
        for _ in range(WARM_UP):
            run()
    taken = [[run() for run in runs] for _ in range(rounds)]
    return [statistics.median(times) for times in zip(*taken, strict=True)]


def whole_step(teacher: Any, built: Mapping[str, Any], batch_size: int) -> Callable[[], float]:
    """Return what runs a grouped step as `fit` runs it, on a batch that is at hand, and returns the seconds."""
    import tensorflow as tf

    from pbd.blockwise import distiller
    from pbd.learning import loop
    from pbd.networks import graph

    keyed = {BlockKey(name, "measured"): block for name, block in built.items()}
    distiller = distiller.GroupDistiller(graph.truncate(teacher, built), keyed)
    optimizer = loop.adam(TrainingConfig().learning_rate, 1000, distiller.trainable_variables)
    distiller.compile(optimizer, jit_compile=devices.compiles_with_xla())
    images = 255.0 * tf.random.stateless_uniform((batch_size, *teacher.inputs[0].shape[1:]), (0, 0))
    batches = iter(tf.data.Dataset.from_tensors((images,)).repeat())
    distiller.make_train_function()

    def run() -> float:
        started = time.perf_counter()
        float(distiller.train_function(batches)["loss"])
        return time.perf_counter() - started

    return run


def measure(teacher: Any, built: Mapping[str, Any], batch_size: int, rounds: int) -> tuple[list[Row], float]:
    """Measure the operations of a step of these blocks, and the step.

    Args:
        teacher: flat; its weights do not matter.
        built: the blocks by layer.
        batch_size: images in a step.
        rounds: turns of each operation, and of the step.

    Returns:
        A row for each kind and shape, and the milliseconds of the step.
    """
    from experiments import step_operations

    counts = step_operations.count(teacher, built, batch_size)
    empty = timed(lambda nothing: nothing, [(1,)])
    alone = [timed(operation.function, operation.shapes) for operation in counts]
    call_s, step_s, *alone_s = take_turns([empty, whole_step(teacher, built, batch_size), *alone], rounds)
    return [
        as_row(operation, number, call_s, seconds)
        for (operation, number), seconds in zip(counts.items(), alone_s, strict=True)
    ], 1e3 * step_s


def as_row(operation: "Operation", count: int, call_s: float, seconds: float) -> Row:
    """Return the row of an operation whose `COPIES`, in a call that costs `call_s` in itself, took these seconds."""
    one_ms = 1e3 * max(seconds - call_s, 0.0) / COPIES
    shapes = ", ".join("x".join(map(str, shape)) for shape in operation.shapes)
    return Row(operation.kind, shapes, count, one_ms)


def as_table(rows: Sequence[Row], step_ms: float) -> Table:
    """Return the operations by kind, the dearest first, their sum and the step."""
    sum_ms = sum(row.step_ms for row in rows)
    table = Table(title="A grouped training step", caption=f"The step takes {step_ms / sum_ms:.2f} times the sum.")
    for heading in ("operation", "shapes", "in a step", "ms", "share"):
        table.add_column(heading, justify="left" if heading == "operation" else "right")
    kinds = {kind: [row for row in rows if row.kind == kind] for kind in dict.fromkeys(row.kind for row in rows)}
    for kind, own in sorted(kinds.items(), key=lambda item: -sum(row.step_ms for row in item[1])):
        own_ms = sum(row.step_ms for row in own)
        times = sum(row.count for row in own)
        table.add_row(kind, str(len(own)), str(times), f"{own_ms:.2f}", f"{own_ms / sum_ms:.1%}")
    table.add_section()
    table.add_row("sum", str(len(rows)), str(sum(row.count for row in rows)), f"{sum_ms:.2f}", "100.0%")
    table.add_row("the step", "", "", f"{step_ms:.2f}", f"{step_ms / sum_ms:.1%}")
    return table


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Turn command-line arguments into settings.

    Raises:
        UsageError: a flag or a value is wrong; the message is one line.
        MissingInputError: the table's folder does not exist.
    """
    parser = Parser("operations", __doc__)
    parser.add_argument(
        "--teacher", default="vgg16_half", help="a model file, vgg16_half, resnet56, or a built-in network"
    )
    parser.add_argument("--image-size", type=positive, default=32, help="pixels, where the teacher leaves it free")
    parser.add_argument("--block", default=BlockConfig().designs[0])
    parser.add_argument("--batch-size", type=positive, default=DataConfig().batch_size)
    parser.add_argument("--threads", type=positive, default=1, help="CPU threads, and cores")
    parser.add_argument("--rounds", type=positive, default=15, help="turns of each operation, and of the step")
    parser.add_argument("--csv", type=Path, help="also write a line for each operation and shape to this file")
    settings = parser.parse_args(argv)
    check_folder("--csv", settings.csv)
    return settings


def run(settings: argparse.Namespace, console: Console) -> None:
    """Measure, print the table and write it."""
    take_cores(0, settings.threads)
    devices.Share(threads=settings.threads).claim()
    backend.load()
    from experiments.networks import load_teacher
    from pbd import blocks
    from pbd.blockwise.tasks import enumerate_tasks

    teacher = load_teacher(settings.teacher, settings.image_size)
    design = blocks.get(settings.block)
    tasks = [task for task in enumerate_tasks(teacher, design) if task.skip_reason is None]
    built = {task.layer.name: blocks.build_block(design, task.layer, seed=0) for task in tasks}
    rows, step_ms = measure(teacher, built, settings.batch_size, settings.rounds)
    console.print(as_table(rows, step_ms))
    if settings.csv is not None:
        write_csv([dataclasses.asdict(row) | {"step_ms": row.step_ms} for row in rows], settings.csv)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code, those of pbd-run."""
    console = Console(width=None if Console().is_terminal else WIDTH)
    return command_line.run("operations", lambda arguments: run(parse(arguments), console), argv)


if __name__ == "__main__":
    sys.exit(main())
