"""Files that compute something else than the network that was scored are noticed before a run is complete."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

from pbd import errors
from pbd.deploy import inference_form, parity
from pbd.networks import files, graph
from pbd.run_dir.journal import Journal
from pbd.student import model_files
from tests.helpers.cluster import PATIENCE_S, environment
from tests.helpers.remedies import in_message, refusal

IMAGES = np.random.default_rng(0).normal(size=(4, 6, 6, 3)).astype(np.float32)


def network(activation: str = "softmax", dtype: str = "float32", seed: int = 0) -> keras.Model:
    keras.utils.set_random_seed(seed)
    inputs = keras.Input(IMAGES.shape[1:])
    x = keras.layers.Conv2D(4, 3, use_bias=False, dtype=dtype)(inputs)
    x = keras.layers.BatchNormalization(dtype=dtype)(x)
    x = keras.layers.GlobalAveragePooling2D(dtype=dtype)(x)
    return graph.flatten(keras.Model(inputs, keras.layers.Dense(3, activation=activation, dtype=dtype)(x)))


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    return Journal.create(tmp_path / "run", {}, [])


@pytest.mark.parametrize("dtype", ["float32", "mixed_float16", "mixed_bfloat16"])
def test_files_that_compute_the_same_are_written_without_events(dtype: str, journal: Journal) -> None:
    student = network(dtype=dtype)
    assert model_files.write(journal, student, IMAGES) == ()
    folded = files.load_own(journal.file(model_files.FOLDED))
    assert not any(isinstance(layer, keras.layers.BatchNormalization) for layer in folded.layers)


@pytest.mark.parametrize("activation", ["softmax", "linear"])
def test_a_folded_network_that_computes_something_else_is_not_written(
    activation: str, journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    student = network(activation)
    monkeypatch.setattr(inference_form, "fold", lambda model: network(activation, seed=1))
    (event,) = model_files.write(journal, student, IMAGES)
    assert "student_folded.keras holds the student as it is" in event
    assert parity.mismatch(journal.file(model_files.FOLDED), student, IMAGES) is None


def test_a_student_whose_file_computes_something_else_is_an_error(
    journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "model_bytes", lambda model, original=files.model_bytes: original(network(seed=1)))
    with pytest.raises(errors.PbdError, match=r"student.keras must compute .* Received: .* off .*--resume"):
        model_files.write(journal, network(), IMAGES)


def with_fused_sum(activation: Any) -> keras.Model:
    """Return a network with a convolution with bias before a sum and an activation."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input(IMAGES.shape[1:])
    x = keras.layers.Conv2D(3, 3, padding="same", bias_initializer="random_normal")(inputs) + inputs
    x = keras.layers.GlobalAveragePooling2D()(keras.layers.Activation(activation)(x))
    return graph.flatten(keras.Model(inputs, keras.layers.Dense(3)(x)))


def is_computed_right(model: keras.Model) -> bool:
    """Return whether TensorFlow computes a network right here; it uses the faulty kernels on newer CPUs only."""
    from tensorflow.errors import OpError

    try:
        outputs = model.predict_on_batch(IMAGES)
    except OpError:
        return False
    return np.allclose(outputs, model(IMAGES), rtol=1e-3, atol=1e-4)


WITHOUT_FUSED_KERNELS = """
import sys
from pathlib import Path
from pbd.system import backend
backend.dedicate_process()
backend.load()
import keras, numpy
from pbd.student import model_files
path = Path(sys.argv[1])
model_files.check_teacher(path, keras.models.load_model(path), numpy.load(sys.argv[2]))
"""


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="a fault of TensorFlow's fused kernels")
@pytest.mark.parametrize(
    ("activation", "reason", "follow"), [("mish", "cannot be run", False), (keras.layers.LeakyReLU(0.1), "off", True)]
)
def test_a_teacher_that_tensorflow_computes_wrongly_is_refused(
    activation: Any, reason: str, follow: bool, journal: Journal
) -> None:
    teacher = with_fused_sum(activation)
    if is_computed_right(teacher):
        pytest.skip("TensorFlow's kernels for this CPU compute it right")
    path = journal.write_bytes("teacher.keras", files.model_bytes(teacher))
    message = refusal(lambda: model_files.check_teacher(path, teacher, IMAGES), reason)
    name, value = in_message(r"Set (\w+=\w+) in the environment and go on with --resume", message).split("=")
    if follow:
        np.save(journal.file("images.npy"), IMAGES)
        command = [sys.executable, "-c", WITHOUT_FUSED_KERNELS, str(path), str(journal.file("images.npy"))]
        subprocess.run(command, check=True, timeout=PATIENCE_S, env=environment(**{name: value}))


@pytest.mark.parametrize(
    ("expected", "outputs", "largest"),
    [
        ([[1.0, -4.0]], [[1.0, -4.0]], 0.0),
        ([[1.0, -4.0]], [[1.0, -3.0]], 0.25),
        ([[0.0, 0.0]], [[0.0, 0.0]], 0.0),
        ([[np.nan, 1.0]], [[np.nan, 1.0]], 0.0),
        ([[0.0, 1.0]], [[np.nan, 1.0]], np.inf),
    ],
)
def test_differences_are_relative_to_the_largest_score(
    expected: list[list[float]], outputs: list[list[float]], largest: float
) -> None:
    assert parity.difference(np.array(expected), np.array(outputs)) == largest
