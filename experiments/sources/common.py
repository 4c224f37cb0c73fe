"""What the tables of the sources share: the command line, recipes that are resumed, the sources' figures, printing."""

import argparse
import functools
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from experiments.csv_table import write_csv
from experiments.paper import paper_comparison
from experiments.paper.paper_comparison import Row
from experiments.sources import few_images
from pbd.command_line import Parser, path, positive
from pbd.errors import CannotCreateError, MissingInputError

if TYPE_CHECKING:
    from pbd.compression.api import Compressed
    from pbd.compression.step import Step

ROOT = Path(__file__).resolve().parents[2]
SOURCE_TABLES = ROOT.parent / "shared" / "facts" / "source_tables.json"
DIGITS = "digits"
WIDTH = 170
"""Characters of the widest table, so that none is folded."""
T = TypeVar("T")
Columns = Mapping[str, tuple[str, str]]
"""By key, the heading and how numbers are written."""


@dataclass(frozen=True)
class Settings:
    """What is compressed, how long, and where the results go."""

    teacher: str
    dataset: str
    full: bool
    """Train as long as the sources did."""
    epochs: int | None
    """Instead of those of the size, for every training."""
    loss: str
    """What is retrained on after pruning; see `FineTune`."""
    train_limit: int | None
    batch_size: int
    run_dir: Path
    source_tables: Path
    target: str | None
    """Where latency is measured; by default that of pbd."""

    def pick(self, quick: T, full: T) -> T:
        """Return what belongs to the size."""
        return full if self.full else quick

    def epochs_of(self, quick: int, full: int) -> int:
        """Return a number of epochs: the one asked for, or that of the size."""
        return self.epochs or self.pick(quick, full)

    def source(self, document: str, table: str | None = None) -> list[Row]:
        """Return the lines of a table as its source prints it, by column; none if the file of the sources is absent.

        Args:
            document: the source.
            table: of the source; `None` if it has only one.
        """
        found = _source_tables(self.source_tables).get(document, {})
        found = found if table is None else found.get(table, {})
        return [dict(zip(found["columns"], row, strict=True)) for row in found.get("rows", ())]

    @property
    def inference_target(self) -> str:
        """The name of the target in which latency is measured."""
        from pbd.deploy import targets

        return self.target or targets.default().name

    def ours(self, training: str) -> str:
        """Return the line that says what ours was measured on.

        Args:
            training: what was trained, for how long.
        """
        number = _train_images(self.dataset, self.train_limit)
        images = "" if number is None else f"{number:,} training images of "
        return f"Ours: {Path(self.teacher).stem}, {images}{Path(self.dataset).stem}; {training}."

    def show(self, name: str, title: str, columns: Columns, rows: Sequence[Row], *remarks: str) -> None:
        """Print a table and write it as `tables/NAME.csv`; see `paper_comparison.show`."""
        if not self.source_tables.is_file():
            remarks = (*remarks, f"The sources' tables are not there ({self.source_tables}): only ours.")
        paper_comparison.show(title, columns, rows, remarks, WIDTH)
        self.tables.mkdir(parents=True, exist_ok=True)
        write_csv([{key: row.get(key) for key in columns} for row in rows], self.tables / f"{name}.csv")

    @property
    def tables(self) -> Path:
        """The folder of tables and plots."""
        return self.run_dir / "tables"


@functools.cache
def _source_tables(file: Path) -> dict[str, Any]:
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}


@functools.cache
def _train_images(dataset: str, limit: int | None) -> int | None:
    """Return how many images of an .npz file are trained on, `None` of other data."""
    if not dataset.endswith(".npz"):
        return None
    from pbd import data
    from pbd.config import DataConfig

    return len(data.load(DataConfig(dataset=dataset, train_limit=limit), seed=0).train)


def compress(settings: Settings, name: str, steps: "Sequence[Step]", target: str | None = None) -> "Compressed":
    """Do a recipe in its folder; steps that are complete there are left out.

    Args:
        settings: of the table.
        name: of the folder. Tables with the same recipe use the same folder.
        steps: of the recipe.
        target: where its networks are measured; by default nowhere.
    """
    return _compress(settings, name, steps, target, _teacher_file(settings))


def _compress(settings: Settings, name: str, steps: "Sequence[Step]", target: str | None, teacher: str) -> "Compressed":
    import pbd

    folder = settings.run_dir / "recipes" / name
    config = pbd.RunConfig().replace(
        teacher=teacher,
        dataset=settings.dataset,
        train_limit=settings.train_limit,
        batch_size=settings.batch_size,
        augment="none" if settings.dataset == DIGITS else "flip_crop",
        executor="serial",
        isolate=False,
        target=target or "keras",
    )
    resume = (folder / "run.json").is_file()
    targets = [target] if target else []
    return pbd.compress(steps=steps, targets=targets, config=config, run_dir=str(folder), resume=resume)


def _teacher_file(settings: Settings) -> str:
    """Return the file of the teacher; a built-in network is trained once for all recipes."""
    if Path(settings.teacher).is_file():
        return settings.teacher
    import pbd

    kept = settings.run_dir / "recipes" / "teacher"
    if not (kept / "recipe.json").is_file():
        _compress(settings, kept.name, [pbd.FineTune(epochs=0)], None, settings.teacher)
    return str(kept / "teacher.keras")


def percent(value: float | None) -> float | None:
    """Return a share in percent."""
    return None if value is None else 100 * value


def parse(program: str, description: str | None, argv: Sequence[str]) -> Settings:
    """Turn command-line arguments into settings.

    Raises:
        UsageError: a flag or a value is wrong; the message is one line.
        MissingInputError: a file is not there.
        CannotCreateError: the folder for the results cannot be made.
    """
    given = _parser(program, description or "").parse_args(argv)
    for flag, name, suffixes in (
        ("--teacher", given.teacher, (".keras", ".h5")),
        ("--dataset", given.dataset, (".npz",)),
    ):
        if name.endswith(suffixes) and not Path(name).is_file():
            raise MissingInputError(f"{flag} must be a file that exists. Received: {name!r}.")
    run_dir = given.run_dir or Path("runs") / time.strftime("sources-%Y%m%d-%H%M%S")
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CannotCreateError(f"--run-dir is a folder. Received: {str(run_dir)!r}: {error.strerror}.") from error
    values = {**vars(given), "run_dir": run_dir}
    del values["quick"]
    if not given.full and given.dataset.endswith(".npz"):
        values["dataset"] = str(few_images.write(Path(given.dataset), run_dir / "images"))
    return Settings(**values)


def _parser(program: str, description: str) -> argparse.ArgumentParser:
    parser = Parser(program, description)
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--quick", action="store_true", help="few epochs, points and images of an .npz (the default)")
    size.add_argument("--full", action="store_true", help="the epochs and points of the sources")
    parser.add_argument("--teacher", type=path, default="digits_cnn", help="a model file or a built-in network")
    parser.add_argument("--dataset", type=path, default=DIGITS, help="as in pbd distill")
    parser.add_argument("--epochs", type=positive, metavar="N", help="of every training")
    parser.add_argument("--loss", default="cross_entropy", help="of retraining after pruning, as in FineTune")
    parser.add_argument("--train-limit", type=positive, metavar="N", help="use only so many training images")
    parser.add_argument("--batch-size", type=positive, default=64, metavar="N", help="images per training step")
    parser.add_argument("--target", help="where latency is measured, such as onnx (default: that of pbd)")
    parser.add_argument("--run-dir", type=Path, metavar="DIR", help="complete steps in it are not done again")
    parser.add_argument(
        "--source-tables", type=Path, default=SOURCE_TABLES, metavar="FILE", help="the sources' figures, as JSON"
    )
    return parser
