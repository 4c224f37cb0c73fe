"""Refusals of cost tables, schedulers and numbers of workers: each remedy is followed, and works."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from pbd import run
from pbd.records import BlockKey
from pbd.scheduling import schedulers, simulate
from pbd.scheduling.cost_model import TaskCosts
from pbd.scheduling.cost_table import read_requested
from tests.helpers.remedies import in_message, refusal
from tests.scheduling.test_cost_model import BLOCK_S, CONDITIONS, PREFIX_S, TABLE, TASKS

pytestmark = pytest.mark.fast

KEYS = tuple(TABLE.tasks)
COSTS = TaskCosts(PREFIX_S, BLOCK_S, True, "test")


def use(costs: str, keys: tuple[BlockKey, ...] = KEYS) -> None:
    """Read the costs that a run asks for, and check that they are those of its tasks."""
    table = read_requested(costs)
    if table is not None:
        table.check(CONDITIONS, keys)


def write(path: Path, **changes: object) -> str:
    path.write_text(json.dumps(TABLE.as_json() | changes))
    return str(path)


@pytest.mark.parametrize(
    ("change", "remedy"),
    [
        ({"teacher": "ffff"}, "or a table of such a run."),
        ({"batch_size": 64}, "or a table of such a run."),
        ({"tasks": {}}, "or a table of a run that trained them."),
        ({"version": 0}, "Give --costs calibrate."),
    ],
)
def test_costs_are_calibrated_or_come_from_such_a_run(change: dict[str, object], remedy: str, tmp_path: Path) -> None:
    message = refusal(lambda: use(write(tmp_path / "other.json", **change)), remedy)
    use(run.parse(in_message(r"Give (--costs calibrate)", message).split()).execution.costs)
    use(write(tmp_path / "costs.json"))


def test_a_table_that_is_not_there_is_looked_for_elsewhere(tmp_path: Path) -> None:
    message = refusal(lambda: use(str(tmp_path / "absent.json")), "Check the path.")
    use(write(tmp_path / "costs.json"))
    for source in in_message(r"must be (.*) or a costs\.json", message).split(", "):
        use(source)


Action = Callable[[int], object]


@pytest.mark.parametrize(
    ("action", "remedy", "followed"),
    [
        (lambda workers: schedulers.SCHEDULERS["wfd"](TASKS, COSTS, workers), "Give --workers 1 or more.", 1),
        (lambda workers: simulate.lower_bound_s(TASKS, COSTS, workers), "Give at least one.", 1),
    ],
)
def test_there_is_a_worker(action: Action, remedy: str, followed: int) -> None:
    refusal(lambda: action(0), remedy)
    action(followed)


def test_a_scheduler_is_named_as_it_is_called() -> None:
    message = refusal(lambda: schedulers.choose("contigous", True, False))
    assert schedulers.choose(in_message(r"Did you mean '(\w+)'", message), True, False)
