"""`make soak`: injects faults into real runs, many times, and prints what was guaranteed and what came of it.

    python -m tests.faults.soak [--only G1 G4] [--share 0.1] [--seed 0] [--folder DIR]

Everything is drawn from the seed and bounded: a run that takes minutes is a hang. The exit code is 0 if all held.
"""

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from pbd.errors import FINISHED_WITH_FAILED_BLOCKS, StoppedError
from pbd.run_dir.journal import Journal
from pbd.scheduling.retry import MOST_ATTEMPTS
from tests.faults import jobs, saving
from tests.faults.injection import Fault
from tests.faults.jobs import LAYERS, WAYS, Outcome, Range

IN_TRAINING = ("start", "first weights", "tracing", "training", "scoring", "committing")
LOSSES = ("kill", "crash", "stop", "hang", "spin", "leave")
ROUNDING = 1e-4
NOTICED_S = 4 * jobs.STALL_LIMIT_S + 10.0
GRACE_S = 30.0
"""What job managers leave between the first signal and the last."""


@dataclass(frozen=True)
class Row:
    """One guarantee of RELIABILITY.md, and what came of it."""

    guarantee: str
    injected: str
    figures: str
    kept: bool


@dataclass
class Soak:
    """What all guarantees are tried with."""

    place: Range
    draws: random.Random
    share: float
    console: Console

    def times(self, whole: int) -> int:
        return max(1, round(self.share * whole))

    def attempts(self, outcome: Outcome, layer: str) -> int:
        """Return how often a layer's training was begun."""
        return sum(what == layer for _, _, what in outcome.plan.events("begun"))

    def run(self, name: str, way: str, *faults: Fault, **how: object) -> Outcome:
        outcome = self.place.run(name, way, faults, **how)
        state = outcome.status.state if outcome.status else "no run"
        notice = "" if outcome.notice_s is None else f", noticed in {outcome.notice_s:.1f} s"
        code = "hung" if outcome.code is None else f"code {outcome.code}"
        told = "; ".join(outcome.struck) or "nothing struck"
        self.console.print(f"{name} ({way}): {told}: {code}, {state}, {outcome.seconds:.0f} s{notice}", highlight=False)
        return outcome


def nothing_is_lost(soak: Soak) -> Row:
    """G1: no task is lost, and none that finished runs again."""
    outcomes = []
    for number in range(soak.times(50)):
        points, kinds = IN_TRAINING, LOSSES
        if soak.draws.random() < 0.15:
            points, kinds = ("first weights", "tracing", "scoring"), ("raise",)
        fault = jobs.pick(soak.draws, points, kinds)
        outcomes.append(soak.run(f"g1-{number}", soak.draws.choice(["mpi", "dask"]), fault))
    raised = [one for one in outcomes if any(what.startswith("raise") for what in one.struck)]
    named = sum(len(one.failed) for one in raised)  # an exception would come again, and is not tried again
    lost = sum(len(set(jobs.blocks_lost(one)) - set(one.failed if one in raised else ())) for one in outcomes)
    rerun, incomplete = sum(len(one.rerun) for one in outcomes), sum(not one.complete for one in outcomes)
    struck = sum(bool(one.struck) for one in outcomes)
    figures = f"{len(outcomes)} runs, {struck} struck: lost {lost}, rerun {rerun}, incomplete {incomplete}"
    return Row(
        "G1 no task lost, none done twice",
        f"{', '.join(LOSSES)}, raise, while blocks train",
        f"{figures}, failed with a name {named}",
        not (lost or rerun or incomplete),
    )


def a_bad_task_costs_only_itself(soak: Soak) -> Row:
    """G2: its process is lost every time."""
    cases, kept, attempts = 0, True, set[int]()
    for way in ("serial", "mpi", "dask"):
        for kind in ("kill", "crash", "hang")[: soak.times(3)]:
            layer = soak.draws.choice(LAYERS)
            point = soak.draws.choice(["first weights", "tracing"])  # the second strikes calibration, too
            fault = Fault(point, kind, times=99, role="child", layer=layer)
            outcome = soak.run(f"g2-{way}-{kind}", way, fault)
            cases += 1
            attempts.add(soak.attempts(outcome, layer))
            kept &= outcome.code == FINISHED_WITH_FAILED_BLOCKS and jobs.blocks_lost(outcome) == [layer]
    return Row(
        "G2 a task that always fails costs only itself",
        "one layer's process is lost every time",
        f"{cases} runs: attempts {sorted(attempts)}, all others done, exit code 79",
        kept and attempts == {MOST_ATTEMPTS},
    )


def it_never_hangs(soak: Soak) -> Row:
    """G3: whatever goes wrong, wherever."""
    cases = [
        (way, Fault(point, kind, role=role))
        for way in ("mpi", "mpi, shared", "dask", "serial")
        for point, role in (
            ("start", "child"),
            ("training", "child"),
            ("fine-tuning", "child"),
            ("marking", "child"),
            ("planning", "worker"),
            ("gathering", "worker"),
            ("assembling", "worker"),
            ("finishing", "worker"),
        )
        for kind in ("kill", "crash", "stop", "hang", "raise", "leave")
        if (point != "gathering" or way == "mpi")
        and not (role == "worker" and kind == "stop" and way in ("serial", "dask"))
    ]
    chosen = soak.draws.sample(cases, min(len(cases), soak.times(60)))
    outcomes = [soak.run(f"g3-{number}", way, fault) for number, (way, fault) in enumerate(chosen)]
    hung = sum(one.code is None for one in outcomes)
    orphans = sum(len(one.orphans) for one in outcomes)
    longest = max((one.notice_s for one in outcomes if one.notice_s is not None), default=0.0)
    struck = sum(bool(one.struck) for one in outcomes)
    unfinished = [one for one in outcomes if one.code == 0 and not one.complete]
    left = sum("leave" in what and "in a worker" in what for one in unfinished for what in one.struck)
    silent = len(unfinished) - left  # that of a coordinator which leaves with 0 is the fault itself: see G7
    return Row(
        "G3 it never hangs",
        "each fault, in children, ranks, the coordinator, from start to finish",
        f"{len(outcomes)} runs, {struck} struck: hangs {hung}, orphans {orphans}, "
        f"code 0 without being complete {silent} (and {left} told to leave so), longest time to notice {longest:.1f} s "
        f"(--stall-limit {jobs.STALL_LIMIT_S})",
        not (hung or orphans or silent) and struck > 0.9 * len(outcomes) and longest < NOTICED_S,
    )


def it_resumes(soak: Soak) -> Row:
    """G4: mpirun is killed at random; the same command goes on."""
    whole = soak.run("g4-whole", "mpi")
    wanted, rerun, apart, unfinished, other = soak.place.weights("g4-whole"), 0, 0.0, 0, 0
    kills = soak.times(30)
    for number in range(kills):
        name, after_s = f"g4-{number}", soak.draws.uniform(3.0, 0.95 * whole.seconds)
        soak.run(name, "mpi", killed_after_s=after_s)
        again = soak.run(name, "mpi")
        rerun, unfinished = rerun + len(again.rerun), unfinished + (not again.complete)
        apart = max(apart, jobs.differences(wanted, soak.place.weights(name)) if again.complete else 1.0)
        other += soak.place.outcomes(name) != soak.place.outcomes("g4-whole")
    return Row(
        "G4 it resumes",
        "mpirun killed (SIGKILL) at a random moment, then --resume",
        f"{kills} kills: blocks trained again {rerun}, unfinished {unfinished}, "
        f"student differs by {apart:.1e}, reports that differ in more than times {other}",
        not rerun and not unfinished and not other and apart <= ROUNDING,
    )


def no_file_is_torn(soak: Soak) -> Row:
    """G5: killed while saving; the disk full; the folder read-only."""
    kills = soak.times(100)
    torn, written = saving.torn_by_kills(soak.place.folder / "g5", kills, soak.draws)
    full = saving.on_a_full_disk(soak.place.folder / "g5-full")
    return Row(
        "G5 no torn file",
        "SIGKILL while saving; a full disk; a read-only folder",
        f"{kills} kills, {written} files: torn {torn}; {full.describe if full else 'no small disk can be made here'}",
        torn == 0 and full is not None and full.kept,
    )


def damage_is_noticed(soak: Soak) -> Row:
    """G6: one flipped byte."""
    run = soak.run("g6", "serial")
    journal, flips, noticed = Journal(run.run_dir), 0, 0
    files = [path for path in sorted(run.run_dir.rglob("*")) if path.is_file() and path.name not in (".lock", "lock")]
    for path in files:
        for _ in range(soak.times(20)):
            with saving.flipped(path, soak.draws):
                flips += 1
                noticed += saving.notices(journal)
    unfinished = saving.flips_in_an_unfinished_run(journal, soak.draws, soak.times(40))
    return Row(
        "G6 damage is noticed",
        "one byte flipped, in each file of a complete and of an unfinished run",
        f"{len(files)} files, {flips} flips: noticed {noticed}; unfinished: {unfinished.describe}",
        noticed == flips and unfinished.kept,
    )


def no_silent_success(soak: Soak) -> Row:
    """G7: `os._exit(0)` anywhere."""
    cases = [
        (way, Fault(point, "leave", role=role))
        for way in WAYS
        for point, role in (
            ("start", "child"),
            ("training", "child"),
            ("committing", "child"),
            ("fine-tuning", "child"),
            ("committing", "worker"),
            ("planning", "worker"),
            ("saving", "worker"),
            ("finishing", "worker"),
            ("leaving", "worker"),
        )
    ]
    chosen = soak.draws.sample(cases, min(len(cases), soak.times(len(cases))))
    outcomes = [soak.run(f"g7-{number}", way, fault) for number, (way, fault) in enumerate(chosen)]
    wrong = sum(one.complete and not jobs.is_truly_complete(one) for one in outcomes)
    zeros = sum(one.code == 0 and not one.complete for one in outcomes)
    return Row(
        "G7 no silent success",
        "os._exit(0) in a child, a rank, the coordinator",
        f"{len(outcomes)} runs: called complete that were not {wrong} (exit code 0 without being complete: {zeros})",
        wrong == 0,
    )


def it_stops_cleanly(soak: Soak) -> Row:
    """G8: a job manager's signals."""
    slowest, stopped, done, orphans, corrupt = 0.0, 0, 0, 0, 0
    takes_s = {way: soak.run(f"g8-{way}", way).seconds for way in WAYS}
    for number in range(soak.times(24)):
        way, name = soak.draws.choice(sorted(WAYS)), f"g8-{number}"
        told = soak.draws.choice([signal.SIGTERM, signal.SIGUSR1])
        after_s = soak.draws.uniform(0.1, 0.7) * takes_s[way]  # on a shared machine the next may be faster
        outcome = soak.run(name, way, killed_after_s=after_s, number=told)
        stopped += outcome.code == StoppedError.exit_code
        done += outcome.code == 0 and outcome.complete  # before it was told, or so soon that it need not stop
        orphans += len(outcome.orphans)
        slowest = max(slowest, outcome.seconds - after_s)
        corrupt += soak.run(name, way).status is None
    return Row(
        "G8 preemption is clean",
        "SIGTERM or SIGUSR1 to what was started",
        f"{soak.times(24)} runs: code {StoppedError.exit_code} in {stopped}, complete before in {done}, "
        f"slowest {slowest:.1f} s, orphans {orphans}, not resumable {corrupt}",
        stopped + done == soak.times(24) and stopped > done and not orphans and not corrupt and slowest < GRACE_S,
    )


def pytest_says(name: str, *tests: str) -> tuple[str, bool]:
    """Return the last line of a run of tests, and whether all passed."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:warnings", "-o", "addopts=", *tests]
    told = subprocess.run(command, capture_output=True, text=True, timeout=1800, cwd=Path(__file__).parents[2])
    return f"{name}: {told.stdout.strip().splitlines()[-1]}", told.returncode == 0


def a_hostile_model_does_no_harm(soak: Soak) -> Row:
    """G9: the list of bad inputs, and random damage."""
    files = ("test_bad_archives.py", "test_bad_model_files.py", "test_bad_input.py")
    listed, well = pytest_says("the list", *(f"tests/networks/{name}" for name in files))
    folder = soak.place.folder / "g9"
    folder.mkdir()
    fuzz = subprocess.run(
        [sys.executable, "-m", "tests.helpers.fuzz", "0", str(soak.times(1500)), str(folder)],
        capture_output=True,
        text=True,
        timeout=1800,
        cwd=Path(__file__).parents[2],
    )
    last = (fuzz.stdout.strip() or fuzz.stderr.strip()).splitlines()[-1]
    return Row(
        "G9 a hostile model does no harm",
        "every line of the list; random damage of real files",
        f"{listed}; fuzz: {last}",
        well and fuzz.returncode == 0,
    )


def nobody_shares(soak: Soak) -> Row:
    """G10: two runs in one directory, two launchers."""
    said, kept = pytest_says(
        "tests",
        "tests/test_status.py::test_one_run_at_a_time_until_it_ends_however_it_does",
        "tests/pipeline/test_pipeline.py::test_a_second_run_in_the_same_directory_is_refused",
        "tests/executors/test_executors.py::test_the_launcher_of_another_mpi_is_refused",
    )
    return Row("G10 two runs never share a directory; mixed launchers are refused", "both", said, kept)


def nobody_else_gets_in(soak: Soak) -> Row:
    """G11: Dask without TLS."""
    said, kept = pytest_says(
        "tests", "tests/executors/test_dask_refusals.py", "-k", "tls or privacy or insecure or network"
    )
    return Row("G11 nobody else gets in", "Dask beyond loopback without TLS", said, kept)


GUARANTEES: dict[str, Callable[[Soak], Row]] = {
    "G1": nothing_is_lost,
    "G2": a_bad_task_costs_only_itself,
    "G3": it_never_hangs,
    "G4": it_resumes,
    "G5": no_file_is_torn,
    "G6": damage_is_noticed,
    "G7": no_silent_success,
    "G8": it_stops_cleanly,
    "G9": a_hostile_model_does_no_harm,
    "G10": nobody_shares,
    "G11": nobody_else_gets_in,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Try the guarantees and print the table; return the exit code."""
    parser = argparse.ArgumentParser(prog="tests.faults.soak", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--only", nargs="+", choices=GUARANTEES, default=list(GUARANTEES), metavar="G")
    parser.add_argument("--share", type=float, default=1.0, help="of the number of runs")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="keep the runs there")
    settings = parser.parse_args(argv)
    console, began = Console(width=150), time.monotonic()
    table = Table("guarantee", "injected", "figures", "kept")
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as temporary:
        place = Range.at((settings.folder or Path(temporary)) / f"soak-{os.getpid()}")
        for name in settings.only:
            draws = random.Random(f"{settings.seed} {name}")
            rows.append(GUARANTEES[name](Soak(place, draws, settings.share, console)))
            console.print(rows[-1])
    for row in rows:
        table.add_row(row.guarantee, row.injected, row.figures, "yes" if row.kept else "NO")
    console.print(table)
    console.print(f"seed {settings.seed}, {time.monotonic() - began:.0f} s", highlight=False)
    return 0 if all(row.kept for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
