"""The source of a run's teacher, resolved once: a model from Python, a model file, or a network that pbd builds."""

import contextlib
import dataclasses
import functools
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import keras

from pbd.config import RunConfig, TeacherConfig
from pbd.data import Dataset
from pbd.data.shapes import FreeShape
from pbd.errors import BadInputError, MissingInputError, UsageError, unknown_name
from pbd.learning.loop import fit_on_labels
from pbd.networks import files, graph
from pbd.pipeline import built_in, teacher_files
from pbd.pipeline.versions import versions
from pbd.progress import ProgressDisplay
from pbd.run_dir.atomic import write_atomically
from pbd.system.permissions import check_readable

LEARNING_RATE = 0.002
"""First learning rate of Adam for training a built-in network."""
CheckNetwork = Callable[[keras.Model], object]
"""Raises if the run cannot use a network; its result is not used."""


class TeacherSource(Protocol):
    """Where the teacher comes from."""

    def is_pretrained(self, outputs: int) -> bool:
        """Return whether the network, of so many outputs, was already trained, probably on all training images."""
        ...

    def check(self) -> None:
        """Refuse a teacher that cannot be found, before anything is loaded.

        Raises:
            PbdError: see the implementations.
        """
        ...

    def image_shape(self) -> FreeShape | None:
        """Return height, width and channels of the input, `None` for a free dimension; `None` if any shape fits."""
        ...

    def num_outputs(self) -> int | None:
        """Return the number of outputs; `None` if the network is built for the classes of the data."""
        ...

    def preprocessing(self) -> str:
        """Return the preprocessing that `--preprocess auto` stands for."""
        ...

    def identity(self) -> dict[str, Any]:
        """Return the settings that a resumed run must share; empty if the digest of the network covers them all."""
        ...

    def load(self, labelled: Callable[[], Dataset]) -> keras.Model:
        """Return the trained network.

        Args:
            labelled: returns the data with labels; called only if the network has to be trained.
        """
        ...


def resolve(
    config: RunConfig, model: keras.Model | None, run_dir: Path, display: ProgressDisplay, check: CheckNetwork
) -> TeacherSource:
    """Return the source of the run's teacher.

    Args:
        config: the settings of the run.
        model: the teacher, if it was given from Python.
        run_dir: the run directory; a resumed run finds in it the teacher that it trained.
        display: receives the progress of training a built-in network.
        check: called with a built-in network before the network is trained; raises if the run cannot use it.
    """
    if model is not None:
        return ModelTeacher(model)
    if teacher_files.is_file(config.teacher.teacher):
        return FileTeacher(config.teacher)
    return BuiltInTeacher(config, run_dir / "teacher.keras" if config.execution.resume else None, display, check)


@dataclass(frozen=True)
class ModelTeacher:
    """A model from Python."""

    model: keras.Model

    def is_pretrained(self, outputs: int) -> bool:
        return True

    def check(self) -> None:
        """Check that every process can make the layers of the model again.

        Raises:
            BadInputError: Keras does not know a layer.
        """
        files.check_known(self.model)

    def image_shape(self) -> FreeShape | None:
        return _image_shape(self.model)

    def num_outputs(self) -> int:
        return self.model.outputs[0].shape[-1]

    def preprocessing(self) -> str:
        return "none"

    def identity(self) -> dict[str, Any]:
        return {}

    def load(self, labelled: Callable[[], Dataset]) -> keras.Model:
        return self.model


def _image_shape(model: keras.Model) -> FreeShape:
    """Return height, width and channels of the images that a teacher takes.

    Raises:
        BadInputError: the model does not map images to class scores, or takes the channels first.
    """
    shape = graph.image_shape(model)
    layers = list(graph.layers(model))
    moved = any(isinstance(layer, keras.layers.Permute | keras.layers.Reshape) for layer in layers)
    if not moved and {getattr(layer, "data_format", None) for layer in layers} - {None} == {"channels_first"}:
        raise BadInputError(
            "the teacher must take images of (height, width, channels). Received: layers of data_format "
            "channels_first. Build it with channels_last, copy the weights by set_weights, and reorder the rows of a "
            "Dense layer behind Flatten."
        )
    return shape


@dataclass(frozen=True)
class FileTeacher:
    """A model file, which may come from anywhere: it is checked in a process of its own before it is loaded."""

    config: TeacherConfig

    def is_pretrained(self, outputs: int) -> bool:
        return True

    def check(self) -> None:
        """Refuse a file that cannot be read.

        Raises:
            MissingInputError: the file does not exist, is a folder, or is not readable.
            BadInputError: the name is a URL.
            UsageError: weights were given as well.
        """
        teacher_files.check(self.config)

    @functools.cached_property
    def _model(self) -> keras.Model:
        return files.load(self.config.teacher)

    def image_shape(self) -> FreeShape | None:
        return _image_shape(self._model)

    def num_outputs(self) -> int:
        return self._model.outputs[0].shape[-1]

    def preprocessing(self) -> str:
        return "none"

    def identity(self) -> dict[str, Any]:
        return {}

    def load(self, labelled: Callable[[], Dataset]) -> keras.Model:
        return self._model


@dataclass(frozen=True)
class BuiltInTeacher:
    """A network that pbd builds and trains on the data, unless weights are given or it was trained before."""

    run_config: RunConfig
    resumed: Path | None
    """The file of the teacher in a run directory that is resumed."""
    display: ProgressDisplay
    check_network: CheckNetwork

    @property
    def config(self) -> TeacherConfig:
        return self.run_config.teacher

    def is_pretrained(self, outputs: int) -> bool:
        if self.config.teacher_weights == "imagenet":
            return outputs == 1000  # else it gets a new head and is trained on the data
        return self.config.teacher_weights is not None

    def check(self) -> None:
        """Refuse an unknown name and missing weights.

        Raises:
            UsageError: no network has this name.
            MissingInputError: the file of weights does not exist or is not readable.
        """
        name, weights = self.config.teacher, self.config.teacher_weights
        if weights not in (None, "imagenet"):
            check_readable("teacher_weights", weights)
            if not Path(weights).is_file():
                raise MissingInputError(
                    f"teacher_weights must be imagenet or a .weights.h5 file. Received: {weights!r}. Check the path."
                )
        if not built_in.is_built_in(name):
            names = [*built_in.BUILT_IN, *built_in.application_names()]
            raise UsageError(unknown_name("teacher (no such file, no built-in network)", name, names))

    @functools.cached_property
    def _before(self) -> keras.Model | None:
        """The teacher that the resumed run trained; `None` if there is no such file, or the file is damaged.

        The file is not checked like a foreign one: the run's identity, which `Journal.resume` compares, has its digest.
        """
        if self.resumed is not None:
            with contextlib.suppress(BadInputError):
                return files.load_own(self.resumed)
        return None

    def image_shape(self) -> FreeShape | None:
        if self._before is not None:
            return graph.image_shape(self._before)
        return (None, None, 3) if self.config.teacher in built_in.application_names() else None

    def num_outputs(self) -> None:
        return None

    def preprocessing(self) -> str:
        return built_in.preprocessing(self.config.teacher)

    def identity(self) -> dict[str, Any]:
        return dataclasses.asdict(self.config)  # a resumed run does not train the network: the digest is always equal

    def load(self, labelled: Callable[[], Dataset]) -> keras.Model:
        return self._before or self._trained(labelled())

    def _trained(self, dataset: Dataset) -> keras.Model:
        config = self.config
        assert dataset.num_classes is not None, "a network is built and trained for data with labels"
        model = built_in.build(config, dataset.image_shape, dataset.num_classes, self.run_config.seed)
        self.check_network(graph.flatten(model, dataset.image_shape))
        if config.teacher_epochs == 0 or self.is_pretrained(dataset.num_classes):
            return model
        settings = {**vars(config), **vars(self.run_config.data), "seed": self.run_config.seed, "versions": versions()}
        path = built_in.cache_path(config, dataset, settings)
        if os.path.isfile(path):  # also in a folder that this user may not search
            with contextlib.suppress(BadInputError):  # a damaged file is replaced
                cached = files.load_own(path)
                self.display.phase(f"teacher {config.teacher}: loaded from the cache, {path}")
                return cached
        self.display.phase(f"teacher {config.teacher}: training on {dataset.name}, {config.teacher_epochs} epochs")
        fit_on_labels(model, dataset, config.teacher_epochs, LEARNING_RATE, self.display.update, "teacher")
        model = graph.flatten(model)
        try:
            write_atomically(path, files.model_bytes(model))
        except OSError as error:
            self.display.phase(f"the trained teacher cannot be cached for later runs: {error.strerror or error}")
        return model
