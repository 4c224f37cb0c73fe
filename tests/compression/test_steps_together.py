"""Steps behind one another: what a step knows of those before it, and of the recipe."""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import keras
import numpy as np
import pytest

import pbd
from pbd import status as pbd_status
from pbd.compression import compress_command, replace_blocks, run_recipe, step_reports
from pbd.compression.context import Context
from pbd.compression.step import StepResult, name_of
from pbd.deploy import deployment, exporting, targets
from pbd.errors import BadInputError, PbdError, UsageError
from pbd.networks import graph
from pbd.records import RunReport
from pbd.student.checkpoints import CheckpointFile, FineTuneState
from tests.helpers.report_factory import deployed, make_report

layers = keras.layers
pytestmark = pytest.mark.usefixtures("eager", "unmeasured")
PIXELS = np.random.default_rng(0).integers(0, 256, (32, 6, 6, 3)).astype(np.uint8)
LABELS = np.arange(32) % 4
DATA = pbd.Data(
    train=(PIXELS, LABELS),
    validation=(PIXELS[:16], LABELS[:16]),
    test=(PIXELS[16:32], LABELS[16:32]),
    batch_size=16,
)


@pytest.fixture
def unmeasured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out the measurements at the end of a recipe."""
    monkeypatch.setattr(deployment, "measure", lambda *_, **__: deployment.Deployed())


def network(seed: int = 0) -> keras.Model:
    keras.utils.set_random_seed(seed)
    inputs = keras.Input((6, 6, 3))
    x = layers.Conv2D(8, 3, padding="same", activation="relu", name="first")(layers.Rescaling(1 / 128, -1.0)(inputs))
    x = layers.Conv2D(8, 3, padding="same", activation="relu", name="second")(x)
    return keras.Model(inputs, layers.Dense(4, name="head")(layers.GlobalAveragePooling2D()(x)))


def classifier() -> keras.Model:
    """Return a network of one layer with weights."""
    inputs = keras.Input((6, 6, 3))
    outputs = layers.Dense(4, name="head")(layers.GlobalAveragePooling2D()(layers.Rescaling(1 / 128, -1.0)(inputs)))
    return keras.Model(inputs, outputs)


def compress(
    tmp_path: Path, *steps: Any, data: pbd.Data = DATA, start: keras.Model | None = None, **settings: Any
) -> Any:
    settings = {"executor": "serial", "isolate": False, "run_dir": str(tmp_path / "run"), "targets": "keras"} | settings
    of_config = {name: settings.pop(name) for name in ("precision", "fine_tune_keep", "parallel") if name in settings}
    config = pbd.RunConfig.of(allow_weak_teacher=True, **of_config)
    return pbd.compress(start or network(), data, steps, config=config, **settings)


@dataclass(frozen=True)
class Noted:
    """Notes what the context says."""

    contexts: list[Context]

    def apply(self, model: keras.Model, context: Context) -> StepResult:
        self.contexts.append(context)
        return StepResult(graph.flatten(model))


def test_zeros_of_members_stay_zero_behind_other_steps_and_the_ensemble(tmp_path: Path) -> None:
    contexts: list[Context] = []
    ensemble = pbd.Ensemble([[pbd.PruneWeights(0.5), pbd.FineTune(epochs=0)], [pbd.FineTune(epochs=0)]])
    compress(tmp_path, ensemble, Noted(contexts))
    assert [context.keeps_zeros for context in contexts] == [True]


def test_zeros_of_the_network_before_are_none_of_the_student(tmp_path: Path) -> None:
    contexts: list[Context] = []
    student = network(1)
    kernel, bias = student.get_layer("second").get_weights()
    student.get_layer("second").set_weights([np.where(kernel > 0, kernel, np.float32(0)), bias])
    steps = [pbd.PruneWeights(0.5), Noted(contexts), pbd.DistillInto(student, epochs=1, loss="kd_mse"), Noted(contexts)]
    result = compress(tmp_path, *steps)
    assert [context.keeps_zeros for context in contexts] == [True, False]
    assert result.report.steps[3].details["history"]
    assert np.mean(result.model.get_layer("second").get_weights()[0] == 0) < 0.1, "its zeros are trained"


@pytest.mark.parametrize(
    ("step", "settings"),
    [
        (pbd.Progressive, {"block": "two_layer", "epochs": 1}),
        (pbd.ReplaceBlocks, {"block": ("two_layer",), "epochs": 0, "accuracy_threshold": 0.0, "fine_tune_epochs": 1}),
    ],
)
def test_zeros_of_new_blocks_are_trained(step: Callable[..., Any], settings: dict[str, Any], tmp_path: Path) -> None:
    """The second layer of such a block begins as an identity: most of its weights are zero."""
    block = step(**settings, layers=("second",), include_unprofitable=True, block_init="fitted")
    result = compress(tmp_path, pbd.PruneWeights(0.3), block, fine_tune_keep="last")
    zeros = [np.mean(kernel == 0) for kernel in kernels_of(result.model)]
    assert zeros[0] == pytest.approx(0.3, abs=0.01), "pruned weights stay zero"
    assert max(zeros[1:]) < 0.1


def kernels_of(model: keras.Model) -> list[np.ndarray]:
    """Return the kernels of all convolutions of a network."""
    return [kernel.numpy() for kernel in model.trainable_variables if "kernel" in kernel.name and kernel.ndim == 4]


def test_blocks_and_their_student_are_trained_in_the_precision_of_the_recipe(tmp_path: Path) -> None:
    step = pbd.ReplaceBlocks(
        block=("decoupled_r1",), layers=("second",), epochs=0, accuracy_threshold=0.0, fine_tune_epochs=0
    )
    compress(tmp_path, step, precision="bfloat16")
    run_dir = tmp_path / "run/steps/01-replace_blocks/run"
    report = json.loads((run_dir / "report.json").read_text())
    assert report["config"]["precision"] == "bfloat16"
    config = pbd.RunConfig.of(**{name: report["config"][name] for name in ("precision", "epochs", "block", "layers")})
    assert replace_blocks._holds_run_of(run_dir, config)
    damaged = Path(shutil.copytree(run_dir, tmp_path / "damaged"))
    (damaged / "run.json").write_text("{")
    for folder, changed in ((run_dir, config.replace(precision="float32")), (damaged, config)):
        assert not replace_blocks._holds_run_of(folder, changed)
        assert not folder.exists(), "blocks of other settings are of no use"


def test_blocks_that_failed_are_reported_with_an_exit_code_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run_on(executor: Any, display: Any, config: pbd.RunConfig, model: keras.Model, is_step: bool) -> RunReport:
        run_dir = Path(str(config.execution.run_dir))
        run_dir.mkdir(parents=True)
        model.save(run_dir / "student.keras")
        return make_report()

    monkeypatch.setattr(replace_blocks.distill, "run_on", run_on)
    ensemble = pbd.Ensemble([[pbd.ReplaceBlocks()], [pbd.FineTune(epochs=0)]])
    report = compress(tmp_path, pbd.ReplaceBlocks(), ensemble).report
    alone, in_member = report.steps[1:]
    assert alone.details["failed_blocks"] == ["block3_conv1@two_layer"]
    assert any(event.startswith("block3_conv1 is not replaced by two_layer: ") for event in alone.events)
    assert any("layers replaced" in event for event in alone.events)
    assert in_member.events == ("member 1, step 1 replace_blocks: block3_conv1@two_layer failed",)
    assert pbd_status.main([str(tmp_path / "run")]) == 79
    assert "2 of 2 steps complete\nfailed: 1 replace_blocks: block3_conv1@two_layer, " in capsys.readouterr().out
    monkeypatch.setattr(run_recipe, "run", lambda *_, **__: report)
    assert compress_command._run(compress_command.Settings(pbd.RunConfig(), (), None, None)) == 79


@pytest.mark.parametrize("student", [lambda: network(1), lambda: "conv4_dense1_narrow"], ids=["own", "built in"])
def test_distillation_that_is_stopped_goes_on_after_its_last_epoch(
    student: Callable[[], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also if the student is built again, with other names of layers that have none of their own."""
    write, epochs = CheckpointFile.write, list[int]()

    def write_and_stop(file: CheckpointFile, state: FineTuneState) -> None:
        write(file, state)
        epochs.append(state.epoch)
        if epochs == [1]:
            raise PbdError("stopped")

    monkeypatch.setattr(CheckpointFile, "write", write_and_stop)
    with pytest.raises(PbdError, match="stopped"):
        compress(tmp_path, pbd.DistillInto(student(), epochs=2, loss="kd_mse"))
    result = compress(tmp_path, pbd.DistillInto(student(), epochs=2, loss="kd_mse"), resume=True)
    assert epochs == [1, 2]
    assert len(result.report.steps[1].details["history"]) == 2


def test_an_ensemble_of_an_ensemble_answers_with_the_mean_of_probabilities(tmp_path: Path) -> None:
    members = pbd.Ensemble([[pbd.FineTune(epochs=0)], [pbd.FineTune(epochs=0)]])
    result = compress(tmp_path, members, members, pbd.Ensemble(members.members, mean="logits"), start=classifier())
    pixels = PIXELS[:8].astype(np.float32)
    expected = result.network("1 ensemble").predict_on_batch(pixels)
    for name in ("2 ensemble", "3 ensemble"):
        assert np.allclose(result.network(name).predict_on_batch(pixels), expected, atol=1e-5), name
    assert result.report.steps[2].network.val_kl == pytest.approx(0.0, abs=1e-5)


def test_steps_know_the_target_of_the_recipe_and_a_resumed_recipe_another_one(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    contexts: list[Context] = []
    quantize = pbd.Quantize(max_drop=1.0, calibration_images=16)
    compress(tmp_path, Noted(contexts), targets=("keras", "onnx"))
    assert [(context.target.name, context.config.execution.target) for context in contexts] == [("keras", "keras")]
    contexts.clear()
    compress(tmp_path / "int8 budgets", Noted(contexts), targets="onnx-int8")
    assert (contexts[-1].target.name, contexts[-1].config.execution.target) == ("onnx", "onnx-int8")
    first = compress(tmp_path / "int8", quantize, pbd.FineTune(epochs=0), targets="onnx")
    assert first.report.steps[1].details["target"] == "onnx-int8"
    with pytest.raises(UsageError, match=r"a target must have 8-bit integers. Received: keras"):
        compress(tmp_path / "int8", quantize, pbd.FineTune(epochs=0), targets="keras", resume=True)


@dataclass(frozen=True)
class Quantized:
    """Writes a file of the name of a network in 8-bit integers, one layer of which stays in float32."""

    def apply(self, model: keras.Model, context: Context) -> StepResult:
        path = context.journal.file("network_int8.onnx")
        exporting.write(model, path, targets.TARGETS["onnx"])
        return StepResult(graph.flatten(model), {"kept_float": ["first"]}, quantized={"onnx-int8": path})


def test_layers_that_a_step_leaves_in_float32_are_in_the_table_of_deployments(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("onnxruntime")
    measured = list[dict[str, deployment.QuantizedFile]]()

    def measure(*_: Any, in_int8: dict[str, deployment.QuantizedFile], **__: Any) -> deployment.Deployed:
        measured.append(in_int8)
        return deployment.Deployed()

    monkeypatch.setattr(deployment, "measure", measure)
    result = compress(tmp_path, Quantized(), targets="onnx")
    path = result.run_dir / "steps/01-quantized/network_int8.onnx"
    assert measured == [{"1 quantized": deployment.QuantizedFile(path, ("first",))}]
    compress(tmp_path, Quantized(), targets="onnx", resume=True)
    assert len(measured) == 1, "the recipe is complete"
    path.write_bytes(b"damaged")
    compress(tmp_path, Quantized(), targets="onnx", resume=True)
    assert (len(measured), path.read_bytes() == b"damaged") == (2, False)


def test_networks_that_no_target_takes_have_one_row_in_keras(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    row = deployed("teacher", "keras", 0.5, (1.0, 2.0), ((1.0, 2.0), None))

    def measure(networks: Any, dataset: Any, target: targets.Target, *_: Any, **__: Any) -> deployment.Deployed:
        return deployment.Deployed([row], [f"measured in keras, not in {target.name}"])

    monkeypatch.setattr(deployment, "measure", measure)
    context = SimpleNamespace(display=SimpleNamespace(phase=print), dataset=None)
    rows, events = step_reports._deployed({}, context, ("openvino", "onnx"))  # type: ignore[arg-type]
    assert rows == [row]
    assert events == ["measured in keras, not in openvino", "measured in keras, not in onnx"]


@pytest.mark.parametrize(
    "step",
    [
        pbd.FineTune(epochs=1, loss="cross_entropy"),
        pbd.PruneWeights(0.5, epochs=1, loss="mixed"),
        pbd.PruneFilters(0.5, epochs=1, loss="mixed"),
        pbd.Ensemble([[pbd.FineTune(epochs=1, loss="mixed")], [pbd.FineTune(epochs=0)]]),
        pbd.Craft(tune_loss="mixed"),
        pbd.Progressive(loss="mixed"),
        pbd.ReplaceBlocks(fine_tune_loss="mixed", fine_tune_epochs=1),
    ],
    ids=lambda step: type(step).__name__,
)
def test_a_loss_that_needs_labels_is_refused_before_the_first_step(step: Any, tmp_path: Path) -> None:
    contexts: list[Context] = []
    with pytest.raises(BadInputError, match=r"needs labels. Received: 'arrays', which has none. Give"):
        compress(tmp_path, Noted(contexts), step, data=replace(DATA, labels=False))
    assert not contexts
    assert not (tmp_path / "run").exists()


def test_a_student_that_learns_from_labels_alone_is_refused_before_the_first_step(tmp_path: Path) -> None:
    contexts: list[Context] = []
    with pytest.raises(UsageError, match="cross_entropy needs labels"):
        compress(
            tmp_path,
            Noted(contexts),
            pbd.DistillInto(network(1), loss="cross_entropy"),
            data=replace(DATA, labels=False),
        )
    assert not contexts


@pytest.mark.parametrize("step", [pbd.Quantize(), pbd.Ensemble([[pbd.Quantize()]], copies=2)], ids=name_of)
@pytest.mark.parametrize(
    ("usable", "remedy"),
    [
        ("litert-int8", "Set the target of the step to litert-int8"),
        (None, r"Install one: pip install 'pbd\[openvino\]'"),
    ],
)
def test_a_target_without_8_bit_integers_is_refused_before_the_first_step(
    step: Any, usable: str | None, remedy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(targets, "usable_int8", lambda: usable and targets.TARGETS[usable])
    with pytest.raises(UsageError, match=f"a target must have 8-bit integers. Received: keras. {remedy}"):
        compress(tmp_path, pbd.FineTune(epochs=1), step)
    assert not (tmp_path / "run").exists()


def test_a_student_that_is_no_model_is_refused_before_the_first_step(tmp_path: Path) -> None:
    (tmp_path / "student.keras").write_text("no model")
    with pytest.raises(BadInputError, match=r"student\.keras"):
        compress(tmp_path, pbd.FineTune(epochs=1), pbd.DistillInto(str(tmp_path / "student.keras")))
    other = keras.Sequential([keras.Input((7, 7, 3)), keras.layers.Flatten(), keras.layers.Dense(3)])
    with pytest.raises(BadInputError, match="the student must take the images of the data"):
        compress(tmp_path, pbd.FineTune(epochs=1), pbd.DistillInto(other))
    inputs = keras.Input((6, 6, 3))
    unknown = keras.Model(inputs, layers.Dense(4)(layers.Flatten()(Unregistered()(inputs))))
    with pytest.raises(BadInputError, match=r"Keras must be able to recreate each layer .* \(Unregistered\)"):
        compress(tmp_path, pbd.FineTune(epochs=1), pbd.DistillInto(unknown))
    assert not (tmp_path / "run").exists()


class Unregistered(layers.Layer):
    """A layer that Keras cannot read from a file."""

    def call(self, inputs: Any) -> Any:
        return inputs


@dataclass(frozen=True)
class Appended:
    """Appends a layer."""

    layer: type[keras.Layer]

    def apply(self, model: keras.Model, context: Context) -> StepResult:
        return StepResult(keras.Model(model.inputs[0], self.layer()(model.outputs[0])))


def test_a_step_whose_network_cannot_be_read_is_refused_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match=r"Keras must be able to recreate each layer .* \(Unregistered\)"):
        compress(tmp_path, Appended(Unregistered))


@pytest.mark.parametrize(
    "step",
    [
        pbd.ReplaceBlocks(block=("two_layer",)),
        pbd.Ensemble([[pbd.ReplaceBlocks(block=("two_layer",))], [pbd.FineTune(epochs=0)]]),
    ],
    ids=name_of,
)
def test_blocks_that_cannot_share_batches_are_refused_before_the_first_step(step: Any, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="parallel data needs blocks without batch normalisation"):
        compress(tmp_path, pbd.FineTune(epochs=0), step, parallel="data")
    assert not (tmp_path / "run").exists()
