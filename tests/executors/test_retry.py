"""Blocks whose training process was lost at every attempt."""

import pytest

from pbd.executors.isolation.retry import failed_results
from pbd.records import TaskGroup
from pbd.scheduling.retry import MOST_ATTEMPTS
from tests.helpers.fakes import make_task

pytestmark = pytest.mark.fast


def test_a_block_that_failed_has_the_attempts_that_its_error_names() -> None:
    (result,) = failed_results(TaskGroup((make_task(0),), attempt=MOST_ATTEMPTS), "the process was lost")
    assert (result.status, result.attempts) == ("failed", MOST_ATTEMPTS)
    assert f"{MOST_ATTEMPTS} attempts" in str(result.error)
