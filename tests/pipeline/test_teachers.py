"""The source of the teacher: a missing or broken one is refused in one line, before anything is trained."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pbd import blocks
from pbd.blockwise.tasks import enumerate_tasks
from pbd.config import RunConfig, TeacherConfig
from pbd.errors import BadInputError, MissingInputError, PbdError, UsageError
from pbd.networks import files
from pbd.pipeline import built_in, teachers
from pbd.progress import ProgressDisplay


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "digits.keras"
    built_in.digits_cnn((16, 16, 1), 4).save(path)
    return path


def source(run_dir: Path = Path("nowhere"), **settings: Any) -> teachers.TeacherSource:
    """Return the source of the teacher that these settings name."""
    config = RunConfig.of(run_dir=run_dir, **settings)
    return teachers.resolve(config, None, run_dir, ProgressDisplay(), lambda network: None)


def no_data() -> Any:
    pytest.fail("the data are not needed")


def refused(error: type[PbdError], code: int, **settings: Any) -> str:
    """Return the one line with which these settings are refused."""
    with pytest.raises(error) as caught:
        source(**settings).check()
    assert caught.value.exit_code == code
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_known_teachers_pass(saved: Path, tmp_path: Path) -> None:
    for name in ("digits_cnn", "VGG16", "ResNet50V2", "EfficientNetB0", str(saved)):
        source(teacher=name).check()
    source(teacher="VGG16", teacher_weights="imagenet").check()
    source(teacher="VGG16", teacher_weights=str(saved)).check()


def test_a_network_that_pbd_trains_on_the_data_did_not_come_trained(saved: Path) -> None:
    assert source(teacher=str(saved)).is_pretrained(10)
    assert source(teacher="VGG16", teacher_weights=str(saved)).is_pretrained(10)
    assert source(teacher="VGG16", teacher_weights="imagenet").is_pretrained(1000)
    assert not source(teacher="VGG16", teacher_weights="imagenet").is_pretrained(10), "its head is new"
    assert not source(teacher="digits_cnn").is_pretrained(10)


def test_a_missing_file_and_a_folder_are_missing_input(tmp_path: Path) -> None:
    for name in ("nowhere.keras", "nowhere.h5", str(tmp_path / "deep" / "nowhere")):
        assert f"Received: {name!r}, no such file" in refused(MissingInputError, 66, teacher=name)
    (tmp_path / "model.keras").mkdir()
    for folder in (tmp_path, tmp_path / "model.keras"):
        assert "a folder" in refused(MissingInputError, 66, teacher=str(folder))


def test_missing_weights_are_missing_input(tmp_path: Path) -> None:
    weights = str(tmp_path / "nowhere.weights.h5")
    assert weights in refused(MissingInputError, 66, teacher="VGG16", teacher_weights=weights)


@pytest.mark.parametrize(("name", "near"), [("VGG_16", "VGG16"), ("digits_cn", "digits_cnn"), ("Resnet50", "ResNet50")])
def test_an_unknown_name_is_answered_with_the_nearest(name: str, near: str) -> None:
    assert f"Did you mean '{near}'?" in refused(UsageError, 2, teacher=name)


def test_weights_alone_are_no_teacher(tmp_path: Path) -> None:
    path = tmp_path / "model.weights.h5"
    built_in.digits_cnn((16, 16, 1), 4).save_weights(path)
    with pytest.raises(BadInputError, match="must be a whole Keras model"):
        files.load(str(path))


@pytest.mark.parametrize("suffix", [".keras", ".h5"])
def test_a_saved_model_is_loaded_as_it_was(suffix: str, tmp_path: Path) -> None:
    model = built_in.digits_cnn((16, 16, 1), 4)
    model.compile(loss="mse")
    model.save(tmp_path / f"model{suffix}")
    loaded = files.load(str(tmp_path / f"model{suffix}"))
    assert not loaded.compiled
    images = np.random.default_rng(0).uniform(0, 255, (2, 16, 16, 1)).astype("float32")
    np.testing.assert_array_equal(loaded(images), model(images))


def test_digits_cnn_has_six_convolutions_that_a_block_makes_cheaper() -> None:
    model = built_in.build(TeacherConfig(), (32, 32, 1), 10, seed=0)
    tasks = enumerate_tasks(model, blocks.get("two_layer"), include_unprofitable=True)
    assert [task.layer.kernel_size for task in tasks] == [(3, 3)] * 6
    assert [task.macs < task.layer.macs for task in tasks] == [False, True, True, True, True, True]
    assert model.output_shape == (None, 10)


def test_a_built_teacher_depends_on_its_seed() -> None:
    first, again, other = (built_in.build(TeacherConfig(), (16, 16, 1), 4, seed).get_weights() for seed in (1, 1, 2))
    assert all(np.array_equal(x, y) for x, y in zip(first, again, strict=True))
    assert not np.array_equal(first[0], other[0])


def test_weights_are_loaded_into_a_built_teacher_or_refused(tmp_path: Path) -> None:
    path = str(tmp_path / "model.weights.h5")
    given = built_in.build(TeacherConfig(), (16, 16, 1), 4, seed=1)
    given.save_weights(path)
    config = TeacherConfig(teacher_weights=path)
    loaded = built_in.build(config, (16, 16, 1), 4, seed=2)
    assert all(np.array_equal(x, y) for x, y in zip(given.get_weights(), loaded.get_weights(), strict=True))
    with pytest.raises(BadInputError, match="must be those of digits_cnn") as caught:
        built_in.build(config, (16, 16, 1), 5, seed=2)
    assert "\n" not in str(caught.value)


def test_images_too_small_for_a_network_are_refused_in_one_line() -> None:
    with pytest.raises(BadInputError, match=r"InceptionV3 cannot be built for images \(32, 32, 3\)") as caught:
        built_in.build(TeacherConfig(teacher="InceptionV3"), (32, 32, 3), 10, seed=0)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("teacher", "module"),
    [
        ("VGG16", "vgg16"),
        ("VGG19", "vgg19"),
        ("ResNet50V2", "resnet_v2"),
        ("MobileNetV2", "mobilenet_v2"),
        ("DenseNet121", "densenet"),
        ("InceptionV3", "inception_v3"),
        ("digits_cnn", "none"),
        ("model.keras", "none"),
    ],
)
def test_auto_preprocessing_is_what_the_network_was_made_for(teacher: str, module: str) -> None:
    assert source(teacher=teacher).preprocessing() == module


def test_auto_preprocessing_of_resnet50_is_that_of_its_family() -> None:
    assert source(teacher="ResNet50").preprocessing() in ("resnet", "resnet50")


def test_a_source_knows_the_shape_of_its_images(saved: Path) -> None:
    assert source(teacher=str(saved)).image_shape() == (16, 16, 1)
    assert teachers.ModelTeacher(files.load(str(saved))).image_shape() == (16, 16, 1)
    assert source(teacher="VGG16").image_shape() == (None, None, 3)
    assert source().image_shape() is None


def test_a_file_and_a_model_need_no_data(saved: Path) -> None:
    model = files.load(str(saved))
    assert teachers.ModelTeacher(model).load(no_data) is model
    assert source(teacher=str(saved)).load(no_data).count_params() == model.count_params()


def test_only_foreign_files_are_checked_in_another_process(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checked = []
    monkeypatch.setattr(files.file_checks, "check_apart", lambda path, free: checked.append(path))
    path = saved.rename(saved.with_name("teacher.keras"))
    resumed = source(run_dir=path.parent, resume=True)
    assert resumed.image_shape() == (16, 16, 1)
    resumed.load(no_data)
    assert checked == []
    source(teacher=str(path)).load(no_data)
    assert checked == [str(path)]


def test_a_damaged_teacher_of_a_resumed_run_is_not_used(saved: Path) -> None:
    saved.with_name("teacher.keras").write_bytes(saved.read_bytes()[:1000])
    resumed = source(run_dir=saved.parent, resume=True)
    assert resumed.image_shape() is None
    with pytest.raises(pytest.fail.Exception, match="data are not needed"):
        resumed.load(no_data)
