"""An environment in which packages cannot be imported, as if they were not installed, in any process below."""

import os
from pathlib import Path

from tests.helpers.cluster import ROOT, environment

_SITECUSTOMIZE = """
import sys

class Hiding:
    def __init__(self, finder):
        self._finder = finder

    def __getattr__(self, name):
        return getattr(self._finder, name)

    def find_spec(self, name, path=None, target=None):
        return None if name.partition(".")[0] in {names!r} else self._finder.find_spec(name, path, target)

sys.meta_path[:] = map(Hiding, sys.meta_path)
"""
"""A module that Python imports as it starts."""


def hiding(*names: str, folder: Path) -> dict[str, str]:
    """Return an environment for processes to which these packages are not installed.

    Args:
        *names: the packages.
        folder: where the module lies that Python imports at its start; an empty folder, or one of modules to find.
    """
    (folder / "sitecustomize.py").write_text(_SITECUSTOMIZE.format(names=names))
    return environment(PYTHONPATH=os.pathsep.join([str(folder), str(ROOT)]))
