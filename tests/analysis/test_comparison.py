"""Two networks compared on a small data set: a network with itself, with a student, and what is refused."""

import dataclasses
import json
from types import SimpleNamespace
from typing import Any

import keras
import numpy as np
import pytest

from pbd.analysis import activations, comparison, similarity
from pbd.analysis.comparison import analyse
from pbd.data import Data
from pbd.errors import BadInputError, UsageError
from pbd.learning import class_counts

pytestmark = pytest.mark.usefixtures("eager_module")
SHAPE = (6, 6, 3)
CLASSES = 4


def network(seed: int, block: bool = False, head: str = "softmax") -> keras.Model:
    """A residual network of two convolutions; in a student, a block of two layers replaces the second one."""
    keras.utils.set_random_seed(seed)
    layers = keras.layers
    inputs = keras.Input(SHAPE)
    x = layers.Rescaling(1 / 255)(inputs)
    x = start = layers.Conv2D(6, 3, padding="same", activation="relu", name="first")(x)
    if block:
        x = layers.Conv2D(3, (3, 1), padding="same", name="second_pbd_column")(x)
        x = layers.Conv2D(6, (1, 3), padding="same", name="second_pbd_row")(x)
    else:
        x = layers.Conv2D(6, 3, padding="same", name="second")(x)
    x = layers.BatchNormalization(name="norm")(x)
    x = layers.ReLU()(layers.Add(name="join")([start, x]))
    x = layers.Dense(1 if head == "sigmoid" else CLASSES)(layers.Flatten()(x))
    return keras.Model(inputs, layers.Activation(head)(x), name="net")


def data(labels: bool = True, classes: int = CLASSES) -> Data:
    draws = np.random.default_rng(0)
    splits = {}
    for role, count in {"train": 20, "validation": 20, "test": 50}.items():
        images = draws.integers(0, 256, (count, *SHAPE), dtype=np.uint8)
        splits[role] = (images, draws.integers(0, classes, count)) if labels else images
    return Data(**splits, batch_size=20, labels=labels)


@pytest.mark.parametrize("positions", ["average", "fourier"])
def test_a_network_is_identical_to_itself(positions: str) -> None:
    report = analyse(network(0), network(0), data(), positions=positions)
    (student,) = report.students
    assert [layer.layer for layer in student.layers] == ["first", "second", "join", "logits"]
    for layer in student.layers:
        assert (layer.svcca, layer.cka) == (pytest.approx(1.0), pytest.approx(1.0))
    assert student.churn == 0
    changes = student.changes
    assert changes is not None
    assert changes.negative_flips == changes.positive_flips == 0
    assert changes.teacher_ece == changes.student_ece
    assert changes.confusions == ()
    assert (changes.cev, changes.sde) == (0.0, 0.0)
    assert (report.images, report.similarity_images, report.absent) == (50, 50, ())


def test_a_block_is_compared_with_the_layer_that_it_replaces() -> None:
    report = analyse(network(0), {"small": network(1, block=True)}, data(), limit=40, similarity_images=30)
    (student,) = report.students
    pairs = {layer.layer: layer.student_layer for layer in student.layers}
    assert pairs == {"first": "first", "second": "second_pbd_row", "join": "join", "logits": "logits"}
    assert all(0 < layer.svcca < 1 and layer.svcca_distance == 1 - layer.svcca for layer in student.layers)
    assert student.similarity.teacher_layers == student.similarity.student_layers == tuple(pairs)
    assert [row[i] for i, row in enumerate(student.similarity.values)] == [layer.cka for layer in student.layers]
    assert (report.images, report.similarity_images) == (40, 30)
    json.dumps(dataclasses.asdict(report), allow_nan=False)


def test_a_single_glob_needs_no_list() -> None:
    report = analyse(network(0), network(1), data(labels=False), layers="fir*")
    assert [layer.layer for layer in report.students[0].layers] == ["first", "logits"]


def test_without_labels_the_rest_is_named() -> None:
    (row,) = (report := analyse(network(0), network(1), data(labels=False))).students
    assert row.changes is None
    assert row.layers
    assert "no labels" in report.absent[0]


def test_a_population_has_exemplars() -> None:
    students = {"a": network(1), "b": network(2)}
    report = analyse(network(0), students, data(), teachers=[network(0)], population=True, layers=["first"])
    assert report.population is not None
    assert (report.population.teachers, report.population.students) == (2, 2)
    assert 0 < len(report.population.exemplars) < 50
    labels = data().test[1]
    assert all(row.label == labels[row.image] for row in report.population.exemplars)
    with pytest.raises(UsageError, match="of a population two"):
        analyse(network(0), network(1), data(), population=True)


def test_a_layer_without_a_counterpart_is_named_and_still_in_the_map() -> None:
    student = keras.Sequential([keras.Input(SHAPE), *network(1).layers[1:3], keras.layers.GlobalAveragePooling2D()])
    student.add(keras.layers.Dense(CLASSES))
    (row,) = analyse(network(0), student, data()).students
    assert row.unmatched == ("second", "join")
    assert row.similarity.student_layers == ("first", "logits")
    assert len(row.similarity.values) == 4


def test_a_sigmoid_has_two_classes() -> None:
    teacher, student = network(0, head="sigmoid"), network(1, head="sigmoid")
    changes = analyse(teacher, student, data(classes=2), layers=["first"]).students[0].changes
    assert changes is not None
    assert [row.label for row in changes.classes] == [0, 1]


def test_normalisations_are_folded_so_that_the_form_of_the_file_does_not_matter() -> None:
    folded = activations.inference_copy(network(0), SHAPE)
    assert not any(isinstance(layer, keras.layers.BatchNormalization) for layer in folded.layers)
    assert analyse(network(0), folded, data(), layers=["second"]).students[0].layers[0].cka == pytest.approx(1.0)


def test_layers_in_several_parts_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {"positions": "fourier", "layers": ["second"]}
    whole = analyse(network(0), network(1, block=True), data(), **settings)
    monkeypatch.setattr(similarity, "MOST_BYTES", 1)
    parts = analyse(network(0), network(1, block=True), data(), **settings)
    assert [layer.layer for layer in parts.students[0].layers] == [layer.layer for layer in whole.students[0].layers]
    np.testing.assert_allclose(parts.students[0].similarity.values, whole.students[0].similarity.values, rtol=1e-5)


def test_a_sample_is_the_first_images() -> None:
    from pbd.deploy import images

    dataset = images.load(data(), network(0), seed=0)
    sample = activations.sample(dataset, "test", 5)
    assert sample.test.rows.tolist() == dataset.test.rows[:5].tolist()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"split": "tset"}, "Did you mean 'test'"),
        ({"positions": "mean"}, "unknown positions"),
        ({"layers": ["frist"]}, "Did you mean 'first'"),
        ({"limit": 1}, "limit must be at least 2"),
    ],
)
def test_a_wrong_setting_is_refused(settings: dict, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        analyse(network(0), network(1), data(), **settings)


def test_arrays_are_no_data() -> None:
    with pytest.raises(UsageError, match=r"data must be a pbd.Data. Received: tuple"):
        analyse(network(0), network(1), (np.zeros((8, 8, 8, 3)), np.zeros(8)))


def test_networks_and_labels_must_fit() -> None:
    with pytest.raises(BadInputError, match="the input and the classes of the teacher"):
        analyse(network(0), network(1, head="sigmoid"), data())
    with pytest.raises(BadInputError, match="labels must be below"):
        analyse(network(0), network(1), data(classes=7))


def test_a_network_without_finite_outputs_is_refused() -> None:
    """The largest of NaNs would be class 0: an accuracy that nothing tells from a real one."""
    broken = network(1)
    broken.layers[-2].bias.assign([np.nan] * CLASSES)  # TensorFlow's fused ReLU makes 0 of NaN on some CPUs
    with pytest.raises(BadInputError, match="'student', with NaN or infinity for 50 of 50 images"):
        analyse(network(0), broken, data())


def test_the_answers_to_too_many_classes_are_not_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    labels = np.array([0, 1])
    predictions: Any = SimpleNamespace(probabilities=np.eye(2), classes=labels)
    assert comparison._changes(predictions, predictions, labels) is not None
    monkeypatch.setattr(class_counts, "MOST_CLASSES", 1)
    assert comparison._changes(predictions, predictions, labels) is None
