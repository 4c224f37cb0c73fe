"""Candidates as a problem: parts, options, damages, and costs that depend on the reader."""

from dataclasses import replace

import pytest

from pbd import blocks
from pbd.records import RESIDUAL, BlockKey, BlockResult, BlockTask, Layer
from pbd.student import candidates
from pbd.student.solver import solve
from tests.helpers.fakes import make_task

pytestmark = pytest.mark.unit


class Half(blocks.BlockDesign):
    """A block that reads half of the layer's input channels."""

    name = "test_half"

    def channels_read(self, layer: Layer) -> int:
        return layer.input_shape[-1] // 2


@pytest.fixture(autouse=True)
def _half() -> None:
    blocks.register(Half())


def task(name: str, design: str, **changes: object) -> BlockTask:
    made = make_task(0, layer_name=name, design=design)
    return replace(made, layer=replace(made.layer, input_shape=(8, 8, 16), output_shape=(8, 8, 16), **changes))


def trained(key: BlockKey, kl: float | None) -> BlockResult:
    return BlockResult(key.layer, "trained", key.design, val_kl=kl)


def cost_of(layer: Layer, design: str | None, outputs: int) -> dict[str, float]:
    """100 for a layer, 50 for a block, 10 for a block of a whole residual block, per full width of the output.

    A residual block that is kept costs its multiply-accumulates.
    """
    if layer.kind == RESIDUAL and design is None:
        return {"macs": float(layer.macs)}
    full = 10.0 if layer.kind == RESIDUAL else 100.0 if design is None else 50.0
    return {"macs": full * outputs / layer.output_shape[-1]}


def gathered(damages: dict[BlockTask, float | None], teacher: float) -> candidates.Candidates:
    results = {each.key: trained(each.key, kl) for each, kl in damages.items()}
    return candidates.gather([each.layer for each in damages], results, cost_of, {"macs": teacher})


def test_a_layer_costs_less_if_its_reader_reads_less() -> None:
    first, second = task("first", "a"), task("second", "test_half", producer="first")
    options = gathered({first: 0.1, second: 0.2}, teacher=250.0)
    problem = options.problem
    costs = {
        tuple(sorted(options.designs(o).items())): problem.cost("macs", o) for o in ((0, 0), (1, 0), (0, 1), (1, 1))
    }
    assert costs == {
        (): 250.0,
        (("first", "a"),): 200.0,
        (("second", "test_half"),): 50.0 + 50.0 + 50.0,
        (("first", "a"), ("second", "test_half")): 50.0 + 25.0 + 50.0,
    }


def test_a_block_for_a_residual_block_excludes_blocks_inside() -> None:
    inner = [task(name, "a", inside=("add",)) for name in ("one", "two")]
    whole = task("add", "merge", kind=RESIDUAL, macs=200)
    options = gathered({inner[0]: 0.1, inner[1]: 0.2, whole: 0.5}, teacher=230.0)
    (part,) = options.parts
    assert sorted((sorted(o.designs.items()), round(o.damage, 9), o.costs["macs"]) for o in part) == sorted(
        [
            ([], 0.0, 200.0),
            ([("one", "a")], 0.1, 150.0),
            ([("two", "a")], 0.2, 150.0),
            ([("one", "a"), ("two", "a")], 0.3, 100.0),
            ([("add", "merge")], 0.5, 10.0),
        ]
    )
    assert options.designs(solve(options.problem, {"macs": 185.0}).options) == {"one": "a"}
    assert options.designs(solve(options.problem, {"macs": 60.0}).options) == {"add": "merge"}


def test_a_layer_without_a_block_is_saved_with_the_residual_block_around_it() -> None:
    whole, inner = task("add", "drop", kind=RESIDUAL, macs=100), task("one", "none", inside=("add",)).layer
    results = {whole.key: trained(whole.key, 0.5)}
    options = candidates.gather([whole.layer, inner], results, cost_of, {"macs": 130.0})
    costs = {tuple(option.designs): options.problem.cost("macs", (n,)) for n, option in enumerate(options.parts[0])}
    assert costs == {(): 130.0, ("add",): 40.0}


def test_what_is_no_convolution_is_saved_with_the_residual_block_around_it() -> None:
    whole, inner = task("add", "drop", kind=RESIDUAL, macs=170), task("one", "a", inside=("add",))
    options = gathered({whole: 0.5, inner: 0.1}, teacher=200.0)
    costs = {tuple(option.designs): options.problem.cost("macs", (n,)) for n, option in enumerate(options.parts[0])}
    assert costs == {(): 200.0, ("one",): 150.0, ("add",): 40.0}


def test_layers_inside_a_residual_block_without_candidates_are_parts_themselves() -> None:
    outer = task("outer", "merge", kind=RESIDUAL, macs=300)
    nested = task("add", "drop", kind=RESIDUAL, macs=100, inside=("outer",))
    inner, beside = task("one", "none", inside=("outer", "add")).layer, task("two", "a", inside=("outer",))
    results = {each.key: trained(each.key, 0.5) for each in (nested, beside)}
    layers = [outer.layer, nested.layer, inner, beside.layer]
    options = candidates.gather(layers, results, cost_of, {"macs": 330.0})
    assert [[dict(option.designs) for option in part] for part in options.parts] == [
        [{}, {"add": "drop"}],
        [{}, {"two": "a"}],
    ]
    assert [options.problem.cost("macs", choice) for choice in ((0, 0), (1, 0), (1, 1))] == [330.0, 240.0, 190.0]


def test_inside_a_residual_block_a_reader_narrows_the_layer_before_it() -> None:
    first = task("one", "a", inside=("add",))
    second = task("two", "test_half", inside=("add",), producer="one")
    whole = task("add", "drop", kind=RESIDUAL, macs=200)
    options = gathered({first: 0.1, second: 0.2, whole: 0.5}, teacher=200.0)
    costs = {tuple(sorted(o.designs)): o.costs["macs"] for o in options.parts[0]}
    assert costs[("two",)] == 50.0 + 50.0
    assert costs[("one", "two")] == 25.0 + 50.0


@pytest.mark.parametrize("kl", [None, float("nan"), float("inf")])
def test_a_block_without_a_finite_divergence_is_no_candidate(kl: float | None) -> None:
    options = gathered({task("first", "a"): kl, task("first", "b"): 0.3}, teacher=100.0)
    assert [option.designs for option in options.parts[0]] == [{}, {"first": "b"}]
