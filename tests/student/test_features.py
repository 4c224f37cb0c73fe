"""Fine-tuning with losses between layers: projectors learn, are resumed, are left behind; all workers train as one."""

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

from pbd.collective import SINGLE, Collective
from pbd.config import DistillationConfig, Feature, StudentConfig, TrainingConfig
from pbd.config.features import LOGITS
from pbd.data import Dataset
from pbd.errors import UsageError
from pbd.learning import ghost_batch_norm
from pbd.learning.distillation import DistillationModel, logits_model
from pbd.learning.losses import feature_maps, kd_mse, relations
from pbd.learning.metrics import Metrics
from pbd.networks import graph
from pbd.pipeline.remote_tasks import FineTuneTask
from pbd.run_dir.journal import Journal
from pbd.student import fine_tuning
from pbd.student.checkpoints import CheckpointFile, FineTuneState
from pbd.student.validation import Validator
from tests.helpers.palette import CLASSES, SHAPE, ignore, make_dataset, make_teacher, predict
from tests.helpers.thread_collective import run_threads

pytestmark = pytest.mark.usefixtures("eager")

layers = keras.layers
START = Metrics(0.1, 0.1, 9.0)
MSE = Feature("mse", "second", "a", 1.0)
FEATURES = {
    "at": Feature("at", "second", "a", 10.0),
    "mse": MSE,
    "fsp": Feature("fsp", ("first", "second"), ("stem", "point"), 5.0),
    "sp": Feature("sp", "second", "a", 10.0),
    "pkt": Feature("pkt", "second", "a", 100.0),
    "crd": Feature("crd", "average", "point", 0.1),
    "keras": Feature("keras", "second", "a", 1.0, json.dumps(keras.losses.serialize(keras.losses.MeanAbsoluteError()))),
    "logits": Feature("mse", LOGITS, LOGITS, 1.0),
}


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    return dataclasses.replace(make_dataset(), batch_size=2 * ghost_batch_norm.SMALLEST)


@pytest.fixture(scope="module")
def teacher() -> keras.Model:
    return make_teacher()


def make_student(seed: int = 3) -> keras.Model:
    """Return a network of another architecture than the teacher's; its maps have other shapes."""
    keras.utils.set_random_seed(seed)
    inputs = keras.Input(SHAPE)
    x = layers.Conv2D(4, 3, padding="same", activation="relu", name="first")(inputs)
    x = layers.Conv2D(6, 3, strides=2, padding="same", name="second")(x)
    x = layers.ReLU()(layers.BatchNormalization(momentum=0.9, name="norm")(x))
    return keras.Model(inputs, layers.Dense(CLASSES, name="logits")(layers.GlobalAveragePooling2D(name="average")(x)))


def tune(
    student: keras.Model,
    teacher: keras.Model,
    dataset: Dataset,
    *features: Feature,
    collective: Collective = SINGLE,
    checkpoint: CheckpointFile | None = None,
    warmup: float = 0.0,
    epochs: int = 3,
) -> FineTuneState:
    config = StudentConfig(fine_tune_epochs=epochs, fine_tune_learning_rate=0.004)
    distillation = DistillationConfig(features, warmup)
    return fine_tuning.fine_tune(
        student, teacher, dataset, config, START, ignore, 0, collective, checkpoint, distillation
    )


def by_hand(feature: Feature, model: DistillationModel, student: dict[str, Any], teacher: dict[str, Any]) -> Any:
    """Return the loss between the maps of two networks, with the projectors' weights."""
    kernels = [keras.ops.convert_to_numpy(variable) for variable in model.projector_variables]
    ours, theirs = (
        [maps[name] for name in names] for maps, names in ((student, feature.student), (teacher, feature.teacher))
    )
    match feature.loss:
        case "mse":
            pooled = theirs[0].reshape(-1, 4, 2, 4, 2, 8).mean((2, 4))
            return np.mean((ours[0] @ kernels[0][0, 0] - pooled) ** 2)
        case "fsp":
            return feature_maps.solution_flow(
                tuple(x @ k[0, 0] for x, k in zip(ours, kernels, strict=True)), tuple(theirs)
            )
        case "crd":
            embedded = ours[0] @ kernels[0] + kernels[1], theirs[0].mean((1, 2)) @ kernels[2] + kernels[3]
            return relations.contrastive(*embedded, size=4)
        case "at":
            return feature_maps.attention_transfer(ours[0], theirs[0])
    compare = {"sp": relations.similarity_preserving, "pkt": relations.probabilistic_transfer}[feature.loss]
    return compare(ours[0], theirs[0], 4)


@pytest.mark.parametrize("name", ["at", "mse", "fsp", "sp", "pkt", "crd"])
def test_the_loss_is_that_of_the_logits_plus_the_weighted_terms(name: str, teacher: keras.Model) -> None:
    feature, student = FEATURES[name], make_student()
    images = np.random.default_rng(5).normal(size=(8, *SHAPE)).astype("float32")
    maps = [
        {layer.name: predict(keras.Model(model.input, layer.output), images) for layer in model.layers}
        for model in (student, teacher)
    ]
    model = DistillationModel(student, graph.flatten(teacher), kd_mse, 4, [feature])
    outputs = model(keras.ops.convert_to_tensor(images), training=False)
    loss = float(model.compute_loss(images, None, outputs))
    of_logits = np.mean((maps[0]["logits"] - maps[1]["logits"]) ** 2)
    expected = float(by_hand(feature, model, *maps))
    assert expected > 1e-4
    assert loss == pytest.approx(of_logits + feature.factor * expected, rel=1e-3)


@pytest.mark.parametrize("names", [("at", "mse", "fsp", "keras", "logits"), ("sp", "pkt", "crd")], ids="-".join)
def test_several_workers_train_the_student_of_one_worker(
    names: tuple[str, ...], dataset: Dataset, teacher: keras.Model
) -> None:
    students = [make_student() for _ in range(3)]
    images = np.random.default_rng(5).normal(size=(6, *SHAPE)).astype("float32")
    chosen = [FEATURES[name] for name in names]
    alone = tune(students[2], teacher, dataset, *chosen, epochs=2)

    def work(collective: Collective) -> FineTuneState:
        return tune(students[collective.index], teacher, dataset, *chosen, collective=collective, epochs=2)

    for state in run_threads(2, work):
        assert [row["loss"] for row in state.history] == pytest.approx([row["loss"] for row in alone.history], rel=1e-3)
    for student in students[:2]:
        np.testing.assert_allclose(predict(student, images), predict(students[2], images), atol=2e-3)
    assert np.abs(predict(make_student(), images) - predict(students[2], images)).max() > 5e-3


def test_images_are_compared_in_parts_that_are_not_split() -> None:
    inputs = keras.Input(SHAPE)
    student = keras.Model(inputs, layers.Dense(3)(layers.Flatten()(inputs)))
    comparing = {name: DistillationConfig((one,)).compares_images for name, one in FEATURES.items()}
    units = {name: ghost_batch_norm.split_unit(student, 128, compares) for name, compares in comparing.items()}
    assert units == {"at": 1, "mse": 1, "fsp": 1, "keras": 1, "logits": 1, "sp": 32, "pkt": 32, "crd": 32}
    assert ghost_batch_norm.split_unit(make_student(), 128, DistillationConfig((MSE,)).compares_images) == 32


def test_the_projector_is_resumed_and_left_behind(
    dataset: Dataset, teacher: keras.Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, resumed, interrupted_student = (make_student() for _ in range(3))
    for student in (whole, resumed, interrupted_student):  # small weights in front of the normalisation
        kernel = student.get_layer("second").kernel
        kernel.assign(0.05 * kernel)
    variables = len(whole.variables)
    expected = tune(whole, teacher, dataset, MSE)
    validate, calls = Validator.metrics, list[int]()

    def interrupted(*arguments: Any) -> Metrics:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return validate(*arguments)

    monkeypatch.setattr(Validator, "metrics", interrupted)
    checkpoint = CheckpointFile(Journal(tmp_path), "state.npz", SINGLE)
    with pytest.raises(KeyboardInterrupt):
        tune(interrupted_student, teacher, dataset, MSE, checkpoint=checkpoint)
    written = checkpoint.read()
    assert written is not None
    assert len(written.variables) == variables + 1
    assert written.best_projectors[0].shape == (1, 1, 6, 8)
    factors = written.optimizer_variables[-1]
    assert len(factors) == len(whole.trainable_variables) + 1
    assert sorted(factors)[0] < 0.2 < sorted(factors)[1] == 1.0, "of the steps of each variable"
    assert tune(resumed, teacher, dataset, MSE, checkpoint=checkpoint) == expected
    assert len(resumed.variables) == variables
    for ours, theirs in zip(resumed.get_weights(), whole.get_weights(), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_a_divergence_undoes_the_projector_too(
    dataset: Dataset, teacher: keras.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without that, the projector of an epoch that diverged would be trained on."""
    scores, starts = iter([(0.8, 0.5), (0.2, 3.0), (0.9, 0.4), (0.9, 0.3)]), list[Any]()
    monkeypatch.setattr(Validator, "metrics", lambda *a: Metrics((s := next(scores))[0], s[0], s[1]))
    assigned = fine_tuning._assign
    monkeypatch.setattr(fine_tuning, "_assign", lambda to, values: (starts.append(values), assigned(to, values)))
    state = tune(make_student(), teacher, dataset, MSE)
    assert (len(state.events), len(starts)) == (1, 2)
    assert np.abs(starts[1][0] - starts[0][0]).max() > 1e-4, "from the end of epoch 1"
    assert np.abs(state.best_projectors[0] - starts[1][0]).max() > 1e-4


def test_a_checkpoint_without_projectors_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those before there were any."""
    from pbd.student import checkpoints

    arrays = ("best_weights", "variables", "optimizer_variables")
    checkpoint = CheckpointFile(Journal(tmp_path), "state.npz", SINGLE)
    state = FineTuneState(START, 0.1, best_weights=[np.ones(3)], variables=[np.ones(2)])
    pack = checkpoints.pack
    monkeypatch.setattr(
        checkpoints, "pack", lambda values, each: pack({**values, "lengths": values["lengths"][: len(arrays)]}, each)
    )
    checkpoint.write(state)
    read = checkpoint.read()
    assert read == state
    assert read.best_projectors == []


def test_tasks_with_other_features_have_checkpoints_of_their_own(tmp_path: Path) -> None:
    from types import SimpleNamespace

    context: Any = SimpleNamespace(journal=Journal(tmp_path), training=TrainingConfig())

    def name(distillation: DistillationConfig) -> str:
        task = FineTuneTask(context, tmp_path, StudentConfig(), START, 0, distillation)
        return task._checkpoint(make_student(), SINGLE)._name

    settings = [DistillationConfig(), DistillationConfig(warmup=0.1)]
    settings += [DistillationConfig((feature,)) for feature in FEATURES.values()]
    assert len({name(each) for each in settings}) == len(settings)


REFUSED = {
    "no such layer of the student": (
        Feature("at", "secnd", "a"),
        "unknown layer of the student.*Did you mean 'second'",
    ),
    "no such layer of the teacher": (Feature("at", "second", "z"), "unknown layer of the teacher"),
    "a vector": (Feature("at", "average", "a"), "takes maps of height"),
    "a vector and a map": (Feature("mse", "average", "a"), "takes two maps or two vectors"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_layers_that_do_not_suit_are_refused(case: str, teacher: keras.Model) -> None:
    feature, message = REFUSED[case]
    with pytest.raises(UsageError, match=message):
        DistillationModel(make_student(), graph.flatten(teacher), kd_mse, 16, [feature])


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda: Feature("att", "a", "b"), "unknown feature loss"),
        (lambda: Feature("fsp", "a", ("a", "b")), "takes the names of two layers of the student"),
        (lambda: Feature("at", ("a", "b"), "a"), "takes the name of one layer of the student"),
        (lambda: Feature("at", "a", "a", -1.0), "at least 0"),
        (lambda: Feature("keras", "a", "a"), "needs keras_loss"),
        (lambda: DistillationConfig(warmup=1.0), "warmup must lie in"),
    ],
)
def test_settings_out_of_range(wrong: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        wrong()


def front(scale: float, flips: bool, width: int = 4) -> keras.Model:
    keras.utils.set_random_seed(4)
    inputs = keras.Input((8, 8, 3))
    x = layers.Rescaling(scale)(inputs)
    x = layers.RandomFlip(seed=1)(x) if flips else x
    x = layers.Flatten()(layers.Conv2D(width, 3, name="conv")(x))
    return graph.flatten(keras.Model(inputs, layers.Dense(3)(x)))


@pytest.mark.parametrize("flips", [(True, False), (False, True), (True, True)])
def test_each_scales_pixels_as_it_was_built_to(flips: tuple[bool, bool]) -> None:
    """A teacher that begins with other layers than the student gets the images themselves, without augmentation."""
    student, teacher = front(1 / 255, flips[0]), front(2.0, flips[1], width=5)
    images = np.random.default_rng(0).uniform(0, 255, (4, 8, 8, 3)).astype("float32")
    model = DistillationModel(student, graph.flatten(teacher), kd_mse, 4)
    of_student, of_teacher = model(keras.ops.convert_to_tensor(images), training=True)
    np.testing.assert_allclose(np.asarray(of_teacher), predict(teacher, images), rtol=1e-4, atol=1e-3)
    assert np.isfinite(np.asarray(of_student)).all()
    augmented = np.abs(np.asarray(of_student) - predict(student, images)).max() > 1e-4
    assert augmented == flips[0]
    assert math.isfinite(float(model.compute_loss(images, None, [of_student, of_teacher])))
    assert logits_model(student, images).output_shape == (None, 3)


def test_features_behind_the_same_augmentation() -> None:
    """Student and teacher see the same flipped images, so the features of a copy are equal."""
    student = front(1 / 255, True)
    images = np.random.default_rng(0).uniform(0, 255, (8, 8, 8, 3)).astype("float32")
    model = DistillationModel(student, graph.flatten(student), kd_mse, 4, [Feature("mse", "conv", "conv", 1.0)])
    outputs = model(keras.ops.convert_to_tensor(images), training=True)
    assert float(model.compute_loss(images, None, outputs)) == pytest.approx(0.0, abs=1e-9)
    assert np.abs(np.asarray(outputs[0]) - predict(student, images)).max() > 1e-4
    assert model.projector_variables == []


@pytest.mark.parametrize("loss", ["sp", "pkt", "crd"])
def test_one_image_cannot_be_compared(loss: str, teacher: keras.Model) -> None:
    with pytest.raises(UsageError, match="Received: batches of 1"):
        DistillationModel(make_student(), graph.flatten(teacher), kd_mse, 1, [FEATURES[loss]])
