"""Throughput of one device with one group of blocks, and with the same blocks in several groups trained at once.

Each group is trained by a process of its own, as several workers on one device do it. All processes begin to train
together, after an epoch that compiles. What counts is blocks times steps per second, until the last process is done.

Without NVIDIA's Multi-Process Service (MPS), the processes take turns on the device.
"""

import contextlib
import dataclasses
import itertools
import multiprocessing
import os
import queue
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table

from pbd.errors import PbdError

if TYPE_CHECKING:
    from experiments.gpu_steps import Timing

ENVIRONMENT = {"KERAS_BACKEND": "jax", "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
"""Of the processes: none takes the whole memory of the device."""
LONGEST_S = 900.0
"""No process may take longer."""


@dataclass(frozen=True)
class Row:
    """The same blocks in some number of groups."""

    network: str
    groups: int
    blocks: int
    batch_size: int
    seconds: float
    """Until the last process was done."""
    block_steps_per_s: float
    own_block_steps_per_s: float
    """Sum over the processes of what each does until it is done itself: a balanced split would come near it."""
    times_one_group: float | None
    """`None` if one group was not measured."""


@dataclass(frozen=True)
class Group:
    """What one process trains."""

    network: str
    """`NAME` or `NAME@PIXELS`."""
    block: str
    first: int
    """Number of the first block."""
    end: int
    timing: "Timing"


def split(blocks: int, groups: int) -> list[tuple[int, int]]:
    """Return the first and the end of consecutive parts of the blocks, as equal in number as possible."""
    bounds = [round(blocks * number / groups) for number in range(groups + 1)]
    return list(itertools.pairwise(bounds))


def train_group(group: Group, ready: Any, results: Any) -> None:
    """Train a group in this process, together with the other processes; put its seconds into the queue."""
    try:
        results.put(_train(group, ready))
    except BaseException as error:
        ready.abort()
        results.put(f"{type(error).__name__}: {error}")


def _train(group: Group, ready: Any) -> tuple[int, float, float]:
    """Return the number of blocks, and the host's time at which training began and ended."""
    from pbd.system import backend

    backend.load()
    from experiments import gpu_steps

    _, teacher = gpu_steps.load(group.network)
    tasks = gpu_steps.trained_tasks(teacher, group.block)[group.first : group.end]
    dataset = gpu_steps.random_data(group.timing, tuple(teacher.inputs[0].shape[1:]))
    train = gpu_steps.pbd_epochs(teacher, gpu_steps.build(tasks), dataset, group.timing.all_steps)
    train(0)
    ready.wait(LONGEST_S)
    began = time.time()
    for epoch in range(1, group.timing.epochs + 1):
        train(epoch)
    return len(tasks), began, time.time()


def run(groups: Sequence[Group]) -> list[tuple[int, float, float]]:
    """Train groups at the same time, a process each; return each one's number of blocks, beginning and end.

    Raises:
        PbdError: a process failed or took longer than `LONGEST_S`.
    """
    context = multiprocessing.get_context("spawn")
    ready, results = context.Barrier(len(groups)), context.Queue()
    with _environment(ENVIRONMENT):
        processes = [context.Process(target=train_group, args=(group, ready, results)) for group in groups]
        for process in processes:
            process.start()
    try:
        return [_result(results, processes) for _ in groups]
    finally:
        for process in processes:
            process.join(10.0)
            if process.is_alive():
                process.kill()


def _result(results: Any, processes: Sequence[BaseProcess]) -> tuple[int, float, float]:
    """Return what one process did; a process that ends without a result fails."""
    deadline = time.monotonic() + LONGEST_S
    while time.monotonic() < deadline:
        lost = [process for process in processes if process.exitcode not in (None, 0)]
        with contextlib.suppress(queue.Empty):
            result = results.get(timeout=1.0)
            if isinstance(result, str):
                raise PbdError(f"all groups must train at once. Received: {result}. Give fewer --groups.")
            return result
        if lost:
            raise PbdError(f"a process that trains a group was lost, exit code {lost[0].exitcode}.")
    raise PbdError(f"groups must be trained in {LONGEST_S:g} s. Received: no result. Give fewer --steps.")


@contextlib.contextmanager
def _environment(settings: Mapping[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def measure(network: str, block: str, blocks: int, groups: int, timing: "Timing") -> Row:
    """Measure the throughput of a network's blocks in some number of groups.

    Args:
        network: `NAME` or `NAME@PIXELS`.
        block: name of the design.
        blocks: of the network.
        groups: and processes.
        timing: how long to measure.
    """
    done = run([Group(network, block, first, end, timing) for first, end in split(blocks, groups)])
    return summarise(network, timing, done)


def summarise(network: str, timing: "Timing", done: Sequence[tuple[int, float, float]]) -> Row:
    """Return the row of groups, given each one's number of blocks, beginning and end."""
    steps, blocks = timing.steps * timing.epochs, sum(count for count, _, _ in done)
    seconds = max(ended for _, _, ended in done) - min(began for _, began, _ in done)
    own = sum(count * steps / (ended - began) for count, began, ended in done)
    return Row(network, len(done), blocks, timing.batch_size, seconds, blocks * steps / seconds, own, None)


def with_ratios(rows: Sequence[Row]) -> list[Row]:
    """Return the rows with their ratios to one group of the same network."""
    one = {row.network: row.block_steps_per_s for row in rows if row.groups == 1}
    return [
        dataclasses.replace(
            row, times_one_group=row.block_steps_per_s / one[row.network] if row.network in one else None
        )
        for row in rows
    ]


def mps_is_on() -> bool:
    """Return whether NVIDIA's Multi-Process Service seems to run on this host."""
    folder = os.environ.get("CUDA_MPS_PIPE_DIRECTORY", "/tmp/nvidia-mps")
    return (Path(folder) / "control").exists()


def as_table(rows: Sequence[Row], device: str) -> Table:
    """Return the rows for a terminal."""
    service = "on" if mps_is_on() else "off"
    table = Table(
        title=f"Groups trained at once on {device}",
        caption=f"NVIDIA's Multi-Process Service: {service}. Each group is a process; its own rate counts until it is "
        "done itself.",
    )
    headings = ("network", "groups", "blocks", "batch", "seconds", "blocks x steps / s", "own rates", "times one group")
    for heading in headings:
        table.add_column(heading, justify="left" if heading == "network" else "right")
    for row in rows:
        ratio = "-" if row.times_one_group is None else f"{row.times_one_group:.2f}"
        figures = (f"{row.seconds:.2f}", f"{row.block_steps_per_s:.0f}", f"{row.own_block_steps_per_s:.0f}", ratio)
        table.add_row(row.network, str(row.groups), str(row.blocks), str(row.batch_size), *figures)
    return table
