"""What a worker needs to train any group of a run, and the teacher and data that it loads once."""

import functools
import os
import platform
from collections.abc import Mapping
from dataclasses import dataclass

import keras

from pbd.blocks import BlockDesign
from pbd.config import DataConfig, TrainingConfig
from pbd.data import Dataset
from pbd.data import load as load_data
from pbd.errors import MissingInputError
from pbd.run_dir.journal import Journal


@dataclass(frozen=True)
class TrainingContext:
    """What a worker needs to train any group of a run; small and picklable, so it can be sent anywhere."""

    teacher_path: str
    data: DataConfig
    image_shape: tuple[int, int, int]
    training: TrainingConfig
    designs: Mapping[str, BlockDesign]
    """The block designs of the run's tasks, by name."""
    block_init: str
    seed: int
    journal: Journal
    session: str = ""
    """Of one run: what a worker process has loaded, it keeps for one session."""


@functools.lru_cache(maxsize=1)
def load_teacher(path: str, session: str = "") -> keras.Model:
    """Return the run's flattened teacher, loaded once per process.

    Raises:
        MissingInputError: there is no such file on this host.
    """
    if not os.path.isfile(path):
        raise MissingInputError(
            f"every worker must see the run directory. Received: no {path} on {platform.node()}. "
            "Give a --run-dir on storage that all hosts share."
        )
    return keras.models.load_model(path, compile=False)


@functools.lru_cache(maxsize=1)
def load_dataset(config: DataConfig, seed: int, image_shape: tuple[int, int, int], session: str = "") -> Dataset:
    """Return the run's data, loaded once per process."""
    return load_data(config, seed, image_shape)


def load(context: TrainingContext) -> tuple[keras.Model, Dataset]:
    """Return the run's teacher and its data, each loaded once per process.

    Raises:
        PbdError: they cannot be loaded here.
    """
    teacher = load_teacher(context.teacher_path, context.session)
    return teacher, load_dataset(context.data, context.seed, context.image_shape, context.session)
