"""The training context: what a worker needs to train any group of a run."""

import functools
import os
import platform
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, replace

import keras
import numpy as np

from pbd.blocks import BlockDesign
from pbd.config import DataConfig, TrainingConfig
from pbd.data import Dataset
from pbd.data import load as load_data
from pbd.errors import MissingInputError
from pbd.networks import files
from pbd.run_dir import damaged_images, error_files
from pbd.run_dir.journal import Journal
from pbd.system import initial_values, watchdog


@dataclass(frozen=True)
class TrainingContext:
    """What a worker needs to train any group of a run. It is small and picklable, so it is sent with every task."""

    teacher_path: str
    """Model file of the flattened teacher, in the run directory."""
    data: DataConfig
    image_shape: tuple[int, int, int]
    """Height, width and channels of the images that the teacher takes."""
    training: TrainingConfig
    designs: Mapping[str, BlockDesign]
    """The block designs of the run's tasks, by name."""
    block_init: str
    """How initial weights of blocks are computed (see `BlockConfig`)."""
    seed: int
    """The run's seed."""
    journal: Journal
    """The run directory."""
    session: str = ""
    """Identifies the run, for the caches of a worker process: teacher and data of another session are loaded again."""

    @property
    def can_share_batches(self) -> bool:
        """Whether several workers can train the same blocks, each on a part of every batch."""
        # In float16 every step decides by its own gradients how the loss is scaled.
        return self.training.precision != "float16" and all(design.per_image for design in self.designs.values())


@functools.lru_cache(maxsize=1)
def load_teacher(path: str, session: str = "") -> keras.Model:
    """Return the run's flattened teacher, loaded once per process and session.

    Args:
        path: the model file.
        session: key of the cache only: the file of another session is read, although it may have the same path.

    Raises:
        MissingInputError: this host has no such file.
    """
    if not os.path.isfile(path):
        raise MissingInputError(
            f"every worker must see the run directory. Received: no {path} on {platform.node()}. "
            "Give a --run-dir on storage that all hosts share."
        )
    with watchdog.waiting(), initial_values.on_host():
        return files.read(path)


@functools.lru_cache(maxsize=2)
def teacher_outputs(path: str, session: str = "") -> dict[Hashable, list[np.ndarray]]:
    """Return the outputs of a teacher that this process has kept, for evaluating networks in comparison with it.

    Two teachers have theirs kept: a step of compression compares a network with the first one and with that before it.

    Args:
        path: the model file of the teacher; key of the cache only.
        session: key of the cache only (see `load_teacher`).

    Returns:
        The mutable record of this teacher and session, empty at first; the caller adds to it.
    """
    return {}


@functools.lru_cache(maxsize=1)
def load_dataset(
    config: DataConfig, seed: int, image_shape: tuple[int, int, int], session: str, journal: Journal
) -> Dataset:
    """Return the run's data, whose damaged files are noted in `journal`; the coordinator has checked the files.

    The images are loaded once per process and session, also for another journal or another seed of their order:
    `session` is a key of the caches only.
    """
    same_splits = replace(config, split_seed=config.seed_of_splits(seed))
    dataset = replace(_load_images(same_splits, image_shape, session), seed=seed)
    dataset.observe_damaged_files(functools.partial(damaged_images.write, journal))
    return dataset


@functools.lru_cache(maxsize=1)
def _load_images(config: DataConfig, image_shape: tuple[int, int, int], session: str) -> Dataset:
    return load_data(config, 0, image_shape, check=False)


def forget() -> None:
    """Free the teacher and the data that this process has loaded."""
    forget_teacher()
    load_dataset.cache_clear()
    _load_images.cache_clear()


def forget_teacher() -> None:
    """Free the teacher that this process has loaded: on JAX, a step that fails leaves a model without its variables."""
    load_teacher.cache_clear()
    teacher_outputs.cache_clear()


def load(context: TrainingContext) -> tuple[keras.Model, Dataset]:
    """Return the run's teacher and data, each loaded once per process and session.

    Raises:
        PbdError: they cannot be loaded on this host.
    """
    with error_files.recorded(context.journal, "loading teacher and data"):
        teacher = load_teacher(context.teacher_path, context.session)
        return teacher, load_dataset(context.data, context.seed, context.image_shape, context.session, context.journal)
