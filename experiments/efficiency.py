"""Distillation to train faster: students and teachers of one architecture, and the time to a target accuracy.

    python -m experiments.efficiency --quick
    python -m experiments.efficiency --quick --dataset cifar10.npz
    python -m experiments.efficiency --full --dataset imagenet

All networks see the same images. The students have one seed, thus the same initial weights and batches; each teacher
has another. Trainings of as many epochs have the same schedule of the learning rate. The target is the best validation
accuracy of the training on labels alone. Seconds leave out compilation and validation. Those of a student include the
passes of its teachers, but not their training, which is stated separately.

Each training is kept in the folder --run-dir: a table that was stopped goes on with the same folder.
"""

import argparse
import dataclasses
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from experiments.csv_table import write_csv
from experiments.efficiency_plans import BASELINE, Plan, Training, student_plans, teacher_plans
from experiments.efficiency_table import NO_SOURCE, SOURCES, Row, show
from pbd import command_line
from pbd.command_line import Parser, check_folder, path, positive, whole
from pbd.config import DataConfig, StudentConfig
from pbd.errors import UsageError, unknown_name

if TYPE_CHECKING:
    from experiments.timed_training import TrainingFolder
    from pbd.data import Dataset
    from pbd.run_dir.journal import Journal

DIGITS = "digits"


@dataclass(frozen=True)
class Size:
    """What --quick and --full stand for."""

    network: str
    epochs: int
    teachers: int
    batch_size: int
    train_limit: int | None
    validation_images: int | None
    image_size: int | None


QUICK = Size("conv4_dense1_narrow", 8, 3, 32, 1024, 1000, None)
FULL = Size("ResNet50", 90, 7, 256, None, None, 224)
"""720 epochs of the sources are those of eight trainings: seven teachers and the student."""


@dataclass
class Study:
    """The trainings of a table, run when they are needed."""

    folder: "TrainingFolder"
    teachers: Mapping[str, Plan]
    """Trainings of teachers, by name."""
    console: Console = field(default_factory=Console)
    done: dict[str, Training] = field(default_factory=dict)
    """By name of the plan."""

    def train(self, plan: Plan) -> Training:
        """Run a training, the teachers first."""
        for name in plan.teachers:
            self.train(self.teachers[name])
        if plan.name not in self.done:
            training = self.done[plan.name] = self.folder.train(plan)
            accuracy = f"validation accuracy {training.val_accuracies[-1]:.2%}, best {max(training.val_accuracies):.2%}"
            seconds = training.spent().seconds
            self.console.print(f"{plan.name}: {plan.epochs} epochs in {seconds:.1f} s, {accuracy}", highlight=False)
        return self.done[plan.name]

    def teachers_of(self, plan: Plan) -> set[str]:
        """Return the names of the trainings that a plan needs: its teachers, their teachers and so on."""
        return {*plan.teachers, *(name for each in plan.teachers for name in self.teachers_of(self.teachers[each]))}

    def row(self, method: str, plan: Plan, baseline: Training) -> Row:
        """Run a method, and return its line beside the training on labels alone."""
        training, target = self.train(plan), max(baseline.val_accuracies)
        whole, reached, of_baseline = training.spent(), training.spent_until(target), baseline.spent_until(target)
        assert of_baseline is not None, "the target is the best accuracy of the baseline"
        teachers = [self.done[name].spent() for name in self.teachers_of(plan)]
        teachers_s, teachers_cpu_s = sum(one.seconds for one in teachers), sum(one.cpu_seconds for one in teachers)
        return Row(
            method=method,
            epochs=plan.epochs,
            distilled_share=plan.share if plan.teachers else 0.0,
            test_accuracy=training.test_accuracy,
            change_points=100 * (training.test_accuracy - baseline.test_accuracy),
            seconds=whole.seconds,
            cpu_seconds=whole.cpu_seconds,
            target=target,
            epochs_to_target=reached and reached.epochs,
            seconds_to_target=reached and reached.seconds,
            cpu_seconds_to_target=reached and reached.cpu_seconds,
            times_as_fast=reached and of_baseline.seconds / reached.seconds,
            cpu_times_as_fast=reached and of_baseline.cpu_seconds / reached.cpu_seconds,
            teachers_seconds=teachers_s,
            teachers_cpu_seconds=teachers_cpu_s,
            times_as_fast_with_teachers=reached and of_baseline.seconds / (reached.seconds + teachers_s),
            cpu_times_as_fast_with_teachers=reached
            and of_baseline.cpu_seconds / (reached.cpu_seconds + teachers_cpu_s),
            source=SOURCES.get(method, NO_SOURCE),
        )


def compare(settings: argparse.Namespace) -> None:
    """Run what is missing, write the table after each line, and print it."""
    check_folder("--csv", settings.csv)
    from pbd.system import devices, process

    with process.prepared(devices.Share(threads=settings.threads)):
        seed, epochs, count = settings.seed, settings.epochs, settings.teachers
        study, plans = (
            Study(training_folder(settings), teacher_plans(seed, epochs, count)),
            student_plans(seed, epochs, count),
        )
        baseline = study.train(plans[BASELINE])
        rows: list[Row] = []
        for method, plan in plans.items():
            rows.append(study.row(method, plan, baseline))
            write_csv(rows, settings.csv or settings.run_dir / "efficiency.csv")
        teachers = [study.done[name] for name, plan in study.teachers.items() if not plan.teachers]
        show(study.console, rows, remarks(settings, [baseline, *teachers]))


def remarks(settings: argparse.Namespace, on_labels: Sequence[Training]) -> list[str]:
    """Return what ours was measured on, and how much trainings on labels alone differ by their seeds.

    Args:
        settings: of the table.
        on_labels: trainings on labels alone, of as many epochs; the first sets the target.
    """
    images = "all" if settings.train_limit is None else f"at most {settings.train_limit:,}"
    accuracies = [training.test_accuracy for training in on_labels]
    return [
        f"Ours: {settings.network}, {images} training images of {Path(settings.dataset).stem}, batches of "
        f"{settings.batch_size}; loss {settings.weight:g} * distillation + cross entropy; KL at temperature "
        f"{settings.temperature:g}, MSE of the logits; Adam, {settings.learning_rate:g}. "
        f"Target: {max(on_labels[0].val_accuracies):.2%} of the validation images.",
        f"With labels alone and {len(accuracies)} seeds, the networks reach {min(accuracies):.2%} to "
        f"{max(accuracies):.2%} of the test images: smaller differences between lines are noise.",
    ]


def training_folder(settings: argparse.Namespace) -> "TrainingFolder":
    """Load the images, and open the folder of the trainings.

    Raises:
        PbdError: the images or the network do not suit, or the folder holds trainings of other settings.
    """
    from experiments.timed_training import TrainingFolder

    dataset = _dataset(settings)  # before the folder exists
    return TrainingFolder(
        journal=_journal(settings),
        dataset=dataset,
        network=settings.network,
        learning_rate=settings.learning_rate,
        temperature=settings.temperature,
        weight=settings.weight,
        validation_images=settings.validation_images,
    )


def _journal(settings: argparse.Namespace) -> "Journal":
    """Return the folder of the trainings, which must have the same settings if it holds some."""
    from pbd.run_dir.journal import Journal

    apart = ("quick", "full", "run_dir", "csv", "threads")
    identity = {name: value for name, value in vars(settings).items() if name not in apart}
    begin = Journal.resume if (settings.run_dir / "run.json").is_file() else Journal.create
    return begin(settings.run_dir, identity)


def _dataset(settings: argparse.Namespace) -> "Dataset":
    """Load the images.

    Raises:
        UsageError: there is no such network, or the images have no labels.
    """
    from pbd import data
    from pbd.pipeline import built_in

    check_network(settings.network)
    config = DataConfig(
        dataset=settings.dataset,
        train_limit=settings.train_limit,
        batch_size=settings.batch_size,
        augment=settings.augment,
        image_size=settings.image_size,
        preprocess=built_in.preprocessing(settings.network),
    )
    dataset = data.load(config, settings.seed)
    dataset.check_trainable()
    if not dataset.labelled:
        raise UsageError(f"the table needs labels. Received: {settings.dataset!r}, which has none. Give other data.")
    return dataset


def check_network(name: str) -> None:
    """Check that a network can be built with random weights.

    Raises:
        UsageError: there is none of this name.
    """
    from pbd.networks import small_nets
    from pbd.pipeline import built_in

    if name not in small_nets.SMALL_NETS and not built_in.is_built_in(name):
        names = [*small_nets.SMALL_NETS, *built_in.BUILT_IN, *built_in.application_names()]
        raise UsageError(unknown_name("network", name, names))


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Turn command-line arguments into settings.

    Raises:
        UsageError: a flag or a value is wrong; the message is one line.
    """
    settings = _parser().parse_args(argv)
    size = FULL if settings.full else QUICK
    for one in dataclasses.fields(Size):
        if getattr(settings, one.name) is None:
            setattr(settings, one.name, getattr(size, one.name))
    if settings.augment is None:
        settings.augment = "none" if settings.dataset == DIGITS else "flip_crop"
    if settings.dataset == DIGITS:
        settings.image_size = None
    if settings.run_dir is None:
        settings.run_dir = Path("runs") / time.strftime("efficiency-%Y%m%d-%H%M%S")
    return settings


def _parser() -> argparse.ArgumentParser:
    parser = Parser("experiments.efficiency", __doc__ or "")
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--quick", action="store_true", help="a small network, few images and epochs (the default)")
    size.add_argument("--full", action="store_true", help="the epochs and the network of the sources: days on a GPU")
    parser.add_argument("--dataset", type=path, default=DIGITS, help="as in pbd distill")
    parser.add_argument("--network", help="of teachers and students: conv4_dense1, resnet20, ResNet50, ...")
    parser.add_argument("--epochs", type=positive, help="of teachers, and of students except those of half the epochs")
    parser.add_argument("--teachers", type=positive, help="number of teachers, and of generations")
    parser.add_argument("--train-limit", type=positive, help="training images")
    parser.add_argument("--validation-images", type=positive, help="most images to validate on after an epoch")
    parser.add_argument("--image-size", type=positive, help="pixels a side")
    parser.add_argument("--batch-size", type=positive, help="images per step")
    parser.add_argument("--augment", help="as in pbd distill (default: flip_crop; digits: none)")
    parser.add_argument("--learning-rate", type=float, default=0.003, help="of Adam (default 0.003)")
    parser.add_argument("--temperature", type=float, default=StudentConfig.temperature, help="of KL (default 4)")
    parser.add_argument("--weight", type=float, default=1.0, help="of the distillation loss (default 1)")
    parser.add_argument("--seed", type=whole, default=0, help="of the students; teachers have the next ones")
    parser.add_argument("--threads", type=positive, default=1, help="CPU threads (default 1)")
    parser.add_argument(
        "--run-dir", type=Path, metavar="DIR", help="folder of the trainings; complete ones are not done again"
    )
    parser.add_argument("--csv", type=Path, metavar="FILE", help="the table (default: efficiency.csv in --run-dir)")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code (see `pbd.errors`)."""
    return command_line.run("experiments.efficiency", lambda arguments: compare(parse(arguments)), argv)


if __name__ == "__main__":
    sys.exit(main())
