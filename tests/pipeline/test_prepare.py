"""What is refused before anything is loaded or trained, and how arrays from Python reach worker processes."""

import pickle
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

import pbd
from pbd.config import RunConfig
from pbd.data import load
from pbd.errors import CorruptStateError, UsageError
from pbd.pipeline import prepare
from pbd.pipeline.prepare import check_design
from pbd.progress import ProgressDisplay


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"block": "two_layers"}, "Did you mean 'two_layer'?"),
        ({"block": "decoupled_r4"}, "Did you mean 'decoupled_r"),
        ({"parallel": "data", "block": "two_layer"}, "block two_layer. Give --parallel task"),
    ],
)
def test_a_block_design_that_does_not_fit_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        check_design(RunConfig.of(**settings))
    check_design(RunConfig.of(parallel="data", block="decoupled_r1"))


IMAGES = np.random.default_rng(0).integers(0, 256, (90, 8, 8, 8), dtype=np.uint8)
LABELS = np.arange(90) % 3


def tiny_teacher() -> keras.Model:
    keras.utils.set_random_seed(1)
    inputs = keras.Input((8, 8, 8))
    features = keras.layers.Conv2D(16, 3, activation="relu", name="conv")(inputs)
    outputs = keras.layers.Dense(3)(keras.layers.GlobalAveragePooling2D()(features))
    return keras.Model(inputs, outputs, name="tiny")


def config_for(data: pbd.Data, run_dir: Path, **settings: Any) -> RunConfig:
    return RunConfig(data=data.config).replace(run_dir=run_dir, teacher="tiny", **settings)


def test_arrays_lie_in_the_run_directory_while_the_run_is_at_work(tmp_path: Path) -> None:
    data = pbd.Data(train=(IMAGES / 255, LABELS), batch_size=16, augment="flip_crop")
    config = config_for(data, tmp_path / "run")
    with prepare.prepare(config, tiny_teacher(), data, ProgressDisplay()) as inputs:
        assert inputs.dataset.name == config.flat()["dataset"] == "arrays"
        path = Path(inputs.data_config.dataset)
        assert path.parent == tmp_path / "run"
        sent = pickle.dumps(inputs.data_config)
        assert len(sent) < 1000
        worker = load(pickle.loads(sent), config.seed, inputs.dataset.image_shape)
        assert worker.digest() == inputs.dataset.digest()
    assert not path.exists()


def test_arrays_are_removed_also_if_the_run_fails(tmp_path: Path) -> None:
    data = pbd.Data(train=(IMAGES, LABELS), batch_size=16)
    with (
        pytest.raises(RuntimeError),
        prepare.prepare(config_for(data, tmp_path / "run"), tiny_teacher(), data, ProgressDisplay()),
    ):
        raise RuntimeError
    assert not list((tmp_path / "run").glob("*.npz"))


def test_a_run_is_resumed_with_the_same_arrays_only(tmp_path: Path) -> None:
    data, other = (pbd.Data(train=(images, LABELS), batch_size=16) for images in (IMAGES, IMAGES[::-1]))
    with prepare.prepare(config_for(data, tmp_path / "run"), tiny_teacher(), data, ProgressDisplay()):
        pass
    config = config_for(data, tmp_path / "run", resume=True)
    with prepare.prepare(config, tiny_teacher(), data, ProgressDisplay()):
        pass
    with (
        pytest.raises(CorruptStateError, match="data_sha256"),
        prepare.prepare(config, tiny_teacher(), other, ProgressDisplay()),
    ):
        pass


def test_a_built_in_teacher_is_trained_anew_for_other_arrays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    images = IMAGES[..., :1]
    for number, labels in enumerate((LABELS, LABELS[::-1], LABELS)):
        data = pbd.Data(train=(images, labels), batch_size=16, labels=number != 2)
        config = RunConfig(data=data.config).replace(run_dir=tmp_path / str(number), teacher_epochs=1)
        with prepare.prepare(config, None, data, ProgressDisplay()) as inputs:
            assert inputs.teacher.output_shape == (None, 3)
    assert len(list((tmp_path / "cache" / "pbd" / "teachers").glob("digits_cnn-arrays-*.keras"))) == 3
