"""What the scripts for the paper's tables and figures are asked for: one command line, and what is trained for whom.

--quick is for two cores and nothing but the images that scikit-learn brings; --full is the paper's setting, for those
who have its hardware, ImageNet, and days. What is given beside either (--teacher, --epochs, …) wins.
"""

import argparse
import importlib.util
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.accuracy import PAPER
from pbd.command_line import Parser, positive
from pbd.errors import CannotCreateError, EnvironmentMismatchError, MissingInputError

CHANGEABLE = ("teacher", "teacher_epochs", "dataset", "train_limit", "batch_size", "epochs", "fine_tune_epochs")
"""The settings of pbd that the command line may change."""
KEEP_ALL = {"augment": "flip_crop", "max_accuracy_drop": 1.0, "patience": 0}
"""All blocks are kept, however bad, and trained for all epochs, as in the paper: what is compared did the same work."""


@dataclass(frozen=True)
class Setting:
    """What is trained: one network on one set of images."""

    name: str
    flags: Mapping[str, Any]
    """Settings of pbd by name, those of `pbd.RunConfig`."""

    def but(self, **flags: Any) -> "Setting":
        """Return this setting with some flags changed."""
        return Setting(self.name, {**self.flags, **flags})


SMALL = Setting(
    "digits_cnn, digits",
    {"teacher": "digits_cnn", "dataset": "digits", "train_limit": 1024, "threads_per_worker": 1, "target": "keras"}
    | KEEP_ALL,
)
CIFAR = (
    KEEP_ALL
    | {"dataset": "cifar10", "epochs": 30, "fine_tune_epochs": 20, "batch_size": 256, "augment": "paper"}
    | PAPER
)
IMAGENET = CIFAR | {
    "epochs": 2,
    "teacher_weights": "imagenet",
    "dataset": "tfds:imagenet2012",
    "image_size": 224,
    "batch_size": 32,
    "fine_tune_epochs": 2,
}
VGG16 = Setting("VGG16, CIFAR-10", {"teacher": "VGG16", "image_size": 32} | CIFAR)
RESNET = {"teacher": "ResNet50", "fine_tune_scope": "no_1x1_dense"}
RESNET50 = Setting("ResNet50, CIFAR-10", {"image_size": 64} | RESNET | CIFAR)
FULL_CIFAR = (VGG16, RESNET50)
"""pbd trains both on CIFAR-10 from random weights, the authors did so from ImageNet's: better give --teacher.

On ImageNet, the authors trained each block for about one and a half epochs; here, it is two.
"""
FULL_IMAGENET = (
    Setting("VGG16, ImageNet", {"teacher": "VGG16"} | IMAGENET),
    Setting("ResNet50, ImageNet", RESNET | IMAGENET),
)


def parser(program: str, description: str) -> Parser:
    """Return a script's parser with the flags that all of them have."""
    made = Parser(program, description)
    size = made.add_mutually_exclusive_group()
    size.add_argument("--quick", action="store_true", help="minutes on two cores (the default)")
    size.add_argument("--full", action="store_true", help="the paper's setting, for its hardware")
    made.add_argument("--teacher", help="a model file or a built-in network, as in pbd-run")
    made.add_argument("--dataset", help="as in pbd-run")
    for flag, words in (
        ("--teacher-epochs", "of a built-in network, which is trained first"),
        ("--train-limit", "use only so many training images"),
        ("--batch-size", "images per training step"),
        ("--epochs", "for each block"),
        ("--fine-tune-epochs", "for the student"),
    ):
        made.add_argument(flag, type=int, metavar="N", help=words)
    made.add_argument("--workers", nargs="+", type=positive, metavar="N", help="numbers of MPI ranks")
    made.add_argument("--runs", type=Path, metavar="DIR", help="where runs go; finished ones are not run again")
    made.add_argument("--csv", type=Path, metavar="DIR", help="where the table is written (default: with the runs)")
    made.add_argument(
        "--plots", type=Path, metavar="DIR", help="where the chart is written, as PNG (default: likewise)"
    )
    made.add_argument("--print-commands", action="store_true", help="only say what would be run")
    return made


def settings(given: argparse.Namespace, quick: Setting, full: Sequence[Setting]) -> argparse.Namespace:
    """Fill in what depends on the size: the settings to train, and where the runs go.

    Raises:
        EnvironmentMismatchError: there is nothing to draw charts with.
        CannotCreateError: a folder cannot be made.
        MissingInputError: a file is not there.
    """
    changed = {name: getattr(given, name) for name in CHANGEABLE if getattr(given, name) is not None}
    chosen = list(full) if given.full else [quick]
    if given.teacher:
        chosen = [_own(chosen[0], given)]
    elif given.dataset:
        chosen = [_on_dataset(setting, given.dataset) for setting in chosen if "teacher_weights" not in setting.flags]
    given.settings = [setting.but(**changed) for setting in chosen]
    given.workers = sorted(set(given.workers or ([1, 2, 3, 4] if given.full else [1, 2])))
    given.runs = given.runs or Path("runs") / time.strftime("paper-%Y%m%d-%H%M%S")
    given.csv, given.plots = given.csv or given.runs / "tables", given.plots or given.runs / "plots"
    if not given.print_commands:
        _prepare_output(given)
    return given


def _prepare_output(given: argparse.Namespace) -> None:
    """Find out whether tables and charts can be written, before anything is run for them."""
    if importlib.util.find_spec("matplotlib") is None:
        raise EnvironmentMismatchError("charts need matplotlib. Get it with pip install 'pbd[experiments]'.")
    for folder in (given.csv, given.plots):
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise CannotCreateError(
                f"--csv and --plots are folders. Received: {str(folder)!r}: {error.strerror}."
            ) from error


def _own(base: Setting, given: argparse.Namespace) -> Setting:
    """Return the setting for a network of the user's own, and perhaps other images.

    Raises:
        MissingInputError: a file is not there.
    """
    _check_file("--teacher", given.teacher, (".keras", ".h5"))
    flags = {name: value for name, value in base.flags.items() if name not in ("teacher_weights", "image_size")}
    return _on_dataset(Setting(base.name, {**flags, "teacher": given.teacher}), given.dataset or flags["dataset"])


def _on_dataset(setting: Setting, dataset: str) -> Setting:
    """Return the setting with other images.

    Raises:
        MissingInputError: a file is not there.
    """
    _check_file("--dataset", dataset, (".npz",))
    name = f"{Path(setting.flags['teacher']).stem}, {Path(dataset).stem}"
    return Setting(name, {**setting.flags, "dataset": dataset})


def _check_file(flag: str, name: str, suffixes: tuple[str, ...]) -> None:
    if name.endswith(suffixes) and not Path(name).is_file():
        raise MissingInputError(f"{flag} must be a file that exists. Received: {name!r}.")
