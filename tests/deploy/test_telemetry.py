"""Libraries of runtimes send no telemetry."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pbd.deploy import targets
from pbd.deploy.runtimes import base


@pytest.mark.skipif(targets.TARGETS["openvino-int8"].obstacle() is not None, reason="OpenVINO or NNCF is absent")
def test_the_libraries_of_openvino_send_no_telemetry() -> None:
    """It tells a server of every operation of a network, and forks the process for each."""
    for package in ("openvino", "nncf"):
        base.load_package(package)
    assert "openvino_telemetry" not in sys.modules


@pytest.mark.skipif(targets.TARGETS["onnx"].obstacle() is not None, reason="ONNX Runtime is absent")
def test_onnx_runtime_sends_no_telemetry(tmp_path: Path) -> None:
    """It would keep files in folders of the user, and have a thread of its own."""
    places = {"TMPDIR": str(tmp_path / "tmp"), "HOME": str(tmp_path / "home"), "XDG_CACHE_HOME": str(tmp_path / "home")}
    for place in set(places.values()):
        Path(place).mkdir()
    script = "import os\nfrom pbd.deploy.runtimes import base\nbefore = len(os.listdir('/proc/self/task'))\n"
    script += "base.load_package('onnxruntime.quantization')\nprint(len(os.listdir('/proc/self/task')) - before, *"
    script += "(name for name in os.environ if name.startswith('ORT')))"
    done = subprocess.run([sys.executable, "-c", script], env=os.environ | places, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["0"], "no further thread, and the environment as before"
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
