"""Convolutions of a student are refitted in order: what for, how well, and that nothing gets worse."""

import functools
from collections.abc import Mapping

import keras
import numpy as np
import pytest

from pbd.collective import SINGLE, Collective
from pbd.learning.batch_statistics import recalibrate_batch_norm
from pbd.networks import graph
from pbd.networks.progressive import ProgressiveRun
from pbd.student import adaptation
from pbd.student.refit import refit, refitting, samples
from pbd.student.refit.regression import RIDGES, Moments, choose_ridge
from pbd.student.refit.sites import find_sites
from tests.helpers.thread_collective import run_threads

pytestmark = [pytest.mark.unit, pytest.mark.jax]


def residual_network() -> keras.Model:
    """Return a network of a stem, a residual block with normalisations, and a convolution with an activation."""
    keras.utils.set_random_seed(3)
    x = inputs = keras.Input((8, 8, 3))
    x = keras.layers.Conv2D(8, 3, padding="same", activation="relu", name="stem")(x)
    y = keras.layers.Conv2D(8, 3, padding="same", use_bias=False, name="inner")(x)
    y = keras.layers.ReLU(name="inner_relu")(keras.layers.BatchNormalization(name="inner_norm")(y))
    y = keras.layers.Conv2D(8, 3, padding="same", use_bias=False, name="outer")(y)
    y = keras.layers.BatchNormalization(name="outer_norm")(y)
    x = keras.layers.ReLU(name="relu")(keras.layers.Add(name="add")([x, y]))
    x = keras.layers.Conv2D(6, 3, strides=2, padding="same", activation="relu", name="last")(x)
    outputs = keras.layers.Dense(4, name="logits")(keras.layers.GlobalAveragePooling2D(name="pool")(x))
    model = keras.Model(inputs, outputs)
    random = np.random.default_rng(1)
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.set_weights([random.uniform(0.5, 1.5, 8) for _ in range(4)])
    return model


@pytest.fixture
def teacher() -> keras.Model:
    return residual_network()


def damaged(teacher: keras.Model, name: str = "stem") -> tuple[keras.Model, dict[str, str]]:
    """Return a student with one convolution whose kernel is far off, and where its block ends."""

    def build(x: keras.KerasTensor) -> keras.KerasTensor:
        layer = teacher.get_layer(name)
        config = layer.get_config() | {"name": f"{name}_block", "activation": "linear"}
        x = keras.layers.Conv2D.from_config(config)(x)
        return keras.layers.Activation(layer.activation, name=f"{name}_end")(x)

    student = graph.swap(teacher, {name: build})
    kernel, *bias = teacher.get_layer(name).get_weights()
    noise = np.random.default_rng(2).normal(0, 0.5 * kernel.std(), kernel.shape)
    student.get_layer(f"{name}_block").set_weights([kernel + noise, *bias])
    return student, {name: f"{name}_end"}


def images(count: int = 48) -> list[np.ndarray]:
    pixels = np.random.default_rng(0).uniform(0, 1, (count, 8, 8, 3)).astype(np.float32)
    return [pixels[start : start + 16] for start in range(0, count, 16)]


def feature_error(student: keras.Model, teacher: keras.Model, name: str, unseen: np.ndarray) -> float:
    """Return the mean squared difference of a layer's output in student and teacher."""
    outputs = [keras.Model(model.inputs[0], model.get_layer(name).output)(unseen) for model in (student, teacher)]
    return float(np.mean((np.asarray(outputs[0]) - np.asarray(outputs[1])) ** 2))


def test_the_first_block_and_all_that_follows_is_refitted(teacher: keras.Model) -> None:
    student, ends = damaged(teacher)
    names = [(site.convolution.name, site.target.name) for site in find_sites(teacher, student, ends)]
    assert names == [("stem_block", "stem"), ("inner", "inner"), ("outer", "outer"), ("last", "last")]
    student, ends = damaged(teacher, "outer")
    assert [site.target.name for site in find_sites(teacher, student, ends)] == ["outer", "last"]
    assert find_sites(teacher, student, {}) == []


def test_the_last_convolution_of_a_residual_block_makes_up_for_its_shortcut(teacher: keras.Model) -> None:
    student, ends = damaged(teacher)
    sites = {site.target.name: site for site in find_sites(teacher, student, ends)}
    assert sites["inner"].shortcuts is sites["last"].shortcuts is None
    assert sites["inner"].normalisations is not None
    assert sites["last"].normalisations is None
    of_teacher, of_student = sites["outer"].shortcuts or (None, None)
    assert of_teacher is teacher.get_layer("stem").output
    assert of_student is student.get_layer("stem_end").output


@pytest.mark.parametrize("name", ["stem", "inner", "outer", "last"])
def test_refitting_brings_all_later_feature_maps_closer(teacher: keras.Model, name: str) -> None:
    """On images that were not among those to fit."""
    student, ends = damaged(teacher, name)
    unseen = np.random.default_rng(9).uniform(0, 1, (64, 8, 8, 3)).astype(np.float32)
    recalibrate_batch_norm(student, images())
    later = ["relu", "pool", "logits"] if name != "last" else ["pool", "logits"]
    before = [feature_error(student, teacher, each, unseen) for each in later]
    refit(student, teacher, ends, images())
    after = [feature_error(student, teacher, each, unseen) for each in later]
    assert all(new < 0.5 * old for old, new in zip(before, after, strict=True)), (before, after)


def test_a_block_that_can_compute_its_layer_does_so_exactly(teacher: keras.Model) -> None:
    student, ends = damaged(teacher, "last")
    refit(student, teacher, ends, images())
    assert feature_error(student, teacher, "logits", images()[0]) < 1e-6


def test_normalisations_keep_their_function_when_their_statistics_are_estimated_again(teacher: keras.Model) -> None:
    student, ends = damaged(teacher)
    batch = np.concatenate(images())
    refit(student, teacher, ends, [batch])
    before = np.asarray(student(batch))
    recalibrate_batch_norm(student, [batch])
    np.testing.assert_allclose(np.asarray(student(batch)), before, rtol=1e-3, atol=1e-3)


def test_workers_that_share_the_images_refit_as_one_does(teacher: keras.Model) -> None:
    students = [damaged(teacher) for _ in range(3)]
    refit(students[2][0], teacher, students[2][1], images(64))

    def part(collective: Collective) -> None:
        refit(*(students[collective.index][0], teacher, students[2][1]), images(64)[collective.index :: 2], collective)

    run_threads(2, part)
    for shared in students[:2]:
        for one, two in zip(shared[0].get_weights(), students[2][0].get_weights(), strict=True):
            np.testing.assert_allclose(one, two, rtol=1e-3, atol=1e-4)


def moments(patches: np.ndarray, errors: np.ndarray, has_shift: bool = False) -> Moments:
    return Moments.of(patches.astype(np.float32), errors.astype(np.float32), has_shift, SINGLE)


def correction(fitting: Moments, held_out: Moments) -> np.ndarray:
    ridge, both = choose_ridge(fitting, held_out), fitting + held_out
    return np.zeros_like(both.cross) if ridge is None else both.solver(ridge)(both.covariance)


def test_the_correction_is_that_of_least_squares_on_enough_images() -> None:
    random = np.random.default_rng(4)
    patches, kernel = random.normal(0.0, 1.0, (4000, 5)), random.normal(size=(5, 3))
    patches -= patches.mean(axis=0)
    errors = patches @ kernel + 2.0 + random.normal(0, 0.1, (4000, 3))
    parts = slice(0, 3000), slice(3000, None)
    shifted = [moments(patches[part], errors[part], has_shift=True) for part in parts]
    np.testing.assert_allclose(correction(*shifted), kernel, atol=0.04)
    np.testing.assert_allclose((shifted[0] + shifted[1]).shift, 2.0, atol=0.04)
    patches += 1.0
    fixed = [moments(patches[part], errors[part]) for part in parts]
    np.testing.assert_allclose(correction(*fixed), np.linalg.lstsq(patches, errors)[0], atol=0.04)
    assert not (fixed[0] + fixed[1]).shift.any()


def test_noise_is_not_fitted() -> None:
    """Eight pairs determine no kernel of 50 values: the correction stays zero, or is no worse on other images."""
    random = np.random.default_rng(5)
    fitting, held_out, other = (
        moments(random.normal(size=(count, 50)), random.normal(size=(count, 4))) for count in (8, 200, 5000)
    )
    unchanged = float(other.squares.sum())
    assert other.remaining(correction(fitting, held_out)) < 1.1 * unchanged
    assert other.remaining(fitting.solver(1e-5)(fitting.cross)) > 1.1 * unchanged


def test_the_ridge_is_the_best_of_all() -> None:
    """The search from one ridge on finds the one with the least error, for much noise and for little."""
    random = np.random.default_rng(6)
    for noise in (0.0, 1.0, 30.0):
        patches, kernel = random.normal(size=(300, 40)) * np.geomspace(1, 1e-3, 40), random.normal(size=(40, 3))
        errors = patches @ kernel + noise * random.normal(size=(300, 3))
        fitting, held_out = (moments(patches[part], errors[part]) for part in (slice(0, 200), slice(200, None)))
        left = {ridge: held_out.remaining(fitting.solver(ridge)(fitting.cross)) for ridge in RIDGES}
        best = min(RIDGES, key=lambda ridge: left[ridge])
        chosen = choose_ridge(fitting, held_out)
        assert left[best] >= held_out.squares.sum() if chosen is None else left[chosen] <= 1.001 * left[best]


def test_where_the_output_is_rectified_only_its_positive_part_counts(
    teacher: keras.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A convolution on half of its input channels comes closer to the rectified feature map of the images it learns."""
    learnt = np.concatenate(images(256))
    last = teacher.get_layer("last")
    positive = np.asarray(keras.Model(teacher.inputs[0], last.output)(learnt))
    last.bias.assign(last.bias - np.quantile(positive, 0.7, axis=(0, 1, 2)))  # about a third stays positive

    def error(steps: int) -> float:
        monkeypatch.setattr(refitting, "RECTIFIED_STEPS", steps)
        build = functools.partial(pbd_narrow, teacher.get_layer("last"))
        student = graph.swap(teacher, {"last": build})
        refit(student, teacher, {"last": "last_end"}, images(256))
        ends = teacher.get_layer("last"), student.get_layer("last_end")
        maps = [
            keras.Model(model.inputs[0], end.output)(learnt)
            for model, end in zip((teacher, student), ends, strict=True)
        ]
        return float(np.mean((np.asarray(maps[0]) - np.asarray(maps[1])) ** 2))

    assert find_sites(teacher, *damaged(teacher, "last"))[-1].is_rectified
    errors = [error(steps) for steps in (0, 1, 2)]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.97 * errors[0]


def pbd_narrow(layer: keras.layers.Conv2D, x: keras.KerasTensor) -> keras.KerasTensor:
    """Return a convolution on the first channels, with the activation of a layer behind it."""
    config = layer.get_config() | {"name": "last_block", "activation": "linear"}
    x = keras.layers.Conv2D.from_config(config)(x[..., :3])
    return keras.layers.Activation(layer.activation, name="last_end")(x)


IN_ORDER = (("inner", ["stem"]), ("outer", ["inner_relu", "stem"]), ("last", ["relu"]))


@pytest.mark.parametrize("most_bytes", [0, 40_000, 2**30])
@pytest.mark.parametrize("places", [IN_ORDER, IN_ORDER[::-1]], ids=["in order", "against the order"])
def test_tensors_are_those_of_the_whole_network(
    teacher: keras.Model, places: tuple[tuple[str, list[str]], ...], most_bytes: int
) -> None:
    """Whatever fits in memory; also after weights behind the cut have changed."""
    run = ProgressiveRun(teacher, images(), most_bytes)
    for name, tensors in places:
        layer = teacher.get_layer(name)
        outputs = [teacher.get_layer(each).output for each in tensors]
        expected = keras.Model(teacher.inputs[0], outputs)
        for batch, values in zip(images(), run.values(outputs, layer), strict=True):
            for value, reference in zip(values, keras.tree.flatten(expected(batch)), strict=True):
                np.testing.assert_allclose(value, np.asarray(reference), rtol=1e-5, atol=1e-5)
        layer.kernel.assign(layer.kernel * 1.5)


def test_a_layer_that_is_called_several_times_may_lie_at_the_cut() -> None:
    inputs, relu = keras.Input((6, 6, 3)), keras.layers.ReLU()
    x = inputs
    for name in ("a", "b", "c"):
        x = relu(keras.layers.Conv2D(4, 3, padding="same", name=name)(x))
    model, batch = keras.Model(inputs, x), np.random.default_rng(0).normal(size=(2, 6, 6, 3)).astype("float32")
    run = ProgressiveRun(model, [batch])
    for name in ("b", "c"):
        layer = model.get_layer(name)
        ((value,),) = run.values([layer.input], layer)
        np.testing.assert_allclose(value, np.asarray(keras.Model(inputs, layer.input)(batch)), atol=1e-5)


def test_a_student_that_refitting_does_not_improve_keeps_its_kernels(
    teacher: keras.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Images:
        labelled, batch_size = False, 32

        def batches(self, split: str, limit: int | None = None) -> list[tuple[np.ndarray, np.ndarray]]:
            return [(batch, np.zeros(len(batch), int)) for batch in images()]

    def spoil(student: keras.Model, teacher: keras.Model, ends: Mapping[str, str], *_: object, **__: object) -> None:
        student.get_layer("last").kernel.assign(-50 * student.get_layer("last").kernel)

    student, ends = damaged(teacher)
    kernel = np.asarray(student.get_layer("last").kernel)
    monkeypatch.setattr(adaptation, "refit", spoil)
    adapted = adaptation.adapt(student, teacher, ends, Images())
    assert adapted.refitted is not None
    assert adapted.metrics == adapted.recalibrated
    assert "the kernels before are kept" in next(adapted.events())
    np.testing.assert_array_equal(np.asarray(student.get_layer("last").kernel), kernel)


@pytest.mark.parametrize("batch", [1, 2, 4, 8, 16])
def test_small_batches_of_large_maps_are_held_out_in_part_too(batch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(samples, "MOST_PATCHES", 1024)
    maps = samples.Maps(np.zeros((batch, 32, 32, 1)), None, np.zeros((batch, 32, 32, 1)))
    layer = keras.layers.Conv2D(1, 3, padding="same")
    counts = {False: 0, True: 0}
    for held_out, part in samples._of_batch(maps, layer, images=64):
        counts[held_out] += len(part.inputs)
    assert 0.5 <= counts[False] / sum(counts.values()) <= 0.8


def test_a_term_that_is_repeated_over_the_map_is_no_shortcut(teacher: keras.Model) -> None:
    inputs = keras.Input((8, 8, 3))
    x = keras.layers.Conv2D(8, 3, padding="same", activation="relu", name="stem")(inputs)
    context = keras.layers.Reshape((1, 1, 8))(keras.layers.GlobalAveragePooling2D()(x))
    y = keras.layers.Conv2D(8, 3, padding="same", name="inner")(x)
    y = keras.layers.Add(name="add")([y, context])
    network = keras.Model(inputs, keras.layers.Dense(4)(keras.layers.GlobalAveragePooling2D()(y)))
    sites = find_sites(network, *damaged(network))
    assert [(site.target.name, site.shortcuts) for site in sites] == [("stem", None), ("inner", None)]
