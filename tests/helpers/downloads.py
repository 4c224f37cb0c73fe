"""Downloads of Keras on a host without a network, with an empty cache."""

import contextlib
import sys
import urllib.error
from collections.abc import Iterator
from pathlib import Path

import keras
import pytest


@contextlib.contextmanager
def no_network(keras_home: Path) -> Iterator[list[str]]:
    """Let downloads fail until the block ends; yield the list of their URLs. Any file in the cache passes as whole."""
    files, asked = sys.modules[keras.utils.get_file.__module__], list[str]()

    def unreachable(url: str, *_: object) -> None:
        asked.append(url)
        raise urllib.error.URLError(OSError(-3, "Temporary failure in name resolution"))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "urlretrieve", unreachable)
        patch.setattr(files, "validate_file", lambda *_, **__: True)
        patch.setattr(files.config, "keras_home", lambda: str(keras_home))
        yield asked
