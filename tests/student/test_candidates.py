"""Candidates as a problem: parts, options, damages, and costs that depend on the reader."""

import itertools
import time
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


def choices(options: candidates.Candidates) -> dict[tuple[tuple[str, str], ...], tuple[float, float]]:
    """Return damage and cost of every choice that the problem allows, by its designs."""
    found = {}
    for choice in itertools.product(*(range(part.options) for part in options.parts)):
        if all(sum(choice[part] == option for part, option in group) == 1 for group in options.problem.groups):
            designs = tuple(sorted(options.designs(choice).items()))
            assert designs not in found, "no network is there twice"
            found[designs] = round(options.problem.damage(choice), 9), round(options.problem.cost("macs", choice), 9)
    return found


def solved(options: candidates.Candidates, macs: float) -> tuple[int, ...]:
    return solve(options.problem, {"macs": macs}).options


def costs(options: candidates.Candidates) -> dict[tuple[str, ...], float]:
    """Return the cost of every choice, by the layers with a block."""
    return {tuple(layer for layer, _ in designs): cost for designs, (_, cost) in choices(options).items()}


def test_a_layer_costs_less_if_its_reader_reads_less() -> None:
    first, second = task("first", "a"), task("second", "test_half", producer="first")
    options = gathered({first: 0.1, second: 0.2}, teacher=250.0)
    assert costs(options) == {
        (): 250.0,
        ("first",): 200.0,
        ("second",): 50.0 + 50.0 + 50.0,
        ("first", "second"): 50.0 + 25.0 + 50.0,
    }


def test_a_block_for_a_residual_block_excludes_blocks_inside() -> None:
    inner = [task(name, "a", inside=("add",)) for name in ("one", "two")]
    whole = task("add", "merge", kind=RESIDUAL, macs=200)
    options = gathered({inner[0]: 0.1, inner[1]: 0.2, whole: 0.5}, teacher=230.0)
    assert choices(options) == {
        (): (0.0, 230.0),
        (("one", "a"),): (0.1, 180.0),
        (("two", "a"),): (0.2, 180.0),
        (("one", "a"), ("two", "a")): (0.3, 130.0),
        (("add", "merge"),): (0.5, 40.0),
    }
    assert options.designs(solved(options, 215.0)) == {"one": "a"}
    assert options.designs(solved(options, 90.0)) == {"add": "merge"}


def test_a_layer_without_a_block_is_saved_with_the_residual_block_around_it() -> None:
    whole, inner = task("add", "drop", kind=RESIDUAL, macs=100), task("one", "none", inside=("add",)).layer
    results = {whole.key: trained(whole.key, 0.5)}
    options = candidates.gather([whole.layer, inner], results, cost_of, {"macs": 130.0})
    assert costs(options) == {(): 130.0, ("add",): 40.0}


def test_what_is_no_convolution_is_saved_with_the_residual_block_around_it() -> None:
    whole, inner = task("add", "drop", kind=RESIDUAL, macs=170), task("one", "a", inside=("add",))
    options = gathered({whole: 0.5, inner: 0.1}, teacher=200.0)
    assert costs(options) == {(): 200.0, ("one",): 150.0, ("add",): 40.0}


def test_layers_inside_a_residual_block_without_candidates_are_parts_themselves() -> None:
    outer = task("outer", "merge", kind=RESIDUAL, macs=300)
    nested = task("add", "drop", kind=RESIDUAL, macs=100, inside=("outer",))
    inner, beside = task("one", "none", inside=("outer", "add")).layer, task("two", "a", inside=("outer",))
    results = {each.key: trained(each.key, 0.5) for each in (nested, beside)}
    layers = [outer.layer, nested.layer, inner, beside.layer]
    options = candidates.gather(layers, results, cost_of, {"macs": 330.0})
    assert costs(options) == {(): 330.0, ("two",): 280.0, ("add",): 240.0, ("add", "two"): 190.0}


def test_a_nested_residual_block_is_gone_with_the_one_around_it() -> None:
    outer = task("outer", "merge", kind=RESIDUAL, macs=350)
    nested = task("add", "drop", kind=RESIDUAL, macs=100, inside=("outer",))
    inner, beside = task("one", "a", inside=("outer", "add")), task("two", "a", inside=("outer",))
    options = gathered({outer: 3.0, nested: 1.0, inner: 0.25, beside: 0.5}, teacher=400.0)
    assert choices(options) == {
        (): (0.0, 400.0),
        (("one", "a"),): (0.25, 350.0),
        (("two", "a"),): (0.5, 350.0),
        (("one", "a"), ("two", "a")): (0.75, 300.0),
        (("add", "drop"),): (1.0, 310.0),
        (("add", "drop"), ("two", "a")): (1.5, 260.0),
        (("outer", "merge"),): (3.0, 60.0),
    }
    choice = solved(options, 265.0)
    assert options.designs(choice) == {"add": "drop", "two": "a"}
    assert options.pieces(choice) == [("add", "drop", 16), ("two", "a", 16)]


def test_a_residual_block_with_many_candidates_inside_is_chosen_in_seconds() -> None:
    """Six layers with nine options each have half a million combinations."""
    names, designs = [f"layer{n}" for n in range(6)], [f"design{n}" for n in range(8)]
    damages = {
        task(name, design, inside=("add",)): 0.1 + 0.01 * n + 0.001 * m
        for n, name in enumerate(names)
        for m, design in enumerate(designs)
    }
    options = gathered({**damages, task("add", "drop", kind=RESIDUAL, macs=600): 2.0}, teacher=600.0)
    started_s = time.process_time()
    assert options.designs(solved(options, 500.0)) == {"layer0": "design0", "layer1": "design0"}
    assert options.designs(solved(options, 200.0)) == {"add": "drop"}
    assert time.process_time() - started_s < 20, "0.1 s on an idle core"


def test_inside_a_residual_block_a_reader_narrows_the_layer_before_it() -> None:
    first = task("one", "a", inside=("add",))
    second = task("two", "test_half", inside=("add",), producer="one")
    whole = task("add", "drop", kind=RESIDUAL, macs=200)
    options = gathered({first: 0.1, second: 0.2, whole: 0.5}, teacher=200.0)
    assert costs(options) == {(): 200.0, ("one",): 150.0, ("two",): 100.0, ("one", "two"): 75.0, ("add",): 10.0}


@pytest.mark.parametrize("kl", [None, float("nan"), float("inf")])
def test_a_block_without_a_finite_divergence_is_no_candidate(kl: float | None) -> None:
    options = gathered({task("first", "a"): kl, task("first", "b"): 0.3}, teacher=100.0)
    assert [part.designs for part in options.parts] == [("b",)]
