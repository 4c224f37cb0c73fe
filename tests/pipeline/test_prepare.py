"""What is refused before anything is loaded or trained."""

from typing import Any

import pytest

from pbd.config import RunConfig
from pbd.errors import UsageError
from pbd.pipeline.prepare import check_design


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"block": "two_layers"}, "Did you mean 'two_layer'?"),
        ({"block": "decoupled_r4"}, "Did you mean 'decoupled_r"),
        ({"parallel": "data", "block": "two_layer"}, "block two_layer. Give --parallel task"),
    ],
)
def test_a_block_design_that_does_not_fit_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        check_design(RunConfig.of(**settings))
    check_design(RunConfig.of(parallel="data", block="decoupled_r1"))
