"""The rows of the report, made from results: the decision on each layer, and the busy and idle time of each worker."""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from pbd.records import BlockKey, BlockReport, BlockResult, BlockTask, CandidateReport, WorkerReport
from pbd.report import words


def block_rows(
    tasks: Iterable[BlockTask],
    results: Mapping[BlockKey, BlockResult],
    accepted: Mapping[str, BlockResult],
    lowest: float | None,
    restored: Mapping[str, str],
) -> tuple[BlockReport, ...]:
    """Return the report's row of each layer: the decision, its reason, and the measurements.

    Args:
        tasks: the tasks of every convolution and residual block, including skipped ones, those of a layer one after
            another.
        results: the results of the tasks that workers returned.
        accepted: the accepted blocks, by layer.
        lowest: the lowest validation accuracy (without labels, agreement) of an accepted block, in [0, 1]; None if a
            budget decided.
        restored: layers of the teacher that were put back into the student, with the reason.
    """
    rows = []
    for _, of_layer in itertools.groupby(tasks, key=lambda task: task.layer.name):
        candidates = [
            _Candidate(task, results.get(task.key), *_decision(task, results.get(task.key), accepted, lowest, restored))
            for task in of_layer
        ]
        rows.append(_row(min(candidates, key=_Candidate.rank), candidates))
    return tuple(rows)


@dataclass(frozen=True)
class _Candidate:
    """A task, its result, and the decision on it."""

    task: BlockTask
    result: BlockResult | None
    status: str
    reason: str

    def rank(self) -> tuple[int, float]:
        """Return a sort key with which the candidate that stands for its layer comes first."""
        score = self.result.score if self.result is not None else None
        return _RANKS.index(self.status), -score if score is not None else 0.0

    def as_record(self) -> CandidateReport:
        task, result = self.task, self.result
        record = CandidateReport(task.design, self.status, self.reason, task.params, task.macs)
        if result is None:
            return record
        measured = {name: getattr(result, name) for name in _MEASURED}
        return replace(record, **measured, earlier=result.from_journal)


_RANKS = ("accepted", "restored", "rejected", "failed", "skipped")
_MEASURED = ("nmse", "val_accuracy", "val_agreement", "val_kl", "worker", "started_s", "seconds", "predicted_s")


def _decision(
    task: BlockTask,
    result: BlockResult | None,
    accepted: Mapping[str, BlockResult],
    lowest: float | None,
    restored: Mapping[str, str],
) -> tuple[str, str]:
    """Return the status and its reason."""
    if result is None:
        return ("skipped", task.skip_reason) if task.skip_reason else ("failed", "no worker returned it")
    if result.status != "trained":
        return "failed", result.error or "no reason given"
    kept = task.layer.name in accepted and accepted[task.layer.name].key == result.key
    if kept and task.layer.name in restored:
        return "restored", restored[task.layer.name]
    replaced = next((name for name in task.layer.inside if name in accepted), None)
    if replaced is not None and not kept:
        design = accepted[replaced].design
        is_restored = replaced in restored
        change = f"for which {design} was chosen and then restored" if is_restored else f"which is replaced by {design}"
        return "rejected", f"inside {replaced}, {change}"
    if lowest is None:
        return (
            "accepted" if kept else "rejected",
            f"KL {result.val_kl:.4f}, {'' if kept else 'not '}chosen for the budget",
        )
    passed = (result.score or 0.0) >= lowest
    judged = "agreement" if result.val_accuracy is None else "accuracy"
    reason = f"{judged} {result.score:.4f} {'>=' if kept or passed else '<'} {lowest:.4f}"
    if passed and not kept:
        other = accepted.get(task.layer.name)
        reason += (
            f", but {other.design} computes less" if other else ", but the blocks of the layers inside compute less"
        )
    return "accepted" if kept else "rejected", reason


def _row(shown: _Candidate, candidates: Sequence[_Candidate]) -> BlockReport:
    task, result, kept = shown.task, shown.result, shown.status == "accepted"
    return BlockReport(
        layer=task.layer.name,
        status=shown.status,
        reason=shown.reason,
        block=result.design if result else None,
        worker=result.worker if result else None,
        started_s=result.started_s if result else None,
        seconds=result.seconds if result else None,
        nmse=result.nmse if result else None,
        val_accuracy=result.val_accuracy if result else None,
        val_agreement=result.val_agreement if result else None,
        val_kl=result.val_kl if result else None,
        params_before=task.layer.params,
        params_after=task.params if kept else task.layer.params,
        macs_before=task.layer.macs,
        macs_after=task.macs if kept else task.layer.macs,
        loss_history=result.loss_history if result else (),
        nmse_history=result.nmse_history if result else (),
        predicted_s=result.predicted_s if result else None,
        attempts=result.attempts if result else 1,
        energy_j=_energy([each.result for each in candidates if each.result and each.result.status == "trained"]),
        candidates=tuple(each.as_record() for each in candidates),
    )


def _energy(results: Sequence[BlockResult]) -> float | None:
    """Return the sum in joules; `None` if one of the results has no measured energy."""
    joules = [result.energy_j for result in results if result.energy_j is not None]
    return sum(joules) if joules and len(joules) == len(results) else None


def describe_retries(results: Iterable[BlockResult]) -> tuple[str, ...]:
    """Return a line that names the layers whose training was repeated because its process died, if there are any."""
    repeated = [
        result for result in results if result.attempts > 1 and result.status == "trained" and not result.from_journal
    ]
    if not repeated:
        return ()
    most = max(result.attempts for result in repeated)
    return (f"a training process died and its blocks were trained again (up to {most} attempts): {_layers(repeated)}",)


def _layers(results: Sequence[BlockResult]) -> str:
    return words.names([result.layer for result in results])


def worker_rows(results: Sequence[BlockResult], num_workers: int) -> tuple[WorkerReport, ...]:
    """Return how long each worker trained, and how long it waited for the slowest worker.

    The blocks of a group share one start and one duration, which counts once; if all workers trained the group
    together, it counts for each of them. Blocks that were read from the journal do not count.
    """
    trained = [result for result in results if result.worker is not None and not result.from_journal]
    spans = {(result.worker, result.shared, result.started_s, result.seconds) for result in trained}
    busy = [
        sum(seconds for worker, shared, _, seconds in spans if shared or worker == number)
        for number in range(num_workers)
    ]
    makespan = max((started + seconds for _, _, started, seconds in spans), default=0.0)
    peaks = [
        max((r.peak_bytes for r in trained if r.peak_bytes and (r.shared or r.worker == number)), default=None)
        for number in range(num_workers)
    ]
    return tuple(
        WorkerReport(number, seconds, idle_s=max(0.0, makespan - seconds), peak_bytes=peak)
        for number, (seconds, peak) in enumerate(zip(busy, peaks, strict=True))
    )
