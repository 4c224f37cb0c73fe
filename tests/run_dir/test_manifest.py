"""The record that a run is complete holds the digest of every block."""

import numpy as np
import pytest

from pbd.records import BlockResult
from pbd.run_dir import manifest
from pbd.run_dir.journal import Journal

pytestmark = pytest.mark.fast


@pytest.mark.parametrize("layer", ["conv", ".conv", "stage 1/conv"])
def test_damage_to_the_block_of_any_layer_is_noticed(journal: Journal, layer: str) -> None:
    for name in (*manifest.MODELS, *manifest.TEXTS):
        journal.file(name).touch()
    journal.commit_block(BlockResult(layer, "trained", "two_layer", weights={"a": np.ones(3)}))
    manifest.write(journal)
    assert manifest.damaged(journal) == []
    (block,) = journal.file("blocks").iterdir()
    block.write_bytes(b"")
    assert manifest.damaged(journal) == [f"blocks/{block.name}"]
