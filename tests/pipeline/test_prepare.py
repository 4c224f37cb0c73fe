"""What is refused before anything is loaded or trained, and how arrays from Python reach worker processes."""

import contextlib
import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import keras
import numpy as np
import pytest

import pbd
from pbd.config import RunConfig
from pbd.data import load
from pbd.errors import BadInputError, CannotCreateError, CorruptStateError, UsageError
from pbd.pipeline import built_in, input_checks, prepare
from pbd.pipeline.input_checks import check_designs
from pbd.progress import ProgressDisplay
from pbd.run_dir.journal import Journal
from tests.helpers.small_run import tiny_digits_network


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"block": "two_layers"}, "Did you mean 'two_layer'?"),
        ({"block": "decoupled_r4"}, "Did you mean 'decoupled_r"),
        ({"parallel": "data", "block": "two_layer"}, "block two_layer. Give --parallel task"),
        ({"parallel": "data", "precision": "float16"}, "precision float16. Give --precision bfloat16"),
    ],
)
def test_a_block_design_that_does_not_fit_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        check_designs(RunConfig.of(**settings))
    check_designs(RunConfig.of(parallel="data", block="decoupled_r1"))


def test_a_loss_without_epochs_needs_no_labels() -> None:
    unlabelled = SimpleNamespace(labelled=False, name="arrays")
    input_checks.check_labels(RunConfig.of(fine_tune_loss="mixed", fine_tune_epochs=0), unlabelled)
    with pytest.raises(BadInputError, match="mixed needs labels"):
        input_checks.check_labels(RunConfig.of(fine_tune_loss="mixed"), unlabelled)


IMAGES = np.random.default_rng(0).integers(0, 256, (90, 8, 8, 8), dtype=np.uint8)
LABELS = np.arange(90) % 3


def tiny_teacher(activation: str = "relu", name: str | None = "tiny") -> keras.Model:
    """Return a network of one convolution; without a name, Keras names it and its layers by its counters."""
    keras.utils.set_random_seed(1)
    inputs = keras.Input((8, 8, 8))
    features = keras.layers.Conv2D(16, 3, activation=activation, name=name and "conv")(inputs)
    outputs = keras.layers.Dense(3)(keras.layers.GlobalAveragePooling2D()(features))
    return keras.Model(inputs, outputs, name=name)


def config_for(data: pbd.Data, run_dir: Path, **settings: Any) -> RunConfig:
    return RunConfig(data=data.config).replace(run_dir=run_dir, teacher="tiny", **settings)


@pytest.mark.parametrize(
    ("shape", "outputs", "settings", "fits"),
    [
        ((32, 32, 1), 10, {}, True),
        ((None, None, 3), 10, {}, True),
        ((16, 16, 3), 10, {"image_size": 16}, True),
        ((16, 16, 3), 10, {}, False),
        ((32, 32, 1), 1000, {}, False),
        ((32, 32, 1), 4, {"labels": False}, False),
    ],
)
def test_a_trained_teacher_without_data_must_be_one_for_the_digits(
    shape: tuple[int | None, ...], outputs: int, settings: dict[str, Any], fits: bool, tmp_path: Path
) -> None:
    teacher = keras.Sequential([keras.Input(shape), keras.layers.Conv2D(8, 3), keras.layers.GlobalAveragePooling2D()])
    teacher.add(keras.layers.Dense(outputs))
    path = tmp_path / "teacher.keras"
    teacher.save(path)
    config = RunConfig.of(teacher=str(path), include_unprofitable=True, **settings)
    message = (
        rf"Received: no data, .* \(32x32x1, 10 classes\), for '.*teacher.keras' \(.*{outputs} outputs\). Give --data"
    )
    for model in (None, teacher):  # as a file, and from Python
        refused = contextlib.nullcontext() if fits else pytest.raises(UsageError, match=message)
        config = config.replace(run_dir=tmp_path / f"run {model is None}")
        with refused, prepare.prepare(config, model, None, ProgressDisplay()) as inputs:
            assert inputs.dataset.name == "digits"


@pytest.mark.parametrize(
    ("given", "keep", "event"),
    [
        (("validation", "test"), "best", None),
        (("test",), "last", "the validation images were split off"),
        (("validation",), "best", "the test images were split off"),
        ((), "last", "the validation and test images were split off"),
    ],
)
def test_the_last_epoch_counts_if_a_trained_teacher_probably_knows_the_validation_images(
    given: tuple[str, ...], keep: str, event: str | None, tmp_path: Path
) -> None:
    data = pbd.Data(train=(IMAGES, LABELS), **dict.fromkeys(given, (IMAGES[:30], LABELS[:30])), batch_size=16)
    config = config_for(data, tmp_path / "run", allow_weak_teacher=True)
    with prepare.prepare(config, tiny_teacher(), data, ProgressDisplay()) as inputs:
        assert inputs.with_resolved_keep(config).student.fine_tune_keep == keep
        assert inputs.with_resolved_keep(config.replace(fine_tune_keep="best")).student.fine_tune_keep == "best"
        assert [each.startswith(event or "") for each in inputs.events if "split off" in each] == [True] * bool(event)


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


def test_a_teacher_that_was_built_again_is_the_same_whatever_its_layers_are_called(tmp_path: Path) -> None:
    data = pbd.Data(train=(IMAGES, LABELS), batch_size=16)
    first, again = tiny_teacher(name=None), tiny_teacher(name=None)
    assert (first.name, first.layers[1].name) != (again.name, again.layers[1].name)
    config = config_for(data, tmp_path / "run").replace(teacher=first.name)
    with prepare.prepare(config, first, data, ProgressDisplay()) as inputs:
        keys = [task.key for task in inputs.tasks]
    with prepare.prepare(config.replace(teacher=again.name, resume=True), again, data, ProgressDisplay()) as resumed:
        assert [task.key for task in resumed.tasks] == keys == list(resumed.journal.keys())
        assert resumed.teacher.get_layer(keys[0].layer)


def test_a_run_is_not_resumed_with_another_teacher(tmp_path: Path) -> None:
    data = pbd.Data(train=(IMAGES, LABELS), batch_size=16)
    config = config_for(data, tmp_path / "run")
    with prepare.prepare(config, tiny_teacher(), data, ProgressDisplay()):
        pass
    kept = (tmp_path / "run" / "teacher.keras").read_bytes()
    with (
        pytest.raises(CorruptStateError, match="teacher_sha256"),
        prepare.prepare(config.replace(resume=True), tiny_teacher("tanh"), data, ProgressDisplay()),
    ):
        pass
    assert (tmp_path / "run" / "teacher.keras").read_bytes() == kept


def test_the_paths_of_files_that_are_read_whole_may_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    np.savez("data.npz", x_train=IMAGES, y_train=LABELS)
    tiny_teacher().save("tiny.keras")
    config = RunConfig.of(run_dir="run", teacher="tiny.keras", dataset="data.npz", batch_size=16)
    with prepare.prepare(config, None, None, ProgressDisplay()):
        pass
    moved = {"teacher": tmp_path / "tiny.keras", "dataset": "./data.npz", "teacher_epochs": 3, "resume": True}
    with prepare.prepare(config.replace(**moved), None, None, ProgressDisplay()):
        pass
    with (
        pytest.raises(CorruptStateError, match="preprocess was 'none' and is 'unit' now"),
        prepare.prepare(config.replace(**moved, preprocess="unit"), None, None, ProgressDisplay()),
    ):
        pass


def test_a_folder_of_images_counts_by_its_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The digest has the names of its files only."""
    for number in range(40):
        path = tmp_path / "images" / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        keras.utils.save_img(path, np.full((8, 8, 3), number), scale=False)
    inputs = keras.Input((8, 8, 3))
    features = keras.layers.Conv2D(4, 3)(inputs)
    teacher = keras.Model(inputs, keras.layers.Dense(2)(keras.layers.GlobalAveragePooling2D()(features)))
    monkeypatch.chdir(tmp_path)
    config = RunConfig.of(run_dir="run", dataset="images", batch_size=8, include_unprofitable=True)
    with prepare.prepare(config, teacher, None, ProgressDisplay()):
        pass
    with prepare.prepare(config.replace(dataset="./images", resume=True), teacher, None, ProgressDisplay()):
        pass
    (tmp_path / "images").rename(tmp_path / "others")
    with (
        pytest.raises(CorruptStateError, match=r"dataset was '.*images' and is '.*others' now"),
        prepare.prepare(config.replace(dataset="others", resume=True), teacher, None, ProgressDisplay()),
    ):
        pass


@pytest.mark.usefixtures("eager")
def test_a_built_in_teacher_is_trained_anew_for_other_arrays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(built_in.BUILT_IN, "digits_cnn", tiny_digits_network)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    images = IMAGES[..., :1]
    for number, labels in enumerate((LABELS, LABELS[::-1], LABELS)):
        data = pbd.Data(train=(images, labels), batch_size=16, labels=number != 2)
        config = RunConfig(data=data.config).replace(run_dir=tmp_path / str(number), teacher_epochs=1)
        with prepare.prepare(config, None, data, ProgressDisplay()) as inputs:
            assert inputs.teacher.output_shape == (None, 3)
            assert inputs.with_resolved_keep(config).student.fine_tune_keep == "best", (
                "it has not seen the validation images"
            )
    assert len(list((tmp_path / "cache" / "pbd" / "teachers").glob("digits_cnn-arrays-*.keras"))) == 3


def test_the_cached_teacher_of_a_folder_is_that_of_its_files(tmp_path: Path) -> None:
    for file in ("cats/1.png", "dogs/2.png"):
        (tmp_path / file).parent.mkdir()
        (tmp_path / file).write_bytes(b"pixels")

    def path() -> Path:
        return built_in.cache_path(RunConfig().teacher, SimpleNamespace(name=str(tmp_path), train=range(2)), {})

    paths = [path(), path()]
    (tmp_path / "cats" / "1.png").rename(tmp_path / "dogs" / "1.png")
    paths.append(path())
    (tmp_path / "dogs" / "1.png").write_bytes(b"other pixels")
    paths.append(path())
    assert paths[0] == paths[1]
    assert len(set(paths)) == 3


def test_runs_that_start_in_the_same_second_have_folders_of_their_own(tmp_path: Path) -> None:
    path = tmp_path / "runs" / "digits_cnn-digits-20261130-060839"
    with ThreadPoolExecutor(4) as pool:
        folders = list(pool.map(prepare._new_folder, [path] * 4))
    assert sorted(folder.name.removeprefix(path.name) for folder in folders) == ["", "-2", "-3", "-4"]
    (tmp_path / "file").touch()
    with pytest.raises(CannotCreateError, match="Not a directory"):
        Journal.create(prepare._new_folder(tmp_path / "file" / "run"), {})


def test_a_second_run_without_a_name_for_its_directory_has_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(prepare, "time", SimpleNamespace(strftime=lambda _: "20261130-060839"))
    data = pbd.Data(train=(IMAGES, LABELS), batch_size=16)
    config = RunConfig(data=data.config).replace(teacher="tiny", include_unprofitable=True, allow_weak_teacher=True)
    names = []
    for _ in range(2):
        with prepare.prepare(config, tiny_teacher(), data, ProgressDisplay()) as inputs:
            names.append(inputs.journal.path.name)
    assert names == ["tiny-arrays-20261130-060839", "tiny-arrays-20261130-060839-2"]
