"""The timeline of the block phase: which worker trained which group of layers when; and the phases of the run."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass

from pbd.records import BlockReport, CandidateReport, RunReport
from pbd.report.plots import Bar, Tick, axis

DATA_PARALLEL = "shared"
"""The name of the scheduler if all workers train every group, each on its part of every batch."""

_Block = BlockReport | CandidateReport
"""What has the times of a block."""


@dataclass(frozen=True)
class Group:
    """Layers that were trained in one pass, by `worker` or, if data parallel, by all workers."""

    worker: int
    layers: tuple[str, ...]
    started_s: float
    seconds: float
    predicted_s: float | None
    failed: bool

    @property
    def label(self) -> str:
        return self.layers[0] if len(self.layers) == 1 else f"{len(self.layers)} layers: {', '.join(self.layers)}"

    @property
    def off(self) -> float | None:
        """The relative error of the predicted time: 0.1 if it was 10% too long."""
        return None if self.predicted_s is None else self.predicted_s / self.seconds - 1


@dataclass(frozen=True)
class Lane:
    """The block phase of one worker."""

    worker: int
    busy_s: float
    idle_s: float
    peak_bytes: int | None
    busy_j: float | None
    idle_j: float | None
    bars: tuple[Bar, ...]


@dataclass(frozen=True)
class Timeline:
    """The block phase: its groups, and a lane for each worker."""

    groups: tuple[Group, ...]
    lanes: tuple[Lane, ...]
    length_s: float
    ticks: tuple[Tick, ...]
    """Positions are percentages of `length_s`."""
    earlier: tuple[str, ...]
    """Layers with blocks that were trained before the run was resumed; their times belong to another session."""


def of(report: RunReport) -> Timeline:
    """Return the timeline of the session that wrote the report."""
    groups = _groups(report)
    length_s = max((group.started_s + group.seconds for group in groups), default=0.0)
    lanes = tuple(Lane(**asdict(row), bars=_bars(report, groups, row.worker, length_s)) for row in report.workers)
    earlier = dict.fromkeys(layer for layer, _, now in _trained(report) if not now)
    return Timeline(groups, lanes, length_s, tuple(axis(length_s, " s")), tuple(earlier))


def _groups(report: RunReport) -> tuple[Group, ...]:
    """Return the groups in order of their start; blocks with one worker, start and duration are one group."""
    by_pass: dict[tuple[float, int, float], list[tuple[str, _Block]]] = {}
    for layer, block, now in _trained(report):
        if now and block.seconds and block.worker is not None:
            by_pass.setdefault((block.started_s or 0.0, block.worker, block.seconds), []).append((layer, block))
    return tuple(
        Group(
            worker,
            layers=tuple(dict.fromkeys(layer for layer, _ in trained)),
            started_s=started_s,
            seconds=seconds,
            predicted_s=trained[0][1].predicted_s,
            failed=any(block.status == "failed" for _, block in trained),
        )
        for (started_s, worker, seconds), trained in sorted(by_pass.items(), key=lambda item: item[0])
    )


def _trained(report: RunReport) -> Iterator[tuple[str, _Block, bool]]:
    """Yield each block that was trained, with its layer, and whether this session trained it.

    The candidates of reports of earlier versions have no times; their rows have.
    """
    scheduled = {name for group in report.groups for name in group}
    for row in report.blocks:
        timed = [candidate for candidate in row.candidates if candidate.seconds]
        for candidate in timed:
            yield row.layer, candidate, not candidate.earlier
        if not timed and row.seconds:
            yield row.layer, row, row.layer in scheduled


def _bars(report: RunReport, groups: tuple[Group, ...], worker: int, length_s: float) -> tuple[Bar, ...]:
    def percent(seconds: float) -> float:
        return 100 * seconds / length_s

    return tuple(
        Bar(
            group.label,
            start=percent(group.started_s),
            length=percent(group.seconds),
            expected=None if group.predicted_s is None else percent(min(group.predicted_s, length_s - group.started_s)),
            kind="failed" if group.failed else "",
        )
        for group in groups
        if group.worker == worker or report.scheduler == DATA_PARALLEL
    )


def phases(report: RunReport) -> list[tuple[str, float]]:
    """Return the phases of the run and their seconds, in order; the rest of the total is the last phase."""
    timing = report.timing
    named = [
        ("teacher and data", timing.teacher_s),
        ("prediction of times", timing.calibrate_s),
        ("blocks", timing.distill_s),
        ("student and fine-tuning", timing.fine_tune_s),
    ]
    return [*named, ("test and latency", max(0.0, timing.total_s - sum(seconds for _, seconds in named)))]
