"""The networks of the bias study: images of which some classes are reduced, recipes of pruning, and their analyses."""

import itertools
import json
import math
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import pbd
from pbd.errors import BadInputError
from pbd.pipeline import session
from pbd.progress import ProgressDisplay
from pbd.records.analysis_report import StudentAnalysis
from pbd.run_dir.journal import Journal

if TYPE_CHECKING:
    import keras

    from pbd.compression.chain import Chain
    from pbd.compression.context import Context
    from pbd.compression.step import Step
    from pbd.executors.base import Executor
    from pbd.pipeline.prepare import Inputs

METHODS = ("pruning alone", "KD", "AT", "SP", "PKT", "FSP", "AT+KD", "SP+KD", "PKT+KD", "FSP+KD")
RATIO, FIRST_RATIO = 0.45, 0.10
"""Share of the filters that are removed in all, and in the first round."""
MOST_BLOCKS = 3
"""Blocks of the network of the source."""
CLASSES_SEED = 3
"""Of the choice of the classes that are reduced, and of their images."""
_IN_BLOCKS = ("Conv2D", "BatchNormalization", "ReLU", "Activation", "Add")
Split = tuple[np.ndarray, np.ndarray]
"""Images and labels."""


@dataclass(frozen=True)
class Images:
    """The images of the study before classes are reduced."""

    train: Split
    validation: Split
    test: Split

    @property
    def classes(self) -> int:
        """The number of classes."""
        return int(self.train[1].max()) + 1


def load(dataset: str, train_limit: int | None, validation_limit: int | None, test_limit: int | None) -> Images:
    """Return images and labels of a data set.

    Args:
        dataset: as in `pbd.Data.load`, with labels, and read as arrays.
        train_limit: most training images.
        validation_limit: most validation images, evenly spaced.
        test_limit: the same of test images.

    Raises:
        BadInputError: the data set is a folder or a stream, or has no labels.
    """
    from pbd import data
    from pbd.analysis import activations
    from pbd.data.images import ArrayImages

    loaded = data.load(pbd.RunConfig.of(dataset=dataset, train_limit=train_limit).data, seed=0)
    loaded = activations.sample(loaded, "validation", validation_limit)
    loaded = activations.sample(loaded, "test", test_limit)
    splits = [loaded.train, loaded.validation, loaded.test]
    if not loaded.labelled or not all(isinstance(getattr(split, "images", None), ArrayImages) for split in splits):
        raise BadInputError(
            f"the study needs labels, and images as arrays. Received: {dataset!r}. Give an .npz file, or digits."
        )
    return Images(*((split.images.array[split.rows], split.labels) for split in splits))  # type: ignore[union-attr]


def reduced_classes(classes: int, count: int) -> list[int]:
    """Return the numbers of the classes that are reduced: a random choice, the same every time."""
    return sorted(np.random.default_rng(CLASSES_SEED).permutation(classes)[:count].tolist())


def reduced(split: Split, classes: Sequence[int], percent: int) -> Split:
    """Return a split with only some of the images of some classes; those that remain of a class are random.

    Of less percent, the images that remain are among those of more percent.

    Args:
        split: images and labels.
        classes: the classes that are reduced.
        percent: how much of each remains; at least one image.
    """
    images, labels = split
    order = np.random.default_rng(CLASSES_SEED).permutation(len(labels))
    left_out = []
    for label in classes:
        rows = order[labels[order] == label]
        left_out.append(rows[max(1, round(len(rows) * percent / 100)) :])
    kept = np.setdiff1d(np.arange(len(labels)), np.concatenate(left_out) if left_out else [])
    return images[kept], labels[kept]


def find_blocks(model: "keras.Model") -> tuple[str, ...]:
    """Return the names of the layers that end the last blocks, at most three.

    A block is what computes maps of one height and width; its end is its last convolution, normalisation, addition or
    activation.

    Args:
        model: flat and functional.
    """
    ends: dict[tuple[int, int], str] = {}
    for operation in model.operations:
        shape = getattr(operation.output, "shape", ())
        if type(operation).__name__ in _IN_BLOCKS and len(shape) == 4:
            ends[shape[1:3]] = operation.name
    return tuple(ends.values())[-MOST_BLOCKS:]


def losses(method: str, blocks: Sequence[str]) -> dict[str, Any]:
    """Return the loss and the features with which a method trains, as settings of a step.

    Args:
        method: one of `METHODS`.
        blocks: names of the layers that end blocks, in order.
    """
    parts = method.split("+")
    pairs: dict[str, list[Any]] = {
        "AT": list(blocks),
        "FSP": list(itertools.pairwise(blocks)),
        "SP": [blocks[-1]],
        "PKT": [blocks[-1]],
    }
    features = [pbd.Feature(part.lower(), layer, layer) for part in parts for layer in pairs.get(part, ())]
    return {"loss": "mixed" if "KD" in parts else "cross_entropy", "features": features}


@dataclass(frozen=True)
class Training:
    """How a network is compressed, and on what it is judged."""

    teacher: str
    rounds: int
    epochs: int
    """After each round of pruning."""
    tune_epochs: int
    """After the last one."""
    batch_size: int
    augment: str
    similarity_images: int
    blocks: tuple[str, ...] = ()
    """Names of the layers that end blocks; by default those of `find_blocks`."""

    def steps(self, method: str, blocks: Sequence[str]) -> "list[Step]":
        """Return the steps of a method."""
        chosen = losses(method, blocks)
        first = FIRST_RATIO if self.rounds > 1 else None
        prune = pbd.PruneFilters(
            ratio=RATIO, first_ratio=first, refit=False, rounds=self.rounds, epochs=self.epochs, **chosen
        )
        return [prune, pbd.FineTune(epochs=self.tune_epochs, **chosen)] if self.tune_epochs else [prune]

    def data(self, images: Images) -> pbd.Data:
        """Return the images as data of a run."""
        splits = {"train": images.train, "validation": images.validation, "test": images.test}
        return pbd.Data(**splits, batch_size=self.batch_size, augment=self.augment)


@dataclass(frozen=True)
class Run:
    """All methods on one set of images with one seed. What is complete in the folder is not done again."""

    training: Training
    images: Images
    """With reduced training images."""
    folder: Path
    seed: int

    def figures(self, methods: Sequence[str]) -> dict[str, Any]:
        """Compress the original by each method, and return the figures of the students by method.

        A built-in teacher is trained on these images first.
        """
        data = self.training.data(self.images)
        config = replace(pbd.RunConfig(seed=self.seed), data=data.config).replace(
            teacher=self.training.teacher,
            target="keras",
            executor="serial",
            isolate=False,
            run_dir=str(self.folder),
            resume=(self.folder / "run.json").is_file(),
        )

        def work(executor: "Executor", display: ProgressDisplay) -> dict[str, Any]:
            from pbd.pipeline import prepare  # loads the backend

            kind = {"kind": "bias study"}
            steps = prepare.RunKind(tasks_of=lambda *_: (), settings=kind)
            with prepare.prepare(config, None, data, display, steps) as inputs:
                context = _context(replace(config, data=inputs.data_config), inputs, executor, display)
                return self._figures(methods, context, data)

        return session.run(config.execution, work)

    def _figures(self, methods: Sequence[str], context: "Context", data: pbd.Data) -> dict[str, Any]:
        """Return the figures by method; the original is analysed once for all students."""
        blocks = self.training.blocks or find_blocks(context.teacher)
        files = {
            method: _Figures(self._path(method), self._student(method, blocks, context), blocks, self.training)
            for method in methods
        }
        students = {method: file.student for method, file in files.items() if file.read() is None}
        if students:
            context.display.phase(f"analysis of {', '.join(students)}")
            images = self.training.similarity_images
            report = pbd.analyse(context.teacher, students, data, layers=blocks, similarity_images=images)
            for row in report.students:
                files[row.name].write(row)
        return {method: file.read() for method, file in files.items()}

    def _student(self, method: str, blocks: Sequence[str], context: "Context") -> "keras.Model":
        context.display.phase(f"{method}, seed {self.seed}")
        *_, (_, last) = self._chain(method, blocks, context).networks(context.teacher)
        return last.result.model

    def _chain(self, method: str, blocks: Sequence[str], context: "Context") -> "Chain":
        from pbd.compression.chain import Chain

        return Chain(replace(context, journal=Journal(self._path(method))), self.training.steps(method, blocks))

    def _path(self, method: str) -> Path:
        return self.folder / method.replace(" ", "_").replace("+", "_and_")

    def networks(self, method: str) -> "Iterator[keras.Model]":
        """Yield the original and the student of a method that is complete."""
        from pbd.compression.step_folder import MODEL
        from pbd.networks import files
        from pbd.run_dir import steps

        last = "2 fine_tune" if self.training.tune_epochs else "1 prune_filters"
        yield files.load_own(self.folder / "teacher.keras")
        yield files.load_own(steps.folder(self._path(method), last) / MODEL)


def _context(config: pbd.RunConfig, inputs: "Inputs", executor: "Executor", display: ProgressDisplay) -> "Context":
    from pbd.compression.context import Context

    return Context(
        teacher=inputs.teacher,
        teacher_path=inputs.journal.file("teacher.keras"),
        dataset=inputs.dataset,
        config=config,
        target=inputs.target,
        journal=inputs.journal,
        executor=executor,
        display=display,
        seed=config.seed,
        session=uuid.uuid4().hex,
    )


@dataclass(frozen=True, eq=False)
class _Figures:
    """The file of the figures of a student, which belongs to its weights and to the settings of the analysis."""

    folder: Path
    student: "keras.Model"
    blocks: Sequence[str]
    training: Training

    @property
    def _of(self) -> list[Any]:
        from pbd.networks.digest import model_digest

        return [model_digest(self.student), list(self.blocks), self.training.similarity_images]

    def read(self) -> dict[str, Any] | None:
        """Return the figures; `None` if there are none, or those of another student or analysis."""
        file = self.folder / "figures.json"
        content = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
        return content["figures"] if content.get("of") == self._of else None

    def write(self, student: "StudentAnalysis") -> None:
        """Write the figures of an analysis."""
        changes = student.changes
        assert changes is not None, "the study has labels"
        figures = {
            "before": changes.teacher_accuracy,
            "accuracy": changes.student_accuracy,
            "cev": changes.cev,
            "sde": changes.sde,
            "left_out": list(changes.left_out),
            "churn": student.churn,
            "distances": [layer.svcca_distance for layer in student.layers],
        }
        Journal(self.folder).write_json("figures.json", {"of": self._of, "figures": figures})


def exemplars(runs: Sequence[Run], method: str) -> int | None:
    """Return the number of images with another most frequent class over the students than over the originals.

    Args:
        runs: of the same images with several seeds, complete; `None` is returned for one.
        method: of the students.
    """
    if len(runs) < 2:
        return None
    pairs = [tuple(run.networks(method)) for run in runs]
    first, *others = [original for original, _ in pairs]
    students = {f"seed {number}": student for number, (_, student) in enumerate(pairs)}
    least: dict[str, Any] = {"layers": find_blocks(first)[-1:], "similarity_images": 2}
    data = runs[0].training.data(runs[0].images)
    report = pbd.analyse(first, students, data, teachers=others, population=True, **least)
    assert report.population is not None
    return len(report.population.exemplars)


def means(records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the means of the figures of a method's students; `None` of a figure that none of them has."""
    values = {name: _mean([one[name] for one in records]) for name in ("before", "accuracy", "cev", "sde", "churn")}
    distances = [_mean(column) for column in zip(*(one["distances"] for one in records), strict=True)]
    return {
        **values,
        "distances": distances,
        "left_out": sorted({label for one in records for label in one["left_out"]}),
    }


def _mean(values: Sequence[float | None]) -> float | None:
    measured = [value for value in values if value is not None]
    return math.fsum(measured) / len(measured) if measured else None
