"""Export networks to every installed runtime in float32 and in 8-bit integers: agreement, accuracy, size and latency.

Trained networks are checked and scored on the data; untrained ones, given by their names in keras.applications, are
compared with Keras on random images, and quantised whatever it costs.

    python -m experiments.deployment --networks resnet20.keras vgg6.keras --untrained MobileNetV2 --dataset cifar10.npz
"""

import argparse
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from experiments.csv_table import write_csv
from experiments.latency import installed, use_one_thread
from pbd import command_line
from pbd.command_line import Parser, check_folder, path, positive
from pbd.errors import UsageError
from pbd.system import backend

if TYPE_CHECKING:
    from pbd.data import Data

RUNTIMES = ("openvino", "onnx", "litert")


@dataclass(frozen=True)
class Row:
    """A network in a target; times in milliseconds, accuracies in [0, 1]."""

    network: str
    target: str
    kilobytes: float
    difference: float
    """Largest difference of the logits from Keras, over the largest logit."""
    same_class: float
    test_accuracy: float | None
    float32_layers: int
    """Layers of a file in 8-bit integers that stay in float32."""
    batch1_ms: float
    batch32_ms: float
    batch1_times_as_fast: float
    """As the file in float32 of the same runtime."""
    batch32_times_as_fast: float


def rows_of(name: str, model: Any, data: "Data | None", runtimes: Sequence[str], max_drop: float) -> Iterator[Row]:
    """Yield the rows of one network, two for each runtime.

    Args:
        name: of the network.
        model: the network.
        data: to check, calibrate and score with; `None` for random images.
        runtimes: names of float32 targets.
        max_drop: validation accuracy that may be lost in 8 bits.
    """
    import pbd
    from pbd.deploy import targets
    from pbd.deploy.latency import DeployedFile, measure_files

    for runtime in runtimes:
        with tempfile.TemporaryDirectory() as folder:
            float32, int8 = targets.get(runtime), targets.get(f"{runtime}-int8")
            paths = [Path(folder) / f"{each.name}{each.runtime.suffix}" for each in (float32, int8)]
            exported = pbd.export(model, paths[0], float32.name, check=data)
            quantized = pbd.quantize(model, data or _random_data(model), paths[1], int8.name, max_drop=max_drop)
            files = [DeployedFile(name, target, file) for target, file in zip((float32, int8), paths, strict=True)]
            times = measure_files(files, tuple(model.inputs[0].shape[1:]), (1, 32), threads=1)
            accuracies = exported.test_accuracy, quantized.test_accuracy if data else None
            for number, (written, accuracy) in enumerate(zip((exported, quantized), accuracies, strict=True)):
                yield Row(
                    name,
                    written.target,
                    written.size_bytes / 1000,
                    written.agreement.difference,
                    written.agreement.same_class,
                    accuracy,
                    len(quantized.kept_float) if number else 0,
                    *(1000 * each.quartiles(number)[1] for each in times),
                    *(each.times_as_fast(number, reference=0) for each in times),
                )


def _random_data(model: Any) -> "Data":
    """Return data of random images without labels, in the size that a network takes."""
    import pbd
    from pbd.deploy import exporting, images

    pixels = images.random(model, exporting.CHECKED).astype("uint8")
    return pbd.Data(train=pixels[:128], validation=pixels[:64], test=pixels, batch_size=32, labels=False)


def as_table(rows: Sequence[Row]) -> Table:
    """Return the rows as a table."""
    table = Table(title="One thread; times as fast: as the float32 file of the same runtime")
    headings = ("network", "target", "kB", "difference", "same class", "test", "float32 layers")
    for heading in (*headings, "batch 1, ms", "times", "batch 32, ms", "times"):
        table.add_column(heading, justify="left" if heading in headings[:2] else "right", no_wrap=True)
    for row in rows:
        table.add_row(
            row.network,
            row.target,
            f"{row.kilobytes:.0f}",
            f"{row.difference:.1e}",
            f"{row.same_class:.1%}",
            "-" if row.test_accuracy is None else f"{row.test_accuracy:.2%}",
            str(row.float32_layers),
            f"{row.batch1_ms:.3f}",
            f"{row.batch1_times_as_fast:.2f}",
            f"{row.batch32_ms:.2f}",
            f"{row.batch32_times_as_fast:.2f}",
        )
    return table


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Turn command-line arguments into settings.

    Raises:
        UsageError: a flag or a value is wrong, or trained networks have no data.
        MissingInputError: the table's folder does not exist.
    """
    parser = Parser("deployment", __doc__)
    parser.add_argument("--networks", nargs="+", type=path, default=[], metavar="MODEL", help="trained model files")
    parser.add_argument("--untrained", nargs="+", default=[], metavar="NAME", help="names in keras.applications")
    parser.add_argument("--dataset", type=path, help="as in pbd distill, for trained networks")
    parser.add_argument("--runtimes", nargs="+", choices=RUNTIMES, metavar="NAME", help="default: all installed")
    parser.add_argument("--image-size", type=positive, default=32, help="pixels, for untrained networks")
    parser.add_argument("--max-drop", type=float, default=0.003, help="validation accuracy that 8 bits may cost")
    parser.add_argument("--csv", type=Path, help="also write the figures to this file")
    settings = parser.parse_args(argv)
    if settings.networks and settings.dataset is None:
        raise UsageError("trained networks need data. Received: none. Give --dataset.")
    check_folder("--csv", settings.csv)
    return settings


def run(settings: argparse.Namespace, console: Console) -> list[Row]:
    """Measure what the settings ask for, and print it."""
    backend.load()
    import pbd
    from experiments.networks import load_teacher
    from pbd.networks import files

    runtimes = settings.runtimes or [name for name in installed(console) if name in RUNTIMES]
    data = pbd.Data.load(settings.dataset) if settings.dataset else None
    jobs = [(Path(name).stem, files.load(name), data, settings.max_drop) for name in settings.networks]
    jobs += [(name, load_teacher(name, settings.image_size), None, 1.0) for name in settings.untrained]
    rows = []
    for name, model, images, max_drop in jobs:
        rows += rows_of(name, model, images, runtimes, max_drop)
        console.print(f"{name} done", markup=False)
    console.print(as_table(rows))
    return rows


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code, those of pbd-run."""

    def command(arguments: Sequence[str]) -> None:
        settings = parse(arguments)
        use_one_thread()
        rows = run(settings, Console(width=None if Console().is_terminal else 140))
        if settings.csv is not None:
            write_csv(rows, settings.csv)

    return command_line.run("deployment", command, argv)


if __name__ == "__main__":
    sys.exit(main())
