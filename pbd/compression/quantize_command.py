"""`pbd quantize MODEL --target NAME [NAME ...]`: write a model with 8-bit integers for other runtimes.

The ranges of the activations are taken from training images. With --method ptq, the most sensitive layers stay in
float32 if the validation accuracy falls by more than --max-drop. With --method qat, the model is trained for 8-bit
integers; if that loses validation accuracy against ptq, the file of ptq is kept.
"""

import argparse
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from rich.console import Group
from rich.table import Table
from rich.text import Text

from pbd.command_line import Parser, positive
from pbd.compression.settings import METHODS, Training, check_method
from pbd.deploy import file_commands
from pbd.deploy.export_command import new_paths, path_table, percent
from pbd.errors import UsageError

if TYPE_CHECKING:
    from pbd.deploy.int8.quantizing import Quantized


def main(argv: Sequence[str] | None = None, program: str = "pbd quantize") -> int:
    """Run the command line; return the exit code."""
    return file_commands.run(parse, quantize, as_text, program, argv)


def parse(arguments: Sequence[str], program: str) -> argparse.Namespace:
    """Return the parsed command-line arguments.

    Raises:
        SystemExit: help was printed.
        UsageError: a flag or a value is wrong.
        MissingInputError: the model or the folder of --output does not exist.
    """
    parser = Parser(program, __doc__ or "")
    file_commands.add_flags(parser, "onnx-int8, openvino-int8, litert-int8 or tensorrt-int8")
    parser.add_argument(
        "--method", choices=METHODS, default="ptq", help="after training (ptq, default) or trained for it (qat)"
    )
    parser.add_argument(
        "--max-drop",
        metavar="X",
        type=float,
        default=0.005,
        help="ptq: validation accuracy to lose at most (default: 0.005)",
    )
    parser.add_argument(
        "--calibration-images", metavar="N", type=positive, default=256, help="training images (default: 256)"
    )
    parser.add_argument(
        "--epochs",
        metavar="N",
        type=int,
        default=Training.epochs,
        help="qat: passes over the training images (default: %(default)s)",
    )
    parser.add_argument(
        "--learning-rate",
        metavar="X",
        type=float,
        default=Training.learning_rate,
        help="qat: of Adam, at the start of its decay (default: %(default)s)",
    )
    settings = parser.parse_args(arguments)
    check_method(settings.method, Training(settings.epochs, settings.learning_rate))
    file_commands.check_flags(settings)
    return settings


def quantize(settings: argparse.Namespace) -> "tuple[Quantized, ...]":
    """Quantise the model for each target.

    Raises:
        UsageError: there are no data.
    """
    from pbd.system import devices, process  # load NumPy, which --help does not need

    with process.prepared(devices.Share()):
        from pbd.compression import quantization
        from pbd.deploy.int8 import quantizing
        from pbd.networks import files
        from pbd.progress import LastingConsole, open_progress

        chosen = [quantizing.get_target(name) for name in settings.target]
        source = file_commands.read(settings)
        if source is None:
            raise UsageError("quantize needs images for the ranges of the activations. Received: none. Give --dataset.")
        model = files.load(settings.model)
        paths = new_paths(settings, chosen)
        with open_progress(LastingConsole(stderr=True)) as display:
            return quantization.quantize_each(
                model,
                source.data,
                paths,
                settings.method,
                settings.max_drop,
                settings.calibration_images,
                Training(settings.epochs, settings.learning_rate),
                source.seed,
                display.update,
            )


def as_text(files: "Iterable[Quantized]") -> Group:
    """Return the files, and the layers that stay in float32, for a terminal."""
    files = tuple(files)
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold")
    table.add_column("target", no_wrap=True)
    table.add_column("method")
    for heading in ("kB", "validation", "(float32)", "test", "(float32)", "float32 layers"):
        table.add_column(heading, justify="right")
    for file in files:
        table.add_row(
            file.target,
            file.method,
            f"{file.size_bytes / 1000:.0f}",
            percent(file.val_accuracy),
            percent(file.float_val_accuracy),
            percent(file.test_accuracy),
            percent(file.float_test_accuracy),
            str(len(file.kept_float)),
        )
    kept = [Text(f"{file.target}, in float32: {_sensitivities(file)}") for file in files if file.kept_float]
    return Group(table, path_table(files), *kept)


def _sensitivities(file: "Quantized") -> str:
    """Return the layers that stay in float32, with the signal-to-noise ratio that each would cause."""
    return ", ".join(f"{layer} ({file.signal_to_noise_db[layer]:.0f} dB)" for layer in file.kept_float)
