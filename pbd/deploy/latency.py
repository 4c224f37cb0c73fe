"""Latency of forward passes: networks in their runtimes, measured in turn on this machine."""

import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import keras
import numpy as np

from pbd.config.values import as_kind
from pbd.deploy import exporting, images, resident
from pbd.deploy import targets as _targets
from pbd.deploy.runtimes.base import Runner
from pbd.deploy.targets import Target
from pbd.errors import BadInputError, UsageError
from pbd.networks import files as network_files
from pbd.networks import graph, precision
from pbd.system import random_state, silence

WARM_UP = 3
BURST = 10
ROUNDS = 15
MIN_ROUNDS = 3
LIMIT_S = 1.0
"""About how long each file is measured with each batch size; a few passes of a slow network may take longer."""
_CALIBRATION_IMAGES = 16
"""Random images; the ranges do not change the speed."""


@dataclass(frozen=True)
class DeployedFile:
    """A network in a file of a target."""

    model: str
    """Name of the network."""
    target: Target
    path: Path


@dataclass(frozen=True)
class ModelLatency:
    """Seconds of a forward pass of one network in one target: the median and the quartiles over the rounds."""

    model: str
    target: str
    batch: int
    """Images in a pass."""
    seconds: float
    q1_s: float
    q3_s: float
    times_as_fast: float
    """The median over the rounds of the time of the first model in the first target over this time."""
    rounds: int
    passes: int
    """Counted passes in a round; their median is the figure of the round."""
    size_bytes: int
    """Size of the file and of the files next to it."""
    memory_bytes: int | None
    """Resident memory that the file and a pass of this size add to a process; `None` if unknown."""


@random_state.preserved()
def measure_latency(
    models: Mapping[str, keras.Model],
    batch_sizes: Sequence[int] | int = (1, 32),
    targets: Sequence[str] = (),
    threads: int = 1,
) -> tuple[ModelLatency, ...]:
    """Measure how long forward passes of Keras models take where they are deployed, on this machine.

    Each model is exported to each target, rewritten for inference as `pbd.export` and `pbd.quantize` do it. The files
    take turns, so that a change of the machine's speed meets all of them; passes before the counted ones warm up each
    turn. Measuring takes about a second for each file and batch size, longer if a pass takes more than a third of it.

    Args:
        models: the networks by name, functional or sequential, with one input of the same fixed shape.
        batch_sizes: numbers of images in a pass.
        targets: `openvino`, `onnx`, `litert`, each also with `-int8`, `keras`, `keras-gpu` or `saved_model`; by default
            the first of openvino, onnx, litert, keras-gpu and keras that can be used here, in float32 and in 8-bit
            integers.
        threads: CPU threads. Keras and TensorFlow use those of this process.

    Returns:
        One record for each batch size, target and model, in this order; `times_as_fast` compares with the first model
        in the first target. Times in seconds.

    Raises:
        UsageError: there is no model, a number or model is something else, a batch size or the number of threads is
            below 1, or a target is unknown.
        EnvironmentMismatchError: a target is not installed; the message names the command that installs it.
        BadInputError: the models have other inputs, or one cannot be exported.

    Example:
        >>> rows = pbd.measure_latency({"teacher": model, "student": result.model}, [1], ["onnx", "onnx-int8"])
        >>> [(row.model, row.target, round(row.times_as_fast, 2)) for row in rows[:2]]
        [('teacher', 'onnx', 1.0), ('student', 'onnx', 1.83)]
    """
    sizes = _checked_sizes(models, batch_sizes, threads)
    names = [targets] if isinstance(targets, str) else dict.fromkeys(targets)
    chosen = [_targets.get_timed(name) for name in names] or _targets.default_pair()
    shape = _common_shape(models)
    networks = {name: precision.in_float32(graph.flatten(model)) for name, model in models.items()}
    with tempfile.TemporaryDirectory() as folder:
        files = [
            deployed_file(name, network, target, Path(folder) / f"{target.name}-{number}")
            for target in chosen
            for number, (name, network) in enumerate(networks.items())
        ]
        return tuple(
            _row(file, number, times, resident.measure(file.target, file.path, times.batch, shape))
            for times in measure_files(files, shape, sizes, threads)
            for number, file in enumerate(files)
        )


def _checked_sizes(models: Mapping[str, keras.Model], batch_sizes: Sequence[int] | int, threads: int) -> list[int]:
    """Return the batch sizes.

    Raises:
        UsageError: there is none, or an argument is of another type or below 1.
    """
    if not isinstance(models, Mapping):
        raise UsageError(
            f"models must be a mapping from names. Received: {type(models).__name__}. "
            'Give {"teacher": model, "student": result.model}.'
        )
    for model in models.values():
        network_files.check_model(model)
    several = batch_sizes if isinstance(batch_sizes, Iterable) else [batch_sizes]
    sizes = [as_kind("batch_sizes", int, size) for size in several]
    if not models or not sizes or min(sizes) < 1 or as_kind("threads", int, threads) < 1:
        raise UsageError(
            "latency needs a model, and batch sizes and threads of at least 1. "
            f"Received: models {list(models)}, batch sizes {sizes}, threads {threads}. Give them."
        )
    return sizes


@dataclass(frozen=True)
class Times:
    """Seconds of a pass with one batch size."""

    batch: int
    rounds_s: tuple[np.ndarray, ...]
    """For each file the median of each round, (rounds,)."""
    passes: int
    """Counted passes in a round."""

    def quartiles(self, file: int) -> tuple[float, float, float]:
        """Return the first quartile, the median and the third quartile of a file."""
        q1_s, median_s, q3_s = np.quantile(self.rounds_s[file], (0.25, 0.5, 0.75))
        return float(q1_s), float(median_s), float(q3_s)

    def times_as_fast(self, file: int, reference: int) -> float:
        """Return the median over the rounds of the reference's time over the file's time."""
        return float(np.median(self.rounds_s[reference] / self.rounds_s[file]))


def measure_files(
    files: Sequence[DeployedFile], shape: tuple[int, ...], batch_sizes: Sequence[int], threads: int
) -> tuple[Times, ...]:
    """Measure files in turn, with each batch size; see `measure_latency`.

    Args:
        files: files of networks that take images of this shape.
        shape: height, width, channels.
        batch_sizes: numbers of images in a pass.
        threads: CPU threads.
    """
    runners = [file.target.load(file.path, threads) for file in files]
    pixels = np.random.default_rng(0)
    return tuple(_measure(runners, pixels.uniform(0, 255, (batch, *shape)).astype(np.float32)) for batch in batch_sizes)


def _common_shape(models: Mapping[str, keras.Model]) -> tuple[int, ...]:
    """Return the shape of one image, which all models must share."""
    shapes = {name: tuple(tuple(tensor.shape[1:]) for tensor in model.inputs or ()) for name, model in models.items()}
    first = next(iter(shapes.values()))
    if len(first) != 1 or None in first[0] or any(other != first for other in shapes.values()):
        raise BadInputError(
            "models must have one input each, of the same fixed shape. "
            f"Received: {'; '.join(f'{name} {list(each)}' for name, each in shapes.items())}. "
            "Build each of them with one keras.Input of the same shape."
        )
    return first[0]


def deployed_file(name: str, network: keras.Model, target: Target, folder: Path) -> DeployedFile:
    """Export a flat network, and quantise it with ranges of random images if the target has 8-bit integers.

    Args:
        name: the name of the network.
        network: see `graph.flatten`.
        target: the target of the file.
        folder: the folder for the file; it is created.

    Raises:
        BadInputError: the exporter fails.
    """
    folder.mkdir()
    path = folder / f"network{target.runtime.suffix}"
    exporting.write(network, path, target)
    if target.int8:
        source, path = path, folder / f"quantized{target.runtime.suffix}"
        with silence.silenced():
            target.quantizer.quantize(source, path, images.random(network, _CALIBRATION_IMAGES), {})
    return DeployedFile(name, target, path)


@random_state.preserved()
def file_size(model: keras.Model, target: Target) -> int:
    """Return the bytes of the file of a model in a target, and of the files next to it.

    In 8-bit integers, all layers are quantised.

    Args:
        model: functional or sequential, one input of images of a fixed shape.
        target: the target of the file.

    Raises:
        BadInputError: the exporter fails.
    """
    with tempfile.TemporaryDirectory() as folder:
        network = precision.in_float32(graph.flatten(model))
        return exporting.size_of(deployed_file("", network, target, Path(folder) / "file").path)


def _row(file: DeployedFile, number: int, times: Times, memory_bytes: int | None) -> ModelLatency:
    q1_s, median_s, q3_s = times.quartiles(number)
    return ModelLatency(
        model=file.model,
        target=file.target.name,
        batch=times.batch,
        seconds=median_s,
        q1_s=q1_s,
        q3_s=q3_s,
        times_as_fast=times.times_as_fast(number, reference=0),
        rounds=len(times.rounds_s[number]),
        passes=times.passes,
        size_bytes=exporting.size_of(file.path),
        memory_bytes=memory_bytes,
    )


def _measure(runners: Sequence[Runner], pixels: np.ndarray) -> Times:
    first = alternate(runners, pixels, rounds=1, warm_up=1, burst=1)  # the uncounted pass compiles
    rounds, warm_up, burst = plan(max(float(times[0]) for times in first))
    return Times(len(pixels), alternate(runners, pixels, rounds, warm_up, burst), burst)


def plan(pass_s: float) -> tuple[int, int, int]:
    """Return how many rounds fit into `LIMIT_S`, and how many uncounted and counted passes each has.

    A long pass fills the caches by itself, so it needs less warm-up.

    Args:
        pass_s: seconds of one pass of the slowest model.
    """
    passes = int(LIMIT_S / pass_s)
    in_a_round = passes // ROUNDS
    if in_a_round >= WARM_UP + BURST:
        return ROUNDS, WARM_UP, BURST
    if in_a_round >= 2:
        return ROUNDS, 1, in_a_round - 1
    return max(MIN_ROUNDS, min(ROUNDS, passes)), 0, 1


def alternate(
    runners: Sequence[Runner], images: np.ndarray, rounds: int, warm_up: int = WARM_UP, burst: int = BURST
) -> tuple[np.ndarray, ...]:
    """Run networks in turn; return for each the median seconds of a pass in each round, shape `(rounds,)`.

    A turn is a burst of passes of one network, of which the first ones are not counted: they find the caches full of
    another network's weights, which does not happen where one network serves.

    Args:
        runners: the forward pass of each network.
        images: shape `(batch, height, width, channels)`.
        rounds: turns of each network.
        warm_up: uncounted passes at the beginning of a turn.
        burst: counted passes.
    """
    times_s = np.empty((len(runners), rounds))
    numbers = list(range(len(runners)))
    for round_ in range(rounds):
        for number in numbers[:: 1 if round_ % 2 else -1]:  # reversed every round: no network always follows another
            passes_s = []
            for _ in range(warm_up + burst):
                start_s = time.perf_counter()
                runners[number](images)
                passes_s.append(time.perf_counter() - start_s)
            times_s[number, round_] = np.median(passes_s[warm_up:])
    return tuple(times_s)
