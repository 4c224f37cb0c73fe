"""Multiply-accumulates that each convolution of VGG16 loses, by replacement blocks and by filter pruning (Li 2017).

They are counted: nothing is trained, and of the flags only --run-dir and --source-tables have an effect.

python -m experiments.sources.layer_macs [--run-dir DIR]
"""

import functools
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from experiments.paper.paper_comparison import Row
from experiments.sources import common
from experiments.sources.common import Settings
from pbd import command_line

if TYPE_CHECKING:
    import keras

NAME = "experiments.sources.layer_macs"
NETWORK = "VGG16"
DESIGNS = ("two_layer", "decoupled_r2")
"""The design of the dissertation's craft distillation, and one of pbd's."""
HALVED = (1, 8, 9, 10, 11, 12, 13)
"""Convolutions of which Li et al. (2017, arXiv:1608.08710, table 2) remove half of the filters."""
COLUMNS = {
    "layer": ("convolution", ""),
    "size": ("pixels\na side", "d"),
    "macs": ("MACs, millions", ".1f"),
    "two_layer": ("less, %:\ntwo_layer", ".1f"),
    "decoupled_r2": ("decoupled_r2", ".1f"),
    "l1_pruning": ("L1 pruning", ".1f"),
    "their_craft": ("theirs:\ncraft", ".1f"),
    "their_l1_pruning": ("L1 pruning", ".1f"),
}


def rows(theirs: Sequence[Row] = ()) -> list[Row]:
    """Return a line for each convolution of VGG16 at 32 pixels, and one for all of them.

    Args:
        theirs: the lines of the dissertation's Table 4.4, one for each convolution; none if it is absent.
    """
    *lines, whole = _ours()
    printed = list(theirs) or [{}] * len(lines)
    return [
        *(
            line | {f"their_{name}": their.get(name) for name in ("craft", "l1_pruning")}
            for line, their in zip(lines, printed, strict=True)
        ),
        whole,
    ]


@functools.cache
def _ours() -> list[Row]:
    import keras

    from experiments import networks

    model = networks.load_teacher(NETWORK, 32)
    layers = [layer for layer in model.layers if isinstance(layer, keras.layers.Conv2D)]
    before, left = _macs(model, layers), {design: _replaced(model, design) for design in DESIGNS}
    left["l1_pruning"] = _pruned(model, layers)
    lines = [
        {"layer": layer.name, "size": layer.output.shape[1], "macs": before[layer.name] / 1e6}
        | {name: _less(macs.get(layer.name, before[layer.name]), before[layer.name]) for name, macs in left.items()}
        for layer in layers
    ]
    whole = sum(before.values())
    shares = {name: _less(sum((before | macs).values()), whole) for name, macs in left.items()}
    return [*lines, {"layer": "all", "macs": whole / 1e6} | shares]


def _less(after: int, before: int) -> float:
    return 100 * (1 - after / before)


def _macs(model: "keras.Model", layers: "Sequence[keras.layers.Conv2D]") -> dict[str, int]:
    from pbd.networks.cost import layer_macs

    return {layer.name: layer_macs(model.get_layer(layer.name)) for layer in layers}


def _replaced(model: "keras.Model", design: str) -> Mapping[str, int]:
    """Return the multiply-accumulates of the blocks that replace layers, by layer."""
    from pbd import blocks
    from pbd.blockwise.tasks import enumerate_tasks

    tasks = enumerate_tasks(model, blocks.get(design))
    return {task.layer.name: task.macs for task in tasks if task.skip_reason is None}


def _pruned(model: "keras.Model", layers: "Sequence[keras.layers.Conv2D]") -> dict[str, int]:
    """Return the multiply-accumulates of the layers without half of the filters of some; which half does not matter."""
    from pbd.networks import channels

    halved = [layers[number - 1] for number in HALVED]
    return _macs(channels.remove(model, {layer.name: range(layer.filters // 2) for layer in halved}), layers)


def make(settings: Settings) -> None:
    """Print and write the table."""
    settings.show(
        "layer_macs",
        "Multiply-accumulates that each convolution loses",
        COLUMNS,
        rows(settings.source("dissertation", "table4_4_per_layer_macs_reduced_percent")),
        f"Ours: {NETWORK} for images of 32 pixels, counted; L1 pruning removes half of the filters of the same layers.",
        "Theirs: VGG16 on CIFAR-10, Table 4.4; craft is two_layer in place of all convolutions but the first.",
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code (see `pbd.errors`)."""
    return command_line.run(NAME, lambda arguments: make(common.parse(NAME, __doc__, arguments)), argv)


if __name__ == "__main__":
    sys.exit(main())
