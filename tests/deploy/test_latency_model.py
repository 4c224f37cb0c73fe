"""Predicted latency: what counts as the same piece, what is measured again, and how the model is corrected."""

import json
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

from pbd.deploy import pass_time, piece_times, pieces, targets
from pbd.deploy.latency_model import LatencyModel, MeasuredNetwork, PieceTime
from pbd.deploy.piece_cache import PieceCache, Seconds, conditions
from pbd.errors import BadInputError, UsageError
from pbd.networks import fusion
from pbd.networks.keras_internals import producer
from pbd.system import backend, devices

ONNX = targets.TARGETS["onnx"]
MIB = 2**20
needs_onnx = pytest.mark.skipif(ONNX.obstacle() is not None, reason="ONNX Runtime is absent")


def block(filters: int = 8, name: str | None = None, **settings: Any) -> keras.Model:
    inputs = keras.Input((8, 8, 4))
    return keras.Model(inputs, keras.layers.Conv2D(filters, 3, padding="same", name=name, **settings)(inputs))


def residual() -> keras.Model:
    """Return a network with two convolutions in a residual branch, both followed by a ReLU."""
    image = keras.Input((8, 8, 3))
    x = keras.layers.Conv2D(6, 1, name="stem")(image)
    y = keras.layers.ReLU()(keras.layers.Conv2D(6, 3, padding="same", name="first")(x))
    y = keras.layers.Conv2D(6, 3, padding="same", name="second")(y)
    y = keras.layers.ReLU()(keras.layers.Add()([x, y]))
    return keras.Model(image, keras.layers.Dense(4)(keras.layers.GlobalAveragePooling2D()(y)))


def counted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Have pieces take a second for each image and output channel, and an eighth of the number measured so far.

    Returns:
        The names of the pieces that are measured.
    """
    names: list[str] = []

    def seconds(_: Any, group: list[keras.Model], batch_sizes: list[int]) -> dict[int, list[Seconds]]:
        names.extend(piece.name for piece in group)
        channels = [piece.output.shape[-1] for piece in group]
        return {
            batch: [Seconds(float(batch * each + len(names) / 8), 2.0) for each in channels] for batch in batch_sizes
        }

    monkeypatch.setattr(piece_times._Bench, "seconds", seconds)
    return names


def test_equal_pieces_are_measured_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    names = counted(monkeypatch)
    seed = keras.initializers.HeNormal(seed=5)
    equal = {"a": block(name="one"), "b": block(name="two", kernel_initializer=seed, kernel_regularizer="l2")}
    others = {"wide": block(16), "active": block(activation="relu"), "strided": block(strides=2)}
    times = piece_times.measure({**equal, **others}, ONNX, [1], cache_folder=tmp_path)[1]
    assert len(names) == 4
    assert times["a"] == times["b"] == PieceTime(8.5, 2.0, 4 * (3 * 3 * 4 * 8 + 8))
    assert times["wide"].warm_s == 16.5


def test_only_what_is_not_in_the_cache_is_measured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    names = counted(monkeypatch)
    first = piece_times.measure({"a": block()}, ONNX, [1], cache_folder=tmp_path)
    assert piece_times.measure({"a": block()}, ONNX, [1], cache_folder=tmp_path) == first
    assert len(names) == 1
    again = piece_times.measure({"a": block(), "b": block(16)}, ONNX, [1, 3], cache_folder=tmp_path)
    assert len(names) == 3, "the first piece for the other batch size too, the second for both"
    assert again[1]["a"] == first[1]["a"], "what was measured before stays"
    assert again[3]["a"].warm_s == 24 + 3 / 8


def test_what_was_measured_before_an_interruption_is_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    names = counted(monkeypatch)
    measured = piece_times._Bench.seconds

    def interrupted(bench: Any, group: list[keras.Model], batch_sizes: list[int]) -> dict[int, list[Seconds]]:
        if group[0].output.shape[-1] == 16:
            raise KeyboardInterrupt
        return measured(bench, group, batch_sizes)

    monkeypatch.setattr(piece_times, "GROUP", 1)
    monkeypatch.setattr(piece_times._Bench, "seconds", interrupted)
    both = {"a": block(), "b": block(16)}
    with pytest.raises(KeyboardInterrupt):
        piece_times.measure(both, ONNX, [1], cache_folder=tmp_path)
    monkeypatch.setattr(piece_times._Bench, "seconds", measured)
    piece_times.measure(both, ONNX, [1], cache_folder=tmp_path)
    assert len(names) == 2


def test_the_cache_depends_on_the_conditions_and_survives_damage(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    PieceCache.of(ONNX, 1, 1, tmp_path).update({"a": Seconds(1.0, 2.0)})
    assert dict(PieceCache.of(ONNX, 1, 1, tmp_path)) == {"a": Seconds(1.0, 2.0)}
    assert not PieceCache.of(ONNX, 2, 1, tmp_path)
    assert not PieceCache.of(ONNX, 1, 2, tmp_path)
    assert not PieceCache.of(targets.TARGETS["onnx-int8"], 1, 1, tmp_path)
    assert conditions(targets.TARGETS["keras"], 1, None)["versions"].keys() == {"pbd", "keras", backend.name()}
    assert conditions(targets.TARGETS["keras"], 1, None)["threads"] == devices.process_threads()
    (path,) = tmp_path.glob("*.json")
    assert json.loads(path.read_text())["conditions"]["target"] == "onnx"
    path.write_text('{"seconds": [')
    assert not PieceCache.of(ONNX, 1, 1, tmp_path)
    assert "cannot be used" in caplog.text


def test_two_processes_write_one_cache(tmp_path: Path) -> None:
    one, other = PieceCache.of(ONNX, 1, 1, tmp_path), PieceCache.of(ONNX, 1, 1, tmp_path)
    one.update({"a": Seconds(1.0, 1.0)})
    other.update({"b": Seconds(2.0, 2.0)})
    assert set(PieceCache.of(ONNX, 1, 1, tmp_path)) == {"a", "b"}


def test_a_piece_contains_the_addition_and_the_activation_behind_it() -> None:
    network = residual()
    second = pieces.piece(network, "second", pieces.narrowed(network.get_layer("second"), 6), (8, 8, 2))
    assert [tuple(tensor.shape[1:]) for tensor in second.inputs] == [(8, 8, 2), (8, 8, 6)]
    kinds = [type(layer).__name__ for layer in second.layers if not isinstance(layer, keras.layers.InputLayer)]
    assert kinds == ["Conv2D", "Add", "ReLU"]
    first = pieces.piece(network, "first")
    assert [type(layer).__name__ for layer in first.layers] == ["InputLayer", "Conv2D", "ReLU"]
    stem = pieces.piece(network, "stem")
    assert len(fusion.consumers(network)[id(network.get_layer("stem").output)]) == 2
    assert [type(layer).__name__ for layer in stem.layers] == ["InputLayer", "Conv2D"]


def test_the_addition_of_a_residual_block_may_be_the_operator() -> None:
    """`x + y` is an operation of the network, but not among its layers."""
    x = inputs = keras.Input((8, 8, 6))
    y = keras.layers.Conv2D(6, 3, padding="same", name="inner")(x) + 1.0
    x = keras.layers.Conv2D(6, 3, padding="same", name="last")(y) + x
    addition = producer(x)[0].name
    network = keras.Model(inputs, keras.layers.ReLU()(x))
    merged = pieces.piece(network, addition, keras.layers.Conv2D(6, 3, padding="same"), (8, 8, 6))
    assert [type(layer).__name__ for layer in merged.layers] == ["InputLayer", "Conv2D", "ReLU"]
    assert len(pieces.piece(network, "last").inputs) == 2, "with the addition behind it"
    assert [type(layer).__name__ for layer in pieces.piece(network, "inner").layers] == ["InputLayer", "Conv2D"]


def test_the_network_around_a_piece_gives_it_its_inputs() -> None:
    shapes = [(8, 8, 6), (4, 8, 6)]
    inputs = [keras.Input(shape) for shape in shapes]
    joined = keras.layers.Concatenate(1)(inputs)
    network = piece_times.in_context((8, 8), shapes, keras.Model(inputs, joined))
    kinds = [type(layer).__name__ for layer in network.layers]
    assert (kinds.count("Conv2D"), kinds.count("ReLU"), kinds.count("Concatenate")) == (2, 2, 1)
    assert network.output.shape == (None, 6)
    assert piece_times.in_context((8, 8), shapes[1:]).output.shape == (None, 6)
    assert not any(isinstance(layer, keras.layers.Conv2D) for layer in piece_times.in_context((8, 8), []).layers)


def test_inputs_of_which_no_size_is_a_multiple_of_the_other_are_cropped() -> None:
    """As behind a convolution without padding, to which a cropped shortcut is added."""
    shapes = [(17, 17, 6), (15, 15, 6)]
    inputs = [keras.Input(shape) for shape in shapes]
    piece = keras.Model(inputs, keras.layers.Add()([keras.layers.Conv2D(6, 3)(inputs[0]), inputs[1]]))
    network = piece_times.in_context((17, 17), shapes, piece)
    assert network.output.shape == (None, 6)
    assert piece_times.in_context((17, 17), shapes[1:]).output.shape == (None, 6)


def test_the_seconds_of_a_piece_are_those_that_its_network_takes_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a network takes is here 100 for the call, 10 for a convolution, and 1 for an addition."""
    costs = {"InputLayer": 100.0, "Conv2D": 10.0, "Add": 1.0}

    def least(runners: list[keras.Model], *_: Any) -> tuple[float, ...]:
        return tuple(sum(costs.get(type(layer).__name__, 0.0) for layer in network.layers) for network in runners)

    monkeypatch.setattr(piece_times._Bench, "runner", lambda _, network: network)
    monkeypatch.setattr(pass_time, "least_seconds", least)
    monkeypatch.setattr(pass_time, "cold_seconds", lambda *arguments: [2 * each for each in least(*arguments)])
    network = residual()
    built = [pieces.piece(network, "second", input_shape=(8, 8, 2)), pieces.piece(network, "first")]
    found = piece_times._Bench(ONNX, 1, Path()).seconds(built, [1])
    assert found == {1: [Seconds(11.0, 22.0), Seconds(10.0, 20.0)]}


def test_pieces_without_a_fixed_shape_are_refused(tmp_path: Path) -> None:
    free = keras.Sequential([keras.Input((None, None, 3)), keras.layers.Conv2D(4, 3)], name="free")
    flat = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Flatten()])
    for piece in (free, flat):
        with pytest.raises(BadInputError, match="must map feature maps"):
            piece_times.measure({"a": keras.Model(piece.inputs, piece.outputs)}, ONNX, [1], cache_folder=tmp_path)


def test_the_least_time_is_that_of_an_undisturbed_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    """A disturbance in one turn, or in one pass of every turn, does not count."""
    now_s, passes = [0.0], [0]

    def run(images: np.ndarray) -> np.ndarray:
        passes[0] += 1
        now_s[0] += images[0] + (7.0 if passes[0] % 5 == 0 or passes[0] < 20 else 0.0)
        return images

    monkeypatch.setattr(pass_time, "clock_for", lambda threads: lambda: now_s[0])
    monkeypatch.setattr(pass_time, "MIN_ROUNDS", 20)
    times = pass_time.least_seconds([run, run], [np.array([0.25]), np.array([0.5])], threads=1)
    assert times == (0.25, 0.5)


def test_predictions_are_a_base_and_a_scale_times_the_sum() -> None:
    times = {"a": PieceTime(1.0, 3.0, 0), "b": PieceTime(2.0, 2.0, 0)}
    model = LatencyModel(times, base_s=0.5, scale=2.0, cache_bytes=MIB)
    assert model.predict(["a", "b", "b"]) == 0.5 + 2.0 * 5.0
    assert model.predict([]) == 0.5
    with pytest.raises(UsageError, match="Received: 'c'"):
        model.predict(["a", "c"])


def test_a_piece_can_take_less_in_a_network_than_alone() -> None:
    time = PieceTime(1.0, 3.0, MIB)
    assert time.less(0.25) == PieceTime(0.75, 2.75, MIB)
    assert time.less(-2.0) == PieceTime(3.0, 5.0, MIB)


def test_large_networks_read_their_weights_from_memory() -> None:
    times = {"a": PieceTime(1.0, 3.0, MIB)}
    model = LatencyModel(times, cache_bytes=16 * MIB)
    assert [model.coldness(["a"] * number) for number in (1, 4, 10, 16, 40)] == [0.0, 0.0, 0.5, 1.0, 1.0]
    assert model.predict(["a"] * 4) == 4.0
    assert model.predict(["a"] * 10) == 20.0
    assert model.predict(["a"] * 20) == 60.0
    assert model.piece_s("a", coldness=0.5) == 2.0


def test_the_correction_finds_base_and_scale() -> None:
    times = {number: PieceTime(float(number), float(number), 0) for number in (1, 2, 5)}
    model = LatencyModel(times, cache_bytes=MIB)
    chosen = [(1,), (1, 2), (5, 5), (2, 2, 5)]
    measured = [MeasuredNetwork(each, 3.0 + 1.05 * sum(each)) for each in chosen]
    one = model.corrected(measured[3:])
    assert one.errors(measured[3:])[0] == pytest.approx(0.0, abs=1e-6)
    assert one.scale == pytest.approx(1.0, abs=1e-6), "one network says nothing of the scale"
    several = model.corrected(measured)
    assert max(map(abs, several.errors(measured))) < 0.01
    assert 1.0 < several.scale <= 1.05
    assert several.corrected(measured) == several, "a correction starts from what was measured"


def test_the_base_is_never_negative() -> None:
    """A teacher that is faster than its pieces shows a scale below 1."""
    model = LatencyModel({"a": PieceTime(1.0, 1.0, 0)}, cache_bytes=MIB)
    corrected = model.corrected([MeasuredNetwork(("a",) * 20, 18.0)])
    assert corrected.base_s == 0.0
    assert corrected.predict(["a"] * 20) == pytest.approx(18.0, rel=0.01)


def test_a_correction_needs_measured_networks() -> None:
    model = LatencyModel({"a": PieceTime(1.0, 1.0, 0)}, cache_bytes=MIB)
    for measured in ([], [MeasuredNetwork(("a",), 0.0)]):
        with pytest.raises(UsageError, match="longer than 0 s"):
            model.corrected(measured)


@needs_onnx
def test_pieces_and_networks_are_measured_in_a_runtime(tmp_path: Path) -> None:
    network = residual()
    built = {name: pieces.piece(network, name) for name in ("first", "second")}
    times = piece_times.measure(built, ONNX, [1, 2], cache_folder=tmp_path)
    assert all(0 <= time.warm_s <= time.cold_s for by_piece in times.values() for time in by_piece.values())
    assert times[1].keys() == built.keys()
    assert times == piece_times.measure(built, ONNX, [1, 2], cache_folder=tmp_path), "read from the cache"
    seconds = piece_times.measure_networks({"teacher": network}, ONNX, [1, 2])
    assert min(seconds[1]["teacher"], seconds[2]["teacher"]) > 0
    model = LatencyModel(times[1]).corrected([MeasuredNetwork(("first", "second"), seconds[1]["teacher"])])
    assert model.predict(("first", "second")) == pytest.approx(seconds[1]["teacher"])
