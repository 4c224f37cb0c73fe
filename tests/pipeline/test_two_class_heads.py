"""Teachers with one output: runs with and without labels, and what is refused."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

import pbd
from pbd.errors import BadInputError
from pbd.networks import heads
from pbd.pipeline import input_checks

pytestmark = pytest.mark.usefixtures("eager")
IMAGES = np.random.default_rng(0).integers(0, 256, (96, 8, 8, 8), dtype=np.uint8)
CHEAP: dict[str, Any] = {"block": "decoupled_r2", "executor": "serial", "isolate": False, "costs": "macs"}
CHEAP |= {"epochs": 1, "fine_tune_epochs": 1}


def teacher_of(activation: str | None, outputs: int = 1) -> keras.Model:
    """Return a network whose answer for half of the images is class 1."""
    keras.utils.set_random_seed(1)
    inputs = keras.Input(IMAGES.shape[1:])
    x = keras.layers.Conv2D(16, 3, activation="relu", name="conv")(keras.layers.Rescaling(1 / 255)(inputs))
    head = keras.layers.Dense(outputs, name="head")
    model = keras.Model(inputs, head(keras.layers.GlobalAveragePooling2D()(x)))
    head.bias.assign(-np.median(np.asarray(model(IMAGES)), axis=0))
    head.activation = keras.activations.get(activation)
    return model


def data_of(labels: np.ndarray | None) -> pbd.Data:
    return pbd.Data(train=IMAGES if labels is None else (IMAGES, labels), batch_size=16)


@pytest.mark.parametrize(
    ("activation", "shape", "loss"),
    [
        ("sigmoid", lambda labels: labels[:, None].astype("float32"), "mixed"),
        ("sigmoid", None, "kd_kl"),
        (None, lambda labels: labels, "kd_mse"),
    ],
)
def test_the_student_keeps_the_head(
    activation: str | None, shape: Callable[[np.ndarray], np.ndarray] | None, loss: str, tmp_path: Path
) -> None:
    """Labels are booleans, or floats of shape (n, 1); without labels the teacher's answers count."""
    teacher = teacher_of(activation)
    answers = np.asarray(teacher(IMAGES))[:, 0] > (0.5 if activation else 0.0)
    data = data_of(None if shape is None else shape(answers))
    result = pbd.distill(teacher, data, fine_tune_loss=loss, run_dir=str(tmp_path / "run"), **CHEAP)
    report = result.report
    assert report.teacher.test_accuracy == (None if shape is None else 1.0)
    assert (report.student.test_agreement or 0.0) > 0.6
    for name in ("student.keras", "student_folded.keras"):
        student = keras.models.load_model(tmp_path / "run" / name)
        outputs = student.predict(IMAGES, verbose=0)
        assert outputs.shape == (96, 1)
        assert (outputs.min() >= 0.0 and outputs.max() <= 1.0) == (activation == "sigmoid")


@pytest.mark.parametrize(
    ("activation", "outputs", "classes", "message"),
    [
        ("hard_sigmoid", 1, 2, r"sigmoid or .* Received: .*'head'. Train it with Dense"),
        ("tanh", 1, None, r"sigmoid or .* Received: .*'head'. Train it with Dense"),
        ("sigmoid", 1, 3, r"classes 0 and 1. Received: labels up to 2. Correct the labels"),
        ("sigmoid", 2, 3, r"an output for each class"),
    ],
)
def test_other_heads_and_labels_are_refused(
    activation: str, outputs: int, classes: int | None, message: str, tmp_path: Path
) -> None:
    data = data_of(None if classes is None else np.arange(len(IMAGES)) % classes)
    with pytest.raises(BadInputError, match=message):
        pbd.distill(teacher_of(activation, outputs), data, run_dir=str(tmp_path / "run"), **CHEAP)
    assert not (tmp_path / "run").exists()


LOGITS: dict[str, Callable[[Any], Any]] = {
    "normalised": lambda x: keras.layers.BatchNormalization()(keras.layers.Dense(1)(x)),
    "sum": lambda x: keras.layers.Add()([keras.layers.Dense(1)(x), keras.layers.Dense(1)(x)]),
    "scaled": lambda x: keras.layers.Rescaling(0.5)(keras.layers.Dense(1)(x)),
}


@pytest.mark.parametrize("case", LOGITS)
def test_a_last_sigmoid_may_read_any_operation(case: str) -> None:
    inputs = keras.Input((3,))
    input_checks.check_single_output(keras.Model(inputs, keras.layers.Activation("sigmoid")(LOGITS[case](inputs))), 2)
    with pytest.raises(BadInputError, match="a single output must come from a sigmoid"):
        input_checks.check_single_output(keras.Model(inputs, LOGITS[case](inputs)), 2)


def test_the_mean_of_outputs_is_a_logit_if_each_is_one() -> None:
    inputs = keras.Input((3,))
    for activation, are_logits in ((None, True), ("sigmoid", False)):
        answers = [keras.layers.Dense(1)(inputs), keras.layers.Dense(1, activation=activation)(inputs)]
        assert heads.ends_in_logits(keras.Model(inputs, keras.layers.Average()(answers))) == are_logits
