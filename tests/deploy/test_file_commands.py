"""Data of the commands that write files: by default those of the run whose folder holds the model."""

import argparse
import json
from pathlib import Path

import pytest

from pbd.config import RunConfig
from pbd.deploy import file_commands


@pytest.mark.parametrize("split_seed", [None, 5])
def test_the_splits_are_those_of_the_run(split_seed: int | None, tmp_path: Path) -> None:
    config = RunConfig.of(seed=3, split_seed=split_seed, batch_size=16).flat()
    if split_seed is None:
        del config["split_seed"]  # as in reports of earlier versions
    (tmp_path / "report.json").write_text(json.dumps({"config": config}), encoding="utf-8")
    read = file_commands.read(argparse.Namespace(model=str(tmp_path / "student.keras"), dataset=None))
    assert read is not None
    assert (read.data.config.split_seed, read.seed, read.data.batch_size) == (split_seed, 3, 16)
