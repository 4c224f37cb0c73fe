"""Runs that only compute blocks and students: teacher and files are not checked, and nothing is deployed.

For tests of how blocks and students are computed. With a teacher of random weights what is left out takes a third of
the CPU time of a small run, or more; what it finds is in the report alone. Graphs, which run for a few steps, are
rewritten little.
"""

import os
from types import ModuleType

from tests.helpers import after_import, short_graphs

ENVIRONMENT = "PBD_TESTS_BARE_RUNS"
"""If it is set, the processes of a run with `tests/faults/path` or `tests/helpers/path` on `PYTHONPATH` omit them."""


def install() -> None:
    """Leave them out in this process, which has not loaded their modules yet."""
    after_import.change("pbd.deploy.deployment", _undeployed)
    after_import.change("pbd.deploy.parity", _equal)
    after_import.change("pbd.pipeline.teacher_check", _unchecked)
    after_import.change("pbd.learning.flat_adam", _rewritten_little)  # a part of every training


def install_if_asked() -> None:
    """Leave them out if the environment says so."""
    if ENVIRONMENT in os.environ:
        install()


def _undeployed(deployment: ModuleType) -> None:
    deployment.measure = lambda *_: deployment.Deployed((), ())  # type: ignore[attr-defined]


def _equal(parity: ModuleType) -> None:
    parity.mismatch = lambda *_: None  # type: ignore[attr-defined]


def _unchecked(teacher_check: ModuleType) -> None:
    teacher_check.check = lambda *_: ()  # type: ignore[attr-defined]


def _rewritten_little(_: ModuleType) -> None:
    import keras

    if keras.backend.backend() == "tensorflow":
        short_graphs.rewrite_little()
