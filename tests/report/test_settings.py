"""The command in report.html repeats the run."""

import json
import shlex

import pytest

from pbd.config import RunConfig
from pbd.records import RunReport
from pbd.report import settings
from pbd.run import parse
from tests.helpers.report_factory import full_report

pytestmark = pytest.mark.fast


def spoken(report: RunReport) -> list[str]:
    """Return the words of the command as a shell reads them."""
    return shlex.split(settings.command(report).replace("\\\n", ""))


def test_the_command_does_the_run_again() -> None:
    config = RunConfig.of(
        teacher="my model's.keras",
        dataset="<data>.npz",
        labels=False,
        layers=["conv4_*", "^conv4_1"],
        epochs=7,
        max_accuracy_drop=0.05,
        group=False,
        run_dir="old",
        seed=3,
    )
    words = spoken(full_report(config=json.loads(json.dumps(config.flat())), executor="serial"))
    assert words[0] == "pbd-run"
    assert parse(words[1:]) == config.replace(run_dir=None)
    words = spoken(full_report(executor="mpi"))
    assert words[:4] == ["mpirun", "-n", "2", "pbd-run"]
    assert parse(words[4:]) == RunConfig.of(teacher="VGG16", epochs=5, layers=["conv*", "^conv1"])
