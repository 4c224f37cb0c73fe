"""Training for 8-bit integers as a step: on the workers, with progress, and from its checkpoint."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import keras
import numpy as np
import pytest

import pbd
from pbd.compression import qat, quantization
from pbd.compression.api import Compressed
from pbd.config import StudentConfig
from pbd.deploy import deployment
from pbd.deploy.int8 import quantizing
from pbd.records import Progress
from pbd.run_dir.journal import Journal
from pbd.student.checkpoints import CheckpointFile, FineTuneState
from tests.compression.test_quantization import DATA, LABELS, PIXELS, teacher
from tests.helpers.step_workers import Threads, network_and_context

pytestmark = pytest.mark.usefixtures("eager")
STEP = pbd.Quantize(method="qat", target="onnx-int8", epochs=3, learning_rate=1e-3, calibration_images=16)


@pytest.fixture
def compress(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Compressed]:
    pytest.importorskip("onnxruntime")
    monkeypatch.setattr(deployment, "measure", lambda *_, **__: deployment.Deployed())

    def run(name: str, resume: bool = False) -> Compressed:
        config = pbd.RunConfig.of(allow_weak_teacher=True, precision="bfloat16")
        settings = {"executor": "serial", "isolate": False, "targets": "keras"}
        return pbd.compress(
            teacher(), DATA, [STEP], config=config, run_dir=str(tmp_path / name), resume=resume, **settings
        )

    return run


def test_training_for_integers_shows_its_progress_and_goes_on_from_its_checkpoint(
    compress: Callable[..., Compressed], monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[Progress] = []
    with monkeypatch.context() as watched:
        watched.setattr("pbd.progress.LineProgress.update", lambda _, event: shown.append(event))
        whole = compress("whole")
    assert {event.epoch for event in shown if event.label == "fine-tuning"} == {1, 2, 3}
    (step,) = whole.report.steps[1:]
    assert step.details["method"] == "qat"
    write, epochs = CheckpointFile.write, list[int]()

    def interrupting(file: CheckpointFile, state: FineTuneState) -> None:
        write(file, state)
        epochs.append(state.epoch)
        if epochs == [1, 2]:
            raise KeyboardInterrupt

    monkeypatch.setattr(CheckpointFile, "write", interrupting)
    with pytest.raises(KeyboardInterrupt):
        compress("resumed")
    resumed = compress("resumed", resume=True)
    assert epochs == [1, 2, 3]
    for expected, weights in zip(whole.model.get_weights(), resumed.model.get_weights(), strict=True):
        np.testing.assert_array_equal(weights, expected)


def test_a_file_of_the_other_method_is_an_event(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnxruntime")
    context = SimpleNamespace(target=None, journal=Journal(tmp_path), dataset=None, fine_tune=None, keeps_zeros=False)
    for method, events in (("ptq", 1), ("qat", 0)):
        file = SimpleNamespace(method=method, val_accuracy=0.5, float_val_accuracy=0.5, kept_float=())
        monkeypatch.setattr(
            quantization, "written", lambda *_, file=file: SimpleNamespace(file=file, network=teacher())
        )
        assert len(STEP.apply(teacher(), context).events) == events  # type: ignore[arg-type]


def test_zeros_of_pruned_weights_are_zeros_of_the_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnx", reason="the files are read with onnx")
    monkeypatch.setattr(deployment, "measure", lambda *_, **__: deployment.Deployed())
    # What was trained is kept, even if it is worse.
    monkeypatch.setattr(quantizing.Files, "accuracies", lambda *_: (1.0, 1.0))
    last = {"fine_tune_keep": "last"}
    monkeypatch.setattr(qat, "StudentConfig", lambda **settings: StudentConfig(**(settings | last)))
    after_training = pbd.Quantize(target="onnx-int8", calibration_images=16)
    steps = [pbd.PruneWeights(0.5), after_training, dataclasses.replace(STEP, epochs=1, learning_rate=0.02)]
    settings = {"executor": "serial", "isolate": False, "targets": "keras", "run_dir": str(tmp_path / "run")}
    result = pbd.compress(teacher(), DATA, steps, config=pbd.RunConfig.of(allow_weak_teacher=True), **settings)
    before, trained = result.network("2 quantize"), result.model
    assert result.report.steps[3].details["method"] == "qat"
    pbd.export(before, tmp_path / "network.onnx", "onnx")
    written = kernels_in(tmp_path / "network.onnx")
    folders = [result.run_dir / f"steps/0{number}-quantize" for number in (2, 3)]
    integers = [kernels_in(folder / "network_int8.onnx") for folder in folders]
    for kernel, rounded in zip(kernels_of(before), kernels_of(trained), strict=True):
        zeros, shape = kernel == 0, kernel.shape
        assert zeros.mean() == pytest.approx(0.5, abs=0.01)
        assert np.array_equal(written[shape] == 0, zeros)
        assert np.all(rounded[zeros] == 0)
        for kernels in integers:
            assert kernels[shape].dtype == np.int8
            assert np.all(kernels[shape][zeros] == 0)


def kernels_of(model: keras.Model) -> list[np.ndarray]:
    """Return the kernels of all convolutions of a network."""
    return [layer.get_weights()[0] for layer in model.layers if isinstance(layer, keras.layers.Conv2D)]


def kernels_in(path: Path) -> dict[tuple[int, ...], np.ndarray]:
    """Return the kernels of all convolutions of an ONNX file by shape, with axes in the order of Keras."""
    import onnx

    constants = map(onnx.numpy_helper.to_array, onnx.load(path).graph.initializer)
    kernels = [constant.transpose(2, 3, 1, 0) for constant in constants if constant.ndim == 4]
    return {kernel.shape: kernel for kernel in kernels}


def test_the_file_of_a_step_and_its_accuracy_are_in_the_table_and_among_the_events(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    step = pbd.Quantize(target="onnx-int8", max_drop=1.0, calibration_images=16)
    config = pbd.RunConfig.of(allow_weak_teacher=True)
    settings = {"executor": "serial", "isolate": False, "targets": (), "run_dir": str(tmp_path)}
    result = pbd.compress(teacher(), DATA, [step], config=config, **settings)
    report = result.report.steps[1]
    (file,) = report.quantized
    assert file.val_score == report.details["validation_accuracy"]
    assert (tmp_path / file.path).is_file()
    event = f"8-bit integers: steps/01-quantize/network_int8.onnx, validation accuracy {file.val_score:.2%}"
    assert report.events == (event,)
    assert f"1 quantize: {event}" in (tmp_path / "summary.txt").read_text()
    page = (tmp_path / "recipe.html").read_text()
    assert event in page
    assert "8-bit accuracy" in page
    assert result.table() == (tmp_path / "summary.txt").read_text()


class Recorded(Threads):
    """Threads that keep the states of fine-tuning."""

    def __init__(self, count: int) -> None:
        super().__init__(count)
        self.states: list[FineTuneState] = []

    def run_collective(self, function: Any, *arguments: Any) -> Any:
        result = super().run_collective(function, *arguments)
        if isinstance(result, FineTuneState):
            self.states.append(result)
        return result


def test_two_workers_train_the_network_that_one_trains(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    np.savez(tmp_path / "images.npz", x_train=PIXELS, y_train=LABELS, x_test=PIXELS, y_test=LABELS)
    data = pbd.Data.load(str(tmp_path / "images.npz"), batch_size=16, validation_fraction=0.5)
    model, context = network_and_context(teacher(), data, tmp_path / "run")
    step, states = dataclasses.replace(STEP, epochs=2), list[FineTuneState]()
    for count in (1, 2):
        workers, journal = Recorded(count), Journal.create(tmp_path / f"of {count}", {})
        step.apply(model, dataclasses.replace(context, executor=workers, journal=journal))  # type: ignore[arg-type]
        states += workers.states
    alone, together = states
    losses = [[row["loss"] for row in state.history] for state in states]
    assert len(losses[0]) == step.epochs
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)
    for expected, weights in zip(alone.best_weights, together.best_weights, strict=True):
        np.testing.assert_allclose(weights, expected, atol=1e-4)
