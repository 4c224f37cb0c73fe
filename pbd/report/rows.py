"""The rows of the report, made from results: the decision on each layer, and the busy and idle time of each worker."""

from collections.abc import Iterable, Mapping, Sequence

from pbd.records import BlockKey, BlockReport, BlockResult, BlockTask, WorkerReport
from pbd.report import words


def block_rows(
    tasks: Iterable[BlockTask],
    results: Mapping[BlockKey, BlockResult],
    accepted: Mapping[str, BlockResult],
    lowest: float,
    restored: Mapping[str, str],
) -> tuple[BlockReport, ...]:
    """Return the report's row of each task: the decision, its reason, and the measurements.

    Args:
        tasks: of every convolution, including the skipped ones.
        results: of the tasks that workers returned.
        accepted: the accepted blocks, by layer.
        lowest: the lowest validation accuracy (without labels, agreement) of an accepted block, in [0, 1].
        restored: layers of the teacher that were put back into the student, with the reason.
    """
    rows = []
    for task in tasks:
        name, result = task.layer.name, results.get(task.key)
        kept = result is not None and accepted.get(name) is result
        status, reason = _decision(task, result, kept, lowest)
        if name in restored:
            status, reason = "given_back", restored[name]
        rows.append(_row(task, result, status, reason))
    return tuple(rows)


def _decision(task: BlockTask, result: BlockResult | None, kept: bool, lowest: float) -> tuple[str, str]:
    """Return the status and its reason."""
    if result is None:
        return ("skipped", task.skip_reason) if task.skip_reason else ("failed", "no worker returned it")
    if result.status != "trained":
        return "failed", result.error or "no reason given"
    judged = "agreement" if result.val_accuracy is None else "accuracy"
    return "accepted" if kept else "rejected", f"{judged} {result.score:.4f} {'>=' if kept else '<'} {lowest:.4f}"


def _row(task: BlockTask, result: BlockResult | None, status: str, reason: str) -> BlockReport:
    kept = status == "accepted"
    return BlockReport(
        layer=task.layer.name,
        status=status,
        reason=reason,
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
        energy_j=result.energy_j if result else None,
    )


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
