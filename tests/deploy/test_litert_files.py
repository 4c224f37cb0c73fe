"""Compact LiteRT files."""

from pathlib import Path

import numpy as np
import pytest

import pbd
from pbd.deploy import targets
from pbd.deploy.runtimes import litert_files
from tests.deploy.small_networks import classifier, data, images


def test_a_compact_file_computes_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = targets.TARGETS["litert-int8"]
    if target.obstacle():
        pytest.skip(str(target.obstacle()))
    compact = litert_files.compact
    monkeypatch.setattr(litert_files, "compact", lambda path: None)
    path, model = tmp_path / "a.tflite", classifier()
    pbd.quantize(model, data(model), path, max_drop=1.0)
    pixels, size = images(8).astype(np.float32), path.stat().st_size
    outputs = target.load(path, 1)(pixels)
    compact(path)
    assert path.stat().st_size < 0.9 * size
    assert np.array_equal(target.load(path, 1)(pixels), outputs)

    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(str(path))
    assert all(each["name"] for each in (*interpreter.get_input_details(), *interpreter.get_output_details()))
    ((_, tensors),) = interpreter.get_signature_list().items()
    assert tensors["inputs"] == ["image"]
