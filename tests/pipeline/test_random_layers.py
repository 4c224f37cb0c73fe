"""Teachers with random layers: the calls that fix `training=True`, and runs that are interrupted and resumed."""

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

import pbd
from pbd.student.checkpoints import CheckpointFile, FineTuneState

pytestmark = pytest.mark.usefixtures("eager_module")
IMAGES = np.random.default_rng(0).integers(0, 256, (64, 8, 8, 3), dtype=np.uint8)
CHEAP: dict[str, Any] = {"executor": "serial", "isolate": False, "costs": "macs", "epochs": 1, "fine_tune_epochs": 2}
CHEAP |= {"include_unprofitable": True, "max_accuracy_drop": 1.0, "allow_weak_teacher": True}


def teacher(**mode: bool) -> keras.Model:
    """Return a network whose random layers and batch normalisation are called with these arguments."""
    keras.utils.set_random_seed(1)
    layers = keras.layers
    inputs = keras.Input(IMAGES.shape[1:])
    x = layers.RandomFlip(seed=1)(inputs, **mode)
    x = layers.Conv2D(4, 3, name="first")(layers.Rescaling(1 / 255)(x))
    x = layers.BatchNormalization(moving_variance_initializer=keras.initializers.Constant(0.3))(x, **mode)
    x = layers.Dropout(0.3, seed=2)(layers.ReLU()(x), **mode)
    x = layers.GlobalAveragePooling2D()(layers.Conv2D(4, 3, name="second")(x))
    return keras.Model(inputs, layers.Dense(3)(x))


def distilled(run_dir: Path, resume: bool = False, **mode: bool) -> pbd.Result:
    data = pbd.Data(train=IMAGES, batch_size=16)
    return pbd.distill(teacher(**mode), data, run_dir=str(run_dir), resume=resume, **CHEAP)


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run directory of a run that was not interrupted, with calls in training mode."""
    folder = tmp_path_factory.mktemp("training") / "run"
    result = distilled(folder, training=True)
    assert [row.status for row in result.report.blocks] == ["accepted", "accepted"]
    return folder


def test_the_files_of_the_student_compute_the_same(run_dir: Path) -> None:
    student, folded = (keras.models.load_model(run_dir / f"student{which}.keras") for which in ("", "_folded"))
    outputs = student.predict(IMAGES, verbose=0)
    np.testing.assert_allclose(folded.predict(IMAGES, verbose=0), outputs, rtol=1e-4, atol=1e-5)


def test_neither_an_interruption_nor_training_true_changes_the_student(
    run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in `predict`, the mode of the whole network counts, not that of a call in it.

    The run is interrupted in the second epoch of fine-tuning, and lacks one of its two blocks as well.
    """
    write = CheckpointFile.write

    def write_and_interrupt(checkpoint: CheckpointFile, state: FineTuneState) -> None:
        write(checkpoint, state)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(CheckpointFile, "write", write_and_interrupt)
        with pytest.raises(KeyboardInterrupt):
            distilled(tmp_path / "run")
    (block,) = (tmp_path / "run" / "blocks").glob("second@*")
    block.unlink()
    result = distilled(tmp_path / "run", resume=True)
    assert [row["epoch"] for row in result.report.fine_tune_history] == [1, 2]
    expected = keras.models.load_model(run_dir / "student.keras").get_weights()
    for one, other in zip(result.model.get_weights(), expected, strict=True):
        np.testing.assert_array_equal(one, other)
