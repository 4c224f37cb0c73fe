"""For tests that follow the remedy of a refusal: the message, and what it names."""

import re
from collections.abc import Callable

import pytest

from pbd.errors import PbdError


def refusal(action: Callable[[], object], *remedies: str) -> str:
    """Return the message with which an action is refused: one line, with these remedies in it."""
    with pytest.raises(PbdError) as caught:
        action()
    message = str(caught.value)
    assert "\n" not in message
    for remedy in remedies:
        assert remedy in message
    return message


def in_message(pattern: str, message: str) -> str:
    """Return what the group of a pattern matches in a message."""
    match = re.search(pattern, message)
    assert match is not None, message
    return match[1]
