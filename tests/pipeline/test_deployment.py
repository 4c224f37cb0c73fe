"""A run measures teacher and student where they are deployed, and keeps the files of the student."""

import json
import shutil
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

import pbd
from pbd.deploy import deployment, exporting, targets
from pbd.deploy import images as deployed_images
from pbd.deploy.runtimes.keras import Keras
from pbd.errors import BadInputError, EnvironmentMismatchError, UsageError
from pbd.run_dir import manifest
from pbd.run_dir.journal import Journal
from tests.deploy.small_networks import classifier, data, images
from tests.helpers import short_latencies

pytestmark = pytest.mark.usefixtures("eager_module")
CHEAP: dict[str, Any] = {"executor": "serial", "isolate": False, "costs": "macs", "epochs": 1, "fine_tune_epochs": 1}
CHEAP |= {"max_accuracy_drop": 1.0}
needs_onnx = pytest.mark.skipif(targets.TARGETS["onnx-int8"].obstacle() is not None, reason="ONNX Runtime is absent")


def run(run_dir: Path, **settings: Any) -> pbd.Result:
    model = classifier()
    return pbd.distill(model, data(model), run_dir=str(run_dir), **CHEAP | settings)


@pytest.fixture(scope="module")
def in_keras(tmp_path_factory: pytest.TempPathFactory) -> pbd.Result:
    """Return what a run gave that was measured in Keras, by default, as if no other runtime was installed."""
    with short_latencies.here(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(targets, "usable_int8", lambda: None)
        return run(tmp_path_factory.mktemp("keras") / "run")


@pytest.fixture(scope="module")
def in_onnx(in_keras: pbd.Result, tmp_path_factory: pytest.TempPathFactory) -> pbd.Result:
    """Return what the same run gave when it was resumed with another target."""
    with short_latencies.here():
        return run(copy(in_keras, tmp_path_factory.mktemp("onnx")), target="onnx", resume=True)


def copy(result: pbd.Result, folder: Path) -> Path:
    """Return a copy of the directory of a run, in this folder."""
    return Path(shutil.copytree(result.run_dir, folder / "run"))


@needs_onnx
def test_both_precisions_are_measured_and_the_files_of_the_student_are_kept(
    in_onnx: pbd.Result, tmp_path: Path
) -> None:
    rows = in_onnx.report.deployments
    assert [(row.model, row.target) for row in rows] == [
        (model, target) for target in ("onnx", "onnx-int8") for model in ("teacher", "student")
    ]
    for row in rows:
        assert [each.batch for each in row.latency] == [1, 32]
        assert all(0 < each.q1_s <= each.seconds <= each.q3_s for each in row.latency)
        assert 0 <= row.test_accuracy <= 1
        assert row.test_images == 48
        assert row.memory_bytes is None or row.memory_bytes > 0
    assert [each.times_as_fast for each in rows[0].latency] == [1.0, 1.0]
    assert [each.times_as_fast_as_int8 for each in rows[2].latency] == [1.0, 1.0]
    assert (rows[0].test_accuracy, rows[0].test_agreement) == (1.0, 1.0)
    assert [row.files for row in rows] == [(), ("student.onnx",), (), ("student_int8.onnx",)]
    pixels, run_dir = images(4).astype("float32"), copy(in_onnx, tmp_path)
    student = targets.TARGETS["onnx"].load(run_dir / "student.onnx", 1)
    np.testing.assert_allclose(student(pixels), in_onnx.model(pixels), rtol=1e-3, atol=1e-4)
    assert manifest.is_intact(Journal(run_dir))
    (run_dir / "student_int8.onnx").write_bytes(b"")
    assert manifest.damaged(Journal(run_dir)) == ["student_int8.onnx"]


@needs_onnx
def test_a_complete_run_without_a_budget_is_measured_in_another_target(
    in_keras: pbd.Result, in_onnx: pbd.Result, tmp_path: Path
) -> None:
    assert {row.target for row in in_keras.report.deployments} == {"keras"}
    assert {row.target for row in in_onnx.report.deployments} == {"onnx", "onnx-int8"}
    assert in_onnx.report.config["target"] == "onnx"
    for one, other in zip(in_keras.model.get_weights(), in_onnx.model.get_weights(), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6)
    files, run_dir = {"student.keras", "student_folded.keras"}, copy(in_onnx, tmp_path)
    of_onnx = files | {"student.onnx", "student_int8.onnx"}
    assert {path.name for path in run_dir.glob("student*")} == of_onnx
    (run_dir / "student_litert.tflite").write_bytes(b"exported by hand")
    run(run_dir, target="keras", resume=True)
    assert {path.name for path in run_dir.glob("student*")} == files | {"student_litert.tflite"}


def test_the_same_answers_count_the_same_with_and_without_a_sigmoid(tmp_path: Path) -> None:
    inputs = keras.Input((4, 4, 1))
    scores = keras.layers.Dense(1)(keras.layers.Flatten()(inputs))
    outputs = keras.layers.Activation("sigmoid")(scores)
    pixels = np.random.default_rng(0).normal(size=(48, 4, 4, 1)).astype("float32")
    of = {name: keras.Model(inputs, end) for name, end in (("teacher", scores), ("student", outputs))}
    labels = (of["teacher"].predict_on_batch(pixels)[:, 0] > 0).astype(int)
    given = pbd.Data(train=(pixels, labels), validation=(pixels, labels), test=(pixels, labels))
    dataset = deployed_images.load(given, of["teacher"], seed=0)
    measured = deployment.measure(of, dataset, targets.TARGETS["keras"], [1], lambda path: None)
    assert {(row.test_accuracy, row.test_agreement) for row in measured.deployments} == {(1.0, 1.0)}


def test_the_report_says_how_the_images_were_preprocessed(in_keras: pbd.Result) -> None:
    config = in_keras.report.config
    assert (pbd.RunConfig().data.preprocess, config["preprocess"]) == ("auto", "none")


def test_images_for_a_network_of_a_free_size_keep_its_channels() -> None:
    network = keras.Sequential([keras.Input((None, None, 3)), keras.layers.GlobalAveragePooling2D()])
    grey = pbd.Data(train=images(8)[..., :1], validation=images(8)[..., :1], test=images(8)[..., :1], labels=False)
    assert deployed_images.load(grey, network, seed=0).image_shape[2] == 3


def test_a_file_for_keras_on_a_gpu_does_not_replace_the_student_of_the_run() -> None:
    model, kept = classifier(), list[Path]()
    runtime = Keras("cpu")
    runtime.name = "keras-gpu"
    dataset = deployed_images.load(data(model), model, seed=0)
    deployed = deployment.measure(
        {"teacher": model, "student": model}, dataset, targets.Target(runtime), (1,), kept.append
    )
    assert [(row.target, row.files) for row in deployed.deployments] == [("keras-gpu", ())] * 2
    assert kept == []


def test_without_another_runtime_keras_is_measured_and_the_report_says_what_is_missing(
    in_keras: pbd.Result,
) -> None:
    report = in_keras.report
    assert [(row.model, row.target, row.files) for row in report.deployments] == [
        ("teacher", "keras", ()),
        ("student", "keras", ()),
    ]
    assert all(each.times_as_fast_as_int8 is None for row in report.deployments for each in row.latency)
    (event,) = report.events
    assert "pip install 'pbd[openvino]', 'pbd[onnx]' or 'pbd[litert]'" in event


def test_a_runtime_with_8_bit_integers_that_is_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(targets, "usable_int8", lambda: targets.TARGETS["openvino-int8"])
    model = classifier()
    dataset = deployed_images.load(data(model), model, seed=0)
    deployed = deployment.measure({"teacher": model}, dataset, targets.TARGETS["keras"], (1,), lambda path: None)
    remedy = "give --target openvino to measure where networks are deployed"
    assert deployed.events == (f"keras has no 8-bit integers: {remedy}",)


def test_the_first_usable_target_of_8_bit_integers_is_that_of_the_order_of_targets(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(targets.Target, "obstacle", lambda target: "absent" if "openvino" in target.name else None)
    assert targets.usable_int8() is targets.TARGETS["onnx-int8"]
    monkeypatch.setattr(targets.Target, "obstacle", lambda _: "absent")
    assert targets.usable_int8() is None


def measured_in_onnx() -> deployment.Deployed:
    """Return what is measured of a teacher and a student in ONNX Runtime."""
    model = classifier()
    dataset = deployed_images.load(data(model), model, seed=0)
    networks = {"teacher": model, "student": model}
    return deployment.measure(networks, dataset, targets.TARGETS["onnx"], (1,), lambda path: None)


@needs_onnx
def test_a_network_that_cannot_be_exported_is_measured_in_keras(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise BadInputError("the model cannot be written for onnx: a reason.")

    monkeypatch.setattr(exporting, "write", refuse)
    deployed = measured_in_onnx()
    assert [row.target for row in deployed.deployments] == ["keras", "keras"]
    assert deployed.events[-1].endswith("in Keras: the model cannot be written for onnx: a reason.")


@needs_onnx
def test_a_network_that_cannot_be_quantised_is_measured_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise BadInputError("too much is lost.")

    monkeypatch.setattr(deployment.quantizing.Files, "write", refuse)
    deployed = measured_in_onnx()
    assert [row.target for row in deployed.deployments] == ["onnx", "onnx"]
    assert deployed.events == tuple(
        f"no {name} in 8-bit integers: too much is lost." for name in ("teacher", "student")
    )


@pytest.mark.parametrize(
    ("target", "error"), [("onxx", UsageError), ("keras-gpu", EnvironmentMismatchError), ("tensorrt", UsageError)]
)
def test_a_target_that_cannot_be_used_is_refused_before_training(
    target: str, error: type[Exception], tmp_path: Path
) -> None:
    with pytest.raises(error):
        run(tmp_path / "run", target=target)
    assert not (tmp_path / "run").exists()


@needs_onnx
def test_the_command_quantises_with_the_data_of_the_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from pbd import cli

    model = classifier()
    model.save(tmp_path / "teacher.keras")
    (x, y), (x_test, y_test) = data(model).train, data(model).test
    np.savez(tmp_path / "images.npz", x_train=x, y_train=y, x_test=x_test, y_test=y_test)
    source = pbd.Data.load(str(tmp_path / "images.npz"), batch_size=16)
    settings: dict[str, Any] = {**CHEAP, "epochs": 0, "fine_tune_epochs": 0, "run_dir": str(tmp_path / "run")}
    pbd.distill(keras.models.load_model(tmp_path / "teacher.keras"), source, **settings)
    command = ["export", str(tmp_path / "run" / "student.keras"), "--target", "onnx", "--json"]
    capsys.readouterr()
    assert cli.command(command) == 0
    (file,) = json.loads(capsys.readouterr().out)
    assert file["checked_on"] == "test images"
    assert file["test_accuracy"] == file["keras_test_accuracy"]
