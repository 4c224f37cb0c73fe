"""The digest of a dataset: different if its content differs, the same wherever it lies."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from pbd.data import load
from tests.helpers.image_files import write_bmp, write_images
from tests.helpers.numbered_images import arrays, config

pytestmark = pytest.mark.usefixtures("few_threads")


def test_a_digest_tells_data_apart_by_what_they_hold(npz: Callable[..., Path]) -> None:
    def digest(seed: int = 0, **changes: np.ndarray) -> str:
        return load(config(npz(**changes), batch_size=4), seed).digest()

    whole = arrays()
    pixel, label = whole["x_train"].copy(), whole["y_train"].copy()
    pixel[-1, -1, -1] ^= 1
    label[-1] = (label[-1] + 1) % (label.max() + 1)
    found = [digest(), digest(x_train=pixel), digest(y_train=label), digest(seed=1)]
    assert len(set(found)) == 4
    assert digest() == found[0]


def test_a_folder_is_told_apart_by_its_names_wherever_it_lies(tmp_path: Path) -> None:
    def digest(folder: str) -> str:
        return load(config(tmp_path / folder, batch_size=4), 0, (8, 8, 3)).digest()

    for name in ("here/a", "here/b"):
        write_images(tmp_path / name, kind="png")
    before = digest("here")
    (tmp_path / "here").rename(tmp_path / "there")
    assert digest("there") == before
    write_bmp(tmp_path / "there" / "a" / "one more.bmp")
    assert digest("there") != before
