"""Networks as they are deployed: in files of a target, in float32 and in 8-bit integers, side by side."""

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import keras
import numpy as np

from pbd.data import Dataset
from pbd.deploy import exporting, images, latency, resident, targets
from pbd.deploy.int8 import quantizing
from pbd.deploy.latency import DeployedFile, Times
from pbd.deploy.targets import Target
from pbd.errors import PbdError
from pbd.networks import heads
from pbd.records import Deployment, Latency
from pbd.system import backend, devices

TEACHER, STUDENT = "teacher", "student"
BATCH_SIZES = (1, 32)
_KERAS = "keras"
_COMPARED = 128
"""Validation images on which each float32 file is compared with Keras."""
_OTHERS = "pip install 'pbd[openvino]', 'pbd[onnx]' or 'pbd[litert]' to measure where networks are deployed"
_WITHOUT_TENSORFLOW = (
    "files for other runtimes are written with TensorFlow: pip install 'pbd[cpu,openvino]', then measure the model "
    f"files with {backend.VARIABLE}=tensorflow pbd latency"
)
TEST_IMAGES = 10_000
"""At most this many test images are classified by each file."""


@dataclass(frozen=True)
class Deployed:
    """The rows of the report, and its events."""

    deployments: tuple[Deployment, ...] = ()
    events: tuple[str, ...] = ()

    @property
    def files(self) -> tuple[str, ...]:
        """The names of the student's files that were kept."""
        return tuple(name for row in self.deployments for name in row.files)


@dataclass(frozen=True)
class QuantizedFile:
    """A file in 8-bit integers."""

    path: Path
    kept_float: tuple[str, ...] = ()
    """The layers that stay in float32."""


@dataclass(frozen=True)
class _Candidate:
    """A network in a file of a target."""

    file: DeployedFile
    kept_float: tuple[str, ...] = ()


def measure(
    networks: Mapping[str, keras.Model],
    dataset: Dataset,
    target: Target,
    batch_sizes: Sequence[int],
    keep: Callable[[Path], object],
    in_int8: Mapping[str, QuantizedFile] = MappingProxyType({}),
) -> Deployed:
    """Deploy a teacher and its students in a target, and measure accuracy, size and latency, with one thread.

    If one of them cannot be exported, all are measured as they are, in Keras.

    Args:
        networks: the networks by name, `TEACHER` first; flat, in float32.
        dataset: the images of the run.
        target: the target in float32; its form in 8-bit integers is measured too, if there is one.
        batch_sizes: numbers of images in a pass.
        keep: stores a file of `STUDENT`, under its name.
        in_int8: files in 8-bit integers that exist, by the name of the network; the others are quantised here.
    """
    with tempfile.TemporaryDirectory() as name:
        candidates, events = _candidates(networks, dataset, target, Path(name), in_int8)
        files = [candidate.file for candidate in candidates]
        shape = tuple(networks[TEACHER].inputs[0].shape[1:])
        times = latency.measure_files(files, shape, batch_sizes, threads=1)
        scores = _scores(files, [heads.head_of(networks[file.model]) for file in files], dataset)
        rows = [
            Deployment(
                model=file.model,
                target=file.target.name,
                size_bytes=exporting.size_of(file.path),
                memory_bytes=resident.measure(file.target, file.path, max(batch_sizes), shape),
                latency=_latency(files, number, times),
                files=_kept(file, keep),
                kept_float=candidate.kept_float,
                **scores[number],
            )
            for number, (file, candidate) in enumerate(zip(files, candidates, strict=True))
        ]
    return Deployed(tuple(rows), tuple(events))


def _kept(file: DeployedFile, keep: Callable[[Path], object]) -> tuple[str, ...]:
    """Store the files of a student, and return their names, the main file first; the run has the Keras file itself."""
    in_keras = file.path.suffix == targets.TARGETS[_KERAS].runtime.suffix
    if file.model != STUDENT or not file.path.is_file() or in_keras:
        return ()
    paths = exporting.files_of(file.path)
    for path in paths:
        keep(path)
    return tuple(path.name for path in paths)


def _candidates(
    networks: Mapping[str, keras.Model],
    dataset: Dataset,
    target: Target,
    folder: Path,
    in_int8: Mapping[str, QuantizedFile],
) -> tuple[list[_Candidate], list[str]]:
    """Write the networks in float32 and in 8-bit integers, the teacher in float32 first; also return events."""
    events = []
    pixels = images.first(dataset, "validation", _COMPARED)
    try:
        candidates = [_exported(name, network, target, pixels, folder) for name, network in networks.items()]
    except PbdError as error:
        events.append(f"{' and '.join(networks)} are measured as they are, in Keras: {error}")
        return _in_keras(networks, folder), events
    int8 = targets.TARGETS.get(f"{target.name}-int8")
    if int8 is None:
        return candidates, [f"{target.name} has no 8-bit integers: {_remedy()}"]
    if (obstacle := int8.obstacle()) is not None:
        return candidates, [obstacle]
    for name, network in networks.items():
        if name in in_int8:
            existing = in_int8[name]
            candidates.append(_Candidate(DeployedFile(name, int8, existing.path), existing.kept_float))
            continue
        try:
            candidate, notes = _quantized(name, network, dataset, int8, folder)
        except PbdError as error:
            events.append(f"no {name} in 8-bit integers: {error}")
        else:
            candidates.append(candidate)
            events += notes
    return candidates, events


def _remedy() -> str:
    """Return how networks are measured in 8-bit integers, if the target of the run has none."""
    if (usable := targets.usable_int8()) is not None:
        return f"give --target {usable.runtime.name} to measure where networks are deployed"
    return _OTHERS if backend.name() == "tensorflow" else _WITHOUT_TENSORFLOW


def _quantized(
    name: str, network: keras.Model, dataset: Dataset, target: Target, folder: Path
) -> tuple[_Candidate, list[str]]:
    """Write a network in 8-bit integers, whatever that costs, and return it with events.

    Raises:
        BadInputError: it cannot be quantised.
    """
    path = folder / f"{name}_int8{target.runtime.suffix}"
    files = quantizing.Files(network, dataset, target, path.with_stem(f"{name}_float32"), path)
    notes = []
    try:
        kept, _ = files.write()
    except quantizing.TooMuchLostError as error:
        kept, _ = files.write(max_drop=1.0)
        notes.append(f"{name} in 8-bit integers, all layers: {error}")
    files.agreement(_COMPARED)
    return _Candidate(DeployedFile(name, target, path), kept), notes


def _exported(name: str, network: keras.Model, target: Target, pixels: np.ndarray, folder: Path) -> _Candidate:
    """Write a network in float32.

    Raises:
        BadInputError: it cannot be exported, or the file computes something else.
    """
    path = folder / f"{name}{target.runtime.suffix}"
    exporting.write(network, path, target)
    exporting.checked(path, network, pixels, target)
    return _Candidate(DeployedFile(name, target, path))


def _in_keras(networks: Mapping[str, keras.Model], folder: Path) -> list[_Candidate]:
    """Write the networks as they are for Keras."""
    target = targets.TARGETS[_KERAS]
    candidates = []
    for name, network in networks.items():
        path = folder / f"{name}{target.runtime.suffix}"
        target.runtime.export(network, path)
        candidates.append(_Candidate(DeployedFile(name, target, path)))
    return candidates


def _scores(files: Sequence[DeployedFile], ends: Sequence[heads.Head], dataset: Dataset) -> list[dict[str, Any]]:
    """Return for each file its quality on test images; the first file is that of the teacher in float32.

    Args:
        files: files of networks for the same classes.
        ends: the head of each network.
        dataset: the images of the run.
    """
    runners = [file.target.load(file.path, devices.available_cores()) for file in files]
    correct, same, count = np.zeros(len(files)), np.zeros(len(files)), 0
    for batch, labels in dataset.batches("test", limit=TEST_IMAGES):
        pixels = np.asarray(batch, np.float32)
        classes = np.stack([heads.classes(run(pixels), head) for run, head in zip(runners, ends, strict=True)])
        correct += np.sum(classes == np.asarray(labels), axis=1)
        same += np.sum(classes == classes[0], axis=1)
        count += len(pixels)
    return [
        {
            "test_accuracy": float(right / count) if dataset.labelled else None,
            "test_agreement": float(agreeing / count),
            "test_images": count,
        }
        for right, agreeing in zip(correct, same, strict=True)
    ]


def _latency(files: Sequence[DeployedFile], number: int, times: Sequence[Times]) -> tuple[Latency, ...]:
    """Return the latency of a file with each batch size."""
    int8 = next((n for n, file in enumerate(files) if file.model == TEACHER and file.target.int8), None)
    rows = []
    for each in times:
        q1_s, median_s, q3_s = each.quartiles(number)
        as_int8 = None if int8 is None else each.times_as_fast(number, int8)
        rounds = len(each.rounds_s[number])
        rows.append(
            Latency(each.batch, median_s, q1_s, q3_s, each.times_as_fast(number, 0), as_int8, rounds, each.passes)
        )
    return tuple(rows)
