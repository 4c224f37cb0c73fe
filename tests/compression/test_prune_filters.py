"""Channels are removed by their scores, in rounds, and the layers behind make up for them."""

import functools
import json
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

import pbd
from pbd.compression.importance import IMPORTANCES, Subject
from pbd.compression.prune_filters import PruneFilters
from pbd.compression.pruning import refitting, schedule, selection
from pbd.config import Feature
from pbd.data import Dataset
from pbd.errors import BadInputError, PbdError, UsageError
from pbd.learning.batch_statistics import recalibrate_batch_norm
from pbd.networks import channels, graph
from pbd.run_dir.journal import Journal
from pbd.student.adaptation import adapt
from tests.helpers.narrowing import TOLERANCE, difference
from tests.helpers.palette import SHAPE, make_dataset, predict, trained_teacher
from tests.helpers.step_context import Interruption, StepContext
from tests.helpers.step_workers import Threads, network_and_context

pytestmark = pytest.mark.usefixtures("eager_module")

layers = keras.layers
IMAGES = np.random.default_rng(3).normal(1.0, 2.0, (6, *SHAPE)).astype("float32")


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    return make_dataset()


@pytest.fixture(scope="module")
def teacher(dataset: Dataset) -> keras.Model:
    return trained_teacher(dataset)


@pytest.fixture
def context(teacher: keras.Model, dataset: Dataset, tmp_path: Path) -> StepContext:
    return StepContext(teacher, dataset, tmp_path)


def widths(model: keras.Model) -> dict[str, int]:
    return {layer.name: layer.output.shape[-1] for layer in model.layers if "kernel" in repr(layer.weights)}


def weights(model: keras.Model) -> np.ndarray:
    return np.concatenate([weight.ravel() for weight in model.get_weights()])


def kept_by(step: PruneFilters, model: keras.Model, context: Any) -> Mapping[str, np.ndarray]:
    return step.choose(model, step.groups(model), step.ratio, context)[0]


@pytest.mark.parametrize(
    ("scope", "importance"),
    # A scope sees the scores alone; those by normalisations leave out groups.
    [*(("layer", name) for name in IMPORTANCES), ("global", "l1"), ("global", "batch_norm")],
)
def test_without_refit_it_computes_what_the_masked_network_does(
    importance: str, scope: str, teacher: keras.Model, context: StepContext
) -> None:
    step = PruneFilters(ratio=0.5, importance=importance, scope=scope, refit=False)
    before = weights(teacher)
    result = step.apply(teacher, context)
    kept = {name: each.tolist() for name, each in kept_by(step, teacher, context).items()}
    expected = predict(channels.masked(teacher, kept), IMAGES)
    assert difference(predict(result.model, IMAGES), expected) < TOLERANCE
    assert result.details["removed"] == pytest.approx(0.5, abs=0.04)
    assert result.details["parameters"][1] == result.model.count_params() < 0.65 * teacher.count_params()
    assert widths(result.model)["logits"] == 3
    assert np.array_equal(weights(teacher), before)
    assert json.loads(json.dumps(result.details)) == result.details


def test_the_lowest_scores_are_removed_in_each_group(teacher: keras.Model, context: StepContext) -> None:
    step = PruneFilters(ratio=0.3)
    groups = step.groups(teacher)
    scores = IMPORTANCES["l1"](Subject(teacher, groups, 0, functools.partial(context.measure, teacher))).values
    for name, kept in kept_by(step, teacher, context).items():
        removed = np.setdiff1d(np.arange(len(scores[name])), kept)
        assert len(removed) == round(0.3 * len(scores[name]))
        assert scores[name][removed].max() <= scores[name][kept].min()


def test_over_all_groups_each_keeps_a_tenth() -> None:
    scores = {"a": np.arange(1.0, 21.0), "b": np.array([1.0, 50.0, 1.0, 1.0]), "c": np.ones(4)}
    sizes = {name: len(values) for name, values in scores.items()}
    kept = selection.over_all_groups(scores, sizes, 0.5)
    assert sum(map(len, kept.values())) == 14
    assert kept["b"].tolist() == [1]
    assert kept["c"].tolist() == [0, 1, 2, 3]
    assert kept["a"].tolist() == list(range(11, 20))
    least = selection.over_all_groups(scores, sizes, 0.99)
    assert {name: len(channels) for name, channels in least.items()} == {"a": 2, "b": 1, "c": 1}


def test_channels_that_went_before_count_over_all_groups() -> None:
    """Of two groups of 10 channels, one is left each; 60% of all 100 shall be removed."""
    kept = selection.over_all_groups({"large": np.arange(80.0)}, {"a": 10, "large": 80, "b": 10}, 0.6, unscored=2)
    assert len(kept["large"]) == 40 - 2


def test_each_tensor_keeps_a_channel() -> None:
    scores = {"a": np.array([1.0, 2.0, 9.0, 9.0]), "b": np.array([3.0, 4.0])}
    kept = {"a": np.array([2, 3]), "b": np.array([1])}
    tensors = [{"a": np.array([0, 1])}, {"a": np.array([0]), "b": np.array([1])}, {"c": np.array([0])}]
    complete = selection.in_every_tensor(kept, scores, tensors)
    assert {name: channels.tolist() for name, channels in complete.items()} == {"a": [1, 2, 3], "b": [1]}


def test_a_narrow_tensor_of_a_wide_group_keeps_a_channel(dataset: Dataset, tmp_path: Path) -> None:
    """Zeros are added to the channels of `narrow`, as in the shortcuts of ResNet20."""
    inputs = keras.Input(SHAPE)
    x = layers.Conv2D(2, 1, name="narrow")(inputs)
    shortcut = layers.Permute((1, 3, 2))(layers.ZeroPadding2D(((0, 0), (3, 3)))(layers.Permute((1, 3, 2))(x)))
    x = layers.ReLU()(layers.Add()([shortcut, layers.Conv2D(8, 3, padding="same", name="wide")(x)]))
    model = keras.Model(inputs, layers.Dense(3, name="classes")(layers.GlobalAveragePooling2D()(x)))
    for name, scales in (("narrow", np.ones(2)), ("wide", np.array([9, 9, 9, 0, 0.1, 9, 9, 9]))):
        kernel, bias = model.get_layer(name).get_weights()
        model.get_layer(name).set_weights([np.ones_like(kernel) * scales, bias])
    result = PruneFilters(ratio=0.5).apply(model, StepContext(model, dataset, tmp_path))
    assert widths(result.model) == {"narrow": 1, "wide": 5, "classes": 3}


@pytest.mark.jax
def test_layers_that_are_excluded_keep_their_channels(teacher: keras.Model, context: StepContext) -> None:
    result = PruneFilters(ratio=0.5, layers=("^a",)).apply(teacher, context)
    assert widths(result.model)["a"] == widths(result.model)["b"] == 8
    assert widths(result.model)["point"] == 6
    with pytest.raises(UsageError, match=r"Did you mean 'point'\?"):
        PruneFilters(layers=("pont",)).apply(teacher, context)
    with pytest.raises(BadInputError, match="network's output"):
        PruneFilters(layers=("logits",)).apply(teacher, context)


def test_refitting_brings_the_network_closer_to_the_one_before(teacher: keras.Model, context: StepContext) -> None:
    plain = PruneFilters(ratio=0.5, refit=False).apply(teacher, context)
    refitted = PruneFilters(ratio=0.5, refit=True).apply(
        teacher, StepContext(teacher, context.dataset, context.journal.path / "other")
    )
    metrics = [result.details["rounds"][0]["pruned"]["kl"] for result in (plain, refitted)]
    assert metrics[1] < 0.5 * metrics[0]
    assert widths(plain.model) == widths(refitted.model)
    assert refitted.events[0].startswith("refitted in order")


def test_two_workers_remove_and_refit_as_one_does(tmp_path: Path) -> None:
    pixels, classes = np.random.default_rng(0).integers(0, 256, (64, *SHAPE)).astype("uint8"), np.arange(64) % 3
    keras.utils.set_random_seed(1)
    inputs = keras.Input(SHAPE)
    x = layers.Rescaling(1 / 64, -2.0)(inputs)
    for name in ("first", "second"):
        x = layers.ReLU()(layers.BatchNormalization()(layers.Conv2D(6, 3, name=name)(x)))
    outputs = layers.Dense(3, name="classes")(layers.Flatten()(x))
    data = pbd.Data(train=(pixels, classes), validation=(pixels[:16], classes[:16]), batch_size=8)
    model, context = network_and_context(keras.Model(inputs, outputs), data, tmp_path / "run")
    np.savez(context.config.data.dataset, x_train=pixels, y_train=classes, x_val=pixels[:16], y_val=classes[:16])
    workers = {count: Threads(count) for count in (1, 2)}
    one, two = (
        PruneFilters(0.3, importance="taylor").apply(
            model, replace(context, executor=executor, journal=Journal(tmp_path / str(count)))
        )
        for count, executor in workers.items()
    )
    assert workers[2].kinds == {"MeasureTask", "AdaptTask", "EvaluateTask"}, "all that reads images runs on the workers"
    assert one.events[0].startswith("refitted in order")
    assert difference(weights(two.model), weights(one.model)) < 1e-3


def test_channels_that_others_represent_cost_nothing(dataset: Dataset) -> None:
    """Half of the filters are copies of the others: refitted layers compute what they did before."""
    keras.utils.set_random_seed(1)
    inputs = keras.Input(SHAPE)
    x = layers.ReLU()(layers.BatchNormalization()(layers.Conv2D(6, 3, name="doubled")(inputs)))
    x = layers.Conv2D(6, 3, activation="relu", name="read")(x)
    x = layers.Flatten()(layers.MaxPooling2D(2)(x))
    model = graph.flatten(keras.Model(inputs, layers.Dense(3, activation="softmax", name="classes")(x)))
    for name in ("doubled", "read"):
        kernel, bias = model.get_layer(name).get_weights()
        kernel[..., 3:], bias[3:] = kernel[..., :3], bias[:3]
        model.get_layer(name).set_weights([kernel, bias])
    kept = {"doubled": np.arange(3), "read": np.arange(1, 4)}
    result = refitting.remove_and_refit(model, kept, functools.partial(adapt, dataset=dataset))
    assert result.layers == ("read", "classes")
    assert result.adapted is not None
    assert result.adapted.is_better
    assert difference(predict(result.model, IMAGES), predict(model, IMAGES)) < 1e-2
    assert {layer.name for layer in result.model.layers} == {layer.name for layer in model.layers}
    plain = channels.remove(model, {name: each.tolist() for name, each in kept.items()})
    assert difference(predict(plain, IMAGES), predict(model, IMAGES)) > 0.1


def test_rounds_train_what_remains_with_losses_between_layers(teacher: keras.Model, context: StepContext) -> None:
    at, fsp = Feature("at", "a", "a"), {"loss": "fsp", "student": ["a", "b"], "teacher": ["a", "b"]}
    training = {"epochs": 1, "learning_rate": 0.01, "loss": "kd_kl", "features": [at, fsp]}
    step = PruneFilters(ratio=0.5, importance="batch_norm", rounds=2, first_ratio=0.2, refit=False, **training)
    result = step.apply(teacher, context)
    records = result.details["rounds"]
    assert [record["share"] for record in records] == pytest.approx([0.2, 0.5])
    assert result.details["removed"] == pytest.approx(0.5, abs=0.04)
    settings = [(config.fine_tune_epochs, config.fine_tune_learning_rate, first) for config, first in context.trainings]
    assert settings == [(1, 0.01, 0), (1, 0.01, 1)]
    assert {config.fine_tune_loss for config, _ in context.trainings} == {"kd_kl"}
    assert [row["epoch"] for row in result.details["history"]] == [1, 2]
    assert records[-1]["trained"]["kl"] <= records[-1]["pruned"]["kl"]
    assert {event[:8] for event in result.events} == {"round 1:", "round 2:"}
    assert [each and each.features for each in context.distillations] == 2 * [(at, Feature(**fsp))]
    with pytest.raises(UsageError, match="layer of the student"):
        PruneFilters(features=Feature("at", "aa", "a")).apply(teacher, context)


def test_the_share_follows_the_cubic_schedule_from_that_of_the_first_round() -> None:
    assert [schedule.cubic(0.8, number, 4) for number in (0, 1, 2, 4)] == pytest.approx([0, 0.4625, 0.7, 0.8])
    shares = [schedule.cubic(0.45, number, 3, first=0.1) for number in (1, 2, 3)]
    assert shares == pytest.approx([0.1, 0.45 - 0.35 / 8, 0.45])


def test_an_interrupted_step_goes_on_after_its_last_round(
    teacher: keras.Model, dataset: Dataset, tmp_path: Path
) -> None:
    step = PruneFilters(ratio=0.5, rounds=2, importance="random", refit=False)
    whole = step.apply(teacher, StepContext(teacher, dataset, tmp_path / "whole"))
    assert [record["share"] for record in whole.details["rounds"]] == pytest.approx([0.5 * (1 - 1 / 8), 0.5])
    first = StepContext(teacher, dataset, tmp_path / "parts")
    first.stop_at = 1
    with pytest.raises(Interruption):
        step.apply(teacher, first)
    second = StepContext(teacher, dataset, tmp_path / "parts")
    resumed = step.apply(teacher, second)
    assert second.phases == ["removing channels, round 2 of 2"]
    assert np.array_equal(weights(resumed.model), weights(whole.model))
    assert resumed.details == whole.details
    assert sorted(path.name for path in (tmp_path / "parts").iterdir()) == ["round_2.keras", "rounds.json"]
    (tmp_path / "parts" / "round_2.keras").write_bytes(b"damaged")
    assert step.apply(teacher, StepContext(teacher, dataset, tmp_path / "parts")).details == whole.details


def test_weights_that_have_to_stay_zero_are_not_refitted(
    teacher: keras.Model, dataset: Dataset, tmp_path: Path
) -> None:
    context = StepContext(teacher, dataset, tmp_path, keeps_zeros=True)
    result = PruneFilters(epochs=1).apply(teacher, context)
    assert result.keeps_zeros
    assert context.trainings[0][0].keep_zeros
    reason, change = result.events
    assert reason == "not refitted, since weights that are zero have to stay zero"
    before, after, keeps = re_estimated(change)
    assert keeps == (after < before)


def re_estimated(event: str) -> tuple[float, float, bool]:
    """Return the divergences with the old and the new batch statistics, and whether the new ones are kept."""
    pattern = r"batch statistics estimated again: KL divergence ([\d.]+) -> ([\d.]+)(; those before are kept)?"
    found = re.fullmatch(pattern, event)
    assert found, event
    return float(found[1]), float(found[2]), found[3] is None


def test_behind_layers_that_are_not_refitted_batch_statistics_are_estimated_again(
    dataset: Dataset, tmp_path: Path
) -> None:
    """Four channels of a layer are nearly constant: a normalisation that knows their absence makes up for it."""
    inputs = keras.Input(SHAPE)
    x = layers.BatchNormalization()(layers.SeparableConv2D(6, 3, name="read")(layers.Conv2D(8, 3, name="a")(inputs)))
    outputs = layers.Dense(3, name="classes")(layers.GlobalAveragePooling2D()(layers.ReLU()(x)))
    model = graph.flatten(keras.Model(inputs, outputs))
    kernel, bias = model.get_layer("a").get_weights()
    kernel[..., :4] *= 1e-3
    bias[:4] = 5.0
    model.get_layer("a").set_weights([kernel, bias])
    recalibrate_batch_norm(model, [images for images, _ in dataset.batches("train")])
    result = PruneFilters(0.5, layers=("a",)).apply(model, StepContext(model, dataset, tmp_path))
    which, change = result.events
    assert which.startswith("not refitted: read (")
    before, after, keeps = re_estimated(change)
    assert keeps, change
    assert after < 0.1 * before


@pytest.mark.parametrize(
    ("settings", "words", "followed"),
    [
        ({"ratio": 0.0}, "strictly between 0 and 1. Received: 0.0. Give 0.3", {"ratio": 0.3}),
        ({"ratio": 1.0}, "strictly between 0 and 1", {"ratio": 0.3}),
        ({"importance": "l3"}, "Choose from: batch_norm, geometric_median, l1", {"importance": "l1"}),
        ({"scope": "globl"}, "Did you mean 'global'?", {"scope": "global"}),
        ({"rounds": 0}, "Give 1 or more.", {"rounds": 1}),
        ({"epochs": -1}, "Give 0 or more.", {"epochs": 0}),
        ({"learning_rate": 0.0}, "Give a number above 0.", {"learning_rate": 0.1}),
        ({"loss": "kd"}, "kd_kl", {"loss": "kd_kl"}),
        ({"first_ratio": 0.1}, "with 2 rounds or more", {"first_ratio": 0.1, "rounds": 2}),
        ({"first_ratio": 0.4, "rounds": 2}, "between 0 and ratio", {"first_ratio": 0.2, "rounds": 2}),
        ({"features": ["at"]}, "a feature is a mapping", {"features": ()}),
        ({"ratio": "half"}, "must be of type float", {"ratio": 0.5}),
    ],
)
def test_settings_are_checked(settings: dict[str, Any], words: str, followed: dict[str, Any]) -> None:
    with pytest.raises(PbdError) as refusal:
        PruneFilters(**settings)
    assert words in str(refusal.value)
    PruneFilters(**followed)
