"""The points at which faults are injected are functions of pbd, wherever they have been moved to."""

import functools
import importlib

import pytest

from tests.faults.injection import POINTS, RECORDED


@pytest.mark.parametrize("point", [*POINTS, *RECORDED])
def test_a_point_is_a_function(point: str) -> None:
    module, name = (POINTS | RECORDED)[point]
    assert callable(functools.reduce(getattr, name.split("."), importlib.import_module(module)))
