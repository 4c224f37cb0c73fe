"""Runs of the tests measure each latency for a moment only; the figures mean nothing then.

A whole run in a process of its own otherwise spends four to eight seconds on them. Processes that have `PATHS` as
`PYTHONPATH` call `install` as they start.
"""

import importlib.abc
import importlib.machinery
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

SHORT_S = 0.01
"""How long each latency is measured."""
ROOT = Path(__file__).resolve().parents[2]
PATHS = os.pathsep.join([str(Path(__file__).with_name("path")), str(ROOT)])
"""For `PYTHONPATH`."""
MODULE = "pbd.deploy.latency"


class _Finder(importlib.abc.MetaPathFinder):
    """Finds modules as ever, and shortens the measurement once its module is loaded."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        spec = importlib.machinery.PathFinder.find_spec(name, path, target) if name == MODULE else None
        if spec is None or spec.loader is None:
            return None
        load = spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            load(module)
            module.LIMIT_S = SHORT_S  # type: ignore[attr-defined]

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


def install() -> None:
    """Shorten the measurements of this process, which has not loaded their module yet."""
    assert MODULE not in sys.modules
    sys.meta_path.insert(0, _Finder())
