"""A run directory, which tests of its files share."""

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pbd.run_dir.journal import Journal

IDENTITY = {"epochs": 8, "layers": ("conv*",), "data": {"dataset": "digits", "seed": 0}}


@pytest.fixture
def journal(tmp_path: Path) -> "Journal":
    from pbd.run_dir.journal import Journal

    return Journal.create(tmp_path / "runs" / "first", IDENTITY)
