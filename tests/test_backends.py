"""Runs on the other backends of Keras, to whose processes TensorFlow is not installed."""

import subprocess
import sys
from pathlib import Path

import pytest

from pbd.system import backend
from tests.helpers.cluster import PATIENCE_S, report_of
from tests.helpers.hiding import hiding

pytestmark = pytest.mark.system

DIGITS = ["--teacher-epochs", "3", "--epochs", "1", "--fine-tune-epochs", "1", "--fine-tune-learning-rate", "0.0001"]
DIGITS += ["--block", "decoupled_r2", "--train-limit", "160", "--batch-size", "32"]
DIGITS += ["--layers", "conv3_1", "conv3_2", "--threads-per-worker", "1"]
PROGRAM = """
import sys
from pbd import run
from tests.helpers import short_latencies
short_latencies.install()
code = run.command(sys.argv[1:])
assert "tensorflow" not in sys.modules, "a run on another backend loads no TensorFlow"
sys.exit(code)
"""
QUICK = {"XLA_FLAGS": "--xla_backend_optimization_level=1 --xla_llvm_disable_expensive_passes=true"}
"""Most of a short run on JAX is compiling."""


def others() -> list[object]:
    """Return the backends other than TensorFlow, as parameters; those that are not installed are skipped."""
    return [
        pytest.param(name, marks=pytest.mark.skipif(not backend.is_installed(name), reason=f"{name} is absent"))
        for name in ("jax", "torch")
    ]


@pytest.mark.parametrize("name", others())
def test_the_digits_are_compressed_without_tensorflow(name: str, tmp_path: Path) -> None:
    """The network is built, trained, compressed, fine-tuned and measured; in Keras, since TensorFlow writes files."""
    site, run_dir = tmp_path / "site", tmp_path / "run"
    site.mkdir()
    environment = hiding("tensorflow", *({"jax", "torch"} - {name}), folder=site)
    environment |= {"XDG_CACHE_HOME": str(tmp_path), "KERAS_HOME": str(tmp_path)} | QUICK
    environment.pop("KERAS_BACKEND", None)  # it is found
    command = [sys.executable, "-c", PROGRAM, *DIGITS, "--allow-weak-teacher", "--run-dir", str(run_dir)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=PATIENCE_S)
    assert done.returncode == 0, done.stderr
    report = report_of(run_dir)
    assert [block["status"] for block in report["blocks"] if block["layer"].startswith("conv3")] == ["accepted"] * 2
    assert (run_dir / "student.keras").is_file()
    assert f"({name})" in report["device"]
    assert name in report["versions"]
    assert "tensorflow" not in report["versions"]
    assert {row["target"] for row in report["deployments"]} == {"keras"}
    assert ["pip install 'pbd[cpu,openvino]'" in event for event in report["events"][-1:]] == [True]
