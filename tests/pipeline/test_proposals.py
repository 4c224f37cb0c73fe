"""What a choice of blocks is predicted to take is what its network takes."""

import functools
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import keras
import pytest

from pbd import blocks
from pbd.blockwise.tasks import enumerate_tasks
from pbd.config import RunConfig, budgets
from pbd.deploy import inference_form
from pbd.deploy.latency_model import PieceTime
from pbd.networks import cost
from pbd.pipeline import budget_problem, proposals
from pbd.pipeline.budget_problem import BudgetProblem
from pbd.pipeline.proposals import Proposer
from pbd.records import BlockResult
from pbd.student import latency_costs
from pbd.student.assemble import assemble
from pbd.student.builder import Assembled
from pbd.system import processor

pytestmark = pytest.mark.unit
layers = keras.layers
DESIGNS = ("narrow_r50", "decoupled_r2", "merge", "drop")
COUNTS = {"macs": cost.count_macs, "params": cost.count_params}


def conv(x: Any, filters: int, size: int = 3) -> Any:
    x = layers.Conv2D(filters, size, padding="same", use_bias=False)(x)
    return layers.ReLU()(layers.BatchNormalization()(x))


def depthwise(x: Any) -> Any:
    return layers.BatchNormalization()(layers.DepthwiseConv2D(3, padding="same")(x))


def bottlenecks(x: Any) -> Any:
    """A merged block computes more, and the first one cannot be dropped: only its 3x3 convolution has candidates."""
    for shortcut in (conv(x, 32, 1), None):
        y = conv(conv(conv(x, 8, 1), 8), 32, 1)
        x = layers.Add()([x if shortcut is None else shortcut, y])
    return x


def dense(x: Any) -> Any:
    for _ in range(2):
        x = layers.Concatenate()([x, conv(conv(x, 16, 1), 8)])
    return x


def chain(x: Any) -> Any:
    return conv(layers.PReLU(shared_axes=[1, 2])(conv(depthwise(conv(x, 16)), 16)), 16)


def shared(x: Any) -> Any:
    both = layers.Conv2D(16, 3, padding="same", activation="relu")
    return conv(conv(layers.Add()([both(x), both(layers.ReLU()(x))]), 8), 8)


def repeated(x: Any) -> Any:
    x = conv(x, 16)
    return conv(conv(layers.Concatenate()([x, layers.ReLU()(x)]), 16), 16)


def layers_as_activations(x: Any) -> Any:
    for _ in range(2):
        x = layers.Conv2D(16, 3, padding="same", activation=layers.LeakyReLU(negative_slope=0.1))(x)
    return x


def residual_of_a_depthwise_convolution(x: Any) -> Any:
    x = layers.Conv2D(16, 3, padding="same")(x)
    return conv(layers.Add()([x, depthwise(x)]), 16)


def proposer(teacher: keras.Model, names: tuple[str, ...]) -> Proposer:
    """Return the proposer of a run whose blocks diverge the less the earlier they are."""
    tasks = enumerate_tasks(teacher, *map(blocks.get, names))
    results = dict[Any, BlockResult]()
    for number, task in enumerate(task for task in tasks if task.skip_reason is None):
        weights = blocks.get_weights(blocks.build_block(blocks.get(task.design), task.layer, seed=0))
        results[task.key] = BlockResult(task.layer.name, "trained", task.design, weights, val_kl=1.0 + number)

    def assembled(accepted: Mapping[str, BlockResult]) -> Assembled:
        metrics: Any = SimpleNamespace(kl=0.0)
        return Assembled(assemble(teacher, tasks, accepted), metrics)

    display: Any = SimpleNamespace(phase=lambda _: None)
    return Proposer(BudgetProblem(teacher, tasks, results, RunConfig(), display), assembled)


@functools.cache
def network(body: Any) -> keras.Model:
    keras.utils.set_random_seed(0)
    inputs = keras.Input((8, 8, 16))
    x = layers.GlobalAveragePooling2D()(body(inputs))
    return keras.Model(inputs, layers.Dense(4, name="logits")(x))


@pytest.mark.parametrize("designs", [("narrow_r50", "narrow_r25"), DESIGNS], ids=" ".join)
@pytest.mark.parametrize("body", [bottlenecks, dense, chain, shared, repeated])
def test_predicted_costs_are_those_of_the_network(body: Any, designs: tuple[str, ...]) -> None:
    teacher = network(body)
    made = proposer(teacher, designs)
    for budget in ("params:0.8", "macs:0.75"):
        proposal = made.best([budgets.parse(budget)], 1)
        student = proposal.assembled.model
        assert proposal.blocks
        shares = {name: count(student) / count(teacher) for name, count in COUNTS.items()}
        assert proposal.report.predicted == pytest.approx(shares)


def residuals(x: Any) -> Any:
    for _ in range(3):
        y = layers.Conv2D(16, 3, padding="same", use_bias=False)(conv(x, 16))
        x = layers.ReLU()(layers.Add()([x, layers.BatchNormalization()(y)]))
    return x


@pytest.mark.parametrize(
    "designs", [("merge",), ("drop",), ("two_layer",), ("narrow_r50", "three_layer", "drop")], ids=" ".join
)
def test_predicted_bytes_are_those_of_the_folded_network(
    designs: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    def size(model: keras.Model, target: Any) -> int:
        return 4 * cost.count_params(inference_form.fold(model))

    monkeypatch.setattr(budget_problem, "file_size", size)
    teacher = network(residuals)
    proposal = proposer(teacher, designs).best([budgets.parse("bytes:0.7")], 1)
    expected = size(proposal.assembled.model, None) / size(teacher, None)
    assert proposal.blocks
    assert proposal.report.predicted["bytes"] == pytest.approx(expected)


def test_an_activation_may_be_a_layer() -> None:
    """Keras serialises it as a dictionary, which has no hash."""
    proposal = proposer(network(layers_as_activations), ("decoupled_r2",)).best([budgets.parse("macs:0.5")], 1)
    assert proposal.blocks


def test_what_is_gone_with_a_residual_block_is_not_saved_twice() -> None:
    """The depthwise convolution lies between a convolution and its only reader, and in a block that can be dropped."""
    teacher = network(residual_of_a_depthwise_convolution)
    whole = cost.count_params(teacher)
    for allowed in (0.9, 0.55, 0.495):
        proposal = proposer(teacher, ("narrow_r50", "drop")).best([budgets.parse(f"params:{allowed}")], 1)
        assert cost.count_params(proposal.assembled.model) <= proposal.report.predicted["params"] * whole + 1e-6


def test_the_predicted_latency_of_a_smaller_network_is_the_sum_of_its_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """More of the teacher's weights than of the student's are read from memory in each pass."""

    def measure(pieces: Mapping[Any, keras.Model], _: Any, batch_sizes: tuple[int, ...]) -> dict[int, Any]:
        sizes = {key: piece.count_params() / 1000 for key, piece in pieces.items()}
        of_cache = processor.cache_bytes() / 10
        return {batch_sizes[0]: {key: PieceTime(s, 3 * s, int(s * of_cache)) for key, s in sizes.items()}}

    monkeypatch.setattr(latency_costs.piece_times, "measure", measure)
    monkeypatch.setattr(latency_costs, "seconds_of", lambda *_: {"teacher": 20.0})
    made, budget = proposer(network(chain), ("narrow_r50",)), budgets.parse("latency:0.8")
    first = made.best([budget], 1)
    made.problem.predict_for_networks_like(first.pieces)
    again = made.best([budget], 1)
    table = made.problem._table
    assert table is not None
    assert 0 < table.coldness == table.model.coldness(first.pieces) < table.model.coldness(table.whole.chosen) < 1
    seconds = table.model.base_s + sum(table.model.piece_s(piece, table.coldness) for piece in again.pieces)
    assert again.report.predicted["latency"] * table.of_teacher == pytest.approx(seconds)


def strided(x: Any) -> Any:
    """Two residual blocks of one structure with a shortcut by pooling, which no piece contains, and a third one."""
    for width, strides in ((16, 1), (16, 1), (32, 2)):
        y = layers.Conv2D(width, 3, strides, padding="same", activation="relu")(x)
        y = layers.Conv2D(width, 3, padding="same")(y)
        shortcut = layers.AveragePooling2D(3, strides, padding="same")(x)
        x = layers.Add()([y, layers.Concatenate()([shortcut] * (width // x.shape[-1])) if strides > 1 else shortcut])
    return x


def test_what_goes_with_a_residual_block_besides_its_convolutions_is_predicted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Here a convolution takes as many seconds as it has million multiply-accumulates, and a pooling layer one."""
    measured_in_place = list[str]()

    def seconds(model: keras.Model) -> float:
        parts = [model, *(layer for layer in model.layers if isinstance(layer, keras.Model))]
        pools = sum(isinstance(layer, layers.AveragePooling2D) for part in parts for layer in part.layers)
        return sum(map(cost.count_macs, parts)) / 1e6 + pools

    def measure(pieces: Mapping[Any, keras.Model], _: Any, batch_sizes: tuple[int, ...]) -> dict[int, Any]:
        times = {key: PieceTime(seconds(piece), seconds(piece), 0) for key, piece in pieces.items()}
        return {batch_sizes[0]: times}

    def seconds_of(networks: Mapping[str, keras.Model], *_: Any) -> dict[str, float]:
        measured_in_place.extend(name for name in networks if name == "network")
        return {name: seconds(each) for name, each in networks.items()}

    monkeypatch.setattr(latency_costs.piece_times, "measure", measure)
    monkeypatch.setattr(latency_costs, "seconds_of", seconds_of)
    made = proposer(network(strided), ("merge",))
    least = budgets.parse(f"latency:{1.001 * made.problem.least_latency()}")
    proposal = made.measure(made.best([least], 1), ["latency"])
    assert len(proposal.blocks) == 3
    assert proposal.report.predicted["latency"] == pytest.approx(proposal.report.measured["latency"])
    assert len(measured_in_place) == 2, "blocks of one structure are measured in one place"


def test_a_student_may_be_a_teacher(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its blocks are rewritten where they are deployed, but their layers are those that other blocks can replace."""
    monkeypatch.setattr(
        latency_costs.piece_times,
        "measure",
        lambda pieces, _, sizes: {
            sizes[0]: {
                key: PieceTime(cost.count_macs(each) / 1e6, cost.count_macs(each) / 1e6, 0)
                for key, each in pieces.items()
            }
        },
    )
    monkeypatch.setattr(
        latency_costs,
        "seconds_of",
        lambda networks, *_: {name: cost.count_macs(n) / 1e6 for name, n in networks.items()},
    )
    first = proposer(network(residuals), ("decoupled_r2",)).best([budgets.parse("macs:0.7")], 1)
    assert first.blocks
    student = first.assembled.model
    again = proposer(student, ("drop",)).best([budgets.parse("latency:0.9")], 1)
    assert again.blocks


def test_the_last_networks_are_kept_and_each_is_told_once(monkeypatch: pytest.MonkeyPatch) -> None:
    made, assembled = proposer(network(chain), ("narrow_r50", "narrow_r25")), list[list[str]]()
    assemble_one = made.assemble
    made.assemble = lambda accepted: assembled.append(sorted(accepted)) or assemble_one(accepted)
    monkeypatch.setattr(proposals, "KEPT", 1)
    tight, wide = ([budgets.parse(f"params:{share}")] for share in (0.4, 0.9))
    for requested in (tight, tight, wide, tight):
        made.best(requested, 1)
    assert len(assembled) == 3, "the second time, the network was there"
    assert len(made._assembled) == 1
    assert len(made.events) == 2
