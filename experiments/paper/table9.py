"""Table 9: what several workers save in energy: greenup, with speedup and powerup (Abdulsalam et al. 2015).

Greenup is the joules of one worker over those of several, powerup the mean power of several over that of one, which is
speedup over greenup. Joules are those of report.json; where a run has none, because nothing measured it, speedup
stands alone. Traces of `profiling.sample` are compared with --traces: that of one worker, then that of several.

    python -m experiments.paper.table9 [--quick|--full] [--workers 1 2] [--traces ONE.csv MANY.csv]

Runs are those of `experiments.paper.tables3to6`: with the same --runs they are measured once for both.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from experiments.paper import paper_comparison, plans, runs, tables3to6
from experiments.paper.paper_comparison import Row
from experiments.paper.plans import Setting
from experiments.paper.runs import Report
from experiments.paper.tables3to6 import FULL, QUICK
from pbd import command_line
from profiling.greenup import Comparison, Measured, read_trace

COLUMNS = {
    "whose": ("whose", ""),
    "network": ("network", ""),
    "workers": ("workers", "d"),
    "energy_kj": ("energy, kJ", ",.4g"),
    "speedup": ("speedup", ".2f"),
    "greenup": ("greenup", ".2f"),
    "powerup": ("powerup", ".2f"),
    "saved": ("energy\nsaved", ".1%"),
}


def row(whose: str, network: str, workers: int | None, speedup: float | None, greenup: float | None) -> Row:
    """Return a line; what follows from speedup and greenup is computed, not copied.

    A greenup of 1.29 saves 22.5% of the energy: 1 - 1/1.29.
    """
    return {
        "whose": whose,
        "network": network,
        "workers": workers,
        "speedup": speedup,
        "greenup": greenup,
        "powerup": speedup / greenup if speedup and greenup else None,
        "saved": 1 - 1 / greenup if greenup else None,
    }


def spent(report: Report) -> Measured | None:
    """Return what a run took; `None` where its energy is not known, or only a part of it."""
    energy = report["energy"]
    if not energy.get("total_j") or energy.get("partial") or report["config"].get("resume"):
        return None
    return Measured("report.json", report["timing"]["total_s"], {"all": energy["total_j"]}, energy["source"])


def compared(setting: Setting, one: Report, many: Report) -> Row:
    """Return a run of several workers over that of one."""
    workers, runs_spent = len(many["workers"]), (spent(one), spent(many))
    if None in runs_spent:
        return row("ours", setting.name, workers, one["timing"]["total_s"] / many["timing"]["total_s"], None)
    found, energy_kj = Comparison.of(*runs_spent), runs_spent[1].joules / 1000
    return row("ours", setting.name, workers, found.speedup, found.greenup) | {"energy_kj": energy_kj}


def papers() -> list[Row]:
    """Return the paper's Table 9; greenups are computed from its energies, since one is printed wrongly."""
    printed = paper_comparison.table(9)
    one_gpu_kj = {each["network"]: each["energy_kj"] for each in printed if each["gpus"] == 1}
    return [
        row("paper, Table 9", f"{each['network']}, CIFAR-10", each["gpus"], None, greenup)
        | {"energy_kj": each["energy_kj"], "source": each["source"]}
        for each in sorted(printed, key=lambda each: (each["network"], each["gpus"]))
        if (greenup := one_gpu_kj[each["network"]] / each["energy_kj"])
    ]


def make(settings: argparse.Namespace) -> None:
    """Measure; print, write and draw the table."""
    ours, remarks = [], []
    if settings.traces:
        found = Comparison.of(*map(read_trace, settings.traces))
        ours.append(
            row("ours", " and ".join(path.stem for path in settings.traces), None, found.speedup, found.greenup)
        )
    else:
        measured = tables3to6.measure(settings, ["task"], repeats=1)
        if not measured:
            return
        for setting, reports in measured:
            (one,) = reports.pop(("task", 1))
            ours += [compared(setting, one, many) for (many,) in reports.values()]
            remarks.append(runs.conditions(one))
    if not any(one["greenup"] for one in ours):
        remarks.append(
            "No greenup of ours: nothing measured the energy of these runs. Where there is a meter, record one worker "
            "and several with profiling.sample, and give --traces ONE.csv MANY.csv."
        )
    remarks += [
        paper_comparison.HARDWARE,
        "The paper's greenups are computed from its energies: ResNet50's on 2 GPUs is 1.14, printed 1.18. A greenup of "
        "1.29 saves 22.5% of the energy, not 29%. It prints no speedup of the whole runs that it measured.",
    ]
    rows = [*ours, *papers()]
    paper_comparison.show("Table 9: energy", COLUMNS, rows, remarks)
    paper_comparison.write(rows, settings, "table9")
    bars = {
        f"{one['whose']}: {one['network']}, {one['workers']} workers": one["greenup"] for one in rows if one["greenup"]
    }
    paper_comparison.draw_bars("Table 9", "greenup", bars, settings.plots / "table9.png")


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Turn command-line arguments into settings.

    Raises:
        UsageError: a flag or a value is wrong; the message is one line.
    """
    parser = plans.parser("experiments.paper.table9", __doc__)
    parser.add_argument("--traces", nargs=2, type=Path, metavar="FILE", help="compare recorded runs; nothing is run")
    return plans.settings(parser.parse_args(argv), QUICK, FULL)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code (see `pbd.errors`)."""
    return command_line.run("experiments.paper.table9", lambda arguments: make(parse(arguments)), argv)


if __name__ == "__main__":
    sys.exit(main())
