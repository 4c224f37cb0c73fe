"""Tables 7 and 8: accuracy before and after, on CIFAR-10 and on ImageNet, by the paper's recipe and by fitted blocks.

Each recipe is one of those of `experiments.accuracy`, run on as many workers as --workers ends with.

    python -m experiments.paper.tables7and8 [--quick|--full] [--recipes NAME …] [--teacher MODEL.keras --dataset …]
"""

import argparse
import sys
from collections.abc import Sequence

from experiments.accuracy import PAPER, RECIPES
from experiments.paper import paper_comparison, plans, runs
from experiments.paper.paper_comparison import Row
from experiments.paper.plans import Setting
from experiments.paper.runs import Report, Run
from pbd import command_line
from pbd.errors import UsageError, unknown_name

NAMES = {
    "paper": "the paper's recipe",
    "+ teacher's logits": "teacher's logits",
    "+ least squares": "decoupled_r2, fitted",
}
VARIED = PAPER.keys() - plans.KEEP_ALL.keys()
"""The settings of the paper's recipe that the other recipes may have otherwise."""
QUICK = plans.SMALL.but(epochs=2, fine_tune_epochs=2, costs="macs")
FULL = tuple(
    Setting(setting.name, {name: value for name, value in setting.flags.items() if name not in VARIED})
    for setting in (*plans.FULL_CIFAR, *plans.FULL_IMAGENET)
)
"""Without the paper's recipe, which is one of those that are compared."""
COLUMNS = {
    "whose": ("whose", ""),
    "network": ("network", ""),
    "how": ("method", ""),
    "workers": ("workers", "d"),
    "teacher": ("teacher", ".1%"),
    "assembled": ("assembled", ".1%"),
    "student": ("student", ".1%"),
    "drop_points": ("drop,\npoints", ".2f"),
    "params_share": ("parameters", ".0%"),
    "macs_share": ("MACs", ".0%"),
}


def planned(setting: Setting, recipes: Sequence[str], workers: int) -> list[Run]:
    """Return a run for each recipe."""
    return [Run(f"{setting.name} recipe {name}", workers, dict(setting.but(**RECIPES[name]).flags)) for name in recipes]


def row(setting: Setting, recipe: str, report: Report) -> Row:
    """Return what one recipe came to."""
    teacher, student = report["teacher"], report["student"]
    return {
        "whose": "ours",
        "network": setting.name,
        "how": NAMES.get(recipe, recipe),
        "workers": len(report["workers"]),
        "teacher": teacher["test_accuracy"],
        "assembled": report["assembled"]["val_accuracy"],
        "student": student["test_accuracy"],
        "drop_points": 100 * (teacher["test_accuracy"] - student["test_accuracy"]),
        "params_share": student["params"] / teacher["params"],
        "macs_share": student["macs"] / teacher["macs"],
    }


def papers() -> list[Row]:
    """Return the paper's Tables 7 and 8, with the other methods in them."""
    return [
        {
            "whose": f"paper, {row['source']}",
            "network": f"{row['network']}, {row.get('data', row['setting'])}",
            "how": "the paper's" if row["method"] == "paper" else row["method"],
            "teacher": row["teacher"] / 100,
            "student": row["student"] / 100,
            "drop_points": row["teacher"] - row["student"],
            "source": row["source"],
        }
        for number in (7, 8)
        for row in paper_comparison.table(number)
    ]


def make(settings: argparse.Namespace) -> None:
    """Run every recipe on every network; print, write and draw the table."""
    named = [(setting, recipe) for setting in settings.settings for recipe in settings.recipes]
    todo = [run for setting in settings.settings for run in planned(setting, settings.recipes, settings.workers[-1])]
    reports = runs.carry_out(todo, settings.runs, settings.print_commands)
    if not reports:
        return
    ours = [row(setting, recipe, report) for (setting, recipe), report in zip(named, reports, strict=True)]
    rows = [*ours, *papers()]
    remarks = (
        runs.conditions(reports[0]),
        "Ours: teacher and student by test images that nothing was chosen by, assembled by validation images. "
        "The paper's: by the images that its authors also chose each block's best round by.",
        paper_comparison.HARDWARE,
        "The paper prints neither assembled networks nor sizes. Progressive: Wang 2018.",
    )
    paper_comparison.show("Tables 7 and 8: accuracy before and after", COLUMNS, rows, remarks)
    paper_comparison.write(rows, settings, "tables7and8")
    bars = {f"{one['whose']}: {one['network']}, {one['how']}": 100 * one["student"] for one in rows}
    paper_comparison.draw_bars("Tables 7 and 8", "the student's accuracy, %", bars, settings.plots / "tables7and8.png")


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Turn command-line arguments into settings.

    Raises:
        UsageError: a flag, a value or a recipe is wrong; the message is one line.
    """
    parser = plans.parser("experiments.paper.tables7and8", __doc__)
    parser.add_argument("--recipes", nargs="+", metavar="NAME", help=", ".join(RECIPES))
    given = parser.parse_args(argv)
    given.recipes = given.recipes or (list(NAMES) if given.full else ["paper", "+ least squares"])
    for recipe in given.recipes:
        if recipe not in RECIPES:
            raise UsageError(unknown_name("recipe", recipe, RECIPES))
    return plans.settings(given, QUICK, FULL)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code, those of pbd-run."""
    return command_line.run("experiments.paper.tables7and8", lambda arguments: make(parse(arguments)), argv)


if __name__ == "__main__":
    sys.exit(main())
