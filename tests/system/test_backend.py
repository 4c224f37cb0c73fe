"""Which backend Keras gets: the user's, Keras' own choice if it is installed, or else one that is installed."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pbd.errors import EnvironmentMismatchError
from pbd.executors.isolation.child import Child
from pbd.system import backend, devices, memory
from pbd.system.keras_state import KerasSetup
from tests.helpers.cluster import PATIENCE_S
from tests.helpers.hiding import hiding

pytestmark = pytest.mark.fast

Host = Callable[..., None]


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Host:
    """Return a function that sets what is installed, what the environment names, and Keras' configuration file."""

    def prepare(installed: tuple[str, ...], variable: str | None = None, configured: str | None = None) -> None:
        monkeypatch.delitem(sys.modules, "keras", raising=False)
        monkeypatch.setenv("KERAS_HOME", str(tmp_path))
        monkeypatch.setenv("KERAS_BACKEND", variable or "")  # so that it is put back afterwards
        if variable is None:
            monkeypatch.delenv("KERAS_BACKEND")
        if configured is not None:
            (tmp_path / "keras.json").write_text(json.dumps({"backend": configured}))
        monkeypatch.setattr(backend, "is_installed", lambda package: package in installed)

    return prepare


@pytest.mark.parametrize(
    ("installed", "variable", "configured", "chosen"),
    [
        (("tensorflow", "jax", "torch"), None, None, "tensorflow"),
        (("jax", "torch"), None, None, "jax"),
        (("torch",), None, None, "torch"),
        (("torch",), None, "tensorflow", "torch"),  # Keras writes this file itself
        (("tensorflow", "torch"), None, "torch", "torch"),
        (("tensorflow",), None, "jax", "tensorflow"),
        (("tensorflow", "jax"), "torch", "jax", "torch"),  # Keras' import then says what is missing
        ((), None, None, "tensorflow"),
    ],
)
def test_a_missing_backend_is_replaced_by_an_installed_one(
    host: Host, installed: tuple[str, ...], variable: str | None, configured: str | None, chosen: str
) -> None:
    host(installed, variable, configured)
    backend.choose()
    assert backend.name() == chosen
    if variable is None and (configured or "tensorflow") in installed:
        assert "KERAS_BACKEND" not in os.environ, "the environment is left alone where Keras works without"


def test_a_worker_takes_the_backend_of_its_coordinator(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    host(("tensorflow", "jax"))
    backend.use("tensorflow")
    assert "KERAS_BACKEND" not in os.environ
    backend.use("jax")
    assert backend.name() == "jax"
    monkeypatch.setitem(sys.modules, "keras", object())
    with pytest.raises(EnvironmentMismatchError, match="Start the workers again with KERAS_BACKEND=torch"):
        backend.use("torch")


@pytest.fixture
def child(monkeypatch: pytest.MonkeyPatch) -> Iterator[Child]:
    monkeypatch.setenv("TF_CPP_MIN_LOG_LEVEL", "0")  # then no backend is loaded
    child = Child(devices.Share(threads=1), 60.0, KerasSetup(backend="torch"))
    yield child
    child.close()


def test_a_training_process_has_the_backend_of_its_setup(child: Child) -> None:
    def backend_of_process(*_: object) -> str | None:
        return os.environ.get("KERAS_BACKEND")

    assert child.run(backend_of_process, lambda event: None) == "torch"


def test_importing_pbd_chooses_and_loads_nothing(tmp_path: Path) -> None:
    """TensorFlow is hidden; another backend is played by a package that cannot be loaded."""
    (tmp_path / "jax.py").write_text("raise AssertionError('loaded')")
    program = "import os, sys, pbd; assert 'keras' not in sys.modules; print(os.environ['KERAS_BACKEND'])"
    environment = hiding("tensorflow", folder=tmp_path) | {"KERAS_HOME": str(tmp_path)}
    environment.pop("KERAS_BACKEND", None)
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=PATIENCE_S
    )
    assert done.stdout.strip() == "jax", done.stderr


class Accelerator:
    """A device of JAX."""

    @staticmethod
    def memory_stats() -> dict[str, int]:
        return {"bytes_in_use": 3, "peak_bytes_in_use": 5, "bytes_limit": 9}


def test_memory_of_an_accelerator_is_what_its_backend_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "has_accelerator", lambda: True)
    jax = type(sys)("jax")
    jax.local_devices = lambda: [Accelerator()]
    torch = type(sys)("torch")
    torch.cuda = type(sys)("cuda")
    torch.cuda.memory_allocated, torch.cuda.max_memory_allocated = (lambda: 1), (lambda: 2)
    for name, module, expected in (("jax", jax, (3, 5)), ("torch", torch, (1, 2)), ("another", None, (0, 0))):
        monkeypatch.setattr(backend, "name", lambda name=name: name)
        monkeypatch.setitem(sys.modules, name, module)
        assert (memory.memory_in_use(), memory.peak_memory()) == expected


def test_only_jax_compiles_on_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled = {}
    for accelerator in (False, True):
        monkeypatch.setattr(devices, "has_accelerator", lambda accelerator=accelerator: accelerator)
        for name in backend.PREFERRED:
            monkeypatch.setattr(backend, "name", lambda name=name: name)
            compiled[name, accelerator] = devices.compiles_with_xla()
    assert [key for key, each in compiled.items() if each] == [("jax", False), ("tensorflow", True), ("jax", True)]
