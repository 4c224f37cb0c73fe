"""Refusals of memory limits: what they name is enough, and a smaller batch is named only if it helps."""

import pytest

from pbd import run
from pbd.config import DataConfig, ExecutionConfig
from pbd.costs.memory import GIGABYTE, OVERHEAD, Footprint, TaskMemory
from pbd.records import TaskGroup
from tests.helpers.fakes import make_task
from tests.helpers.remedies import in_message, refusal

TASK = make_task(0)
BATCH = DataConfig().batch_size


def check(config: ExecutionConfig, batch_size: int = BATCH, weights_gb: float = 0.5) -> None:
    """Check a group of one layer: 1.234 GB of activations with the default batch, and the weights."""
    features = int(1.234 * GIGABYTE * batch_size / BATCH)
    part = TaskMemory(features, activations=0, weights=int(weights_gb * GIGABYTE), moment=0)
    footprint = Footprint(-OVERHEAD, {TASK.key: part}, batch_size=batch_size)
    footprint.budget(config.memory_limit).check([TaskGroup((TASK,))], 1, batch_size)


def flags(*words: str) -> tuple[ExecutionConfig, int]:
    config = run.parse(list(words))
    return config.execution, config.data.batch_size


@pytest.mark.parametrize("weights_gb", [0.5, 0.7661, 2.0])
def test_the_memory_that_is_named_is_enough(weights_gb: float) -> None:
    message = refusal(lambda: check(ExecutionConfig(memory_limit=0.7), weights_gb=weights_gb), "Give a higher limit")
    needed = in_message(r"predicted to need ([\d.]+) GB", message)
    check(*flags("--memory-limit", needed), weights_gb=weights_gb)


def test_a_smaller_batch_is_named_only_if_it_helps() -> None:
    limit = ["--memory-limit", "0.7"]
    message = refusal(lambda: check(*flags(*limit)))
    flag, size = in_message(r"or a (--batch-size) below", message), int(in_message(r"below (\d+)\.$", message))
    check(*flags(*limit, flag, str(size // 8)))
    assert "--batch-size" not in refusal(lambda: check(*flags(*limit), weights_gb=0.75))
    refusal(lambda: check(*flags(*limit, flag, "1"), weights_gb=0.75))
