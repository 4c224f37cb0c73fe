"""What a worker loads: once for all steps of a recipe and all members of an ensemble."""

from pathlib import Path

import numpy as np
import pytest

from pbd import data
from pbd.blockwise import context
from pbd.config import DataConfig
from pbd.run_dir import damaged_images
from pbd.run_dir.journal import Journal

SHAPE = (32, 32, 1)


def test_images_are_loaded_once_for_several_folders_and_seeds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[DataConfig] = []
    monkeypatch.setattr(
        context, "load_data", lambda config, *a, **k: loaded.append(config) or data.load(config, *a, **k)
    )
    context.forget()
    config, member = DataConfig(dataset="digits"), DataConfig(dataset="digits", split_seed=3)
    first = context.load_dataset(config, 3, SHAPE, "session", Journal(tmp_path / "one"))
    again = context.load_dataset(config, 3, SHAPE, "session", Journal(tmp_path / "two"))
    other_order = context.load_dataset(member, 4, SHAPE, "session", Journal(tmp_path / "two"))
    assert len(loaded) == 1
    assert (first.seed, again.seed, other_order.seed) == (3, 3, 4)
    expected = data.load(config, 3, SHAPE)
    for dataset in (first, again, other_order):
        assert dataset.train.images is first.train.images
        np.testing.assert_array_equal(dataset.validation.rows, expected.validation.rows)
    context.load_dataset(config, 4, SHAPE, "session", Journal(tmp_path / "one"))
    context.load_dataset(config, 4, SHAPE, "another", Journal(tmp_path / "one"))
    assert len(loaded) == 3, "other splits, another session"
    context.forget()


def test_damaged_files_are_noted_in_the_folder_of_each_step(tmp_path: Path) -> None:
    from PIL import Image

    for name in ("a", "b"):
        (tmp_path / "images" / name).mkdir(parents=True)
        for number in range(20):
            Image.new("L", (32, 32), number).save(tmp_path / "images" / name / f"{number}.png")
    config = DataConfig(dataset=str(tmp_path / "images"), batch_size=4)
    journals = [Journal.create(str(tmp_path / name), {}) for name in ("one", "two")]
    context.forget()
    dataset = context.load_dataset(config, 0, SHAPE, "session", journals[0])
    dataset.train.images.damaged.add("broken.png")
    context.load_dataset(config, 0, SHAPE, "session", journals[1])
    for journal in journals:
        assert "broken.png" in damaged_images.events(journal)[0]
    context.forget()
