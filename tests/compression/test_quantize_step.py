"""Training for 8-bit integers as a step: on the workers, with progress, and from its checkpoint."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import pbd
from pbd.compression import quantization
from pbd.compression.api import Compressed
from pbd.deploy import deployment
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
