"""Distillation into a student of another architecture, by name, from a file or given; losses of Keras; refusals."""

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

import pbd
from pbd.compression import catalogue
from pbd.compression.context import Context
from pbd.compression.distill_into import DistillInto
from pbd.compression.step import name_of, settings_of
from pbd.config import DistillationConfig, Feature
from pbd.config.features import LOGITS
from pbd.deploy import images as deploy_images
from pbd.errors import BadInputError, MissingInputError, PbdError, UsageError
from tests.helpers.palette import CLASSES, SHAPE

layers = keras.layers
pytestmark = pytest.mark.usefixtures("eager")
distillation = keras.distillation


def images(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return images of three colours, from 0 to 255, and their classes."""
    generator, classes = np.random.default_rng(seed), np.arange(count) % CLASSES
    pixels = generator.normal(110.0, 30.0, (count, *SHAPE)) + 60.0 * np.eye(CLASSES)[classes][:, None, None, :]
    return np.clip(pixels, 0, 255).astype("uint8"), classes


DATA = {"train": images(96, 0), "validation": images(48, 1), "test": images(48, 2)}


def teacher() -> keras.Model:
    """Return a network that knows the colours without training."""
    inputs = keras.Input(SHAPE)
    x = layers.Conv2D(CLASSES, 1, use_bias=False, name="colours")(layers.Rescaling(1 / 30, -4.0)(inputs))
    x = layers.ReLU(name="relu")(x)
    model = keras.Model(inputs, layers.Dense(CLASSES, name="logits")(layers.GlobalAveragePooling2D()(x)))
    model.get_layer("colours").set_weights([np.eye(CLASSES, dtype="float32")[None, None]])
    model.get_layer("logits").set_weights([5 * np.eye(CLASSES, dtype="float32"), np.zeros(CLASSES, "float32")])
    return model


def student(classes: int = CLASSES, shape: tuple[int | None, ...] = SHAPE) -> keras.Model:
    keras.utils.set_random_seed(3)
    inputs = keras.Input(shape)
    x = layers.Conv2D(6, 3, strides=2, use_bias=False, name="conv")(layers.Rescaling(1 / 128, -1.0)(inputs))
    x = layers.ReLU(name="relu")(layers.BatchNormalization(momentum=0.5)(x))
    return keras.Model(inputs, layers.Dense(classes, activation="softmax")(layers.GlobalAveragePooling2D()(x)))


def distilled(folder: Path, step: DistillInto, labels: bool = True, **settings: Any) -> Any:
    data = pbd.Data(**DATA, batch_size=16, labels=labels)
    options = {"executor": "serial", "isolate": False, "run_dir": str(folder / "run"), **settings}
    return pbd.compress(teacher(), data, [step], **options)


SP = Feature("sp", "relu", "relu", 3.0)


@pytest.mark.parametrize("labels", [True, False])
def test_a_student_learns_from_the_network_before_it(labels: bool, tmp_path: Path) -> None:
    step = DistillInto(student(), epochs=3, learning_rate=0.1, features=[SP, Feature("mse", "relu", "relu", 0.1)])
    result = distilled(tmp_path, step, labels)
    first, last = result.report.steps
    score = last.network.val_accuracy if labels else last.network.val_agreement
    assert first.network.val_accuracy in (1.0, None)
    assert score >= 0.9
    assert [row["epoch"] for row in last.details["history"]] == [1, 2, 3]
    assert last.details["params"] == student().count_params()
    assert len(result.model.variables) == len(student().variables), "no projector is left"
    assert last.events == (() if labels else ("there are no labels: the loss is kd_kl instead of mixed",))


@pytest.fixture
def dataset() -> Any:
    return deploy_images.load(pbd.Data(**DATA, batch_size=16), teacher(), 0)


def test_a_student_by_name_has_the_shape_the_classes_and_the_pixels_of_the_data(dataset: Any) -> None:
    network = DistillInto("conv4_dense1_narrow").network(teacher(), dataset)
    rescaling = network.get_layer("rescaling")
    pixels = DATA["train"][0] * rescaling.scale + rescaling.offset
    assert (pixels.mean(), pixels.std()) == (pytest.approx(0.0, abs=1e-4), pytest.approx(1.0, rel=1e-4))
    assert (network.name, network.output_shape) == ("conv4_dense1_narrow", (None, CLASSES))


def test_a_student_from_a_file_is_trained_again_if_the_file_changes(dataset: Any, tmp_path: Path) -> None:
    path = tmp_path / "student.keras"
    student().save(path)
    before = settings_of(DistillInto(path, epochs=1))
    network = DistillInto(path).network(teacher(), dataset)
    np.testing.assert_array_equal(network.get_layer("conv").get_weights(), student().get_layer("conv").get_weights())
    changed = student()
    changed.set_weights([2.0 * weight for weight in changed.get_weights()])
    changed.save(path)
    after = settings_of(DistillInto(path, epochs=1))
    assert {name for name in before if before[name] != after[name]} == {"file_digest"}


@pytest.mark.parametrize(("network", "learned"), [(teacher, True), (student, False)])
def test_a_student_that_has_learned_before_is_trained_with_care(
    network: Callable[[], keras.Model], learned: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begins = list[DistillationConfig]()

    def noted(*_: Any, distillation: DistillationConfig, **__: Any) -> None:
        begins.append(distillation)
        raise PbdError("stopped")

    monkeypatch.setattr(Context, "fine_tune", noted)
    with pytest.raises(PbdError, match="stopped"):
        distilled(tmp_path, DistillInto(network(), epochs=1))
    assert [each.from_random_weights for each in begins] == [not learned]


def test_the_settings_are_plain() -> None:
    step = DistillInto(student(), features=[SP, {"loss": "at", "student": "conv", "teacher": "relu"}])
    assert step.features == (SP, Feature("at", "conv", "relu"))
    assert DistillInto("resnet20", features=SP).features == (SP,)
    settings = json.loads(json.dumps(settings_of(step)))
    assert settings["features"][0]["loss"] == "sp"
    assert settings["loss"] == "mixed"
    assert name_of(step) == "distill_into"
    config = DistillInto("resnet20", loss="kd_kl", temperature=2, alpha=0.5, mixup=1).settings(labelled=True)
    assert (config.fine_tune_loss, config.temperature, config.distillation_weight) == ("kd_kl", 2.0, 0.5)
    assert DistillInto("resnet20").settings(labelled=False).fine_tune_loss == "kd_kl"


LOSSES: dict[str, tuple[Callable[[], Any], tuple[str, float]]] = {
    "default": (distillation.LogitsDistillation, ("mixed", 3.0)),
    "kl": (lambda: distillation.LogitsDistillation(2.0, keras.losses.KLDivergence()), ("mixed", 2.0)),
    "mse": (lambda: distillation.LogitsDistillation(5.0, "mse"), ("kd_mse", 5.0)),
}


@pytest.mark.parametrize("kind", [functools.partial(DistillInto, "resnet20"), pbd.FineTune], ids=["into", "tune"])
@pytest.mark.parametrize("name", LOSSES)
def test_losses_of_keras_between_logits(name: str, kind: Callable[..., Any]) -> None:
    make, expected = LOSSES[name]
    step = kind(loss=make())
    assert (step.loss, step.temperature) == expected
    entry = json.loads(json.dumps({"use": name_of(step), **settings_of(step)}))
    (again,) = catalogue.made([entry])
    assert settings_of(again) == settings_of(step)


@pytest.mark.parametrize(
    ("kind", "setting"),
    [
        (pbd.PruneFilters, "loss"),
        (pbd.PruneWeights, "loss"),
        (pbd.Progressive, "loss"),
        (pbd.Craft, "tune_loss"),
        (pbd.ReplaceBlocks, "fine_tune_loss"),
    ],
)
def test_other_steps_take_losses_between_logits_by_name(kind: type, setting: str) -> None:
    received = f"{setting} must be the name of a loss of pbd. Received: LogitsDistillation. Give one of kd_mse"
    with pytest.raises(UsageError, match=received):
        kind(**{setting: distillation.LogitsDistillation()})


def test_what_keras_computes_between_logits_is_what_pbd_computes() -> None:
    """With alpha 1, so without the labels, and where the probabilities are not clipped."""
    from pbd.learning.losses import make_loss

    ours, theirs = np.random.default_rng(0).normal(size=(2, 6, 5)).astype("float32")
    loss = distillation.LogitsDistillation(2.0, keras.losses.KLDivergence())
    step = DistillInto("resnet20", loss=loss, alpha=1.0)
    value = make_loss(step.settings(labelled=True))(np.zeros(6, "int32"), ours, theirs)
    assert float(value) == pytest.approx(float(loss.compute_loss(theirs, ours)), rel=1e-5)


@pytest.mark.parametrize(
    "loss", ["mse", "cosine_similarity", keras.losses.MeanAbsoluteError()], ids=["mse", "cosine", "mae"]
)
def test_losses_of_keras_between_layers(loss: Any) -> None:
    from pbd.learning.feature_terms import FeatureTerm

    keras_loss = distillation.FeatureDistillation(loss, teacher_layer_name="relu", student_layer_name="conv")
    feature = DistillInto("resnet20", features=[keras_loss]).features[0]
    assert (feature.student, feature.teacher, feature.factor) == (("conv",), ("relu",), 1.0)
    ours, theirs = np.random.default_rng(0).normal(size=(2, 2, 3, 3, 4)).astype("float32")
    term = FeatureTerm(feature, [ours.shape], [theirs.shape], 2)
    value = term.value(term([keras.ops.convert_to_tensor(ours)], [keras.ops.convert_to_tensor(theirs)]))
    assert float(value) == pytest.approx(float(keras_loss.compute_loss(theirs, ours)), rel=1e-5)
    assert DistillInto("resnet20", features=distillation.FeatureDistillation()).features[0].student == (LOGITS,)


REFUSED: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "name": (lambda: DistillInto("conv4_dens1"), UsageError, "Did you mean 'conv4_dense1'"),
    "file": (lambda: DistillInto("none.keras"), MissingInputError, "must be a file"),
    "kind": (lambda: DistillInto(3), UsageError, "student must be of type str"),
    "loss": (lambda: DistillInto("resnet20", loss="kl"), UsageError, "loss"),
    "alpha": (lambda: DistillInto("resnet20", alpha=2.0), UsageError, r"must lie in \[0, 1\]"),
    "epochs": (lambda: DistillInto("resnet20", epochs=0), UsageError, "at least 1"),
    "epochs kind": (lambda: DistillInto("resnet20", epochs="3"), UsageError, "epochs must be of type int"),
    "warmup": (lambda: DistillInto("resnet20", warmup=1), UsageError, "warmup"),
    "mixup": (lambda: DistillInto("resnet20", mixup=-1.0), UsageError, "Give 0 or more"),
    "cutmix": (lambda: DistillInto("resnet20", cutmix=-1.0), UsageError, "Give 0 or more"),
    "teacher": (lambda: DistillInto("resnet20", ensemble_teacher="draw"), UsageError, "Did you mean 'drawn'"),
    "teacher, features": (
        lambda: DistillInto("resnet20", ensemble_teacher="drawn", features=[SP]),
        UsageError,
        "drawn and losses between layers exclude each other",
    ),
    "feature": (lambda: DistillInto("resnet20", features=["at"]), UsageError, "a feature is a mapping"),
    "feature field": (
        lambda: DistillInto("resnet20", features={"loss": "at", "student": "a", "teacher": "b", "beta": 1}),
        UsageError,
        "a feature is a mapping",
    ),
    "keras, labels": (
        lambda: DistillInto("resnet20", loss=distillation.LogitsDistillation(2.0, "categorical_crossentropy")),
        UsageError,
        "kl_divergence or mse",
    ),
    "keras, labels, fine-tuning": (
        lambda: pbd.FineTune(loss=distillation.LogitsDistillation(2.0, "categorical_crossentropy")),
        UsageError,
        "kl_divergence or mse",
    ),
    "loss kind, fine-tuning": (lambda: pbd.FineTune(loss=3), UsageError, "loss must be of type str. Received: 3"),
    "keras, layers": (
        lambda: DistillInto("resnet20", features=[distillation.FeatureDistillation("kl_divergence")]),
        UsageError,
        "MeanSquaredError",
    ),
    "keras, several": (
        lambda: DistillInto("resnet20", features=[distillation.FeatureDistillation(["mse", None])]),
        UsageError,
        "one pair",
    ),
    "keras, lost": (
        lambda: DistillInto("resnet20", features=[distillation.FeatureDistillation(keras.losses.Huber(delta=3.0))]),
        UsageError,
        "loses a setting",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_settings_are_checked_when_the_step_is_made(case: str) -> None:
    make, kind, message = REFUSED[case]
    with pytest.raises(kind, match=message) as error:
        make()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("step", "kind", "message"),
    [
        (lambda: DistillInto(student(classes=5)), BadInputError, "same classes. Received: 5 and 3"),
        (lambda: DistillInto(student(shape=(9, 9, 3))), BadInputError, "must take the images"),
        (lambda: DistillInto(student(), features=[Feature("at", "conv1", "relu")]), UsageError, "layer of the student"),
        (lambda: DistillInto(student(), features=[Feature("at", "conv", "r")]), UsageError, "layer of the teacher"),
        (lambda: DistillInto(student(), ensemble_teacher="drawn"), UsageError, "needs an ensemble as the teacher"),
    ],
)
def test_networks_that_do_not_fit_are_refused_before_training(
    step: Callable[[], DistillInto], kind: type[Exception], message: str, tmp_path: Path
) -> None:
    with pytest.raises(kind, match=message):
        distilled(tmp_path, step())


def test_labels_alone_need_labels(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cross_entropy needs labels"):
        distilled(tmp_path, DistillInto(student(), loss="cross_entropy"), labels=False)


def test_a_student_of_open_size_takes_the_size_of_the_images(dataset: Any) -> None:
    assert DistillInto(student(shape=(None, None, 3))).network(teacher(), dataset).input_shape == (None, *SHAPE)
