"""What the tests of students share: three colours, and a network that has learned them. Some files have others."""

import dataclasses
from typing import TYPE_CHECKING

import pytest

from pbd.data import Dataset

if TYPE_CHECKING:
    import keras


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    from tests.helpers.palette import make_dataset

    return make_dataset()


@pytest.fixture(scope="module")
def two_steps(dataset: Dataset) -> Dataset:
    """The same images, with two steps in each epoch."""
    return dataclasses.replace(dataset, batch_size=48)


@pytest.fixture(scope="module")
def unlabelled() -> Dataset:
    from tests.helpers.palette import make_dataset

    return make_dataset(labelled=False)


@pytest.fixture(scope="module")
def teacher(dataset: Dataset) -> "keras.Model":
    from tests.helpers.palette import trained_teacher

    return trained_teacher(dataset)


@pytest.fixture
def student(teacher: "keras.Model") -> "keras.Model":
    """A copy of the teacher, so damaged that it guesses."""
    from pbd.networks import graph
    from tests.helpers.palette import damage

    copy = graph.flatten(teacher)
    damage(copy, 1.5)
    return copy
