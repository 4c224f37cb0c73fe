"""Keys of blocks as text."""

import pytest

from pbd.records import BlockKey, TaskGroup
from tests.helpers.fakes import make_task

pytestmark = pytest.mark.fast


@pytest.mark.parametrize("layer", ["conv", "a/b:0", "at@home", "spaced name"])
def test_a_key_is_read_from_its_text(layer: str) -> None:
    key = BlockKey(layer, "two_layer")
    assert BlockKey.parse(str(key)) == key


def test_a_group_holds_a_task_once_and_a_layer_several_times() -> None:
    one, other = make_task(0), make_task(0, design="decoupled_r1")
    assert TaskGroup((one, other)).layer_names == ("conv0",)
    with pytest.raises(ValueError, match=r"holds a task once.*conv0@two_layer"):
        TaskGroup((one, one))
