"""Which blocks are kept and why; who was busy and who waited. Pure functions from results to the report's rows."""

from collections.abc import Iterable, Sequence

from pbd.records import BlockReport, BlockResult, LayerTask, WorkerReport


def accept(results: Iterable[BlockResult], lowest_accuracy: float) -> dict[str, BlockResult]:
    """Return the trained blocks whose swapped-in validation accuracy reaches the threshold, by layer."""
    return {
        result.layer_name: result
        for result in results
        if result.status == "trained" and result.val_accuracy is not None and result.val_accuracy >= lowest_accuracy
    }


def block_rows(
    tasks: Iterable[LayerTask], results: dict[str, BlockResult], lowest_accuracy: float
) -> tuple[BlockReport, ...]:
    """Return the report's row of each task: what was decided about it, and what that rests on.

    Args:
        tasks: every convolution, the skipped ones included.
        results: what came of each task that was trained, by layer.
        lowest_accuracy: the validation accuracy that a block had to reach, a fraction.
    """
    accepted = accept(results.values(), lowest_accuracy)
    return tuple(
        _row(task, results.get(task.layer_name), task.layer_name in accepted, lowest_accuracy) for task in tasks
    )


def _row(task: LayerTask, result: BlockResult | None, kept: bool, lowest_accuracy: float) -> BlockReport:
    if result is None:
        status, reason = ("skipped", task.skip_reason) if task.skip_reason else ("failed", "no worker returned it")
    elif result.status != "trained":
        status, reason = "failed", result.error or "no reason given"
    else:
        status = "accepted" if kept else "rejected"
        reason = f"accuracy {result.val_accuracy:.4f} {'>=' if kept else '<'} {lowest_accuracy:.4f}"
    return BlockReport(
        layer=task.layer_name,
        status=status,
        reason=reason or "",
        block=result.block if result else None,
        worker=result.worker if result else None,
        started_s=result.started_s if result else None,
        seconds=result.seconds if result else None,
        nmse=result.nmse if result else None,
        val_accuracy=result.val_accuracy if result else None,
        params_before=task.layer_params,
        params_after=task.block_params if kept else task.layer_params,
        macs_before=task.layer_macs,
        macs_after=task.block_macs if kept else task.layer_macs,
        loss_history=result.loss_history if result else (),
    )


def worker_rows(results: Sequence[BlockResult], num_workers: int) -> tuple[WorkerReport, ...]:
    """Return how long each worker trained, and how long it waited for the slowest.

    The blocks of a group share one start and one duration, which counts once.
    """
    spans = {(result.worker, result.started_s, result.seconds) for result in results if result.worker is not None}
    busy = [sum(seconds for worker, _, seconds in spans if worker == number) for number in range(num_workers)]
    makespan = max((started + seconds for _, started, seconds in spans), default=0.0)
    return tuple(
        WorkerReport(number, busy_s=seconds, idle_s=max(0.0, makespan - seconds)) for number, seconds in enumerate(busy)
    )
