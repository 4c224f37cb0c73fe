"""Runs of the tests measure each latency for a moment only; the figures mean nothing then.

A whole run in a process of its own otherwise spends four to eight seconds on them. Processes that have `PATHS` as
`PYTHONPATH` call `install` as they start.
"""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

from tests.helpers import after_import

SHORT_S = 0.01
"""How long each latency is measured."""
ROOT = Path(__file__).resolve().parents[2]
PATHS = os.pathsep.join([str(Path(__file__).with_name("path")), str(ROOT)])
"""For `PYTHONPATH`."""
MODULE = "pbd.deploy.latency"


@contextlib.contextmanager
def here() -> Iterator[None]:
    """Shorten the measurements of this process in the block, and measure no memory."""
    import pytest

    from pbd.deploy import latency, resident

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(latency, "LIMIT_S", SHORT_S)
        patch.setattr(resident, "measure", lambda *_: None)
        yield


def _shorten(module: ModuleType) -> None:
    module.LIMIT_S = SHORT_S  # type: ignore[attr-defined]


def install() -> None:
    """Shorten the measurements of this process, which has not loaded their module yet."""
    after_import.change(MODULE, _shorten)
