"""Tables 3 to 6: speedup and efficiency of several workers over one, of the block phase and of whole runs.

Every run is `mpirun -n N python -m pbd.run …` in fresh processes of one thread each. Runs take turns, and a speedup is
the median over repeats of runs that stood side by side; efficiency is speedup per worker.

    python -m experiments.paper.tables3to6 [--quick|--full] [--workers 1 2] [--parallel task data] [--repeats N]

With --turns SECONDS, the runs of a repeat take turns, the fewer workers the longer: as far as speedup is ideal, each
phase of a run has the machine that the same phase of the others has, however its speed changes. With `task` each worker
trains layers of its own, as in the paper; with `data` all share every batch. A built-in teacher is trained before the
clock starts; all else that a user waits for counts in the whole run.
"""

import argparse
import itertools
import statistics
import sys
from collections.abc import Mapping, Sequence

from experiments.paper import paper_comparison, plans, runs
from experiments.paper.paper_comparison import Row, Spread
from experiments.paper.plans import Setting
from experiments.paper.runs import Report, Run
from pbd import command_line
from pbd.command_line import positive
from pbd.config import RunConfig

QUICK = plans.SMALL.but(epochs=2, fine_tune_epochs=1)
FULL = tuple(setting.but(allow_weak_teacher=True) for setting in (*plans.FULL_CIFAR, *plans.FULL_IMAGENET))
"""How long a run takes does not depend on what its teacher has learned."""
SHARING = ("task", "data")
SINGLE = "the whole run is from the start of pbd to its report"
IN_TURNS = "in turns: blocks with planning, the whole run from the command to the report"
Case = tuple[str, int]
"""How workers share the blocks, and how many there are."""
COLUMNS = {
    "whose": ("whose", ""),
    "network": ("network", ""),
    "how": ("shared by, or hardware", ""),
    "workers": ("workers", "d"),
    "blocks_s": ("blocks, s", ",.0f"),
    "speedup": ("speedup\n(range)", ".2f"),
    "efficiency": ("efficiency", ".2f"),
    "total_s": ("whole\nrun, s", ",.0f"),
    "total_speedup": ("its speedup\n(range)", ".2f"),
}


def cases(setting: Setting, workers: Sequence[int], sharing: Sequence[str] | None) -> list[Case]:
    """Return what is measured: one worker shares with nobody, and blocks that see a whole batch cannot share it."""
    from pbd import blocks  # loads the backend
    from pbd.pipeline.input_checks import check_designs

    designs = [blocks.get(name) for name in RunConfig.of(**setting.flags).blocks.designs]
    if "data" in (sharing or ()):
        check_designs(RunConfig.of(**setting.but(parallel="data").flags))
    kinds = sharing or [kind for kind in SHARING if kind == "task" or all(design.per_image for design in designs)]
    return [("task", 1), *((kind, count) for count in workers if count > 1 for kind in kinds)]


def planned(setting: Setting, chosen: Sequence[Case], repeats: int) -> list[Run]:
    """Return the runs in the order in which they take turns."""
    return [
        Run(f"{setting.name} {kind} {count} {repeat}", count, dict(setting.but(parallel=kind).flags))
        for repeat, (kind, count) in itertools.product(range(repeats), chosen)
    ]


def warm_up(setting: Setting) -> list[Run]:
    """Return the run that trains a built-in teacher, which pbd keeps for the others; none for a file."""
    if setting.flags["teacher"].endswith((".keras", ".h5")):
        return []
    return [Run(f"{setting.name} warm-up", 1, dict(setting.but(epochs=0, fine_tune_epochs=0).flags))]


def calibration(setting: Setting, chosen: Sequence[Case]) -> list[Run]:
    """Return the run that measures what plans rest on, which pbd keeps: one that is stopped in between cannot do so."""
    workers = max((count for kind, count in chosen if kind == "task"), default=1)
    flags = dict(setting.but(costs="calibrate", parallel="task", epochs=0, fine_tune_epochs=0).flags)
    return [Run(f"{setting.name} calibration", workers, flags)] if workers > 1 else []


def summarise(setting: Setting, found: Mapping[Case, Sequence[Report]]) -> list[Row]:
    """Return a row for each case, given its reports in the order in which they were made."""
    one = found["task", 1]
    rows = []
    for (kind, count), many in found.items():
        blocks, total = (ratios(one, many, part) for part in ("distill_s", "total_s"))
        rows.append(
            {
                "whose": "ours",
                "network": setting.name,
                "how": kind if count > 1 else "-",
                "workers": count,
                "blocks_s": statistics.median(report["timing"]["distill_s"] for report in many),
                "speedup": blocks,
                "efficiency": blocks.median / count,
                "total_s": statistics.median(report["timing"]["total_s"] for report in many),
                "total_speedup": total,
                "repeats": len(many),
            }
        )
    return rows


def ratios(one: Sequence[Report], many: Sequence[Report], part: str) -> Spread:
    """Return how many times as fast the many were, pair by pair."""
    return Spread.of([a["timing"][part] / b["timing"][part] for a, b in zip(one, many, strict=True)])


def papers() -> list[Row]:
    """Return the paper's Tables 3 to 6; speedups and efficiencies are computed, since two are printed swapped."""
    return [row for number in (3, 4, 5, 6) for row in _papers(paper_comparison.table(number))]


def _papers(printed: Sequence[Row]) -> list[Row]:
    one_gpu_s = {row["network"]: row["seconds"] for row in printed if row["gpus"] == 1}
    data, _, how = printed[0]["setting"].partition(", ")
    return [
        {
            "whose": f"paper, {row['source']}",
            "network": f"{row['network']}, {data}",
            "how": how,
            "workers": row["gpus"],
            "blocks_s": row["seconds"],
            "speedup": one_gpu_s[row["network"]] / row["seconds"],
            "efficiency": one_gpu_s[row["network"]] / row["seconds"] / row["gpus"],
            "source": row["source"],
        }
        for row in sorted(printed, key=lambda row: (row["network"], row["gpus"]))
    ]


def measure(
    settings: argparse.Namespace, sharing: Sequence[str] | None, repeats: int, turn_s: float | None = None
) -> list[tuple[Setting, dict]]:
    """Run what is asked for; return each setting with its reports by case, or nothing where commands are printed."""
    measured = []
    for setting in settings.settings:
        chosen = cases(setting, settings.workers, sharing)
        first, timed = warm_up(setting), planned(setting, chosen, repeats)
        if turn_s and not settings.print_commands:
            runs.carry_out([*first, *calibration(setting, chosen)], settings.runs)
            repeated = [timed[at : at + len(chosen)] for at in range(0, len(timed), len(chosen))]
            reports = runs.carry_out_in_turns(repeated, settings.runs, turn_s)
        else:
            reports = runs.carry_out([*first, *timed], settings.runs, settings.print_commands)[len(first) :]
        found: dict[Case, list[Report]] = {}
        for case, report in zip(chosen * repeats, reports, strict=False):
            found.setdefault(case, []).append(report)
        if found:
            measured.append((setting, found))
    return measured


def make(settings: argparse.Namespace) -> None:
    """Measure; print, write and draw the table."""
    measured = measure(settings, settings.parallel, settings.repeats, settings.turns)
    if not measured:
        return
    ours = [row for setting, found in measured for row in summarise(setting, found)]
    rows = [*ours, *papers()]
    remarks = (
        runs.conditions(measured[0][1]["task", 1][0]),
        f"Medians (and ranges) of {settings.repeats}; {IN_TURNS if settings.turns else SINGLE}.",
        paper_comparison.HARDWARE,
        "The paper's speedups and efficiencies are computed from its seconds: ResNet50 has 0.96 on 2 GPUs and 0.88 on "
        "4, which Table 3 prints swapped. It prints nothing of whole runs.",
    )
    paper_comparison.show("Tables 3 to 6: speedup and efficiency", COLUMNS, rows, remarks)
    paper_comparison.write(rows, settings, "tables3to6")
    draw(rows, settings)


def draw(rows: Sequence[Row], settings: argparse.Namespace) -> None:
    """Draw speedups over the number of workers."""
    series: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        if row["workers"] > 1:
            speedup = row["speedup"].median if isinstance(row["speedup"], Spread) else row["speedup"]
            label = f"{row['whose']}: {row['network']}, {row['how']}"
            series.setdefault(label, [(1, 1.0)]).append((row["workers"], speedup))
    paper_comparison.draw_lines(
        "Tables 3 to 6", "speedup of the block phase", series, settings.plots / "tables3to6.png"
    )


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Turn command-line arguments into settings.

    Raises:
        UsageError: a flag or a value is wrong; the message is one line.
    """
    parser = plans.parser("experiments.paper.tables3to6", __doc__)
    parser.add_argument("--parallel", nargs="+", choices=SHARING, help="how workers share the blocks (default: all)")
    parser.add_argument("--turns", type=positive, metavar="S", help="take turns: of S seconds, fewer workers longer")
    parser.add_argument("--repeats", type=positive, default=1, metavar="N", help="runs of each case (default 1)")
    return plans.settings(parser.parse_args(argv), QUICK, FULL)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code, those of pbd-run."""
    return command_line.run("experiments.paper.tables3to6", lambda arguments: make(parse(arguments)), argv)


if __name__ == "__main__":
    sys.exit(main())
