"""Show what came of replays and executions as tables for a terminal."""

from collections.abc import Sequence

from rich.table import Table

from experiments.measured_runs import MARGIN, Execution, Request
from experiments.replays import REPRODUCED, STOPS_BELOW, Limit, Printed, Row, Source
from pbd.scheduling.schedulers import SCHEDULERS


def replayed(source: Source, rows: Sequence[Row]) -> Table:
    """Return a source's speedups: a line per number of workers, up to where no scheduler gains any more."""
    best = max(row.speedup for row in rows)
    table = Table(
        title=f"{source.name}: speedup, efficiency (makespan over the lower bound)",
        caption=f"{source.costs.source}; {len(source.tasks)} layers; one by one, one worker takes "
        f"{source.one_by_one_s:,.1f} s",
    )
    for heading in ("workers", *SCHEDULERS, "the bound allows", "optimum, s"):
        table.add_column(heading, justify="right", no_wrap=True)
    for at in range(0, len(rows), len(SCHEDULERS)):
        line = rows[at : at + len(SCHEDULERS)]
        cells = [f"{row.speedup:.2f}x {row.efficiency:4.0%} ({row.ratio:.3f})" for row in line]
        allowed = f"{line[0].speedup * line[0].ratio:.2f}x"
        table.add_row(f"{line[0].workers:,}", *cells, allowed, _optimum(line[0]))
        later = rows[at + len(SCHEDULERS) :]
        if later and all(row.speedup > best / (1 + STOPS_BELOW) for row in [*line, *later]):
            table.add_row(f"to {later[-1].workers:,}", *["the same" for _ in line])
            break
    return table


def _optimum(row: Row) -> str:
    if row.optimum_s is None:
        return ""
    return f"{row.optimum_s:,.1f}" + ("" if row.optimum_proven else " (not proven)")


def scaling(limits: Sequence[Limit]) -> Table:
    """Return where each source stops scaling under each scheduler: a line per source."""
    table = Table(
        title="Where it stops scaling: workers (speedup, efficiency)",
        caption=f"The least number of workers replayed beyond which no number brings {STOPS_BELOW:.0%} more speedup.",
    )
    for heading in ("costs", *SCHEDULERS, "why the best one stops"):
        table.add_column(heading, justify="left" if heading[0] in "c" and heading == "costs" else "right")
    for at in range(0, len(limits), len(SCHEDULERS)):
        line = limits[at : at + len(SCHEDULERS)]
        best = max(line, key=lambda limit: limit.speedup)
        cells = [f"{limit.workers:,} ({limit.speedup:.1f}x, {limit.efficiency:.0%})" for limit in line]
        table.add_row(line[0].source, *cells, best.why)
    return table


def printed(rows: Sequence[Printed]) -> Table:
    """Return the paper's speedups beside the replays."""
    table = Table(
        title="The paper's speedups, and the replays of its logs",
        caption=f"Within {REPRODUCED:.0%} of the printed figure counts as reproduced.",
    )
    for heading in ("model", "scheduler", "GPUs", "printed", "from one-GPU\ntimes", "from its own\ntimes", "", "why"):
        table.add_column(heading, justify="right" if heading.endswith(("s", "printed")) else "left")
    for row in rows:
        own = "-" if row.from_own_times is None else f"{row.from_own_times:.2f}"
        word = {None: "no log", True: "reproduced", False: "off"}[row.reproduced]
        figures = (str(row.workers), f"{row.printed:.2f}", f"{row.from_one_gpu_times:.2f}", own)
        table.add_row(row.model, row.scheduler, *figures, word, row.why)
    return table


def executed(done: Sequence[Execution], orders: Sequence[Request]) -> Table:
    """Return what one executor's runs of one case came to, beside their replays and the plans."""
    title = f"{done[0].case}, executed on {done[0].executor}"
    table = Table(title=title, caption="\n".join(map(_verdict, orders)))
    headings = ("planned, s", "replayed, s", "measured, s", "over the replay", "over the bound", "idle", "busy, s")
    for heading in ("scheduler", *headings):
        table.add_column(heading, justify="left" if heading == "scheduler" else "right", no_wrap=True)
    for one in done:
        busy = " ".join(f"{worker.busy_s:.2f}" for worker in one.workers)
        seconds = (f"{one.planned_s:.2f}", f"{one.predicted_s:.2f}", f"{one.measured_s:.2f}")
        over = (f"{one.measured_s / one.predicted_s - 1:+.1%}", f"{one.measured_s / one.bound_s - 1:+.1%}")
        table.add_row(one.scheduler, *seconds, *over, f"{one.idle_share:.1%}", busy)
    return table


def _verdict(order: Request) -> str:
    foretold = {"predicted_s": "replayed", "planned_s": "planned"}[order.by]
    differ = f"pairs that differ by more than {MARGIN:.0%}"
    return "; ".join([f"the order is that {foretold} in {order.kept} of {order.pairs} {differ}", *order.broken])
