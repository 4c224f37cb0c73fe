"""What filter pruning does to classes, with and without distillation, and with classes that have few images.

    python -m experiments.bias --quick
    python -m experiments.bias --quick --teacher resnet20.keras --dataset cifar10.npz --runs runs/bias
    python -m experiments.bias --full --teacher resnet32x4.keras --dataset cifar100 --classes 15

Each method removes 45% of the filters of each layer (L1, without refitting) by the schedule of AGP and trains on the
labels, or with KD on labels and the teacher's softened outputs, and on losses between the ends of blocks (AT, SP, PKT,
FSP). It is done on all images, and with some classes reduced to 50, 20 and 10% of their training images. A teacher that
pbd builds is trained on the same reduced images; one from a file stays as it is.

Printed are the change of errors per class (CEV, SDE), the SVCCA distance of each block, and their correlation over the
methods, beside table 3.3 of Blakeney's dissertation (Texas State University). With two --seeds or more, PIEs are those
of the population. What is complete in --runs is not done again.
"""

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments.csv_table import write_csv
from experiments.paper import paper_comparison
from experiments.paper.paper_comparison import Row
from experiments.replays import DATA
from pbd import command_line
from pbd.command_line import Parser, check_folder, path, positive
from pbd.errors import UsageError

if TYPE_CHECKING:
    from experiments.bias_runs import Images, Training

NAME = "experiments.bias"
WIDTH = 170
QUICK = {
    "percents": [100, 20],
    "rounds": 2,
    "epochs": 1,
    "tune_epochs": 0,
    "train_limit": 768,
    "validation_limit": 200,
    "test_limit": 2000,
    "similarity_images": 1000,
    "seeds": 1,
}
FULL = {
    "percents": [100, 50, 20, 10],
    "rounds": 24,
    "epochs": 5,
    "tune_epochs": 120,
    "train_limit": None,
    "validation_limit": None,
    "test_limit": None,
    "similarity_images": 2000,
    "seeds": 5,
}
"""The setting of the source where it is said; the number of its seeds is not."""
REDUCED_SHARE = 0.15
"""Of the classes, as in the source."""
MEASURES = {"svcca_1": "block 1", "svcca_2": "block 2", "svcca_3": "block 3", "svcca_fc": "logits"}
_OURS: dict[str, tuple[str, str]] = {
    "pies": ("PIEs", ".0f"),
    "svcca_1": ("SVCCA distance:\nblock 1", ".3f"),
    "svcca_2": ("2", ".3f"),
    "svcca_3": ("3", ".3f"),
    "svcca_fc": ("logits", ".3f"),
    "cev": ("CEV", ".0f"),
    "sde": ("SDE", ".1f"),
    "accuracy": ("test\naccuracy, %", ".2f"),
}
COLUMNS = {
    "method": ("method", ""),
    **_OURS,
    **{f"their_{key}": (f"theirs:\n{heading}" if key == "pies" else heading, f) for key, (heading, f) in _OURS.items()},
}
CORRELATIONS = {
    "percent": ("reduced\nclasses, %", "d"),
    "layer": ("SVCCA distance of", ""),
    "cev": ("r with CEV", "+.2f"),
    "sde": ("r with SDE", "+.2f"),
    "their_cev": ("theirs:\nr with CEV", "+.2f"),
    "their_sde": ("r with SDE", "+.2f"),
}
_SIDES, _SPREADS = ("", "their_"), ("cev", "sde")
"""Prefixes of ours and theirs, and the measures of how unevenly errors change."""
REMARKS = (
    "CEV: mean squared distance of the relative changes (in percent) of false positive and false negative rates from "
    "their mean over classes. SDE: mean of their absolute difference over the square root of 2. SVCCA distance: 1 "
    "minus the mean correlation.",
    "Theirs: ResNet32x4 on CIFAR-100, 15 classes reduced (to what share is not said), 45% of the filters by AGP, "
    "10% first, every 5 epochs in the first half of the training, then 120 epochs; methods from RepDistiller.",
)


def theirs() -> dict[str, Row]:
    """Return the figures of the source by method."""
    rows = json.loads((DATA / "bias_figures.json").read_text(encoding="utf-8"))["rows"]
    return {row["method"]: row for row in rows}


def row_of(method: str, figures: Mapping[str, Any]) -> Row:
    """Return the line of a method, ours beside theirs.

    Args:
        method: its name.
        figures: see `bias_runs.means`.
    """
    *blocks, logits = figures["distances"]
    keys = list(MEASURES)[: len(blocks)]
    ours = {"method": method, **dict(zip(keys, blocks, strict=True)), "svcca_fc": logits}
    ours |= {key: figures[key] for key in ("pies", "cev", "sde")} | {"accuracy": 100 * figures["accuracy"]}
    return ours | {f"their_{key}": value for key, value in theirs()[method].items() if key != "method"}


def correlations(percent: int, rows: Sequence[Row]) -> list[Row]:
    """Return the correlation over the methods of the SVCCA distance of each layer with CEV and SDE, beside theirs."""
    return [
        {"percent": percent, "layer": layer}
        | {f"{side}{key}": _correlation(rows, f"{side}{name}", f"{side}{key}") for side in _SIDES for key in _SPREADS}
        for name, layer in MEASURES.items()
    ]


def _correlation(rows: Sequence[Row], first: str, second: str) -> float | None:
    """Return the correlation of two columns; `None` of fewer than three methods, or if one column is constant."""
    import numpy as np

    pairs = np.array(
        [(row[first], row[second]) for row in rows if row.get(first) is not None and row.get(second) is not None]
    )
    if len(pairs) < 3 or not pairs.std(axis=0).all():
        return None
    return float(np.corrcoef(pairs.T)[0, 1])


def findings(rows: Sequence[Row]) -> list[str]:
    """Return what differs from the source, in sentences."""
    lines = []
    for name, choose in (("least", min), ("largest", max)):
        ours, source = (_extreme(rows, f"{side}cev", choose) for side in _SIDES)
        lines.append(f"The {name} CEV: ours {ours}; theirs {source}.")
    ours, source = (_closest(rows, f"{side}cev") for side in _SIDES)
    lines.append(f"The SVCCA distance that goes with CEV most: ours that of {ours}; theirs that of {source}.")
    by_method = {row["method"]: row for row in rows}
    for kind in ("AT", "SP", "PKT", "FSP"):
        pair = by_method.get(kind), by_method.get(f"{kind}+KD")
        if all(row is not None and row["cev"] is not None for row in pair):
            lines.append(_added_kd(kind, *pair))  # type: ignore[arg-type]
    return lines


def _extreme(rows: Sequence[Row], key: str, choose: Callable[..., Row]) -> str:
    measured = [row for row in rows if row[key] is not None]
    if not measured:
        return "not measured"
    row = choose(measured, key=lambda one: one[key])
    return f"{row['method']} ({row[key]:.0f})"


def _closest(rows: Sequence[Row], key: str) -> str:
    """Return the layer whose SVCCA distance has the largest correlation with a measure, `cev` or `their_cev`."""
    measured = [row for row in correlations(0, rows) if row[key] is not None]
    if not measured:
        return "no layer (not measured)"
    row = max(measured, key=lambda one: one[key])
    return f"{row['layer']} ({row[key]:+.2f})"


def _added_kd(kind: str, alone: Row, both: Row) -> str:
    changes = [100 * (both[f"{side}cev"] / alone[f"{side}cev"] - 1) if alone[f"{side}cev"] else 0.0 for side in _SIDES]
    verdict = "as in the source" if changes[0] * changes[1] > 0 else "unlike the source"
    return f"KD beside {kind} changes CEV by {changes[0]:+.0f}% (theirs {changes[1]:+.0f}%): {verdict}."


def make(settings: argparse.Namespace) -> None:
    """Do what is missing, and print the tables."""
    from experiments import bias_runs

    check_folder("--csv", settings.csv)
    limits = settings.train_limit, settings.validation_limit, settings.test_limit
    images = bias_runs.load(settings.dataset, *limits)
    count = max(1, round(REDUCED_SHARE * images.classes)) if settings.classes is None else settings.classes
    if count >= images.classes:
        raise UsageError(f"--classes must be below {images.classes}, those of the data. Received: {count}. Lower it.")
    classes, training = bias_runs.reduced_classes(images.classes, count), _training(settings)
    lines: list[Row] = []
    of_layers: list[Row] = []
    for percent in settings.percents:
        of_balance = replace(images, train=bias_runs.reduced(images.train, classes, percent))
        figures = _figures(settings, training, of_balance, percent)
        rows = [row_of(method, one) for method, one in figures.items()]
        sizes = f"{len(of_balance.train[1]):,} training and {len(images.test[1]):,} test images"
        _show(percent, rows, figures, f"{sizes}; reduced classes: {', '.join(map(str, classes))}")
        lines += [{"percent": percent, **row} for row in rows]
        of_layers += correlations(percent, rows)
    paper_comparison.show("Correlation over the methods", CORRELATIONS, of_layers, REMARKS, WIDTH)
    if settings.csv is not None:
        write_csv([{key: line.get(key) for key in ("percent", *COLUMNS)} for line in lines], settings.csv)


def _figures(settings: argparse.Namespace, training: "Training", images: "Images", percent: int) -> dict[str, Any]:
    """Return the figures of each method, means over the seeds, and its PIEs."""
    from experiments import bias_runs

    folder = settings.runs / f"{percent}_percent"
    runs = [bias_runs.Run(training, images, folder / f"seed_{seed}", seed) for seed in range(settings.seeds)]
    by_seed = [run.figures(settings.methods) for run in runs]
    return {
        method: bias_runs.means([of_run[method] for of_run in by_seed]) | {"pies": bias_runs.exemplars(runs, method)}
        for method in settings.methods
    }


def _training(settings: argparse.Namespace) -> "Training":
    from experiments.bias_runs import Training

    return Training(
        teacher=settings.teacher,
        rounds=settings.rounds,
        epochs=settings.epochs,
        tune_epochs=settings.tune_epochs,
        batch_size=settings.batch_size,
        augment=settings.augment,
        similarity_images=settings.similarity_images,
        blocks=tuple(settings.blocks),
    )


def _show(percent: int, rows: Sequence[Row], figures: Mapping[str, Mapping[str, Any]], sizes: str) -> None:
    one = next(iter(figures.values()))
    left_out = sorted({label for each in figures.values() for label in each["left_out"]})
    remarks = [f"Ours: the original classifies {one['before']:.2%} correctly; {sizes}.", *findings(rows)]
    if left_out:
        remarks.append(f"Without a relative change, since a rate is 0: classes {', '.join(map(str, left_out))}.")
    title = "All images" if percent == 100 else f"Some classes reduced to {percent}% of their images"
    paper_comparison.show(title, COLUMNS, rows, remarks, WIDTH)


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Turn command-line arguments into settings.

    Raises:
        UsageError: a flag or a value is wrong; the message is one line.
    """
    methods = list(theirs())
    parser = Parser(NAME, __doc__ or "")
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--quick", action="store_true", help="few images, epochs and balances (the default)")
    size.add_argument("--full", action="store_true", help="the setting of the source: weeks without a GPU")
    parser.add_argument("--teacher", type=path, default="digits_cnn", help="a model file or a built-in network")
    parser.add_argument("--dataset", type=path, default="digits", help="an .npz file, or a name, as in pbd distill")
    parser.add_argument(
        "--methods", nargs="+", choices=methods, default=methods, metavar="NAME", help=", ".join(methods)
    )
    parser.add_argument("--percents", type=positive, nargs="+", metavar="N", help="what remains of reduced classes")
    parser.add_argument("--classes", type=positive, metavar="N", help="number of reduced classes (default: 15%%)")
    parser.add_argument(
        "--blocks", nargs="+", default=[], metavar="LAYER", help="ends of up to 3 blocks (default: found)"
    )
    parser.add_argument("--rounds", type=positive, metavar="N", help="rounds of pruning")
    parser.add_argument("--epochs", type=positive, metavar="N", help="after each round")
    parser.add_argument("--tune-epochs", type=int, metavar="N", help="after the last one")
    parser.add_argument("--seeds", type=positive, metavar="N", help="students of each method")
    parser.add_argument("--train-limit", type=positive, metavar="N", help="training images, before the reduction")
    parser.add_argument("--validation-limit", type=positive, metavar="N", help="images that choose the best epoch")
    parser.add_argument("--test-limit", type=positive, metavar="N", help="test images")
    parser.add_argument("--similarity-images", type=positive, metavar="N", help="images that layers are compared on")
    parser.add_argument("--batch-size", type=positive, default=64, metavar="N", help="images per step (default 64)")
    parser.add_argument("--augment", default="none", help="as in pbd distill (default none)")
    parser.add_argument("--runs", type=Path, default=Path("runs/bias"), help="folder of the runs")
    parser.add_argument("--csv", type=Path, metavar="FILE", help="also write the table to this file")
    settings = parser.parse_args(argv)
    if len(settings.blocks) >= len(MEASURES):
        raise UsageError(f"--blocks takes at most {len(MEASURES) - 1} layers. Received: {len(settings.blocks)}.")
    for name, value in (FULL if settings.full else QUICK).items():
        if getattr(settings, name) is None:
            setattr(settings, name, value)
    return settings


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code, those of pbd-run."""
    return command_line.run(NAME, lambda arguments: make(parse(arguments)), argv)


if __name__ == "__main__":
    sys.exit(main())
