"""`pbd export MODEL --target NAME [NAME ...]`: write a model for other runtimes, and compare each file with Keras.

The files lie beside the model unless --output names one. Each is run in its runtime and compared with Keras, on the
test images if there are data; a file that disagrees is not written.
"""

import argparse
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Group
from rich.table import Table
from rich.text import Text

from pbd.command_line import Parser
from pbd.deploy import file_commands

if TYPE_CHECKING:
    from pbd.deploy.exporting import Exported
    from pbd.deploy.int8.quantizing import Quantized
    from pbd.deploy.targets import Target


def main(argv: Sequence[str] | None = None, program: str = "pbd export") -> int:
    """Run the command line; return the exit code."""
    return file_commands.run(parse, export, as_text, program, argv)


def parse(arguments: Sequence[str], program: str) -> argparse.Namespace:
    """Return the parsed command-line arguments.

    Raises:
        SystemExit: help was printed.
        UsageError: a flag or a value is wrong.
        MissingInputError: the model or the folder of --output does not exist.
    """
    parser = Parser(program, __doc__ or "")
    file_commands.add_flags(parser, "onnx, openvino, litert, tensorrt, keras or saved_model")
    settings = parser.parse_args(arguments)
    file_commands.check_flags(settings)
    return settings


def export(settings: argparse.Namespace) -> "tuple[Exported, ...]":
    """Export the model to each target."""
    from pbd.system import devices, process  # load NumPy, which --help does not need

    with process.prepared(devices.Share()):
        from pbd.deploy import exporting, targets
        from pbd.networks import files

        chosen = [targets.get(name) for name in settings.target]
        data = file_commands.read(settings)
        model = files.load(settings.model)
        paths = new_paths(settings, chosen)
        return exporting.export_each(model, paths, check=data.data if data else None, seed=data.seed if data else 0)


def new_paths(settings: argparse.Namespace, chosen: "Iterable[Target]") -> dict[str, Path]:
    """Return the paths of the new files, by target: that of --output, or beside the model."""
    if settings.output is not None:
        return {target.name: Path(settings.output) for target in chosen}
    return {target.name: output_beside(settings.model, target.name, target.runtime.suffix) for target in chosen}


def output_beside(model: str, target: str, suffix: str) -> Path:
    """Return the default path of an exported file: that of the model with the suffix of the target.

    If other targets have the suffix too, or the model itself, or if the file belongs to the run in whose folder the
    model lies, the name of the target is added.
    """
    from pbd.run_dir import manifest  # loads NumPy, which --help does not need

    source = Path(model)
    plain = source.with_suffix(suffix)
    marked = target.endswith("-int8") or target.startswith("tensorrt") or suffix in ("", ".keras")
    if not marked and plain.name not in manifest.names(source.parent):
        return plain
    return source.with_name(f"{source.stem}_{target.replace('-', '_')}{suffix}")


def as_text(files: "Iterable[Exported]") -> Group:
    """Return a table of the files, and their paths, for a terminal."""
    files = tuple(files)
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold")
    table.add_column("target", no_wrap=True)
    for heading in ("kB", "difference", "same class", "test", "in Keras"):
        table.add_column(heading, justify="right")
    table.add_column("compared on", no_wrap=True)
    for file in files:
        table.add_row(
            file.target,
            f"{file.size_bytes / 1000:.0f}",
            f"{file.agreement.difference:.1e}",
            percent(file.agreement.same_class),
            percent(file.test_accuracy),
            percent(file.keras_test_accuracy),
            f"{file.agreement.images} {file.checked_on}",
        )
    return Group(table, path_table(files))


def path_table(files: "Iterable[Exported | Quantized]") -> Table:
    """Return the paths of files, a line for each target."""
    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(no_wrap=True)
    grid.add_column(overflow="fold")
    for file in files:
        grid.add_row(file.target, Text(str(file.path)))
    return grid


def percent(value: float | None) -> str:
    """Return a fraction as a percentage, or a dash."""
    return "-" if value is None else f"{value:.2%}"
